"""Whether presence is told rightly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from textseg.scores.presence import (
    auroc,
    balanced_threshold,
    calibration,
    calibrator,
    detection,
    rates,
)


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


SCORES = [0.1, 0.2, 0.35, 0.6, 0.4, 0.7, 0.8, 0.9]
THERE = [False, False, False, False, True, True, True, True]


def test_rates_are_the_absent_that_are_found_and_the_present_that_are_missed():
    told = rates(SCORES, THERE, 0.5)
    assert (told.false_positives, told.missed, told.worse) == (0.25, 0.25, 0.25)
    told = rates(SCORES, THERE, 0.3)
    assert (told.false_positives, told.missed, told.worse) == (0.5, 0.0, 0.5)
    assert math.isnan(rates([0.9], [True], 0.5).false_positives)
    assert rates([0.9], [True], 0.95).worse == 1


def test_what_is_not_marked_is_not_found():
    marked = [True, True, True, False, True, True, True, False]
    told = rates(SCORES, THERE, 0.5, marked)
    assert (told.false_positives, told.missed) == (0.0, 0.5)


def test_the_balanced_threshold_lies_between_where_both_rates_are_small():
    # 0.4 is there and 0.6 is not: one mistake at least, from 0.6 on a missed one, below 0.4 a false alarm.
    best = balanced_threshold(SCORES, THERE)
    assert best.worse == 0.25
    assert 0.35 < best.threshold < 0.7
    clear = balanced_threshold([0.1, 0.2, 0.7, 0.9], [False, False, True, True])
    assert clear.worse == 0
    assert clear.threshold == pytest.approx(0.45)


def test_a_threshold_needs_both_kinds():
    with pytest.raises(ValueError, match="got 2 present of 2"):
        balanced_threshold([0.1, 0.2], [True, True])
    with pytest.raises(ValueError, match="0 present and 1 absent"):
        calibrator([0.5], [False])


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 1.0), (2.0, -0.5), (1.0, 0.0)])
def test_the_calibrator_undoes_what_was_done_to_honest_scores(slope, offset):
    random = np.random.default_rng(3)
    honest = random.normal(0, 2, 20_000)
    there = random.random(honest.size) < 1 / (1 + np.exp(-honest))
    bent = 1 / (1 + np.exp(-(honest - offset) / slope))
    found = calibrator(bent, there)
    assert found.slope == pytest.approx(slope, rel=0.08)
    assert found.offset == pytest.approx(offset, abs=0.08)
    assert calibration(found(bent), there).expected_error < 0.02


def test_a_temperature_has_no_offset_and_flattens_what_is_too_sure():
    random = np.random.default_rng(4)
    honest = random.normal(0, 2, 20_000)
    there = random.random(honest.size) < 1 / (1 + np.exp(-honest))
    found = calibrator(1 / (1 + np.exp(-3 * honest)), there, with_offset=False)
    assert found.offset == 0
    assert found.temperature == pytest.approx(3, rel=0.08)
    assert found([0.5]) == pytest.approx([0.5])


def test_scores_that_part_perfectly_and_certain_ones_have_a_finite_slope():
    found = calibrator([0.0, 0.0, 1.0, 1.0], [False, False, True, True])
    assert 0 < found.slope < 10
    assert found([0.0, 1.0]) == pytest.approx([0.25, 0.75], abs=0.01)
