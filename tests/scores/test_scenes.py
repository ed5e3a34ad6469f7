"""A case made ready to be asked about."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scores.probe_phantom import LEFT, LIVER, SHAPE, read_torso, write_torso
from textseg.dataset import read_dataset
from textseg.errors import DatasetError, GeometryError
from textseg.scores.scenes import Missing, check_probe_cases, read_scene


def test_things_are_found_in_canonical_axes(tmp_path: Path) -> None:
    scene = read_torso(write_torso(tmp_path / "torso"))
    assert scene.volume.geometry.orientation == "RAS"
    assert scene.volume.modality == "ct"
    assert [thing.words for thing in scene.things] == ["left kidney", "right kidney", "liver"]
    left = np.zeros(SHAPE, bool)
    left[LEFT] = True
    assert (scene.things[0].reference.whole() == left).all()


def test_fewer_things_come_with_their_other_side(tmp_path: Path) -> None:
    dataset = write_torso(tmp_path / "torso")
    chosen = set()
    for seed in range(12):
        scene = read_scene(dataset, dataset.cases[0], most_things=1, seed=seed)
        chosen.add(tuple(thing.name for thing in scene.things))
    assert chosen == {("kidney left", "kidney right"), ("liver",)}


def test_what_is_not_there_is_known_from_the_labels_and_the_region(tmp_path: Path) -> None:
    dataset = write_torso(tmp_path / "torso")
    path = dataset.cases[0].labels
    assert path is not None
    image = nib.load(path)
    labels = np.asarray(image.dataobj).astype(np.uint8)
    labels[labels == 2] = 0
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    missing = read_torso(dataset).missing
    assert missing[:2] == (
        Missing("right kidney", "the other side's"),
        Missing("spleen", "labelled elsewhere"),
    )
    assert {one.test for one in missing[2:]} == {"of another region"}


def test_what_a_case_does_not_list_as_complete_is_neither_there_nor_missing(tmp_path: Path) -> None:
    write_torso(tmp_path / "torso")
    complete = {"one": {"complete": ["liver", "spleen"]}}
    (tmp_path / "torso" / "annotated.json").write_text(json.dumps(complete), encoding="utf-8")
    scene = read_torso(read_dataset(tmp_path / "torso"))
    assert [thing.name for thing in scene.things] == ["liver"]
    assert [one.words for one in scene.missing if one.test == "labelled elsewhere"] == ["spleen"]


def test_sentences_of_the_dataset_mean_what_they_say(tmp_path: Path) -> None:
    write_torso(tmp_path / "torso")
    prompts = {"cases": {"one": [{"text": "the big organ", "label": "liver", "component": 1}]}}
    (tmp_path / "torso" / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    (said,) = read_torso(read_dataset(tmp_path / "torso")).said
    liver = np.zeros(SHAPE, bool)
    liver[LIVER] = True
    assert (said.text, said.thing.name) == ("the big organ", "liver")
    assert (said.reference.whole() == liver).all()


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    dataset = write_torso(tmp_path / "torso")
    path = dataset.cases[0].labels
    assert path is not None
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 9
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), path)
    with pytest.raises(GeometryError, match="lies on its scan's grid"):
        read_torso(dataset)


def test_label_maps_without_scans_are_refused(tmp_path: Path) -> None:
    names = {"labels": {"liver": 1}}
    (tmp_path / "names.json").write_text(json.dumps(names), encoding="utf-8")
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    dataset = read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="holds label maps alone"):
        check_probe_cases(dataset, dataset.cases)
