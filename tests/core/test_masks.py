"""From logits to masks and to one label map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.masks import above_threshold, combine, fill_holes, largest_component, largest_component_on

SHAPE = (9, 11, 7)


def block(start, stop):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


@pytest.mark.parametrize("probability", [0.01, 0.3, 0.5, 0.72, 0.99])
def test_the_threshold_on_logits_is_the_one_on_the_sigmoid(probability):
    logits = torch.linspace(-6, 6, 9 * 11 * 7, dtype=torch.float64).reshape(SHAPE)
    assert torch.equal(above_threshold(logits, probability), logits.sigmoid() > probability)


def test_far_below_zero_is_outside_at_any_threshold():
    assert not above_threshold(torch.full(SHAPE, -30.0), 1e-6).any()


def test_the_largest_component_is_kept_alone():
    large, small = block((5, 6, 2), (9, 9, 5)), block((0, 0, 0), (2, 3, 4))
    assert np.array_equal(largest_component(large | small), large)


def test_voxels_that_touch_at_a_corner_are_one_component():
    diagonal = np.zeros(SHAPE, bool)
    diagonal[1, 1, 1] = diagonal[2, 2, 2] = diagonal[3, 1, 3] = True
    other = block((7, 8, 5), (9, 9, 6))
    assert np.array_equal(largest_component(diagonal | other), diagonal)


@pytest.mark.parametrize("mask", [np.zeros(SHAPE, bool), np.ones(SHAPE, bool), block((1, 2, 3), (4, 5, 6))])
def test_a_mask_of_one_part_or_none_stays(mask):
    assert np.array_equal(largest_component(mask), mask)


def test_holes_are_filled_but_not_bays():
    solid = block((1, 2, 1), (8, 9, 6))
    hollow = solid.copy()
    hollow[4, 5, 3] = hollow[5, 6, 4] = False
    assert np.array_equal(fill_holes(hollow), solid)
    bay = solid.copy()
    bay[4, 5, :4] = False
    assert np.array_equal(fill_holes(bay), bay)


def test_a_cavity_that_leaks_only_through_a_corner_is_filled():
    solid = block((1, 2, 1), (8, 9, 6))
    leaking = solid.copy()
    leaking[2, 3, 2] = leaking[1, 2, 1] = False
    filled = solid.copy()
    filled[1, 2, 1] = False
    assert np.array_equal(fill_holes(leaking), filled)


def test_the_smaller_structure_stays_visible_in_the_larger_one():
    organ, tumour, vessel = (
        block((1, 1, 1), (8, 9, 6)),
        block((3, 4, 2), (5, 6, 4)),
        block((4, 0, 3), (5, 11, 4)),
    )
    for masks, tumour_label in (([organ, tumour, vessel], 2), ([tumour, organ, vessel], 1)):
        labels = combine(np.stack(masks))
        assert labels.dtype == np.uint16
        assert (labels[tumour] == tumour_label).all()
        assert (labels[vessel & ~tumour] == 3).all()
        assert (labels[organ & ~tumour & ~vessel] == 3 - tumour_label).all()
        assert (labels[~(organ | tumour | vessel)] == 0).all()


def test_with_certainties_the_surer_prompt_wins():
    one, other = block((0, 0, 0), (6, 6, 6)), block((3, 3, 3), (9, 9, 7))
    sure = np.where(np.indices(SHAPE)[0] < 5, 0.9, 0.1)
    labels = combine(np.stack([one, other]), [sure, 1 - sure])
    both = one & other
    assert (labels[both & (sure > 0.5)] == 1).all()
    assert (labels[both & (sure < 0.5)] == 2).all()
    assert (labels[one & ~other] == 1).all()
    assert (labels[other & ~one] == 2).all()
    assert (labels[~(one | other)] == 0).all()


def test_empty_masks_leave_no_label():
    masks = np.stack([np.zeros(SHAPE, bool), block((1, 2, 3), (3, 4, 5)), np.zeros(SHAPE, bool)])
    assert np.array_equal(combine(masks), 2 * masks[1])


def test_more_than_255_prompts_keep_their_numbers():
    masks = np.zeros((300, *SHAPE), bool)
    for index in range(300):
        masks[(index, *np.unravel_index(index, SHAPE))] = True
    assert np.array_equal(combine(masks).ravel()[:300], np.arange(1, 301))


@pytest.mark.parametrize("seed", range(4))
def test_the_kernels_keep_the_same_component(seed):
    # Around a tenth of the voxels, so that there are parts of many sizes.
    mask = np.random.default_rng(seed).random((17, 13, 21)) > 0.9
    mask[:, :3] = False
    expected = largest_component(mask)
    assert 1 < expected.sum() < mask.sum()
    found = largest_component_on(mask, torch.device("cpu"))
    assert found.dtype == bool
    assert np.array_equal(found, expected)


def test_the_kernels_leave_an_empty_mask_empty():
    assert not largest_component_on(np.zeros(SHAPE, bool), torch.device("cpu")).any()
    assert np.array_equal(largest_component_on(np.ones(SHAPE, bool), torch.device("cpu")), np.ones(SHAPE))


@pytest.mark.gpu
def test_a_gpu_keeps_the_same_component():
    mask = np.random.default_rng(5).random((65, 33, 70)) > 0.92
    assert np.array_equal(largest_component(mask, torch.device("cuda")), largest_component(mask))
