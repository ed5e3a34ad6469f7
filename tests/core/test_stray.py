"""Small parts that lie apart from an organ in one piece are dropped, and nothing else is."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from textseg.geometry import AxisOrder
from textseg.packed import PackedMasks
from textseg.prompts import default_lexicon, understand
from textseg.prompts.pieces import is_one_piece, one_piece_names
from textseg.stray import drop_stray_parts

SHAPE = (30, 41, 53)
ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]


def packed_of(mask, order=ORDERS[0]):
    packed = PackedMasks(1, order.apply(mask).shape, order)
    packed.replace(0, mask)
    return packed


def organ():
    mask = np.zeros(SHAPE, bool)
    mask[4:16, 3:20, 7:25] = True
    return mask


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_speck_far_off_is_dropped_and_the_organ_stays_to_the_voxel(order):
    mask = organ()
    mask[22:25, 30:33, 40:43] = True
    packed = packed_of(mask, order)
    assert drop_stray_parts(packed, 0, (2, 3, 4), 0.2) == 27
    assert np.array_equal(packed[0], organ())


def test_a_part_of_a_fifth_stays_and_one_below_it_goes():
    for planes, stays in ((4, True), (2, False)):
        mask = organ()
        mask[20 : 20 + planes, 3:20, 7:25] = True  # 3 planes are a quarter of the organ's twelve
        packed = packed_of(mask)
        drop_stray_parts(packed, 0, (2, 2, 2), 0.2)
        assert np.array_equal(packed[0], mask if stays else organ())


def test_gaps_finer_than_the_network_sees_do_not_part_an_organ():
    mask = organ()
    mask[16:18, 5:8, 9:11] = True
    mask[17, 5:8, 9:11] = False
    mask[18, 5:8, 9:11] = True
    packed = packed_of(mask)
    assert drop_stray_parts(packed, 0, (4, 4, 4), 0.2) == 0
    assert np.array_equal(packed[0], mask)
    assert drop_stray_parts(packed, 0, (1, 1, 1), 0.2) == 6


def test_parts_are_weighed_in_voxels_and_not_in_cells():
    mask = np.zeros(SHAPE, bool)
    mask[0:8, 0:8, 0:8] = True
    mask[15:30:3, 20:40:3, 20:50:3] = True  # many cells of few voxels
    packed = packed_of(mask)
    drop_stray_parts(packed, 0, (3, 3, 3), 0.8)
    assert packed[0][:9].sum() == 512
    assert packed[0].sum() == 512


def test_an_empty_mask_and_a_whole_one_stay():
    packed = packed_of(np.zeros(SHAPE, bool))
    assert drop_stray_parts(packed, 0, (2, 2, 2), 0.2) == 0
    assert not packed[0].any()
    packed = packed_of(np.ones(SHAPE, bool))
    assert drop_stray_parts(packed, 0, (2, 2, 2), 0.2) == 0
    assert packed[0].all()


@pytest.mark.parametrize(
    ("words", "one"),
    [
        ("liver", True),
        ("left kidney", True),
        ("linke Niere", True),
        ("left lung", True),
        ("vertebra T12", True),
        ("kidneys", False),
        ("lungs", False),
        ("left kidney tumor", False),
        ("soft tissue sarcoma", False),
        ("ribs", False),
        ("small bowel", False),
        ("something unheard of", False),
    ],
)
def test_what_is_one_piece(words, one):
    assert is_one_piece(understand(words, default_lexicon())) == one


def test_every_name_is_one_of_the_lexicon():
    assert one_piece_names() <= {concept.base for concept in default_lexicon().concepts.values()}
