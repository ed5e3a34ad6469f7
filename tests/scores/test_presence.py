"""Whether presence is told rightly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from textseg.scores.presence import auroc, calibration, detection


def test_sensitivity_and_specificity_are_of_what_is_there_and_what_is_not():
    told = detection([True, True, False, True, False, False], [True, True, True, False, False, False])
    assert (told.found, told.missed, told.false_alarms, told.denied) == (2, 1, 1, 2)
    assert told.sensitivity == pytest.approx(2 / 3)
    assert told.specificity == pytest.approx(2 / 3)
    assert math.isnan(detection([True], [True]).specificity)
    assert math.isnan(detection([], []).sensitivity)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    scores, there = [0.9, 0.6, 0.6, 0.3, 0.1], [True, True, False, False, True]
    # Pairs: 0.9 beats both; 0.6 ties one, beats one; 0.1 loses to both.
    assert auroc(scores, there) == pytest.approx((2 + 1.5 + 0) / 6)
    assert math.isnan(auroc([0.2, 0.4], [True, True]))


def test_auroc_is_monais():
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(7)
    there = random.random(80) > 0.6
    scores = np.round(random.random(80) * 0.7 + there * 0.3, 1)
    theirs = metrics.compute_roc_auc(torch.from_numpy(scores), torch.from_numpy(there.astype(int)))
    assert auroc(scores, there) == pytest.approx(theirs)


def test_calibration_compares_scores_with_shares_bin_by_bin():
    curve = calibration([0.1, 0.15, 0.95, 1.0, 0.0], [False, True, True, True, False], bins=10)
    assert [(one.low, one.count) for one in curve.bins] == [(0.0, 1), (0.1, 2), (0.9, 2)]
    assert [one.share_there for one in curve.bins] == [0, 0.5, 1]
    assert curve.bins[1].mean_score == pytest.approx(0.125)
    assert curve.expected_error == pytest.approx((1 * 0 + 2 * 0.375 + 2 * 0.025) / 5)
    assert calibration([], []).bins == ()
    assert math.isnan(calibration([], []).expected_error)
