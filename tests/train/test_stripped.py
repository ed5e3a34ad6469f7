"""Stripped heads: the brain stays whole, and nothing of bone and scalp is left around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from textseg.train.stripped import grown, stripped

SCALP, BONE, FLUID, CORTEX, WHITE, LESION = 1, 2, 3, 4, 5, 6
TISSUE, FLUIDS = frozenset({FLUID, CORTEX, WHITE}), frozenset({FLUID})
SEEDS = range(24)


@pytest.fixture(scope="module")
def head():
    """Shells of a head (x, y, z), a furrow of fluid in its cortex, and a lesion without a name."""
    labels = torch.zeros(40, 44, 36, dtype=torch.int64)
    for inset, value in enumerate((SCALP, SCALP, BONE, BONE, FLUID, FLUID, CORTEX, CORTEX, WHITE), start=2):
        x, y, z = (slice(inset, n - inset) for n in labels.shape)
        labels[x, y, z] = value
    labels[19:21, 8:12, 10:26] = FLUID
    labels[24:26, 20:22, 18:20] = LESION
    return labels


@pytest.fixture(scope="module")
def drawn(head):
    return [stripped(head, TISSUE, FLUIDS, np.random.default_rng(seed)) for seed in SEEDS]


def test_all_of_the_brain_stays_where_it_was(head, drawn):
    inner = torch.isin(head, torch.tensor([CORTEX, WHITE, LESION]))
    for labels in drawn:
        assert labels[inner].equal(head[inner])


def test_what_is_left_is_as_it_was_and_no_more_than_a_rim_of_bone(head, drawn):
    brain = np.isin(head.numpy(), [FLUID, CORTEX, WHITE, LESION])
    rim = binary_dilation(brain, np.ones((3, 3, 3)))
    for labels in drawn:
        left = labels > 0
        assert labels[left].equal(head[left])
        assert not (left.numpy() & ~rim).any()
        assert not (labels == SCALP).any()


def test_some_strippers_leave_the_fluid_around_the_brain_and_some_a_rim(head, drawn):
    fluid = [int((labels == FLUID).sum()) / int((head == FLUID).sum()) for labels in drawn]
    assert max(fluid) == 1.0
    assert min(fluid) < 0.4
    with_bone = sum(bool((labels == BONE).any()) for labels in drawn)
    assert 0 < with_bone < len(drawn) / 2


def test_fluid_in_a_furrow_stays_with_some(head, drawn):
    furrow = torch.zeros_like(head, dtype=torch.bool)
    furrow[19:21, 10:12, 12:24] = True
    kept = [bool((labels[furrow] == FLUID).all()) for labels in drawn]
    assert sum(kept) > len(drawn) / 2


def test_the_same_generator_strips_the_same(head):
    first, second = (stripped(head, TISSUE, FLUIDS, np.random.default_rng(3)) for _ in range(2))
    assert first.equal(second)


def test_a_mask_grows_along_every_axis_and_stops_at_the_edge():
    mask = torch.zeros(7, 9, 5, dtype=torch.bool)
    mask[1, 4, 2] = True
    reference = binary_dilation(mask.numpy(), np.ones((5, 5, 5)))
    assert np.array_equal(grown(mask, 2).numpy(), reference)
