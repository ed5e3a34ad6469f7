"""All that is wrong with a dataset, found at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.dataset.small_dataset import (
    AFFINE,
    SHAPE,
    image,
    label_map,
    save,
    write_json,
    write_label_maps,
    write_small_dataset,
)
from textseg.dataset import read_dataset
from textseg.dataset_check import Problem, check_dataset, refuse_errors
from textseg.errors import DatasetError

Kinds = set[tuple[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_dataset(tmp_path / "Dataset007_Kidney")


def problems_of(folder: Path) -> list[Problem]:
    return check_dataset(read_dataset(folder))


def kinds_of(folder: Path) -> Kinds:
    return {(problem.case, problem.kind) for problem in problems_of(folder)}


def test_a_good_dataset_has_no_problem(folder: Path) -> None:
    assert problems_of(folder) == []


def missing_image(folder: Path) -> None:
    (folder / "imagesTr" / "a_0000.nii.gz").unlink()


def missing_label_map(folder: Path) -> None:
    (folder / "labelsTr" / "a.nii.gz").unlink()


def extra_file(folder: Path) -> None:
    save(image(3), folder / "imagesTr" / "a_0001.nii.gz")


def other_shape(folder: Path) -> None:
    save(label_map()[:-1], folder / "labelsTr" / "a.nii.gz")


def other_affine(folder: Path) -> None:
    shifted = AFFINE.copy()
    shifted[1, 3] += 0.3
    save(label_map(), folder / "labelsTr" / "a.nii.gz", shifted)


def nan(folder: Path) -> None:
    voxels = image(3).astype(np.float32)
    voxels[3, 4, 5] = np.nan
    save(voxels, folder / "imagesTr" / "a_0000.nii.gz")


def infinite(folder: Path) -> None:
    voxels = image(3).astype(np.float32)
    voxels[3, 4, 5] = np.inf
    save(voxels, folder / "imagesTr" / "a_0000.nii.gz")


def empty_image(folder: Path) -> None:
    save(np.full(SHAPE, 7, np.int16), folder / "imagesTr" / "a_0000.nii.gz")


def unknown_label(folder: Path) -> None:
    labels = label_map()
    labels[0, 0, 0] = 9
    save(labels, folder / "labelsTr" / "a.nii.gz")


def not_labels(folder: Path) -> None:
    save(label_map() * np.float32(0.5), folder / "labelsTr" / "a.nii.gz")


def empty_labels(folder: Path) -> None:
    save(np.zeros(SHAPE, np.uint8), folder / "labelsTr" / "a.nii.gz")


def unreadable(folder: Path) -> None:
    path = folder / "imagesTr" / "a_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


FAULTS: list[tuple[Callable[[Path], None], Kinds]] = [
    (missing_image, {("a", "missing image"), ("", "number of cases")}),
    (missing_label_map, {("a", "missing label map"), ("", "number of cases")}),
    (extra_file, {("", "extra file")}),
    (other_shape, {("a", "shapes differ")}),
    (other_affine, {("a", "affines differ")}),
    (nan, {("a", "NaN")}),
    (infinite, {("a", "infinite")}),
    (empty_image, {("a", "empty image")}),
    (unknown_label, {("a", "unknown label")}),
    (not_labels, {("a", "not labels")}),
    (empty_labels, {("a", "empty labels")}),
    (unreadable, {("a", "unreadable")}),
]


@pytest.mark.parametrize(("spoil", "kinds"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_found_and_nothing_else(folder: Path, spoil: Callable[[Path], None], kinds: Kinds) -> None:
    spoil(folder)
    assert kinds_of(folder) == kinds


def test_all_faults_are_told_at_once(folder: Path) -> None:
    labels = label_map()
    labels[0, 0, 0] = 9
    save(labels[:, :-1], folder / "labelsTr" / "a.nii.gz")
    nan_voxels = image(5).astype(np.float32)
    nan_voxels[0, 0, 0] = np.nan
    save(nan_voxels, folder / "imagesTr" / "b_0000.nii.gz")
    (folder / "imagesTr" / "c_0000.nii.gz").unlink()
    (folder / "labelsTr" / "notes.txt").write_text("x")
    assert kinds_of(folder) == {
        ("a", "shapes differ"),
        ("a", "unknown label"),
        ("b", "NaN"),
        ("c", "missing image"),
        ("", "extra file"),
        ("", "number of cases"),
    }


def test_every_channel_is_looked_at(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path, channels=("T1w", "T2w"))
    voxels = image(3).astype(np.float32)
    voxels[1, 2, 3] = np.nan
    save(voxels, folder / "imagesTr" / "b_0001.nii.gz")
    save(image(4)[:, :, :-2], folder / "imagesTr" / "c_0001.nii.gz")
    (folder / "imagesTr" / "a_0001.nii.gz").unlink()
    assert kinds_of(folder) == {
        ("a", "missing image"),
        ("b", "NaN"),
        ("c", "shapes differ"),
        ("", "number of cases"),
    }


def test_flipped_axes_are_another_grid_and_the_message_says_so(folder: Path) -> None:
    flipped = AFFINE.copy()
    flipped[:3, 0] *= -1
    save(label_map(), folder / "labelsTr" / "b.nii.gz", flipped)
    [problem] = problems_of(folder)
    assert (problem.case, problem.kind) == ("b", "affines differ")
    assert "LAS and RAS" in problem.message


def test_the_same_grid_in_rounded_numbers_is_no_problem(folder: Path) -> None:
    save(label_map(), folder / "labelsTr" / "b.nii.gz", AFFINE + np.eye(4, k=1) * 1e-5)
    assert problems_of(folder) == []


def test_a_label_that_no_case_shows_is_told(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    document["labels"]["spleen"] = 5
    write_json(document, folder / "dataset.json")
    [problem] = problems_of(folder)
    assert (problem.severity, problem.kind) == ("warning", "label in no case")
    assert "'spleen'" in problem.message


def test_two_labels_of_one_value_are_an_error(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    document["labels"]["spleen"] = 2
    write_json(document, folder / "dataset.json")
    assert kinds_of(folder) == {("", "same value")}


def test_ignored_voxels_need_no_name(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    document["labels"] = {"background": 0, "left kidney": 1, "right kidney": 2, "ignore": 3}
    write_json(document, folder / "dataset.json")
    assert problems_of(folder) == []


def test_words_that_the_lexicon_lacks_ask_for_prompts(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    document["labels"]["zorblax"] = document["labels"].pop("kidney tumor")
    write_json(document, folder / "dataset.json")
    assert kinds_of(folder) == {("", "unknown words")}
    write_json({"labels": {"zorblax": ["a thing in the kidney"]}}, folder / "prompts.json")
    assert kinds_of(folder) == set()


@pytest.mark.parametrize(
    ("prompts", "kinds"),
    [
        ({"labels": {"spleen": ["spleen"]}}, {("", "prompts")}),
        ({"labels": {"left kidney": ["the right kidney"]}}, {("", "wrong side")}),
        ({"cases": {"z": [{"text": "cyst", "label": "left kidney"}]}}, {("z", "prompts")}),
        ({"cases": {"a": [{"text": "cyst", "label": "cyst"}]}}, {("a", "prompts")}),
        ({"cases": {"a": [{"text": "right renal tumor", "label": "left kidney"}]}}, {("a", "wrong side")}),
        ({"cases": {"a": [{"text": "mass", "label": "kidney tumor", "component": 3}]}}, {("a", "prompts")}),
        (
            {"cases": {"a": [{"text": "mass", "label": "kidney tumor", "component": [0.0, 0.0, 0.0]}]}},
            {("a", "prompts")},
        ),
        ({"cases": {"a": [{"text": "mass", "label": "kidney tumor", "component": 2}]}}, set()),
    ],
)
def test_sentences_must_mean_what_is_there(folder: Path, prompts: object, kinds: Kinds) -> None:
    write_json(prompts, folder / "prompts.json")
    assert kinds_of(folder) == kinds


def test_a_sentence_about_what_a_case_does_not_show_is_an_error(folder: Path) -> None:
    labels = label_map()
    labels[labels == 3] = 1
    save(labels, folder / "labelsTr" / "a.nii.gz")
    write_json({"cases": {"a": [{"text": "mass", "label": "kidney tumor"}]}}, folder / "prompts.json")
    assert kinds_of(folder) == {("a", "prompts")}


def test_label_maps_may_hold_tissues_without_a_name(tmp_path: Path) -> None:
    folder = write_label_maps(tmp_path)
    labels = label_map()
    labels[0, 0, 0] = 77
    save(labels, folder / "one.nii.gz")
    [problem] = problems_of(folder)
    assert (problem.severity, problem.kind) == ("warning", "unknown label")


def test_an_empty_folder_is_an_error(folder: Path) -> None:
    for path in (folder / "imagesTr", folder / "labelsTr"):
        for file in path.iterdir():
            file.unlink()
    assert ("", "no cases") in kinds_of(folder)


def test_processes_find_the_same_and_progress_is_told(folder: Path) -> None:
    nan(folder)
    told: list[tuple[str, int, int]] = []
    found = check_dataset(read_dataset(folder), 2, lambda *step: told.append(step))
    assert found == problems_of(folder)
    assert told == [("checking", done, 3) for done in range(4)]


def test_errors_are_refused_with_their_number(folder: Path) -> None:
    nan(folder)
    unreadable(folder)
    (folder / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"has 2 errors, the first: a: .*textseg plan check"):
        refuse_errors(problems_of(folder))


def test_warnings_are_not_refused(folder: Path) -> None:
    empty_labels(folder)
    refuse_errors(problems_of(folder))


@pytest.mark.parametrize(
    "name", ["Dataset001_Hippocampus", "Dataset002_Sarcoma", "Dataset004_PartlyLabelledCT"]
)
def test_real_datasets_have_no_problem(shared_data: Path, name: str) -> None:
    assert problems_of(shared_data / name) == []
