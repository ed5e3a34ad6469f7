"""Connected parts: the definition against SciPy, and every way against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import textseg_kernels
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from textseg_kernels import on_gpu, twins

SHAPES = [(6, 9, 35), (1, 8, 9), (8, 1, 9), (8, 9, 1), (1, 1, 40), (1, 1, 1)]


def _mask(rng, shape, share=0.12):
    return rng.random(shape) < share


def _packed(mask):
    return np.packbits(mask, axis=-1, bitorder="little")


def _spiral(shape):
    """One long thin part, whose ends lie far apart along it."""
    mask = np.zeros(shape, bool)
    mask[::2] = True
    for plane in range(0, shape[0], 2):
        mask[plane, 1::2] = False
        mask[plane, 1::4, -1] = True
        mask[plane, 3::4, 0] = True
    for plane in range(1, shape[0] - 1, 2):
        mask[plane, 0 if plane % 4 == 3 else shape[1] - 1, 0 if plane % 4 == 3 else -1] = True
    return mask


def _scipy_labels(mask):
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    first = ndimage.minimum(np.arange(mask.size).reshape(mask.shape), parts, np.arange(count + 1))
    return np.where(mask, np.asarray(first)[parts], -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.03, 0.12, 0.5, 1.0])
def test_parts_are_kept_as_the_twin_keeps_them(kernels, rng, shape, share):
    mask = _mask(rng, shape, share)
    for least in (0, 2, 5):
        kept = twins.keep_components(mask, least)
        np.testing.assert_array_equal(kernels.keep_components(mask, least), kept, strict=True)
        ours = kernels.keep_components(_packed(mask), least, shape[2])
        np.testing.assert_array_equal(ours, _packed(kept), strict=True)
        np.testing.assert_array_equal(ours, twins.keep_components(_packed(mask), least, shape[2]))
    kept = twins.keep_largest_component(mask)
    np.testing.assert_array_equal(kernels.keep_largest_component(mask), kept, strict=True)
    np.testing.assert_array_equal(kernels.keep_largest_component(_packed(mask), shape[2]), _packed(kept))


@pytest.mark.parametrize("shape", [(9, 21, 11), (5, 13, 33)])
def test_a_long_thin_part_is_one(kernels, shape):
    mask = _spiral(shape)
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
    np.testing.assert_array_equal(kernels.keep_components(mask, int(mask.sum())), mask)
    assert not kernels.keep_components(mask, int(mask.sum()) + 1).any()


def test_parts_that_touch_in_a_corner_are_one(kernels):
    mask = np.zeros((4, 5, 6), bool)
    for corner in ((1, 1, 2), (2, 2, 3), (3, 1, 4)):
        mask[corner] = True
    mask[1, 4, 0] = True
    kept = kernels.keep_components(mask, 3)
    assert np.argwhere(kept).tolist() == [[1, 1, 2], [2, 2, 3], [3, 1, 4]]


def test_of_equal_parts_the_first_is_the_largest(kernels):
    mask = np.zeros((5, 6, 7), bool)
    mask[4, 0, 0:2] = mask[0, 5, 3:5] = mask[2, 2, 2:4] = True
    assert np.argwhere(kernels.keep_largest_component(mask)).tolist() == [[0, 5, 3], [0, 5, 4]]


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (3, 4, 0)])
def test_nothing_has_no_parts(kernels, shape):
    mask = np.zeros(shape, bool)
    assert not kernels.keep_largest_component(mask).any()
    assert not kernels.keep_components(mask, 1).any()
    assert kernels.keep_components(mask, 1).shape == shape


@given(shape=st.tuples(*[st.integers(1, 7)] * 3), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_twin_finds_the_parts_that_scipy_finds(shape, share, seed):
    mask = _mask(np.random.default_rng(seed), shape, share)
    np.testing.assert_array_equal(twins.components(mask), _scipy_labels(mask))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_order_of_threads_does_not_change_the_parts(cpu_launch, rng, seed, interleaved):
    cpu_launch.seed, cpu_launch.interleaved = seed, interleaved
    for mask in (_mask(rng, (6, 9, 35), 0.1), _mask(rng, (6, 9, 35), 0.6), _spiral((9, 21, 11))):
        labels, sizes = on_gpu._components(cpu_launch, torch.from_numpy(mask), None)
        expected = _scipy_labels(mask)
        np.testing.assert_array_equal(labels.numpy(), expected)
        np.testing.assert_array_equal(sizes.numpy().ravel(), np.bincount(expected[mask], minlength=mask.size))


@pytest.mark.parametrize(
    ("mask", "depth", "message"),
    [
        (torch.zeros(2, 3, 4), None, "3 axes and type bool"),
        (torch.zeros(3, 4, dtype=torch.bool), None, "3 axes and type bool"),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), None, "3 axes and type bool"),
        (torch.zeros(2, 3, 4, dtype=torch.bool), 4, "3 axes and type uint8"),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), 33, "33 voxels along z are packed in 5 bytes, got 4"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, depth, message):
    with pytest.raises(ValueError, match=message):
        textseg_kernels.keep_components(mask, 2, depth)
    with pytest.raises(ValueError, match=message):
        textseg_kernels.keep_largest_component(mask, depth)
