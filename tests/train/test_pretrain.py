"""Pretraining: what is found and prepared, what the network may see, and that a run goes on as it was."""

from __future__ import annotations

import csv
import io
import itertools
import math
import pickle
from concurrent.futures import Future

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from textseg.errors import DatasetError, PlanError, TextsegError
from textseg.network.build import build_network
from textseg.prepare import prepare
from textseg.scan import read_scan
from textseg.train.blocks import read_blocks
from textseg.train.checkpoint import STATE_FILE
from textseg.train.masked import MaskedAutoencoder, at_size, block_size, hidden_loss, visible_blocks
from textseg.train.pretrain import (
    GAP,
    LOG_FILE,
    PICTURE_FILE,
    TILE,
    TITLE,
    picture,
    pretrain,
    pretraining_plan,
    save_pretrained,
    split_scans,
)
from textseg.train.start import put_into, read_encoder_weights
from textseg.train.unlabelled import find_scans, looks_like_labels, prepare_scans

CPU = torch.device("cpu")
SHAPE = (34, 45, 26)
# Tilted, with a flipped axis and three different spacings, in mm.
AFFINE = np.array([[-3.0, 0.4, 0, 60], [0.4, 2.0, 0, -40], [0, 0, 4.0, 300], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """float32 also where the processor computes in bfloat16, and one thread: sums in one order."""
    monkeypatch.setattr("textseg.train.pretrain.fastest_type", lambda device: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scan_voxels(seed):
    """A noisy body in air, in Hounsfield units, with a bright box off its centre."""
    random = np.random.default_rng(seed)
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[3:-2, 2:-4, 1:-1] = random.integers(-60, 60, (29, 39, 24))
    corner = random.integers(4, 12, 3)
    voxels[tuple(slice(c, c + 10) for c in corner)] = 700
    return voxels


def write_nifti(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three scans in two formats and folders, beside a label map, a broken file and a table."""
    write_nifti(tmp_path / "data" / "one" / "scan.nii.gz", scan_voxels(1))
    write_nifti(tmp_path / "data" / "two" / "scan.nii.gz", scan_voxels(2))
    image = SimpleITK.GetImageFromArray(scan_voxels(3).T)
    image.SetSpacing((3.0, 2.0, 4.0))
    SimpleITK.WriteImage(image, str(tmp_path / "data" / "scan.nrrd"))
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:20, 6:30, 5:20] = 117
    write_nifti(tmp_path / "data" / "two" / "labels.nii.gz", labels)
    (tmp_path / "data" / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    (tmp_path / "data" / "notes.csv").write_text("a,b\n")
    return tmp_path / "data"


@pytest.fixture
def prepared(folder, tmp_path, plan):
    return prepare_scans(folder, tmp_path / "scans", plan)


# ---- scans ----


def test_every_scan_is_found_and_what_is_none_is_left_out_with_its_reason(folder, prepared):
    assert len(find_scans(folder)) == 5
    assert len(prepared.paths) == 3
    reasons = {path.removeprefix(str(folder)): reason for path, reason in prepared.skipped}
    assert set(reasons) == {"/two/labels.nii.gz", "/broken.nii.gz"}
    assert "label map" in reasons["/two/labels.nii.gz"]


def test_a_prepared_scan_is_what_the_network_sees_at_inference(folder, prepared, plan):
    for path in prepared.paths:
        volumes, _, facts = read_blocks(path)
        kept = np.asarray(volumes["image_0"])
        of = next(s for s in find_scans(folder) if s.name == path.stem)
        seen = prepare(read_scan(of.files[0]), plan, "ct", plan.spacing_for(None)).image[0].numpy()
        assert kept.shape == seen.shape
        assert np.abs(kept - seen).max() <= 1 / 64
        assert facts["air"] == [kept.min()]


def test_scans_are_prepared_once_and_again_when_they_change(folder, prepared, tmp_path, plan, monkeypatch):
    before = {path: path.read_bytes() for path in prepared.paths}
    monkeypatch.setattr("textseg.train.unlabelled.read_scan", lambda *_, **__: pytest.fail("read again"))
    again = prepare_scans(folder, tmp_path / "scans", plan)
    assert again == prepared
    monkeypatch.undo()
    write_nifti(folder / "one" / "scan.nii.gz", scan_voxels(9))
    prepare_scans(folder, tmp_path / "scans", plan)
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert len(changed) == 1
    assert changed[0].startswith("one")


class PicklingExecutor:
    """In place of processes, which take seconds to start: what goes to them and back is pickled, too."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        ended = Future()
        ended.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        return ended


def test_several_processes_prepare_the_same(folder, prepared, tmp_path, plan, monkeypatch):
    monkeypatch.setattr("textseg.train.unlabelled.ProcessPoolExecutor", PicklingExecutor)
    monkeypatch.setattr("textseg.train.unlabelled.FEWEST_FOR_PROCESSES", 1)
    seen = []
    made = prepare_scans(folder, tmp_path / "more", plan, workers=2, progress=lambda *step: seen.append(step))
    assert [path.name for path in made.paths] == [path.name for path in prepared.paths]
    assert sorted(made.skipped) == sorted(prepared.skipped)
    for one, other in zip(made.paths, prepared.paths, strict=True):
        images = [np.asarray(read_blocks(path)[0]["image_0"]) for path in (one, other)]
        assert np.array_equal(*images)
    assert seen == [(done, 5) for done in range(6)]


def test_files_of_several_channels_are_one_scan(tmp_path, plan):
    for number in (0, 1):
        write_nifti(tmp_path / "data" / f"case_000{number}.nii.gz", scan_voxels(number))
    write_nifti(tmp_path / "data" / "alone_0000.nii.gz", scan_voxels(4))
    two = plan.model_copy(update={"channels": ("a", "b")})
    made = prepare_scans(tmp_path / "data", tmp_path / "scans", two)
    assert len(made.paths) == 1
    assert list(read_blocks(made.paths[0])[0]) == ["image_0", "image_1"]


def test_a_folder_without_a_usable_scan_is_refused(tmp_path, plan):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="there is none in"):
        prepare_scans(tmp_path / "empty", tmp_path / "scans", plan)
    with pytest.raises(DatasetError, match="is none"):
        find_scans(tmp_path / "nowhere")
    write_nifti(tmp_path / "data" / "mask.nii.gz", np.eye(30, dtype=np.uint8)[..., None].repeat(9, 2))
    with pytest.raises(DatasetError, match="of 1 none is"):
        prepare_scans(tmp_path / "data", tmp_path / "scans", plan)


def test_images_and_label_maps_are_told_apart():
    noise = np.random.default_rng(1).normal(100, 5, (12, 13, 14))
    assert not looks_like_labels(noise)
    assert not looks_like_labels(noise.astype(np.uint8))
    assert not looks_like_labels(scan_voxels(3))
    assert looks_like_labels(np.zeros((4, 5, 6)))
    labels = np.zeros((20, 20, 20), np.int16)
    labels[3:17, 4:18, 5:15] = np.arange(14)[:, None, None] // 7 + 110
    assert looks_like_labels(labels)


# ---- what the network may see ----


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_hidden_voxels_are_never_seen(plan, norm):
    torch.manual_seed(3)
    network = MaskedAutoencoder(of_norm(plan, norm)).train()
    random = np.random.default_rng(2)
    visible = torch.from_numpy(np.stack([visible_blocks((4, 3, 4), random) for _ in range(2)]))
    image = torch.randn(2, 1, 16, 12, 16)
    other = torch.where(at_size(visible, image.shape[2:]), image, torch.randn_like(image) + 5)
    with torch.no_grad():
        assert torch.equal(network(image, visible), network(other, visible))
        hidden = torch.where(at_size(visible, image.shape[2:]), image + 1, image)
        assert not torch.equal(network(image, visible), network(hidden, visible))
        for feature in network.encoder(image * at_size(visible, image.shape[2:])):
            seen = at_size(visible, feature.shape[2:]).expand_as(feature)
            assert not feature[~seen].any()
            assert feature[seen].any()


def test_it_computes_in_bfloat16_too(plan):
    torch.manual_seed(3)
    network = MaskedAutoencoder(of_norm(plan, "instance")).train()
    visible = torch.from_numpy(visible_blocks((4, 3, 4), np.random.default_rng(2)))[None]
    image = torch.randn(1, 1, 16, 12, 16)
    with torch.autocast("cpu", torch.bfloat16):
        painted = network(image, visible)
    hidden_loss(painted, image, visible).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    torch.testing.assert_close(painted.float(), network(image, visible), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_with_all_blocks_visible_the_encoder_is_the_plans_own(plan, norm):
    torch.manual_seed(3)
    network = MaskedAutoencoder(of_norm(plan, norm)).train()
    plain = build_network(of_norm(plan, norm)).encoder.train()
    plain.load_state_dict(network.encoder.state_dict())
    image = torch.randn(2, 1, 16, 12, 8)
    seen = []
    network.trunk.register_forward_pre_hook(lambda trunk, inputs: seen.extend(inputs[0]))
    with torch.no_grad():
        network(image, torch.ones(2, 4, 3, 2, dtype=torch.bool))
        for feature, expected in zip(seen, plain(image), strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
    for name, value in network.encoder.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


def test_only_hidden_voxels_count():
    visible = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    visible[0, 0, 0, 0] = True
    image, painted = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    painted[0, 0, :2, :2, :2] = 9.0
    assert hidden_loss(painted, image, visible) == 0
    painted[0, 0, 3, 0, 0] = 2.0
    assert hidden_loss(painted, image, visible).item() == pytest.approx(4 / 56)


def test_as_many_blocks_are_hidden_in_every_patch():
    random = np.random.default_rng(1)
    masks = [visible_blocks((3, 4, 5), random) for _ in range(20)]
    assert {int(mask.sum()) for mask in masks} == {24}
    assert any(not np.array_equal(one, other) for one, other in itertools.pairwise(masks))
    assert {int(visible_blocks((1, 1, 2), random).sum()) for _ in range(5)} == {1}


@pytest.mark.parametrize(
    ("strides", "patch", "block"),
    [
        (((1, 1, 1), (2, 2, 2), (2, 2, 2)), (16, 24, 8), (4, 4, 4)),
        (((1, 1, 1), (2, 2, 1), (2, 2, 2)), (16, 24, 8), (4, 4, 4)),
        (((1, 1, 1), (2, 2, 1), (4, 2, 1)), (16, 12, 6), (8, 4, 6)),
    ],
)
def test_blocks_are_whole_voxels_of_the_coarsest_stage_and_not_thin(plan, strides, patch, block):
    network = plan.network.model_copy(update={"strides": strides})
    recipe = plan.training.model_copy(update={"patch_voxels": patch})
    changed = plan.model_copy(update={"network": network, "training": recipe})
    assert block_size(changed) == block


def test_a_patch_of_one_block_is_refused(with_training):
    with pytest.raises(PlanError, match="single block"):
        block_size(with_training(patch_voxels=(4, 4, 4)))


# ---- the run ----


def of_norm(plan, norm):
    return plan.model_copy(update={"network": plan.network.model_copy(update={"norm": norm})})


def test_it_learns_to_paint_and_training_starts_from_it(prepared, tmp_path, with_training):
    plan = pretraining_plan(with_training(batch=2, learning_rate=0.005), 40)
    steps = []
    done = pretrain(plan, prepared.paths, tmp_path / "run", CPU, workers=0, report=steps.append)
    assert [step.number for step in steps] == list(range(1, 41))
    with (tmp_path / "run" / LOG_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "40"
    # The mean of a hidden block, and no more than that, is what is learnt first.
    assert float(rows[-1]["held_back"]) < 0.8 * float(rows[0]["held_back"])
    assert done.held_back == pytest.approx(float(rows[-1]["held_back"]), abs=1e-4)
    save_pretrained(done, plan, tmp_path / "out")
    assert Image.open(tmp_path / "out" / PICTURE_FILE).width == GAP + 4 * (TILE + GAP)
    network = build_network(plan)
    report = put_into(read_encoder_weights(tmp_path / "out"), network)
    assert all(row.taken for row in report.rows)
    learnt = done.network.state_dict()
    for name, value in network.state_dict().items():
        if name.startswith(("encoder.", "trunk.")):
            assert torch.equal(value, learnt[name])


def test_a_stopped_run_goes_on_to_the_same_weights(prepared, tmp_path, with_training):
    plan = pretraining_plan(with_training(batch=2), 4)
    whole = pretrain(plan, prepared.paths, tmp_path / "whole", CPU, workers=0)
    for _ in range(4):
        pieces = pretrain(plan, prepared.paths, tmp_path / "pieces", CPU, workers=0, minutes=0)
    assert (pieces.steps, pieces.loss, pieces.held_back) == (4, whole.loss, whole.held_back)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, pieces.network.state_dict()[name]), name
    logs = [(tmp_path / run / LOG_FILE).read_text(encoding="utf-8") for run in ("whole", "pieces")]
    assert logs[0] == logs[1]


def test_a_run_of_another_plan_or_other_scans_is_not_gone_on_with(prepared, tmp_path, with_training):
    plan = pretraining_plan(with_training(batch=2), 2)
    pretrain(plan, prepared.paths, tmp_path / "run", CPU, workers=0, minutes=0)
    for other, scans in ((pretraining_plan(plan, 3), prepared.paths), (plan, prepared.paths[:2])):
        with pytest.raises(DatasetError, match="begun with others"):
            pretrain(other, scans, tmp_path / "run", CPU, workers=0)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_no_state(prepared, tmp_path, with_training):
    plan = pretraining_plan(with_training(batch=2), 3)

    def spoil(network):
        network.head.weight.data.fill_(math.nan)

    with pytest.raises(TextsegError, match="finite loss, got nan at step 0"):
        pretrain(plan, prepared.paths, tmp_path / "run", CPU, workers=0, begin=spoil)
    assert not (tmp_path / "run" / STATE_FILE).exists()


def test_one_scan_in_ten_is_held_back(tmp_path):
    scans = [tmp_path / str(number) for number in range(23)]
    train, held_back = split_scans(scans)
    assert held_back == [scans[9], scans[19]]
    assert len(train) == 21
    assert split_scans(scans[:3]) == (scans[:2], scans[2:3])
    assert split_scans(scans[:1]) == (scans[:1], [])


def test_the_picture_shows_the_patients_right_on_the_left_and_anterior_up():
    original = np.zeros((12, 8, 6), np.float32)
    original[9:, 5:, :] = 1.0  # to the right and anterior
    visible = np.zeros_like(original, dtype=bool)
    visible[6:] = True
    page = np.asarray(Image.open(io.BytesIO(picture([(original, visible, original * 0)]))).convert("L"))
    scale = TILE / 12

    def at(column, x_from_left, y_from_top):
        return page[TITLE + int(y_from_top * scale), GAP + column * (TILE + GAP) + int(x_from_left * scale)]

    assert at(0, 1, 1) == 255
    assert at(0, 10, 1) == at(0, 1, 6) == 0
    # Hidden voxels are neither black nor white; what is painted there is black.
    assert 0 < at(1, 10, 1) < 255
    assert at(1, 1, 1) == at(3, 1, 1) == 255
    assert at(2, 1, 1) == at(3, 10, 1) == 0
