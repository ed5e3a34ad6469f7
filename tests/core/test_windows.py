"""Sliding windows: nothing is left out, neighbours share what was asked for, weights are sound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textseg.geometry import Box
from textseg.plan import WindowPlan
from textseg.windows import blend_weights, place_windows, placed, window_shape

images = st.tuples(*[st.integers(1, 70)] * 3)
windows = st.tuples(*[st.integers(6, 40)] * 3)
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.625, 0.75])


def starts_along(boxes, axis):
    return sorted({box.start[axis] for box in boxes})


@given(images, windows, overlaps)
@settings(deadline=None, max_examples=100)
def test_windows_cover_every_voxel_and_all_have_the_same_size(image, window, overlap):
    boxes = place_windows(image, window, overlap)
    padded = tuple(max(n, size) for n, size in zip(image, window, strict=True))
    covered = np.zeros(padded, bool)
    for box in boxes:
        assert box.shape == window
        assert box.within(padded) == box
        covered[box.slices] = True
    assert covered.all()
    assert len(set(boxes)) == len(boxes)


@given(images, windows, overlaps)
@settings(deadline=None, max_examples=100)
def test_neighbours_share_at_least_the_overlap_and_the_ends_are_met(image, window, overlap):
    boxes = place_windows(image, window, overlap)
    for axis, (n, size) in enumerate(zip(image, window, strict=True)):
        starts = starts_along(boxes, axis)
        assert starts[0] == 0
        assert starts[-1] == max(0, n - size)
        steps = np.diff(starts)
        # A window can't move by less than one voxel.
        assert (steps <= max(1, size * (1 - overlap)) + 1e-6).all()


@given(images, windows, overlaps)
@settings(deadline=None, max_examples=100)
def test_there_are_no_more_windows_than_that_takes(image, window, overlap):
    boxes = place_windows(image, window, overlap)
    for axis, (n, size) in enumerate(zip(image, window, strict=True)):
        step = max(1, int(size * (1 - overlap) + 1e-6))
        assert len(starts_along(boxes, axis)) == 1 + -(-max(0, n - size) // step)


@given(images, windows)
@settings(deadline=None, max_examples=100)
def test_a_short_image_lies_in_the_middle_of_its_window(image, window):
    box = placed(image, window)
    assert box.shape == image
    for start, stop, size, n in zip(box.start, box.stop, window, image, strict=True):
        assert start >= 0
        assert size - stop - start in ((0, 1) if n < size else (size - n,))


def test_windows_are_spread_evenly_with_x_slowest():
    boxes = place_windows((100, 64, 20), (64, 64, 32), 0.5)
    assert [box.start for box in boxes] == [(0, 0, 0), (18, 0, 0), (36, 0, 0)]
    boxes = place_windows((9, 10, 4), (8, 8, 4), 0.5)
    assert [box.start for box in boxes] == [(0, 0, 0), (0, 2, 0), (1, 0, 0), (1, 2, 0)]


def test_the_smallest_windows_move_by_whole_voxels():
    assert [box.start[2] for box in place_windows((1, 1, 4), (1, 1, 1), 0.75)] == [0, 1, 2, 3]
    assert [box.start[0] for box in place_windows((6, 3, 3), (3, 3, 3), 0.5)] == [0, 1, 2, 3]


def test_a_volume_smaller_than_the_window_has_one_window_that_starts_at_0():
    assert place_windows((5, 3, 1), (8, 16, 4), 0.5) == [Box((0, 0, 0), (8, 16, 4))]


@pytest.mark.parametrize("window", [(1, 2, 3), (16, 15, 64)], ids=str)
@pytest.mark.parametrize("sigma_fraction", [0.05, 0.125, 1.0])
def test_weights_are_symmetric_positive_and_largest_in_the_middle(window, sigma_fraction):
    plan = WindowPlan(size_voxels=(64, 64, 64), overlap=0.5, sigma_fraction=sigma_fraction)
    tables = blend_weights(window, plan)
    assert tuple(len(table) for table in tables) == window
    for table in tables:
        assert table.dtype == np.float32
        assert np.allclose(table, table[::-1])
        assert table.min() >= np.float32(1e-3)
        assert (np.diff(table[: len(table) // 2 + 1]) >= -1e-7).all()
        assert table.max() <= 1


def test_weights_are_nnunets_gaussian():
    (table, *_) = blend_weights(
        (64, 1, 1), WindowPlan(size_voxels=(64, 1, 1), overlap=0.5, sigma_fraction=0.125)
    )
    offset = 20 - 31.5
    assert table[20] == pytest.approx(np.exp(-0.5 * (offset / 8) ** 2))


def test_the_window_fits_small_images_and_the_strides_of_the_network(default_plan):
    # Windows and training patches of 80 × 64 × 48, strides of 16.
    assert window_shape((300, 300, 300), default_plan) == (80, 64, 48)
    assert window_shape((80, 65, 47), default_plan) == (80, 64, 48)
    assert window_shape((1, 30, 64), default_plan) == (80, 64, 48)
    windows = default_plan.windows.model_copy(update={"size_voxels": (96, 96, 96)})
    larger = default_plan.model_copy(update={"windows": windows})
    assert window_shape((300, 300, 300), larger) == (96, 96, 96)
    assert window_shape((81, 64, 49), larger) == (96, 64, 64)
    assert window_shape((1, 70, 500), larger) == (80, 80, 96)
