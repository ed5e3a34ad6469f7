"""The whole flow: a scan and sentences in, masks on the scan's own grid out."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import textseg
from tests.dataset.two_channel_model import write_pet_ct_model
from tests.tiny_model import TEXT_WIDTH, write_tiny_model
from textseg.device import Compute, NotEnoughMemoryError
from textseg.errors import ModelError, PlanError, PromptError, ScanError
from textseg.geometry import AxisOrder, Box, Geometry
from textseg.inference import Segmenter, segment, understand_all
from textseg.plan import PLAN_FILE, read_plan, write_plan
from textseg.resample import resample
from textseg.sliding import Answer
from textseg.volume import Volume

SHAPE = (30, 36, 20)
# A reorientation as scanners write it: sagittal slices, and an axial stack from head to foot.
COPIES = [
    AxisOrder((0, 1, 2), (False, False, False)),
    AxisOrder((1, 2, 0), (True, True, False)),
    AxisOrder((0, 1, 2), (True, True, True)),
]
BRIGHT = (slice(6, 16), slice(14, 25), slice(5, 12))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def segmenter(model):
    segmenter = Segmenter(model, device="cpu")
    # The same on every processor.
    segmenter.compute = Compute(torch.device("cpu"), torch.float32)
    return segmenter


@pytest.fixture(scope="module")
def geometry():
    affine = np.array([[2.0, 0.3, 0, -31], [-0.4, 2.2, 0, 12], [0.1, 0, 3.0, 400], [0, 0, 0, 1]])
    straight = Geometry(SHAPE, affine).right_angled()
    return Geometry(SHAPE, straight.affine)


@pytest.fixture(scope="module")
def hounsfield():
    """A body of noise in air with a bright block in it, off the centre."""
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[2:-4, 3:-2, 1:-2] = np.random.default_rng(5).integers(-80, 80, (24, 31, 17))
    voxels[BRIGHT] = 900
    return voxels


@pytest.fixture
def volume(hounsfield, geometry):
    return Volume(hounsfield, geometry)


class Bright:
    """In place of the windows: what is bright, a little brighter for longer words, and present as told."""

    def __init__(self, presence=0.9):
        self.presence = presence
        self.images = []
        self.texts = []

    def __call__(self, network, image, text, plan, compute, progress=None, *rest):
        self.images.append(image)
        self.texts.append(text)
        if progress:
            progress(1, 1)
        logits = image[:1] - 1.5 - 0.1 * text[:, 0, None, None, None]
        return Answer(logits, torch.full((len(text),), self.presence))


class Lengths:
    """A text encoder that counts letters."""

    name, width = "lengths", TEXT_WIDTH

    def embed(self, texts):
        return torch.tensor([[float(len(text))] * TEXT_WIDTH for text in texts])


@pytest.fixture
def bright(monkeypatch):
    stub = Bright()
    monkeypatch.setattr("textseg.inference.segment_windows", stub)
    return stub


def save_nifti(path, voxels, geometry):
    nib.save(nib.Nifti1Image(voxels, geometry.affine), path)
    return path


# ---- one scan in many shapes ----


def test_a_scan_gets_the_same_masks_in_every_orientation(segmenter, hounsfield, geometry, tmp_path):
    masks = []
    for number, order in enumerate(COPIES):
        copy = geometry.reordered(order)
        path = save_nifti(tmp_path / f"scan{number}.nii.gz", order.apply(hounsfield), copy)
        result = segmenter(path, ["liver", "left kidney"])
        assert result.masks.shape == (2, *copy.shape)
        assert result.geometry.is_close(copy)
        masks.append(np.stack([order.inverse().apply(mask) for mask in result.masks]))
    # Random weights tell all directions apart; half a body of anything else would agree by chance.
    assert 50 < masks[0][0].sum() < masks[0][0].size - 50
    assert not np.array_equal(masks[0][0], masks[0][1])
    assert np.array_equal(masks[1], masks[0])
    assert np.array_equal(masks[2], masks[0])


def test_what_is_bright_is_found_where_it_is(segmenter, bright, volume, hounsfield, geometry):
    for order in COPIES:
        copy = Volume(order.apply(hounsfield), geometry.reordered(order))
        (found,) = segmenter(copy, "liver").found
        assert found.is_there
        middle = geometry.to_world((10.5, 19, 8))
        assert found.mask.centroid_mm == pytest.approx(tuple(middle), abs=1)
        expected = 10 * 11 * 7 * geometry.voxel_volume_mm3 / 1000
        assert found.mask.volume_ml == pytest.approx(expected, rel=0.2)


def test_a_volume_in_memory_is_as_good_as_a_file(segmenter, volume, hounsfield, geometry, tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", hounsfield, geometry)
    from_file, in_memory = segmenter(str(path), "spleen"), segmenter(volume, "spleen")
    assert np.array_equal(from_file.masks, in_memory.masks)
    assert from_file.volume.file.stem == "scan"
    assert in_memory.volume is volume


def test_segment_is_a_segmenter_used_once(model, volume):
    once = segment(volume, "spleen", model=model, device="cpu")
    again = Segmenter(model, device="cpu")(volume, ["spleen"])
    assert np.array_equal(once.masks, again.masks)
    assert once.masks.dtype == bool
    assert textseg.segment is segment


# ---- prompts ----


def test_prompts_of_groups_with_different_spacings_are_asked_in_one_call(model, bright, volume):
    segmenter = Segmenter(model, device="cpu", text_encoder=Lengths())
    result = segmenter(volume, ["liver", "brain", "left kidney", "hippocampus"])
    # Torso at 3 mm, and everything in the head at 1.5 mm: each image is prepared once.
    assert [len(text) for text in bright.texts] == [2, 2]
    coarse, fine = (image.shape[1:] for image in bright.images)
    assert all(n > 1.5 * m for n, m in zip(fine, coarse, strict=True))
    for index, prompt in enumerate(["liver", "brain", "left kidney", "hippocampus"]):
        assert result.found[index].prompt.text == prompt
        assert np.array_equal(result.masks[index], segmenter(volume, prompt).masks[0])
    assert not np.array_equal(result.masks[0], result.masks[2])
    assert not np.array_equal(result.masks[1], result.masks[3])


def test_the_network_reads_the_understood_words(segmenter, bright, volume):
    segmenter(volume, ["Tumour of the LEFT kidney!", "left kidney tumor"])
    (text,) = bright.texts
    assert torch.equal(text[0], text[1])


def test_another_text_encoder_takes_the_place_of_the_models_own(model, volume, bright):
    Segmenter(model, device="cpu", text_encoder=Lengths())(volume, ["liver", "spleen"])
    assert bright.texts[0][:, 0].tolist() == [5, 6]


@pytest.mark.parametrize("prompts", [[], "", [""], ["liver", "   "]])
def test_prompts_that_are_none_are_refused(prompts):
    with pytest.raises(PromptError):
        understand_all(prompts)


# ---- presence and cleaning up ----


def test_what_is_not_in_the_scan_gets_an_empty_mask(model, volume, bright):
    segmenter = Segmenter(model, device="cpu")
    masks = segmenter.plan.masks.model_copy(update={"presence": 0.5})
    segmenter.plan = segmenter.plan.model_copy(update={"masks": masks})
    bright.presence = 0.49
    absent = segmenter(volume, "liver")
    assert not absent.masks.any()
    assert not absent.found[0].is_there
    assert absent.presence[0] == pytest.approx(0.49)
    bright.presence = 0.51
    assert segmenter(volume, "liver").found[0].is_there


@pytest.mark.parametrize(("side", "there"), [(1, False), (3, True)])
def test_a_mask_of_a_few_voxels_is_nothing(segmenter, monkeypatch, volume, side, there):
    def block(network, image, text, *rest):
        logits = torch.full((1, *image.shape[1:]), -10.0)
        logits[0, 3 : 3 + side, 4 : 4 + side, 5 : 5 + side] = 10
        return Answer(logits, torch.tensor([0.9]))

    monkeypatch.setattr("textseg.inference.segment_windows", block)
    result = segmenter(volume, "liver")
    (found,), (record,) = result.found, result.record()["prompts"]
    assert found.is_there == record["found"] == result.masks.any() == there
    assert (found.too_small_ml is None) == (record["too_small_ml"] is None) == there
    if not there:
        assert 0 < found.too_small_ml < math.prod(segmenter.plan.spacing_for("torso")) / 1000
        assert found.mask.centroid_mm is None
        assert str(found) == f"not found: 'liver' (presence 0.90, {found.too_small_ml:.2g} ml are too little)"


def test_cleaning_up_keeps_the_largest_part_and_fills_it(segmenter, bright, hounsfield, geometry):
    voxels = hounsfield.copy()
    voxels[22:25, 5:8, 14:17] = 900
    voxels[9:12, 17:21, 7:10] = 40
    raw = segmenter(Volume(voxels, geometry), "brain", clean_up=False)
    clean = segmenter(Volume(voxels, geometry), "brain", clean_up=True)
    assert raw.masks[0, 23, 6, 15]
    assert not raw.masks[0, 10, 19, 8]
    assert not clean.masks[0, 23, 6, 15]
    assert clean.masks[0, 10, 19, 8]
    assert clean.record()["clean_up"]


def test_stray_parts_of_one_organ_are_dropped_where_the_plan_says_so(segmenter, monkeypatch, volume):
    def blocks(network, image, text, *rest):
        logits = torch.full((len(text), *image.shape[1:]), -10.0)
        logits[:, 2:8, 2:8, 2:8] = 10
        logits[:, -3:, -3:, -3:] = 10
        return Answer(logits, torch.full((len(text),), 0.9))

    monkeypatch.setattr("textseg.inference.segment_windows", blocks)
    words = ["liver", "liver tumor"]

    def dropped_below(share):
        masks = segmenter.plan.masks.model_copy(update={"smallest_part": share})
        segmenter.plan = segmenter.plan.model_copy(update={"masks": masks})
        return segmenter(volume, words)

    every, kept = dropped_below(0.0), dropped_below(0.2)
    assert 0 < kept.masks[0].sum() < every.masks[0].sum()
    assert not (kept.masks[0] & ~every.masks[0]).any()
    assert np.array_equal(kept.masks[1], every.masks[1])
    liver, tumour = kept.record()["prompts"]
    lost_ml = (every.masks[0].sum() - kept.masks[0].sum()) * volume.geometry.voxel_volume_mm3 / 1000
    assert liver["stray_ml"] == pytest.approx(lost_ml, abs=1e-4)
    assert tumour["stray_ml"] == every.record()["prompts"][0]["stray_ml"] == 0
    assert np.array_equal(segmenter(volume, words, clean_up=False).masks, every.masks)


# ---- modality, progress, record ----


@pytest.mark.parametrize(
    ("given", "own", "used"),
    [(None, None, "ct"), (None, "mr", "mr"), ("pet", "mr", "pet"), ("mr", None, "mr")],
)
def test_the_modality_is_that_of_the_caller_else_of_the_scan_else_of_its_values(
    given, own, used, segmenter, bright, hounsfield, geometry
):
    result = segmenter(Volume(hounsfield, geometry, modality=own), "liver", modality=given)
    assert result.modality == used
    # Air at -1000 HU is at -4 after the window of CT, and nowhere near that as MR or PET.
    assert (float(bright.images[0].min()) == -4) == (used == "ct")


def test_progress_names_the_stages_and_counts_the_windows(segmenter, volume):
    small = Volume(volume.voxels[..., :20, :10], Geometry((30, 20, 10), volume.geometry.affine))
    seen = []
    segmenter(small, ["liver", "brain"], progress=lambda *step: seen.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    spacings = [segmenter.plan.spacing_for(group)[0] for group in ("torso", "brain")]
    assert stages == ["reading", "preparing", *(f"segmenting at {mm:g} mm" for mm in spacings)]
    for stage in stages[2:]:
        steps = [(done, of) for name, done, of in seen if name == stage]
        assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]


def test_everything_can_be_saved_and_the_record_is_true(segmenter, bright, hounsfield, geometry, tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", hounsfield, geometry)
    result = segmenter(path, ["liver", "brain"])
    *_, record_path = result.save(tmp_path / "out", combined=True, preview=True)
    record = json.loads(record_path.read_text(encoding="utf-8"))
    assert record["scan"]["files"] == [str(path)]
    assert record["scan"]["modality"] == "ct"
    assert [prompt["voxels"] for prompt in record["prompts"]] == result.masks.sum(axis=(1, 2, 3)).tolist()
    assert record["model"]["plan"] == "tiny"
    assert record["seconds"] > 0


# ---- several channels ----


@pytest.fixture(scope="module")
def pet_ct_segmenter(tmp_path_factory):
    segmenter = Segmenter(write_pet_ct_model(tmp_path_factory.mktemp("models") / "pet_ct"), device="cpu")
    segmenter.compute = Compute(torch.device("cpu"), torch.float32)
    return segmenter


@pytest.fixture
def uptake(hounsfield):
    """A PET of the same body: the bright block takes up most."""
    voxels = np.where(hounsfield > -500, 1, 0).astype(np.float32)
    voxels[BRIGHT] = 12
    return voxels


def test_channels_come_from_files_and_from_memory(pet_ct_segmenter, hounsfield, uptake, geometry, tmp_path):
    ct = save_nifti(tmp_path / "ct.nii.gz", hounsfield, geometry)
    pet = save_nifti(tmp_path / "pet.nii.gz", uptake, geometry)
    from_files = pet_ct_segmenter([ct, str(pet)], "liver")
    in_memory = pet_ct_segmenter([Volume(hounsfield, geometry), Volume(uptake, geometry)], "liver")
    as_one = pet_ct_segmenter(Volume(np.stack([hounsfield, uptake]), geometry), "liver")
    assert from_files.masks.any()
    assert np.array_equal(from_files.masks, in_memory.masks)
    assert np.array_equal(from_files.masks, as_one.masks)
    # Both are looked at.
    other = pet_ct_segmenter([Volume(hounsfield, geometry), Volume(uptake[::-1].copy(), geometry)], "liver")
    assert not np.array_equal(from_files.masks, other.masks)


def test_the_network_sees_every_channel_by_its_own_rule(
    pet_ct_segmenter, bright, hounsfield, uptake, geometry
):
    result = pet_ct_segmenter([Volume(hounsfield, geometry), Volume(uptake, geometry)], "liver")
    (image,) = bright.images
    assert float(image[0].min()) == -4
    assert float(image[1].max()) == pytest.approx((12 - 1) / 2, abs=0.3)
    assert float(image[1].min()) == -0.5
    assert (result.modality, result.modality_from) == ("ct", "plan")


def test_a_channel_on_another_grid_is_brought_over_and_the_record_says_so(
    pet_ct_segmenter, bright, hounsfield, uptake, geometry, tmp_path
):
    ct = save_nifti(tmp_path / "ct.nii.gz", hounsfield, geometry)
    # The PET misses the first planes, has thicker ones, and is stored the other way round.
    coarse = geometry.cropped(Box((3, 0, 0), geometry.shape)).with_spacing((2.9, 2.9, 4.0))
    brought = resample(torch.from_numpy(uptake), geometry, coarse).numpy()
    order = COPIES[1]
    pet = save_nifti(tmp_path / "pet.nii.gz", order.apply(brought), coarse.reordered(order))
    result = pet_ct_segmenter([ct, pet], ["liver"])
    (image,) = bright.images
    hot = [
        torch.nonzero(channel > limit).float().mean(dim=0)
        for channel, limit in zip(image, (2, 2.5), strict=True)
    ]
    assert torch.allclose(*hot, atol=0.7)
    assert result.masks.shape == (1, *SHAPE)
    scan = result.record()["scan"]
    assert scan["files"] == [str(ct), str(pet)]
    assert scan["shape"] == list(SHAPE)
    first, second = scan["channels"]
    assert first == {"name": "CT", "modality": "ct", "files": [str(ct)], "regridded": False}
    assert (second["name"], second["modality"], second["files"]) == ("PET", "pet", [str(pet)])
    assert second["regridded"]
    assert second["covered"] == pytest.approx(27 / 30, abs=0.04)
    assert second["own_grid"]["shape"] == list(coarse.reordered(order).shape)


def test_a_record_of_one_channel_lists_no_channels(segmenter, bright, volume):
    assert "channels" not in segmenter(volume, "liver").record()["scan"]


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_scans_is_refused_with_the_plans_channels(
    pet_ct_segmenter, hounsfield, geometry, count
):
    with pytest.raises(PlanError, match=rf"takes 2 channel\(s\) \(CT, PET\), got {count}\."):
        pet_ct_segmenter([Volume(hounsfield, geometry)] * count, "liver")


@pytest.mark.parametrize(
    ("own", "asked", "said"),
    [
        (("pet", "ct"), None, "for the channel 'CT' it got pet"),
        ((None, "mr"), None, "'PET' it got mr"),
        ((None, None), "mr", "'CT' it got mr"),
    ],
)
def test_scans_in_another_order_are_refused_where_headers_tell(
    pet_ct_segmenter, hounsfield, uptake, geometry, own, asked, said
):
    scans = [Volume(v, geometry, modality=m) for v, m in zip((hounsfield, uptake), own, strict=True)]
    with pytest.raises(PlanError, match=said):
        pet_ct_segmenter(scans, "liver", modality=asked)


def test_no_scan_at_all_is_refused(segmenter):
    with pytest.raises(ScanError, match="at least one file"):
        segmenter([], "liver")


# ---- what can go wrong ----


def test_a_scan_of_too_many_channels_is_refused(segmenter, hounsfield, geometry):
    with pytest.raises(PlanError, match="Give one file a channel"):
        segmenter(Volume(np.stack([hounsfield, hounsfield]), geometry), "liver")


def test_a_scan_that_is_not_there_is_refused(segmenter, tmp_path):
    with pytest.raises(ScanError):
        segmenter(tmp_path / "nowhere.nii.gz", "liver")


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="nowhere"):
        Segmenter("nowhere")


# ---- memory and determinism ----


def test_a_budget_is_kept_and_told_in_the_record_and_changes_no_mask(model, segmenter, volume):
    prompts = ["liver", "left kidney", "spleen"]
    free = segmenter(volume, prompts)
    facts = free.record()["memory"]
    assert facts["predicted_peak_bytes"] > 10**8
    assert facts["budget_bytes"] is None
    generous = Segmenter(model, device="cpu", memory=10**12)
    generous.compute = segmenter.compute
    kept = generous(volume, prompts)
    assert kept.record()["memory"]["budget_bytes"] == 10**12
    assert np.array_equal(kept.masks, free.masks)
    with pytest.raises(NotEnoughMemoryError, match=r"0\.01 GB of memory do not suffice"):
        Segmenter(model, device="cpu", memory=10**7)(volume, "liver")


def test_deterministic_runs_agree_to_the_last_bit(model, volume):
    before = torch.are_deterministic_algorithms_enabled()
    segmenter = Segmenter(model, device="cpu", deterministic=True)
    one, other = segmenter(volume, ["liver", "spleen"]), segmenter(volume, ["liver", "spleen"])
    assert np.array_equal(one.masks, other.masks)
    assert one.presence.tobytes() == other.presence.tobytes()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_a_plan_may_give_prompts_up_early_and_a_caller_may_not(model, volume, tmp_path):
    quick = Path(shutil.copytree(model, tmp_path / "quick"))
    plan = read_plan(quick)
    windows = plan.windows.model_copy(update={"exit_below": 1e9})
    write_plan(plan.model_copy(update={"windows": windows}), quick / PLAN_FILE)
    assert Segmenter(quick, device="cpu")(volume, "liver").shortcuts.prompts == 0.0
    assert Segmenter(quick, device="cpu", exit_below=-1e9)(volume, "liver").shortcuts.prompts == 1.0
    assert Segmenter(quick, device="cpu", exit_below=-math.inf)(volume, "liver").shortcuts is None


def test_shortcuts_leave_out_what_they_say_and_are_told(model, volume):
    exact = Segmenter(model, device="cpu", exit_below=-math.inf)(volume, ["liver", "spleen"])
    assert exact.shortcuts is None
    quick = Segmenter(model, device="cpu", zoom_above=-1e9, exit_below=-1e9)(volume, ["liver", "spleen"])
    # Nothing is below that: so nothing is left out.
    assert (quick.shortcuts.windows, quick.shortcuts.prompts) == (1.0, 1.0)
    assert np.mean(np.asarray(quick.masks) != np.asarray(exact.masks)) < 1e-4
    nothing = Segmenter(model, device="cpu", exit_below=1e9)(volume, ["liver", "spleen"])
    assert (nothing.shortcuts.windows, nothing.shortcuts.prompts) == (1.0, 0.0)
    assert nothing.record()["shortcuts"] == {
        "zoom_above": None,
        "exit_below": 1e9,
        "windows": 1.0,
        "prompts": 0.0,
    }
    assert np.asarray(exact.masks).any()
