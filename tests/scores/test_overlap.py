"""Overlap in voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.scores.conftest import block
from textseg.geometry import Box
from textseg.scores.overlap import around, dice, overlap


def test_measures_follow_from_the_counts():
    predicted, reference = block((7, 5, 4), (1, 0, 0), (5, 3, 2)), block((7, 5, 4), (3, 1, 0), (7, 4, 2))
    shared, predicted_size, reference_size = 2 * 2 * 2, 4 * 3 * 2, 4 * 3 * 2
    counts = overlap(predicted, reference[...])
    assert counts.dice == dice(predicted, reference) == pytest.approx(16 / 48)
    assert counts.iou == pytest.approx(shared / (predicted_size + reference_size - shared))
    assert counts.sensitivity == pytest.approx(8 / 24)
    assert counts.precision == pytest.approx(8 / 24)
    assert counts.volume_error == 0
    assert overlap(predicted[:, :2], reference[:, :2]).volume_error == pytest.approx((16 - 8) / 8)


def test_sensitivity_is_of_the_reference_and_precision_of_the_prediction():
    small, large = block((7, 5, 4), (1, 1, 1), (3, 3, 3)), block((7, 5, 4), (0, 0, 0), (4, 4, 4))
    assert (overlap(small, large).sensitivity, overlap(small, large).precision) == (8 / 64, 1)
    assert (overlap(large, small).sensitivity, overlap(large, small).precision) == (1, 8 / 64)
    assert overlap(large, small).volume_error == 7


def test_what_is_not_defined_is_nan():
    nothing, some = np.zeros((3, 4, 5), bool), block((3, 4, 5), (1, 1, 1), (2, 3, 4))
    both, missed, alarm = overlap(nothing, nothing), overlap(nothing, some), overlap(some, nothing)
    for value in (both.dice, both.iou, both.sensitivity, missed.precision, alarm.volume_error):
        assert math.isnan(value)
    assert (missed.dice, missed.iou, missed.sensitivity, missed.volume_error) == (0, 0, 0, -1)
    assert alarm.dice == 0


def test_monai_says_the_same():
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    masks = np.random.default_rng(3).random((2, 9, 7, 5)) > 0.6
    a, b = (torch.from_numpy(mask)[None, None] for mask in masks)
    counts = overlap(*masks)
    assert counts.dice == pytest.approx(metrics.compute_dice(a, b).item())
    assert counts.iou == pytest.approx(metrics.compute_iou(a, b).item())


def test_around_is_the_smallest_box_that_holds_all():
    assert around([Box((3, 1, 4), (5, 2, 6)), Box((4, 0, 2), (9, 1, 5))]) == Box((3, 0, 2), (9, 2, 6))
    assert around([]) is None
