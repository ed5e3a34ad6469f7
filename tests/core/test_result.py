"""What a segmentation says: numbers in the world, a label map, a record, files of different names."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from tests.tiny_model import write_tiny_model
from textseg.errors import OutputError
from textseg.geometry import Geometry
from textseg.models import find_model
from textseg.network.weights import file_hash
from textseg.prompts import understand
from textseg.result import Found, Segmentation, describe_mask
from textseg.version import __version__
from textseg.volume import Volume

SHAPE = (12, 15, 9)
PROMPTS = ["liver", "left kidney tumor", "spleen"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return find_model(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def segmentation(model, sheared):
    """A liver with a smaller tumour reaching into it, and no spleen."""
    masks = np.zeros((3, *SHAPE), bool)
    masks[0, 2:9, 3:12, 1:7] = True
    masks[1, 7:11, 4:7, 2:4] = True
    geometry = Geometry(SHAPE, sheared)
    values = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    found = tuple(
        Found(understand(text), presence, describe_mask(mask, geometry))
        for text, presence, mask in zip(PROMPTS, (0.91234, 0.7, 0.02), masks, strict=True)
    )
    return Segmentation(
        masks, found, Volume(values, geometry), "ct", "header", model, "cpu in float32", 1.23456
    )


# ---- numbers in the world ----


@pytest.mark.parametrize("grid", ["tilted", "sheared"])
def test_a_block_is_described_in_closed_form(grid, request):
    affine = request.getfixturevalue(grid)
    mask = np.zeros(SHAPE, bool)
    mask[2:9, 3:5, 1:7] = True
    facts = describe_mask(mask, Geometry(SHAPE, affine))
    assert facts.voxels == 7 * 2 * 6
    assert facts.volume_ml == pytest.approx(84 * 0.8 * 1.1 * 2.5 / 1000)
    middle = affine @ (5, 3.5, 3.5, 1)
    assert facts.centroid_mm == pytest.approx(tuple(middle[:3]), abs=1e-3)
    # Of voxel centres: half the block's extent along each axis, each projected on the world's axes.
    reach = np.abs(affine[:3, :3]) @ (3, 0.5, 2.5)
    low, high = facts.box_mm
    assert low == pytest.approx(tuple(middle[:3] - reach), abs=1e-3)
    assert high == pytest.approx(tuple(middle[:3] + reach), abs=1e-3)


def test_a_ball_is_described_where_it_is(ball, sheared):
    geometry = Geometry((40, 44, 24), sheared)
    centre = geometry.to_world((18.3, 24.1, 11.7))
    facts = describe_mask(ball(geometry, centre, 9.0), geometry)
    assert facts.volume_ml == pytest.approx(4 / 3 * np.pi * 0.9**3, rel=0.02)
    assert facts.centroid_mm == pytest.approx(tuple(centre), abs=0.1)
    assert np.allclose(facts.box_mm, [centre - 9, centre + 9], atol=1.5)


def test_an_empty_mask_has_no_place():
    facts = describe_mask(np.zeros(SHAPE, bool), Geometry(SHAPE, np.eye(4)))
    assert (facts.voxels, facts.volume_ml, facts.centroid_mm, facts.box_mm) == (0, 0, None, None)


def test_the_place_of_a_mask_does_not_depend_on_the_order_of_the_axes(sheared):
    geometry = Geometry(SHAPE, sheared)
    mask = np.random.default_rng(1).random(SHAPE) > 0.9
    order = Geometry(SHAPE, sheared[:, [1, 2, 0, 3]] * (-1, 1, -1, 1)).canonical_order()
    turned = describe_mask(order.apply(mask), geometry.reordered(order))
    straight = describe_mask(mask, geometry)
    assert turned.voxels == straight.voxels
    assert turned.volume_ml == pytest.approx(straight.volume_ml)
    assert turned.centroid_mm == pytest.approx(straight.centroid_mm, abs=0.002)
    assert np.allclose(turned.box_mm, straight.box_mm, atol=0.002)


def test_what_was_found_reads_as_a_sentence(segmentation):
    liver, _, spleen = segmentation.found
    assert liver.is_there
    assert str(liver) == f"liver: {378 * 2.2 / 1000:.1f} ml (presence 0.91)"
    assert not spleen.is_there
    assert str(spleen) == "not found: 'spleen' (presence 0.02)"


# ---- one label map, one record ----


def test_the_label_map_shows_the_smaller_structure_and_its_legend(segmentation):
    labels = segmentation.labels
    assert segmentation.legend == {1: "liver", 2: "left kidney tumor", 3: "spleen"}
    assert (labels[segmentation.masks[1]] == 2).all()
    assert (labels[segmentation.masks[0] & ~segmentation.masks[1]] == 1).all()
    assert set(np.unique(labels)) == {0, 1, 2}
    assert segmentation.geometry.shape == labels.shape
    assert segmentation.presence.tolist() == [0.91234, 0.7, 0.02]


def test_the_record_says_what_was_done_and_is_json(segmentation):
    record = json.loads(json.dumps(segmentation.record({0: "liver.nii.gz"})))
    assert record["format"] == "textseg-record-1"
    assert record["textseg"] == __version__
    assert record["device"] == "cpu in float32"
    assert record["seconds"] == 1.235
    assert record["scan"]["modality"] == "ct"
    assert record["scan"]["shape"] == list(SHAPE)
    assert record["scan"]["orientation"] == "RAS"
    assert record["scan"]["affine"] == segmentation.geometry.affine.tolist()
    assert record["model"]["name"] == "tiny"
    for name, digest in record["model"]["sha256"].items():
        assert digest == file_hash(segmentation.model.path / name)
    liver, tumour, spleen = record["prompts"]
    assert (liver["prompt"], liver["understood_as"], liver["file"]) == ("liver", "liver", "liver.nii.gz")
    assert (liver["found"], liver["voxels"], liver["presence"]) == (True, 378, 0.9123)
    assert tumour["side"] == "left"
    assert tumour["structure"] is not None
    assert tumour["finding"] is not None
    assert tumour["file"] is None
    assert (spleen["found"], spleen["volume_ml"], spleen["centroid_mm"], spleen["box_mm"]) == (
        False, 0, None, None,
    )  # fmt: skip


# ---- files ----


def test_files_hold_the_masks_and_the_record_names_them(segmentation, tmp_path):
    *masks, record = segmentation.save(tmp_path / "out")
    assert [path.name for path in masks] == ["scan_liver.nii.gz", "scan_left_kidney_tumor.nii.gz"]
    for path, mask in zip(masks, segmentation.masks, strict=False):
        image = nib.load(path)
        assert np.array_equal(np.asarray(image.dataobj), mask)
        assert np.allclose(image.affine, segmentation.geometry.affine, atol=1e-4)
    written = json.loads(record.read_text(encoding="utf-8"))
    assert [prompt["file"] for prompt in written["prompts"]] == [*(path.name for path in masks), None]


def test_prompts_of_one_name_get_files_of_their_own(segmentation, model, tmp_path):
    found = tuple(Found(understand("liver"), 0.9, segmentation.found[i].mask) for i in (0, 1))
    twice = Segmentation(
        segmentation.masks[:2], found, segmentation.volume, "ct", "header", model, "cpu", 1.0
    )
    *masks, record = twice.save(tmp_path)
    assert [path.name for path in masks] == ["scan_liver.nii.gz", "scan_liver_2.nii.gz"]
    for path, mask in zip(masks, twice.masks, strict=True):
        assert np.array_equal(np.asarray(nib.load(path).dataobj), mask)
    prompts = json.loads(record.read_text(encoding="utf-8"))["prompts"]
    assert [prompt["file"] for prompt in prompts] == ["scan_liver.nii.gz", "scan_liver_2.nii.gz"]


def test_a_combined_file_holds_the_label_map(segmentation, tmp_path):
    labels, preview, record = segmentation.save(tmp_path, combined=True, preview=True)
    assert np.array_equal(np.asarray(nib.load(labels).dataobj), segmentation.labels)
    assert preview.read_bytes()[:4] == b"\x89PNG"
    written = json.loads(record.read_text(encoding="utf-8"))
    assert [prompt["file"] for prompt in written["prompts"]] == [labels.name, labels.name, None]


def test_files_are_replaced_only_when_asked(segmentation, tmp_path):
    first = segmentation.save(tmp_path)
    before = first[0].stat().st_mtime_ns
    with pytest.raises(OutputError, match="overwrite"):
        segmentation.save(tmp_path)
    assert first[0].stat().st_mtime_ns == before
    assert segmentation.save(tmp_path, overwrite=True) == first


def test_empty_masks_are_written_when_asked(segmentation, tmp_path):
    paths = segmentation.save(tmp_path, write_empty=True, ending="nrrd")
    assert [path.name for path in paths[:3]] == [
        "scan_liver.nrrd", "scan_left_kidney_tumor.nrrd", "scan_spleen.nrrd"
    ]  # fmt: skip
