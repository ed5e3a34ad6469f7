"""From files to scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.scores.conftest import write_ct_series
from textseg.dicom_output import write_dicom_masks
from textseg.errors import DatasetError, GeometryError
from textseg.prompts import understand
from textseg.scan import read_scan, write_label_map
from textseg.scores.cases import Scoring, is_finding, score_pair, score_pairs
from textseg.scores.inputs import Names, find_pairs, read_names

LIVER, TUMOR, SPLEEN = 1, 2, 5
NAMES = Names({LIVER: "liver", TUMOR: "liver tumor", SPLEEN: "spleen"})


@pytest.fixture
def labels(grid):
    painted = np.zeros(grid.shape, np.uint8)
    painted[4:14, 5:15, 3:9] = LIVER
    painted[6:9, 7:10, 4:7] = TUMOR
    return painted


def by_structure(case):
    return {score.structure: score for score in case.scores}


def test_structures_of_two_label_maps_are_scored_by_name(write, labels, tmp_path):
    write("ref/a.nii.gz", labels)
    write("pred/a.nii.gz", np.roll(labels, 1, axis=0))
    (case,) = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(NAMES))
    scores = by_structure(case)
    assert list(scores) == ["liver", "liver tumor", "spleen"]
    assert scores["liver tumor"].dice == pytest.approx(2 / 3)
    assert scores["liver tumor"].lesion_f1 == 1
    assert not scores["liver"].lesions
    assert not scores["spleen"].there
    assert case.notes == ()


def test_what_is_drawn_in_part_is_not_scored_and_what_is_not_listed_is_not_absent(write, labels, tmp_path):
    for name in ("ref/a.nii.gz", "pred/a.nii.gz", "ref/b.nii.gz", "pred/b.nii.gz"):
        write(name, labels)
    names = Names(NAMES.labels, complete={"a": ["liver"]})
    a, b = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(names))
    assert list(by_structure(a)) == ["liver"]
    assert a.notes == ("a: drawn in part in the reference, and so not scored: liver tumor.",)
    assert list(by_structure(b)) == ["liver", "liver tumor", "spleen"]


def test_a_region_is_its_labels_together_and_an_ignored_voxel_counts_for_nobody(write, labels, tmp_path):
    predicted = labels.copy()
    labels[20:24, 5:15, 3:9] = 9
    predicted[20:24, 5:15, 3:9] = TUMOR
    write("ref/a.nii.gz", labels)
    write("pred/a.nii.gz", predicted)
    document = {"labels": {"background": 0, "liver": [1, 2], "liver tumor": [2], "ignore": 9}}
    (tmp_path / "ref" / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    names = read_names(tmp_path / "ref" / "dataset.json")
    assert (names.regions, names.ignore, names.labels) == ({"liver": (1, 2), "liver tumor": (2,)}, 9, {})
    for scoring in (Scoring(), Scoring(names)):
        (case,) = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), scoring)
        scores = by_structure(case)
        assert {name: score.dice for name, score in scores.items()} == {"liver": 1, "liver tumor": 1}
        assert scores["liver"].reference_ml == pytest.approx(10 * 10 * 6 * 0.8 * 1.1 * 2.5 / 1000)
        assert scores["liver tumor"].predicted_lesions == 1


def test_masks_against_a_label_map_are_matched_by_meaning(write, labels, tmp_path):
    write("ref/a.nii.gz", labels)
    write("pred/a/hepar.nii.gz", labels == LIVER)
    write("pred/a/colon.nii.gz", labels == TUMOR)
    (case,) = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(NAMES))
    (liver,) = case.scores
    assert (liver.structure, liver.dice, liver.nsd, liver.hd95_mm) == ("liver", 1, 1, 0)
    assert case.notes == (
        "a: not asked of the prediction, and so not scored: liver tumor, spleen.",
        "a: predicted, but not known to the reference, and so not scored: colon.",
    )


def test_a_prediction_in_another_axis_order_is_on_the_same_grid(write, labels, grid, tmp_path):
    write("ref/a.nii.gz", labels)
    flipped = grid.affine @ np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, -1, 17], [0, 0, 0, 1]])
    write("pred/a.nii.gz", labels[::-1, :, ::-1], flipped)
    (case,) = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(NAMES))
    assert by_structure(case)["liver"].dice == 1


def test_another_grid_is_refused_unless_resampling_was_asked_for(write, labels, grid, tmp_path):
    write("ref/a.nii.gz", labels)
    moved = grid.affine.copy()
    moved[:3, 3] += grid.affine[:3, 0]
    write("pred/a.nii.gz", labels[1:], moved)
    pairs = find_pairs(tmp_path / "pred", tmp_path / "ref")
    with pytest.raises(GeometryError, match="--resample"):
        score_pairs(pairs, Scoring(NAMES))
    (case,) = score_pairs(pairs, Scoring(NAMES, resample=True))
    assert by_structure(case)["liver"].dice == 1
    assert case.notes == ("a: resampled to the grid of the reference.",)


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_dicom_objects_are_scored_on_either_side(kind, labels, tmp_path):
    """They hold no empty slices, or no voxels at all: their grid is that of the other side."""
    pytest.importorskip("highdicom", reason="Needs highdicom, of the extra dicom.")
    pytest.importorskip("skimage", reason="Needs scikit-image, of the extra dicom.")
    folder = write_ct_series(tmp_path / "series", labels.shape)
    scan = read_scan(folder)
    masks = np.stack([labels == LIVER, labels == TUMOR])
    prompts = [understand("liver"), understand("liver tumor")]
    for name in ("ref", "pred", "dicom"):
        (tmp_path / name).mkdir()
    write_dicom_masks(tmp_path / "dicom" / "a.dcm", kind, masks, prompts, scan)
    write_label_map(tmp_path / "ref" / "a.nii.gz", labels, NAMES.labels, scan)
    for sides in (("dicom", "ref"), ("ref", "dicom")):
        (case,) = score_pairs(find_pairs(*(tmp_path / side for side in sides)), Scoring())
        scores = by_structure(case)
        assert (scores["liver"].dice, scores["liver tumor"].dice) == (1, 1)


def test_without_names_numbers_are_names(write, labels, tmp_path):
    write("truth.nii.gz", labels)
    write("mine.nii.gz", np.where(labels == TUMOR, 9, labels))
    (pair,) = find_pairs(tmp_path / "mine.nii.gz", tmp_path / "truth.nii.gz")
    case = score_pair(pair, Scoring(lesions=("label 1",)))
    scores = by_structure(case)
    assert list(scores) == ["label 1", "label 2"]
    assert scores["label 1"].lesion_f1 == 1
    assert scores["label 2"].dice == 0
    assert "label 9" in case.notes[0]


def test_what_was_not_looked_for_is_not_absent(write, labels, tmp_path):
    write("ref/a.nii.gz", labels)
    write("pred/a.nii.gz", labels)
    names = Names(NAMES.labels, known={"a": ["liver"], "b": []})
    (case,) = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(names))
    assert list(by_structure(case)) == ["liver", "liver tumor"]


def test_presence_comes_from_the_record(write, labels, tmp_path):
    write("ref/a.nii.gz", labels)
    write("pred/a_liver.nii.gz", labels == LIVER)
    prompts = [
        {"prompt": "liver", "file": "a_liver.nii.gz", "found": True, "presence": 0.9},
        {"prompt": "spleen", "file": None, "found": False, "presence": 0.2},
    ]
    record = {"format": "textseg-record-1", "scan": {"files": ["a.nii.gz"]}, "prompts": prompts}
    (tmp_path / "pred" / "a_record.json").write_text(json.dumps(record), encoding="utf-8")
    (case,) = score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(NAMES))
    scores = by_structure(case)
    assert (scores["liver"].presence, scores["spleen"].presence) == (0.9, 0.2)
    assert not scores["spleen"].found


def test_nothing_in_common_is_refused(write, labels, tmp_path):
    write("ref/a.nii.gz", labels)
    write("pred/a/colon.nii.gz", labels == LIVER)
    with pytest.raises(DatasetError, match="in a none is the same: colon against liver, liver tumor, spleen"):
        score_pairs(find_pairs(tmp_path / "pred", tmp_path / "ref"), Scoring(NAMES))


def test_several_processes_give_what_one_gives(write, labels, tmp_path):
    for case in "cab":
        write(f"ref/{case}.nii.gz", labels)
        write(f"pred/{case}.nii.gz", np.roll(labels, ord(case) - 96, axis=1))
    pairs = find_pairs(tmp_path / "pred", tmp_path / "ref")
    seen = []
    one = score_pairs(pairs, Scoring(NAMES), 1)
    two = score_pairs(pairs, Scoring(NAMES), 2, lambda word, done, of: seen.append((word, done, of)))
    assert repr(one) == repr(two)
    assert [case.case for case in two] == ["a", "b", "c"]
    assert seen == [("scoring", 1, 3), ("scoring", 2, 3), ("scoring", 3, 3)]


def test_findings_come_in_pieces():
    assert is_finding("liver tumor")
    assert not is_finding("left kidney")
    assert not is_finding("label 3")
