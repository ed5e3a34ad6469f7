"""Intervals, tests and ranks."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from textseg.scores.statistics import bland_altman, bootstrap_mean, compare, holm, rank_systems, signed_rank_p


def test_the_bootstrap_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(3, 2, 400)
    estimate = bootstrap_mean(values)
    error = values.std() / 20
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert estimate.cases == 400
    assert bootstrap_mean(values) == estimate


def test_what_is_not_defined_is_left_out():
    estimate = bootstrap_mean([0.5, math.nan, 0.7])
    assert (estimate.mean, estimate.cases) == (pytest.approx(0.6), 2)
    one = bootstrap_mean([0.5])
    assert one.mean == 0.5
    assert math.isnan(one.low)
    assert bootstrap_mean([math.nan]).cases == 0


def test_two_systems_are_compared_case_by_case():
    random = np.random.default_rng(2)
    a = random.random(12)
    b = a - 0.05 - 0.01 * random.random(12)
    comparison = compare(a, b)
    assert comparison.difference.mean == pytest.approx((a - b).mean())
    assert comparison.p == pytest.approx(wilcoxon(a, b).pvalue) == pytest.approx(2 / 2**12)
    assert compare(b, a).difference.mean < 0
    assert compare(a, a).p == 1
    assert compare([0.3, math.nan], [0.2, 0.1]).difference.cases == 1


def test_p_is_exact_with_ties_and_zeros():
    differences = np.array([0.0, 0.1, 0.1, -0.1, 0.3, 0.0, 0.4, -0.2, 0.5, 0.5])
    ranks = rankdata(np.abs(differences)) * (differences != 0)
    positive = ranks[differences > 0].sum()
    sums = [
        sum(r for r, up in zip(ranks[ranks > 0], signs, strict=True) if up)
        for signs in product((0, 1), repeat=8)
    ]
    tails = np.mean(np.array(sums) <= positive), np.mean(np.array(sums) >= positive)
    assert signed_rank_p(differences) == pytest.approx(2 * min(tails))
    assert signed_rank_p(np.array([0.3])) == 1
    many = np.random.default_rng(4).normal(0.1, 1, 300)
    assert signed_rank_p(many[:200]) == pytest.approx(wilcoxon(many[:200], method="approx").pvalue, rel=0.05)
    assert signed_rank_p(many) == pytest.approx(wilcoxon(many, method="approx").pvalue)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_systems_are_ranked_case_by_case_before_anything_is_averaged():
    # By means B would win: one case makes the difference. By ranks A wins three of four.
    dice = np.array([[0.8, 0.8, 0.8, 0.1], [0.7, 0.7, 0.7, 0.9]])[..., None]
    first, second = rank_systems(dice, ["A", "B"], [True])
    assert (first.system, first.place, first.mean_rank) == ("A", 1, 1.25)
    assert (second.system, second.place, second.mean_rank) == ("B", 2, 1.75)
    assert 0.6 < first.first_share < 1
    assert first.first_share + second.first_share == pytest.approx(1)
    assert rank_systems(dice, ["A", "B"], [False])[0].system == "B"


def test_equal_systems_share_a_place_and_a_missing_value_is_last():
    values = np.array([[[0.5, 0.5]], [[0.5, 0.5 + 1e-13]], [[0.2, math.nan]]])
    places = rank_systems(values, ["A", "B", "C"], [True, True])
    assert [(place.system, place.place, place.mean_rank) for place in places] == [
        ("A", 1, 1.5),
        ("B", 1, 1.5),
        ("C", 3, 3.0),
    ]
    nobody = rank_systems(np.full((2, 1, 1), math.nan), ["A", "B"], [True])
    assert math.isnan(nobody[0].mean_rank)


def test_limits_of_agreement_are_bias_and_spread():
    agreement = bland_altman([10, 12, 14, 12], [9, 12, 12, 11])
    assert agreement.bias == pytest.approx(1.0)
    assert agreement.high - agreement.bias == pytest.approx(1.96 * np.std([1, 0, 2, 1], ddof=1))
    assert agreement.low == pytest.approx(2 - agreement.high)
    assert math.isnan(bland_altman([1], [2]).low)
    assert bland_altman([], []).pairs == 0
