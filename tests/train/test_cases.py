"""Training arrays: what is written is what is read, with its types."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.errors import DatasetError
from textseg.train.blocks import write_blocks
from textseg.train.cases import (
    Case,
    CaseFacts,
    Target,
    case_path,
    find_places,
    is_made,
    read_case,
    read_index,
    read_place,
    write_case,
    write_index,
)

TUMOUR = Target("left_kidney", "tumor")
FACTS = CaseFacts(
    name="one",
    group="torso",
    mixture="torso",
    split="validation",
    spacing_mm=(3.0, 2.5, 1.5),
    modality="ct",
    targets=[(Target("kidneys"), (2, 3)), (TUMOUR, (4,)), (Target(None, "soft_tissue_sarcoma"), (300,))],
    tissues={2: "left kidney", 300: "soft tissue sarcoma"},
)


def drawn_case(facts, *, channels):
    random = np.random.default_rng(1)
    labels = random.integers(0, 301, (5, 4, 3)).astype(np.int16)
    images = [random.normal(size=labels.shape).astype(np.float16) for _ in range(channels)]
    return Case(facts, labels, tuple(images))


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_a_case_comes_back_as_it_was_written(tmp_path, channels):
    case = drawn_case(FACTS, channels=channels)
    write_case(case, tmp_path)
    again = read_case(FACTS, tmp_path)
    assert again.facts == FACTS
    assert again.labels.dtype == np.int16
    np.testing.assert_array_equal(again.labels, case.labels)
    assert len(again.images) == channels
    for image, written in zip(again.images, case.images, strict=True):
        assert image.dtype == np.float16
        np.testing.assert_array_equal(image, written)


def test_the_index_keeps_every_fact(tmp_path):
    label_map = CaseFacts("two", "brain", "brain", "train", (1.5, 1.5, 1.5), None, ignore=255)
    write_index([FACTS, label_map], tmp_path)
    assert read_index(tmp_path) == [FACTS, label_map]


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"index\.json"):
        read_index(tmp_path)


def test_keys_tell_a_structure_from_a_finding_in_it():
    targets = [Target("left_kidney"), TUMOUR, Target(None, "tumor"), Target("tumor")]
    assert len({target.key for target in targets}) == len(targets)


def test_places_come_back_as_they_were_found(tmp_path):
    case = drawn_case(FACTS, channels=2)
    write_case(case, tmp_path)
    found, again = find_places(case), read_place(FACTS, tmp_path)
    assert again.voxels == found.voxels
    assert again.air == found.air == tuple(float(image.min()) for image in case.images)
    assert again.air[0] != again.air[1]
    assert list(again.centres) == list(found.centres)
    for target in found.centres:
        np.testing.assert_array_equal(again.centres[target], found.centres[target])


@pytest.mark.parametrize(("channels", "air"), [(1, -3.5), (0, 0.0)])
def test_files_from_before_there_were_channels_are_read(tmp_path, channels, air):
    case = drawn_case(FACTS, channels=channels)
    volumes = {"labels": case.labels} | ({"image": case.images[0]} if channels else {})
    facts = {"made_from": "", "air": air, "shown": []}
    write_blocks(case_path(FACTS, tmp_path), volumes, {"centres": np.empty((0, 3), np.int16)}, facts)
    again = read_place(FACTS, tmp_path)
    assert again.air == (air,) * channels
    assert len(again.case.images) == channels
    np.testing.assert_array_equal(again.case.labels, case.labels)


def test_a_case_is_made_only_if_it_is_whole_and_of_the_same_origin(tmp_path):
    case = drawn_case(FACTS, channels=0)
    assert not is_made(FACTS, tmp_path, "one plan")
    write_case(case, tmp_path, "one plan")
    assert is_made(FACTS, tmp_path, "one plan")
    assert not is_made(FACTS, tmp_path, "another plan")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-30])
    assert not is_made(FACTS, tmp_path, "one plan")
