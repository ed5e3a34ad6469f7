"""Which file is scored against which, and what labels mean."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scores.conftest import block
from textseg.errors import DatasetError, GeometryError, ScanError
from textseg.geometry import Box
from textseg.scores.inputs import box_of, cut, find_pairs, match_names, open_labels, read_complete, read_names


@pytest.fixture
def touch(tmp_path):
    def run(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    return run


def write_record(folder: Path, scan: str, prompts: dict[str, tuple[str | None, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format": "textseg-record-1",
        "scan": {"files": [f"/somewhere/{scan}.nii.gz"]},
        "prompts": [
            {"prompt": prompt, "file": file, "found": file is not None, "presence": presence}
            for prompt, (file, presence) in prompts.items()
        ],
    }
    (folder / f"{scan}_{len(prompts)}_record.json").write_text(json.dumps(record), encoding="utf-8")


# ---- names of labels ----


@pytest.mark.parametrize(
    "document",
    [
        {"labels": {"background": 0, "liver": 1, "left kidney": 4}},
        {"liver": 1, "left kidney": 4},
        {"0": "background", "1": "liver", "4": "left kidney"},
    ],
)
def test_names_are_read_either_way_round(tmp_path, document):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_names(path).labels == {1: "liver", 4: "left kidney"}


def test_names_say_what_was_looked_for(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"liver": 1, "known": {"a": ["liver"]}}), encoding="utf-8")
    assert read_names(path).known == {"a": ["liver"]}


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"liver": "spleen"}', '{"labels": 3}'])
def test_a_file_that_holds_no_names_is_refused(tmp_path, content):
    path = tmp_path / "names.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match="Names of labels must be"):
        read_names(path)


def test_names_match_by_words_then_by_meaning():
    matched = match_names(
        ["kidney left", "Right_Kidney", "something else", "liver", "spleen"],
        ["left kidney", "right kidney", "something-else", "hepar"],
    )
    assert matched == {
        "kidney left": "left kidney",
        "Right_Kidney": "right kidney",
        "something else": "something-else",
        "liver": "hepar",
    }


def test_names_of_one_meaning_are_not_guessed():
    assert match_names(["liver", "hepar"], ["foie", "the liver"]) == {}
    assert match_names(["left kidney"], ["right kidney"]) == {}


# ---- files ----


def test_two_files_are_a_case(touch, tmp_path):
    touch("mine.nii.gz", "truth.nrrd")
    (pair,) = find_pairs(tmp_path / "mine.nii.gz", tmp_path / "truth.nrrd")
    assert pair.case == "truth"
    assert pair.predicted.label_map == tmp_path / "mine.nii.gz"


def test_label_maps_are_matched_by_name_whatever_their_format(touch, tmp_path):
    touch("ref/a.nii.gz", "ref/b.mha", "ref/.hidden.nii.gz", "ref/notes.txt")
    touch("pred/a.nrrd", "pred/b_0000_labels.nii.gz", "pred/c.nii.gz")
    pairs = find_pairs(tmp_path / "pred", tmp_path / "ref")
    assert [(pair.case, pair.predicted.label_map.name) for pair in pairs] == [
        ("a", "a.nrrd"),
        ("b", "b_0000_labels.nii.gz"),
    ]


def test_masks_may_lie_in_a_folder_or_carry_the_case_in_their_name(touch, tmp_path):
    touch("ref/a/liver.nii.gz", "ref/a/left_kidney.nii.gz", "ref/b/segmentations/liver.nii.gz")
    touch("pred/a_liver.nrrd", "pred/a_0000_left_kidney.nrrd", "pred/b_liver.nrrd")
    a, b = find_pairs(tmp_path / "pred", tmp_path / "ref")
    assert set(a.reference.masks) == {"liver", "left_kidney"}
    assert set(a.predicted.masks) == {"liver", "left kidney"}
    # The kidney was found in another case: here it was asked for and not found.
    assert b.predicted.denied == {"left kidney"}
    assert b.reference.masks["liver"].parent.name == "segmentations"


def test_records_tell_prompts_presence_and_what_was_not_found(touch, tmp_path):
    touch("ref/a.nii.gz", "pred/a_0000_my_liver.nii.gz")
    write_record(
        tmp_path / "pred", "a_0000", {"my liver!": ("a_0000_my_liver.nii.gz", 0.9), "spleen": (None, 0.1)}
    )
    (pair,) = find_pairs(tmp_path / "pred", tmp_path / "ref")
    assert pair.predicted.masks == {"my liver!": tmp_path / "pred" / "a_0000_my_liver.nii.gz"}
    assert pair.predicted.denied == {"spleen"}
    assert pair.predicted.presence == {"my liver!": 0.9, "spleen": 0.1}


def test_the_folder_of_a_cohort_is_one_of_predictions(touch, tmp_path):
    touch("ref/a.nii.gz", "ref/b.nii.gz", "out/a_0000/mask_my_liver.nii.gz", "out/a_0000/preview.png")
    touch("out/cohort.sqlite", "out/summary.csv", "out/report/a_0000.html")
    answers = {"a": ("mask_my_liver.nii.gz", 0.9), "b": (None, 0.1)}
    for case, answer in answers.items():
        folder = tmp_path / "out" / f"{case}_0000"
        write_record(folder, f"{case}_0000", {"my liver!": answer})
        (folder / f"{case}_0000_1_record.json").rename(folder / "result.json")
    for name, content in (("x/result.json", "[1]"), ("x/y_record.json", "{")):
        touch(f"out/{name}")
        (tmp_path / "out" / name).write_text(content)
    a, b = find_pairs(tmp_path / "out", tmp_path / "ref")
    assert a.predicted.masks == {"my liver!": tmp_path / "out" / "a_0000" / "mask_my_liver.nii.gz"}
    assert b.predicted.denied == {"my liver!"}
    assert (a.predicted.presence, b.predicted.presence) == ({"my liver!": 0.9}, {"my liver!": 0.1})


def test_a_record_of_a_label_map_gives_presence_too(touch, tmp_path):
    touch("ref/a.nii.gz", "pred/a_labels.nii.gz")
    file = "a_labels.nii.gz"
    write_record(tmp_path / "pred", "a", {"liver": (file, 0.9), "spleen": (file, 0.8), "colon": (None, 0.2)})
    (pair,) = find_pairs(tmp_path / "pred", tmp_path / "ref")
    assert pair.predicted.label_map == tmp_path / "pred" / file
    assert pair.predicted.masks == {}
    assert pair.predicted.presence["colon"] == 0.2


def test_references_named_as_textseg_names_masks_are_one_case(touch, tmp_path):
    touch("ref/a_liver.nii.gz", "ref/a_spleen.nii.gz", "pred/a_liver.nii.gz")
    write_record(tmp_path / "pred", "a", {"liver": ("a_liver.nii.gz", 0.9), "spleen": (None, 0.1)})
    (pair,) = find_pairs(tmp_path / "pred", tmp_path / "ref")
    assert (pair.case, set(pair.reference.masks)) == ("a", {"liver", "spleen"})


def test_a_case_without_prediction_is_refused(touch, tmp_path):
    touch("ref/a.nii.gz", "ref/b.nii.gz", "pred/a.nii.gz", "empty/notes.txt")
    with pytest.raises(DatasetError, match="has none for b"):
        find_pairs(tmp_path / "pred", tmp_path / "ref")
    with pytest.raises(DatasetError, match="holds none"):
        find_pairs(tmp_path / "pred", tmp_path / "empty")
    with pytest.raises(DatasetError, match="two files or two folders"):
        find_pairs(tmp_path / "pred" / "a.nii.gz", tmp_path / "ref")
    with pytest.raises(DatasetError, match="no file or folder"):
        find_pairs(tmp_path / "pred", tmp_path / "nowhere")


# ---- voxels ----


def test_labels_are_opened_in_canonical_order_with_their_boxes(write, grid):
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5, 3:4, 6:9], labels[20:22, 1:9, 1:2] = 1, 7
    flipped = grid.affine @ np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, -1, 17], [0, 0, 0, 1]])
    opened = open_labels(write("a.nii.gz", labels[::-1, :, ::-1], flipped))
    assert opened.grid.is_close(grid)
    assert opened.boxes == {1: Box((2, 3, 6), (5, 4, 9)), 7: Box((20, 1, 1), (22, 9, 2))}
    assert box_of(opened, None) == Box((2, 1, 1), (22, 9, 9))
    assert box_of(opened, (2,)) is None
    assert np.array_equal(cut(opened, (7,), grid.whole), labels == 7)
    assert np.array_equal(cut(opened, None, grid.whole), labels > 0)


def test_numbers_beyond_16_bits_are_labels_too(tmp_path, grid):
    labels = np.zeros(grid.shape, np.int32)
    labels[3:6, 2, 1] = 100_000
    nib.save(nib.Nifti1Image(labels, grid.affine), tmp_path / "a.nii.gz")
    assert open_labels(tmp_path / "a.nii.gz").boxes == {100_000: Box((3, 2, 1), (6, 3, 2))}


def test_another_grid_is_refused_or_resampled(write, grid):
    labels = block(grid.shape, (4, 5, 3), (14, 15, 9))
    moved = grid.affine.copy()
    moved[:3, 3] += 4 * grid.affine[:3, 0]
    path = write("a.nii.gz", labels[4:], moved)
    with pytest.raises(GeometryError, match="must lie on the grid of its reference"):
        open_labels(path, onto=grid)
    opened = open_labels(path, onto=grid, resample=True)
    assert np.array_equal(opened.labels > 0, labels)
    assert opened.grid == grid


def test_what_is_no_label_map_is_refused(tmp_path, grid):
    nib.save(nib.Nifti1Image(np.full(grid.shape, 0.5), grid.affine), tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match="whole numbers"):
        open_labels(tmp_path / "a.nii.gz")


def test_what_is_drawn_in_full_is_read_or_refused(tmp_path):
    path = tmp_path / "annotated.json"
    path.write_text('{"chest": {"complete": ["liver"], "partial": ["heart"]}}', encoding="utf-8")
    assert read_complete(path) == {"chest": ["liver"]}
    for wrong in ('{"chest": {"partial": []}}', "[1]", "{"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(DatasetError, match="complete"):
            read_complete(path)
