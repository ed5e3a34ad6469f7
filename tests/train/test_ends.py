"""Ends of scans: a slab along one axis is kept as it is, and all that lies beyond it is air."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.train.ends import THINNEST, ended, scanned_part

SHAPE = (30, 26, 20)


@pytest.fixture(scope="module")
def parts():
    return [scanned_part(SHAPE, np.random.default_rng(seed)) for seed in range(400)]


def shortened(part):
    """The axes along which a part does not cover the patch."""
    return [axis for axis, n in enumerate(SHAPE) if part[axis] != slice(0, n)]


def test_a_scan_ends_along_one_axis_and_mostly_the_bodys_own(parts):
    axes = [axis for part in parts for axis in shortened(part)]
    assert len(axes) == len(parts)
    assert axes.count(2) / len(axes) == pytest.approx(0.8, abs=0.06)
    assert {0, 1} <= set(axes)


def test_a_slab_lies_in_the_patch_and_is_not_too_thin(parts):
    for part in parts:
        (axis,) = shortened(part)
        assert 0 <= part[axis].start < part[axis].stop <= SHAPE[axis]
        assert part[axis].stop - part[axis].start >= THINNEST


def test_some_end_on_both_sides_some_below_and_some_above(parts):
    along_z = [part[2] for part in parts if shortened(part) == [2]]
    below = sum(end.start == 0 for end in along_z)
    above = sum(end.stop == SHAPE[2] for end in along_z)
    both = len(along_z) - below - above
    assert min(below, above, both) > len(along_z) / 6


def test_a_patch_may_be_thinner_than_the_thinnest_slab():
    for seed in range(20):
        part = scanned_part((4, 4, 4), np.random.default_rng(seed))
        assert [side.stop - side.start for side in part] in ([3, 4, 4], [4, 3, 4], [4, 4, 3])


def test_beyond_the_part_nothing_is_left_and_within_it_nothing_changes():
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    part = (slice(0, 30), slice(0, 26), slice(5, 12))
    seen = ended(image, part, -7.0)
    assert seen[part].equal(image[part])
    assert (seen[..., :5] == -7).all()
    assert (seen[..., 12:] == -7).all()
