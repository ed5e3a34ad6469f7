"""Lesions one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from textseg.scores.instances import match_pieces, pieces_of

SHAPE = (20, 9, 7)


def paint(*blocks: tuple[int, int], y: int = 2, z: int = 3) -> np.ndarray:
    """Bars along x, each from start to stop, y and z voxels across, one number each."""
    labels = np.zeros(SHAPE, int)
    for number, (start, stop) in enumerate(blocks, start=1):
        labels[start:stop, 1 : 1 + y, 2 : 2 + z] = number * 3
    return labels


def test_pieces_that_touch_at_corners_are_one_or_two():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2, 3] = mask[2, 3, 4] = True
    assert pieces_of(mask)[1] == 1
    assert pieces_of(mask, "faces")[1] == 2
    assert pieces_of(np.zeros((2, 3, 4), bool))[1] == 0


def test_pieces_match_one_to_one_by_overlap():
    reference = paint((0, 4), (6, 10), (12, 16))
    predicted = paint((1, 4), (9, 13))  # 3 of 4; 1 of 7 with each of the others
    matching = match_pieces(predicted, reference)
    assert (matching.predicted, matching.reference, matching.true_positives) == (2, 3, 1)
    assert matching.f1 == pytest.approx(2 * 1 / 5)
    assert matching.dices == pytest.approx((6 / 7,))
    assert matching.dice_of_matched == pytest.approx(6 / 7)
    assert (matching.sensitivity, matching.precision) == pytest.approx((1 / 3, 1 / 2))
    assert matching.false_positives == 1
    loose = match_pieces(predicted, reference, 0.1)
    assert (loose.true_positives, loose.false_positives) == (2, 0)


def test_a_piece_is_matched_only_once():
    reference = paint((0, 10))
    predicted = paint((0, 4), (5, 10))
    matching = match_pieces(predicted, reference, 0.3)
    assert matching.true_positives == 1
    assert matching.dices == pytest.approx((2 * 5 / 15,))


def test_an_overlap_of_exactly_the_threshold_counts():
    assert match_pieces(paint((0, 2)), paint((0, 4)), 0.5).true_positives == 1
    assert match_pieces(paint((0, 2)), paint((0, 4)), 0.51).true_positives == 0
    assert match_pieces(paint((0, 2)), paint((0, 4)), 2 / 3 - 1e-9, "dice").true_positives == 1


def test_without_pieces_some_measures_are_not_defined():
    nothing, one = paint(), paint((3, 6))
    both = match_pieces(nothing, nothing)
    assert math.isnan(both.f1)
    assert math.isnan(both.sensitivity)
    assert math.isnan(both.precision)
    missed = match_pieces(nothing, one)
    assert (missed.f1, missed.sensitivity) == (0, 0)
    assert math.isnan(missed.dice_of_matched)
    assert match_pieces(one, nothing).false_positives == 1


def test_monais_panoptic_quality_agrees():
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    masks = [random.random((30, 20, 1)) > 0.55 for _ in range(2)]
    masks[1][:, :10] = masks[0][:, :10]
    labels = [pieces_of(mask, "faces")[0][..., 0] for mask in masks]
    ours = match_pieces(labels[0][..., None], labels[1][..., None], 0.5001)
    counts = metrics.panoptic_quality.compute_panoptic_quality(
        torch.from_numpy(labels[0]), torch.from_numpy(labels[1]), "rq", match_iou_threshold=0.5
    )
    assert ours.true_positives > 3
    assert ours.f1 == pytest.approx(float(counts), abs=1e-4)
