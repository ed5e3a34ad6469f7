"""Masks kept as bits read like an array of bool."""

from __future__ import annotations

import copy
from itertools import permutations, product

import numpy as np
import pytest

from textseg.geometry import AxisOrder, Box, bounding_box
from textseg.packed import PackedMasks, joined

SHAPE = (5, 11, 19)
ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]


@pytest.fixture
def masks():
    return np.random.default_rng(1).random((3, *SHAPE)) > 0.6


def packed_of(masks, order):
    packed = PackedMasks(len(masks), order.apply(masks).shape[1:], order)
    for prompt, mask in enumerate(masks):
        packed.replace(prompt, mask)
    return packed


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_masks_come_back_whatever_way_their_bits_lie(masks, order):
    packed = packed_of(masks, order)
    assert packed.shape == masks.shape
    assert packed.bits.nbytes < masks.nbytes / 2
    for prompt, mask in enumerate(packed):
        assert mask.dtype == bool
        assert mask.flags.c_contiguous
        assert np.array_equal(mask, masks[prompt])
    assert packed.sizes().tolist() == masks.sum(axis=(1, 2, 3)).tolist()


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_mask_is_had_within_its_box_alone(masks, order):
    masks[1] = False
    masks[1, 2:4, 1:9, 3:17] = np.random.default_rng(2).random((2, 8, 14)) > 0.8
    masks[2] = False
    packed = packed_of(masks, order)
    for prompt in (0, 1):
        box, inside = packed.within(prompt)
        assert box == bounding_box(masks[prompt])
        assert np.array_equal(inside, masks[prompt][box.slices])
    assert packed.within(2) is None


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_part_of_a_mask_is_kept(masks, order):
    masks[1] = False
    masks[1, 2:4, 1:9, 3:17] = True
    packed = packed_of(masks, order)
    box, inside = packed.cropped(1)
    kept = np.random.default_rng(3).random(inside.shape) > 0.5
    packed.keep(1, box, kept)
    wanted = masks.copy()
    wanted[1] = False
    order.apply(wanted[1])[box.slices] = kept
    assert np.array_equal(packed, wanted)


def test_it_is_an_array_wherever_one_is_wanted(masks):
    packed = packed_of(masks, ORDERS[7])
    assert len(packed) == 3
    assert packed.dtype == bool
    assert packed[1, 2, 3, 4] == masks[1, 2, 3, 4]
    assert np.array_equal(packed[-1], masks[-1])
    assert np.array_equal(packed[np.int64(2)], masks[2])
    assert np.array_equal(packed[[2, 0]], masks[[2, 0]])
    assert np.array_equal(packed[:, ::-1], masks[:, ::-1])
    assert np.array_equal(packed.sum(axis=(1, 2, 3)), masks.sum(axis=(1, 2, 3)))
    assert packed.any()
    assert np.array_equal(packed & ~masks, masks & ~masks)
    assert np.array_equal(np.concatenate([packed, packed]), np.concatenate([masks, masks]))
    assert np.array_equal(copy.deepcopy(packed), masks)
    assert not hasattr(packed, "nothing_that_arrays_have")
    with pytest.raises(IndexError):
        packed[3]


def test_boxes_that_are_put_side_by_side_make_one_mask(masks):
    packed = PackedMasks(3, SHAPE)
    # Planes of x in any order, and along z from any multiple of 8.
    for x in (slice(2, 5), slice(0, 2)):
        box = Box((x.start, 3, 8), (x.stop, 9, 19))
        packed.put(1, box, masks[(1, *box.slices)])
    expected = np.zeros_like(masks)
    expected[1, :, 3:9, 8:] = masks[1, :, 3:9, 8:]
    assert np.array_equal(packed, expected)
    packed.clear(1)
    assert not packed.any()


def test_some_of_the_prompts_and_parts_joined_stay_packed(masks, monkeypatch):
    packed, other = packed_of(masks, ORDERS[7]), packed_of(~masks, ORDERS[7])
    monkeypatch.setattr(PackedMasks, "__array__", None)
    for index in ([2, 0], slice(1, None), []):
        some = packed[index]
        assert some.shape == masks[index].shape
        assert all(np.array_equal(one, mask) for one, mask in zip(some, masks[index], strict=True))
    whole = joined([packed, other[:1]])
    expected = [*masks, ~masks[0]]
    assert all(np.array_equal(one, mask) for one, mask in zip(whole, expected, strict=True))


def test_parts_that_lie_in_several_ways_are_joined_as_an_array(masks):
    whole = joined([packed_of(masks, ORDERS[7]), packed_of(masks, ORDERS[8]), masks])
    assert np.array_equal(whole, np.concatenate([masks] * 3))
