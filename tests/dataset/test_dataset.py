"""Reading a dataset's folder: cases, labels, words and sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.dataset.small_dataset import (
    AFFINE,
    SHAPE,
    TUMOR,
    image,
    label_map,
    save,
    write_json,
    write_label_maps,
    write_small_dataset,
)
from textseg.dataset import meant_component, modality_in, read_dataset
from textseg.errors import DatasetError
from textseg.geometry import Geometry


def test_nnunet_layout_gives_cases_channels_and_regions(tmp_path: Path) -> None:
    dataset = read_dataset(write_small_dataset(tmp_path / "Dataset007_Kidney", channels=("T1w", "T2w")))
    assert dataset.name == "Dataset007_Kidney"
    assert [(channel.name, channel.modality) for channel in dataset.channels] == [
        ("T1w", "mr"),
        ("T2w", "mr"),
    ]
    assert [case.id for case in dataset.cases] == ["a", "b", "c"]
    first = dataset.cases[0]
    assert [path.name for path in first.files] == ["a_0000.nii.gz", "a_0001.nii.gz", "a.nii.gz"]
    assert first.values["left kidney with tumor"] == (1, 3)
    assert "background" not in dataset.labels


def test_a_case_name_may_end_like_a_channel(tmp_path: Path) -> None:
    dataset = read_dataset(write_small_dataset(tmp_path, cases=("scan_0001", "scan_0002")))
    assert [case.id for case in dataset.cases] == ["scan_0001", "scan_0002"]
    assert all(case.whole for case in dataset.cases)


def test_words_come_from_the_lexicon_without_prompts(tmp_path: Path) -> None:
    labels = read_dataset(write_small_dataset(tmp_path)).labels
    assert labels["right_kidney"].words[0] == "right kidney"
    assert "kidney, right" in labels["right_kidney"].words
    assert labels["right_kidney"].group == "torso"
    assert not any("left" in words for words in labels["right_kidney"].words)
    assert labels["kidney tumor"].words_from == "lexicon"


def test_a_name_that_nobody_knows_stays_as_it_is(tmp_path: Path) -> None:
    write_small_dataset(tmp_path)
    write_json(
        {**_document(tmp_path), "labels": {"background": 0, "zorblax_7": 1}}, tmp_path / "dataset.json"
    )
    label = read_dataset(tmp_path).labels["zorblax_7"]
    assert (label.words, label.words_from, label.group) == (("zorblax 7",), "name", None)


def test_prompts_give_words_and_sentences(tmp_path: Path) -> None:
    write_small_dataset(tmp_path)
    sentence = {"text": "a 2 cm tumor in the upper pole", "label": "kidney tumor", "component": 2}
    prompts = {"labels": {"kidney tumor": ["renal mass", "RCC"]}, "cases": {"b": [sentence]}}
    write_json(prompts, tmp_path / "prompts.json")
    dataset = read_dataset(tmp_path)
    assert dataset.labels["kidney tumor"].words == ("renal mass", "RCC")
    assert dataset.labels["kidney tumor"].words_from == "prompts.json"
    assert dataset.labels["left kidney"].words_from == "lexicon"
    assert [(s.text, s.component) for s in dataset.cases[1].sentences] == [(sentence["text"], 2)]
    assert dataset.cases[0].sentences == ()


@pytest.mark.parametrize(
    ("prompts", "where"),
    [
        ({"labels": {"left kidney": []}}, "labels.left kidney"),
        ({"labels": {"left kidney": ["  "]}}, "labels.left kidney.0"),
        ({"cases": {"a": [{"text": "cyst", "label": "cyst", "component": 0}]}}, "component"),
        ({"cases": {"a": [{"text": "cyst", "lable": "cyst"}]}}, "label"),
        ({"words": {}}, "words"),
    ],
)
def test_prompts_that_are_wrong_say_where(tmp_path: Path, prompts: object, where: str) -> None:
    write_small_dataset(tmp_path)
    write_json(prompts, tmp_path / "prompts.json")
    with pytest.raises(DatasetError, match=rf"prompts\.json is not valid: .*{where}"):
        read_dataset(tmp_path)


def test_label_maps_without_images_are_a_dataset(tmp_path: Path) -> None:
    dataset = read_dataset(write_label_maps(tmp_path))
    assert (dataset.layout, dataset.channels) == ("labelmaps", ())
    assert [(case.id, case.images) for case in dataset.cases] == [("one", ()), ("two", ())]
    # The same name has another value in each map.
    assert [case.values["right kidney"] for case in dataset.cases] == [(2,), (3,)]
    assert set(dataset.labels) == {"left kidney", "right kidney", "kidney tumor", "spleen", "liver"}


def test_listed_files_are_taken_from_where_they_are(tmp_path: Path) -> None:
    save(image(1), tmp_path / "scans" / "x.nii.gz")
    save(label_map(), tmp_path / "drawn" / "x_seg.nii.gz")
    entry = {"images": ["scans/x.nii.gz"], "label": "drawn/x_seg.nii.gz"}
    labels = {"background": 0, "liver": 1}
    write_json(
        {"channel_names": {"0": "CT"}, "labels": labels, "dataset": {"x": entry}}, tmp_path / "dataset.json"
    )
    [case] = read_dataset(tmp_path).cases
    assert case.whole
    assert [path.name for path in case.files] == ["x.nii.gz", "x_seg.nii.gz"]


def test_ignore_is_no_label(tmp_path: Path) -> None:
    write_small_dataset(tmp_path)
    labels = {"background": 0, "liver": 1, "ignore": 3}
    write_json({**_document(tmp_path), "labels": labels}, tmp_path / "dataset.json")
    dataset = read_dataset(tmp_path)
    assert (list(dataset.labels), dataset.ignore) == (["liver"], 3)


def test_ignore_of_label_maps_is_no_label_either(tmp_path: Path) -> None:
    write_label_maps(tmp_path)
    names = {"background": 0, "left kidney": 1, "right kidney": 2, "kidney tumor": 3, "ignore": 4}
    write_json({"labels": names}, tmp_path / "names.json")
    dataset = read_dataset(tmp_path)
    assert ("ignore" in dataset.labels, dataset.ignore) == (False, 4)


@pytest.mark.parametrize("value", [1, 2, [3, 4]])
def test_ignore_has_one_value_above_all_labels(tmp_path: Path, value: object) -> None:
    write_small_dataset(tmp_path)
    labels = {"background": 0, "liver": 1, "liver and spleen": [1, 2], "ignore": value}
    write_json({**_document(tmp_path), "labels": labels}, tmp_path / "dataset.json")
    with pytest.raises(DatasetError, match=r'"ignore" has one value, above .* the highest label has 2'):
        read_dataset(tmp_path)


def test_label_maps_share_one_value_for_ignore(tmp_path: Path) -> None:
    write_label_maps(tmp_path)
    names = {f"{name}.nii.gz": {"labels": {"liver": 1, "ignore": n}} for name, n in (("one", 3), ("two", 4))}
    write_json(names, tmp_path / "names.json")
    with pytest.raises(DatasetError, match="3 and 4"):
        read_dataset(tmp_path)


def test_the_order_of_regions_is_not_needed(tmp_path: Path) -> None:
    write_small_dataset(tmp_path)
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    changed = {**_document(tmp_path), "labels": labels, "regions_class_order": [1, 2, 3]}
    write_json(changed, tmp_path / "dataset.json")
    values = read_dataset(tmp_path).cases[0].values
    assert values == {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}


def test_what_is_annotated_is_read(tmp_path: Path) -> None:
    write_small_dataset(tmp_path)
    write_json({"a": {"complete": ["left kidney"], "partial": []}}, tmp_path / "annotated.json")
    first, second, _ = read_dataset(tmp_path).cases
    assert first.complete == frozenset({"left kidney"})
    assert second.complete is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": {"0": "background", "1": "liver"}}, "Names come first"),
        ({"labels": {"background": 0, "liver": 1.5}}, "'liver' has 1.5"),
        ({"labels": {"body": 0}}, "0 is the background"),
        ({"labels": {}}, 'needs "labels"'),
        ({"channel_names": {"1": "CT"}}, "numbered from 0"),
        ({"channel_names": None}, 'needs "channel_names"'),
    ],
)
def test_a_dataset_file_that_is_wrong_says_why(tmp_path: Path, change: dict[str, object], said: str) -> None:
    write_small_dataset(tmp_path)
    write_json({**_document(tmp_path), **change}, tmp_path / "dataset.json")
    with pytest.raises(DatasetError, match=said):
        read_dataset(tmp_path)


def test_a_folder_that_is_no_dataset_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.json .* or, .*names\.json"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "modality"),
    [("CT", "ct"), ("T1w", "mr"), ("STS_001_PET", "pet"), ("FLAIR", "mr"), ("image", None), ("pet_ct", None)],
)
def test_a_name_tells_its_modality_if_it_names_one(name: str, modality: str | None) -> None:
    assert modality_in(name) == modality


def test_a_component_is_meant_by_size_or_by_place() -> None:
    mask = label_map() == TUMOR
    grid = Geometry(SHAPE, AFFINE)
    largest, second = meant_component(mask, grid, 1), meant_component(mask, grid, 2)
    assert (largest.sum(), second.sum()) == (27, 2)
    x, y, z = grid.to_world((4, 12.6, 5)).tolist()
    assert np.array_equal(meant_component(mask, grid, (x, y, z)), second)
    x, y, z = grid.to_world((4, 7, 5)).tolist()
    assert np.array_equal(meant_component(mask, grid, (x, y, z)), largest)


def test_a_component_that_is_not_there_is_refused() -> None:
    mask = label_map() == TUMOR
    grid = Geometry(SHAPE, AFFINE)
    with pytest.raises(DatasetError, match="from 1 to 2 here, got 3"):
        meant_component(mask, grid, 3)
    with pytest.raises(DatasetError, match="mm from the nearest voxel"):
        meant_component(mask, grid, (500.0, 0.0, 0.0))


def _document(folder: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return document
