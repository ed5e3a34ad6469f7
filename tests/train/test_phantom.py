"""The drawn torso: every organ on its own side, of its own size, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.geometry import Geometry
from textseg.prompts import understand
from textseg.train.gather import NOT_ASKED_FOR
from textseg.train.phantom import LEGEND, VALUES, torso_phantom

SPACING_MM = 6.0
SEEDS = range(8)
# What an adult may have, with room to both sides.
MILLILITRES = {
    "liver": (500, 3000),
    "spleen": (50, 500),
    "left kidney": (60, 350),
    "right kidney": (60, 350),
    "left lung": (600, 3500),
    "right lung": (600, 3500),
    "heart": (250, 1200),
    "stomach": (80, 1000),
    "pancreas": (15, 150),
    "gallbladder": (8, 100),
    "urinary bladder": (30, 600),
    "aorta": (50, 300),
}


def torso(seed):
    random = np.random.default_rng(seed)
    return torso_phantom(
        random, Geometry((58, 46, int(random.integers(55, 90))), np.diag([*[SPACING_MM] * 3, 1]))
    )


@pytest.fixture(scope="module")
def torsos():
    return [torso(seed) for seed in SEEDS]


def centre_of(labels, name):
    return np.argwhere(labels == VALUES[name]).mean(axis=0) / labels.shape


def test_left_organs_lie_on_the_left(torsos):
    # Canonical x grows to the patient's right.
    for labels in torsos:
        for organ in ("left kidney", "left lung", "spleen", "stomach"):
            assert centre_of(labels, organ)[0] < 0.5
        for organ in ("right kidney", "right lung", "liver", "gallbladder"):
            assert centre_of(labels, organ)[0] > 0.5


def test_the_spine_lies_behind_and_the_bladder_below(torsos):
    for labels in torsos:
        _, spine_y, _ = centre_of(labels, "vertebral column")
        for organ in ("liver", "aorta", "urinary bladder", "heart"):
            assert centre_of(labels, organ)[1] > spine_y
        heights = [centre_of(labels, organ)[2] for organ in ("urinary bladder", "left kidney", "left lung")]
        assert heights == sorted(heights)


def test_organs_are_as_large_as_an_adults(torsos):
    for labels in torsos:
        for organ, (least, most) in MILLILITRES.items():
            assert least < (labels == VALUES[organ]).sum() * SPACING_MM**3 / 1000 < most, organ


def test_every_label_is_drawn_and_none_without_a_name(torsos):
    for labels in torsos:
        assert set(np.unique(labels)) == {0, *LEGEND}


def test_every_name_that_is_asked_for_is_in_the_lexicon(lexicon):
    for name in set(VALUES) - NOT_ASKED_FOR:
        prompt = understand(name, lexicon)
        assert prompt.structure is not None, name
        assert prompt.canonical == name


def test_the_seed_decides_the_torso(torsos):
    np.testing.assert_array_equal(torso(0), torsos[0])
    assert torso(0).shape != torsos[1].shape or (torsos[0] != torsos[1]).any()
