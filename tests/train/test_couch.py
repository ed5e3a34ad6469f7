"""Couches and arms: outside of the body alone, behind it and beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.train.couch import ROOM, with_couch
from textseg.train.synth import AIR_HU

SHAPE = (44, 36, 20)
BODY = (slice(14, 32), slice(14, 30), slice(0, 20))
SEEDS = range(40)


@pytest.fixture(scope="module")
def labels():
    labels = torch.zeros(SHAPE, dtype=torch.int64)
    labels[BODY] = 5
    return labels


@pytest.fixture(scope="module")
def image(labels):
    return torch.where(labels > 0, 40.0, AIR_HU)


@pytest.fixture(scope="module")
def drawn(image, labels):
    return [with_couch(image, labels, np.random.default_rng(seed)) for seed in SEEDS]


def test_the_body_stays_as_it_is(image, labels, drawn):
    for seen in drawn:
        assert seen[labels > 0].equal(image[labels > 0])


def test_something_lies_behind_or_beside_and_nothing_in_front_of_the_body_alone(image, drawn):
    changed = torch.stack([(seen - image).abs() > 60 for seen in drawn])
    assert all(one.any() for one in changed)
    often = changed.float().mean(dim=0)
    behind = often[BODY[0], : BODY[1].start].mean()
    in_front = often[BODY[0], BODY[1].stop :].mean()
    assert behind > 0.1
    assert in_front < behind / 5


def test_arms_come_on_either_side(image, drawn):
    sides = [
        [bool((seen[x, 20:24] > AIR_HU + 300).any()) for seen in drawn]
        for x in (slice(0, BODY[0].start - 1), slice(BODY[0].stop + 1, None))
    ]
    for side in sides:
        assert 0.2 < np.mean(side) < 0.9


def test_a_body_that_fills_the_patch_has_no_couch(image):
    full = torch.full(SHAPE, 5)
    assert with_couch(image, full, np.random.default_rng(0)).equal(image)


def test_without_room_behind_the_body_there_are_no_plates(image):
    labels = torch.zeros(SHAPE, dtype=torch.int64)
    labels[:, : SHAPE[1] - ROOM] = 5
    for seed in SEEDS:
        seen = with_couch(image, labels, np.random.default_rng(seed))
        assert seen[labels == 0].equal(image[labels == 0])


def test_a_patch_of_air_stays_air(image):
    air = torch.full(SHAPE, AIR_HU)
    nobody = torch.zeros(SHAPE, dtype=torch.int64)
    assert with_couch(air, nobody, np.random.default_rng(1)).equal(air)


def test_the_same_generator_draws_the_same(image, labels):
    first, second = (with_couch(image, labels, np.random.default_rng(7)) for _ in range(2))
    assert first.equal(second)
