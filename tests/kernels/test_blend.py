"""Blending: the definition against a plain sum, and every way against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import textseg_kernels
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textseg_kernels import summed_weights, twins

from textseg.plan import WindowPlan
from textseg.windows import blend_weights, place_windows

SLAB = (9, 14, 37)
WINDOW = (5, 6, 35)
STARTS = [(0, 0, 0), (4, 8, 2), (2, 3, -7), (-3, -4, 30), (4, 8, 2), (50, 0, 0), (0, -6, 0)]


def _tables(rng, window=WINDOW):
    return tuple(rng.uniform(0.1, 1, n).astype(np.float32) for n in window)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_blend_is_its_twin(kernels, rng, dtype):
    logits = rng.normal(0, 4, (len(STARTS), 3, *WINDOW)).astype(dtype)
    slab = rng.normal(0, 1, (3, *SLAB)).astype(np.float32)
    before, expected, tables = slab.copy(), slab.copy(), _tables(rng)
    kernels.blend(logits, STARTS, tables, slab)
    twins.blend(logits, STARTS, tables, expected)
    np.testing.assert_array_equal(slab, expected)
    assert (slab != before).any()
    assert (slab == before).any()


@pytest.mark.parametrize(
    ("windows", "prompts", "starts"),
    [(0, 2, []), (1, 0, [(0, 0, 0)]), (2, 2, [(20, 0, 0), (-5, 0, 0)]), (1, 2, [(0, 0, 37)])],
)
def test_blend_of_nothing_leaves_the_slab(kernels, rng, windows, prompts, starts):
    slab = rng.normal(0, 1, (prompts, *SLAB)).astype(np.float32)
    before = slab.copy()
    kernels.blend(np.ones((windows, prompts, *WINDOW), np.float16), starts, _tables(rng), slab)
    np.testing.assert_array_equal(slab, before)


def test_blend_keeps_nan_where_it_was(kernels, rng):
    logits = np.ones((1, 1, 2, 3, 4), np.float32)
    logits[0, 0, 1, 2, 3] = np.nan
    slab = np.zeros((1, 4, 5, 6), np.float32)
    kernels.blend(logits, [(1, 1, 1)], _tables(rng, (2, 3, 4)), slab)
    assert np.argwhere(np.isnan(slab)).tolist() == [[0, 2, 3, 4]]


@given(
    window=st.tuples(*[st.integers(1, 5)] * 3),
    slab=st.tuples(*[st.integers(1, 6)] * 3),
    starts=st.lists(st.tuples(*[st.integers(-6, 7)] * 3), max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blend_is_its_twin_wherever_windows_lie(kernels, window, slab, starts, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (len(starts), 2, *window)).astype(np.float16)
    ours, tables = rng.normal(0, 1, (2, *slab)).astype(np.float32), _tables(rng, window)
    theirs = ours.copy()
    kernels.blend(logits, starts, tables, ours)
    twins.blend(logits, starts, tables, theirs)
    np.testing.assert_array_equal(ours, theirs)


def test_the_twin_adds_every_voxel_with_its_weight(rng):
    window, slab, starts = (2, 3, 4), (4, 5, 6), [(0, 1, 2), (1, 1, 1), (3, -1, 4)]
    logits = rng.integers(-9, 9, (3, 2, *window)).astype(np.float32)
    tables = tuple(rng.integers(1, 5, n).astype(np.float32) for n in window)
    expected = np.zeros((2, *slab), np.float32)
    for number, start in enumerate(starts):
        for index in np.ndindex(*window):
            at = tuple(np.add(start, index))
            if all(0 <= i < n for i, n in zip(at, slab, strict=True)):
                weight = np.prod([table[i] for table, i in zip(tables, index, strict=True)])
                expected[(slice(None), *at)] += weight * logits[(number, slice(None), *index)]
    ours = np.zeros((2, *slab), np.float32)
    twins.blend(logits, starts, tables, ours)
    np.testing.assert_array_equal(ours, expected)


def test_summed_weights_are_those_of_all_windows_that_textseg_places(rng):
    image, window = (17, 23, 9), (8, 8, 9)
    tables = blend_weights(window, WindowPlan(size_voxels=window, overlap=0.5, sigma_fraction=0.125))
    boxes = place_windows(image, window, 0.5)
    total = np.zeros((1, *image), np.float32)
    twins.blend(np.ones((len(boxes), 1, *window), np.float32), [box.start for box in boxes], tables, total)
    starts = [sorted({box.start[axis] for box in boxes}) for axis in range(3)]
    along = tuple(summed_weights(*pair) for pair in zip(starts, tables, image, strict=True))
    np.testing.assert_allclose(twins.weights_of(along), total[0], rtol=1e-5)
    assert {table.dtype for table in along} == {np.dtype(np.float32)}


def test_summed_weights_leave_out_what_lies_outside():
    assert summed_weights([-2, 3, 9], [1, 2, 4], 5).tolist() == [4, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"logits": torch.zeros(1, 2, 3, 4, 5, dtype=torch.bfloat16)},
            "float16 or float32, got 5 axes and bf",
        ),
        ({"slab": torch.zeros(3, 6, 7, 8)}, "as many prompts, got 2 and 3"),
        ({"starts": [(0, 0, 0), (1, 1, 1)]}, "got 2 starts for 1 windows"),
        ({"tables": (torch.ones(3), torch.ones(4), torch.ones(6))}, "as many as voxels, \\(3, 4, 5\\)"),
        ({"tables": (torch.ones(3), torch.ones(4), torch.ones(5).double())}, "1 axes and type float32"),
    ],
)
def test_blend_says_what_does_not_fit(changed, message):
    good = {
        "logits": torch.zeros(1, 2, 3, 4, 5),
        "starts": [(0, 0, 0)],
        "tables": (torch.ones(3), torch.ones(4), torch.ones(5)),
        "slab": torch.zeros(2, 6, 7, 8),
    }
    with pytest.raises(ValueError, match=message):
        textseg_kernels.blend(**{**good, **changed})
