"""What is measured of a dataset, and when it is measured again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.dataset.small_dataset import (
    AFFINE,
    SHAPE,
    image,
    label_map,
    save,
    write_label_maps,
    write_small_dataset,
)
from textseg.dataset import read_dataset
from textseg.errors import DatasetError
from textseg.fingerprint import (
    FINGERPRINT_FILE,
    Fingerprint,
    kept_fingerprint,
    read_fingerprint,
    take_fingerprint,
)


def taken(folder: Path) -> Fingerprint:
    return take_fingerprint(read_dataset(folder))


def test_shapes_and_spacings_are_in_canonical_axes(tmp_path: Path) -> None:
    """A scan whose axes run z, x, y gives the same numbers as one whose axes run x, y, z."""
    folder = write_small_dataset(tmp_path, cases=("plain", "turned"))
    order = [2, 0, 1]
    turned = AFFINE[:, [*order, 3]]
    save(image(0).transpose(order), folder / "imagesTr" / "turned_0000.nii.gz", turned)
    save(label_map().transpose(order), folder / "labelsTr" / "turned.nii.gz", turned)
    plain, other = taken(folder).cases
    assert plain.shape_voxels == other.shape_voxels == SHAPE
    assert plain.spacing_mm == pytest.approx((2.0, 1.5, 3.0), abs=0.01)
    assert other.spacing_mm == pytest.approx(plain.spacing_mm)
    assert other.voxels == plain.voxels


def test_the_crop_is_to_what_is_not_zero_in_any_channel(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path, cases=("a",), channels=("T1w", "T2w"))
    first, second = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.int16)
    first[3:9, 5:20, 2:7] = 50
    second[5:12, 8:10, 4:12] = 70
    save(first, folder / "imagesTr" / "a_0000.nii.gz")
    save(second, folder / "imagesTr" / "a_0001.nii.gz")
    [case] = taken(folder).cases
    assert (case.shape_voxels, case.cropped_voxels) == (SHAPE, (9, 15, 10))


def test_sizes_of_labels_and_regions(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path, cases=("a", "b"))
    without = label_map()
    without[without == 3] = 0
    save(without, folder / "labelsTr" / "b.nii.gz")
    fingerprint = taken(folder)
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    tumor = fingerprint.labels["kidney tumor"]
    assert (tumor.cases, tumor.group) == (1, "torso")
    assert tumor.median_ml == pytest.approx(29 * voxel_ml, rel=0.02)
    region = fingerprint.labels["left kidney with tumor"]
    assert region.median_ml == pytest.approx((6 * 10 * 6 - 29 / 2) * voxel_ml, rel=0.02)


def test_intensities_are_those_inside_labels(tmp_path: Path) -> None:
    [inside] = taken(write_small_dataset(tmp_path)).intensities
    # Noise of -60 to 60 HU, plus 150 inside the labels; air and the body around do not count.
    assert inside.modality == "ct"
    assert inside.mean == pytest.approx(150, abs=3)
    assert 89 <= inside.low < 95
    assert 205 < inside.high <= 210
    assert inside.cases == 3


def test_ignored_voxels_are_not_foreground(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path, cases=("a",))
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text.replace('"left kidney with tumor": [1, 3]', '"ignore": 4'))
    labels, voxels = label_map(), image(0)
    labels[labels == 0] = 4
    save(labels, folder / "labelsTr" / "a.nii.gz")
    voxels[labels == 4] = 3000
    save(voxels, folder / "imagesTr" / "a_0000.nii.gz")
    assert taken(folder).intensities[0].high < 300


def test_one_channel_of_several_modalities_has_an_entry_for_each(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path, cases=("p1_CT", "p1_PET", "p1_MR", "p2_CT"), channels=("image",))
    entries = taken(folder).intensities
    assert [(entry.modality, entry.cases) for entry in entries] == [("ct", 2), ("mr", 1), ("pet", 1)]


def test_an_unnamed_modality_is_told_by_its_values(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path, channels=("image",))
    assert {case.modalities for case in taken(folder).cases} == {("ct",)}


def test_label_maps_have_sizes_and_no_intensities(tmp_path: Path) -> None:
    fingerprint = taken(write_label_maps(tmp_path))
    assert (fingerprint.layout, fingerprint.channels, fingerprint.intensities) == ("labelmaps", (), ())
    assert fingerprint.cases[0].cropped_voxels == (15, 10, 6)
    assert fingerprint.labels["right kidney"].cases == 2


def test_a_kept_fingerprint_is_used_until_a_file_changes(tmp_path: Path) -> None:
    folder, out = write_small_dataset(tmp_path / "data"), tmp_path / "out"
    dataset = read_dataset(folder)
    first = take_fingerprint(dataset, out)
    assert kept_fingerprint(dataset, out) == first == read_fingerprint(out)
    told: list[tuple[str, int, int]] = []
    assert take_fingerprint(dataset, out, progress=lambda *step: told.append(step)) == first
    assert told == []
    save(image(77), folder / "imagesTr" / "b_0000.nii.gz")
    os.utime(folder / "imagesTr" / "b_0000.nii.gz", ns=(1, 1))
    assert kept_fingerprint(dataset, out) is None
    again = take_fingerprint(dataset, out)
    assert again.key != first.key
    assert again.intensities != first.intensities


def test_a_damaged_fingerprint_is_taken_again(tmp_path: Path) -> None:
    dataset = read_dataset(write_small_dataset(tmp_path / "data"))
    first = take_fingerprint(dataset, tmp_path)
    (tmp_path / FINGERPRINT_FILE).write_text('{"format": "other"}')
    assert take_fingerprint(dataset, tmp_path) == first
    assert not list(tmp_path.glob(".*"))


def test_a_case_without_a_file_has_no_fingerprint(tmp_path: Path) -> None:
    folder = write_small_dataset(tmp_path)
    (folder / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DatasetError, match="1 lack a file, the first is b"):
        taken(folder)


def test_a_real_dataset(shared_data: Path) -> None:
    fingerprint = taken(shared_data / "Dataset004_PartlyLabelledCT")
    assert [case.id for case in fingerprint.cases] == ["abdomen_pelvis", "abdomen_portal", "chest"]
    assert 1000 < (fingerprint.labels["liver"].median_ml or 0) < 2500
    assert fingerprint.intensities[0].modality == "ct"
