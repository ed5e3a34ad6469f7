"""How sure a mean is, whether two systems differ, and which is better: over cases, which are independent.

Structures of one scan are not: every resampling draws whole cases. A value that is NaN does not exist (a
measure that is not defined for a case) and is left out of every mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, wilcoxon

Floats = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 20250101
EXACT_PAIRS = 200


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval, which is NaN with fewer than two cases."""

    mean: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same cases: mean difference (a - b), its interval, and Wilcoxon's p.

    `adjusted_p` is p after Holm's correction where several comparisons were made, else p itself.
    """

    difference: Estimate
    p: float
    adjusted_p: float


@dataclass(frozen=True)
class Place:
    """A system in a ranking: its mean rank, 1 is best, and how often it comes first in resampled cases."""

    system: str
    mean_rank: float
    place: float
    first_share: float


@dataclass(frozen=True)
class Agreement:
    """Bland and Altman's limits: the mean of differences, and where 95 % of them lie if they are normal."""

    bias: float
    low: float
    high: float
    pairs: int


def bootstrap_mean(values: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """The mean of values (cases,) with its 95 % percentile bootstrap interval over cases (Efron 1979)."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    cases = finite.size
    if not cases:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(finite.mean())
    if cases < 2:
        return Estimate(mean, math.nan, math.nan, cases)
    means = _draws(cases, resamples, seed) @ finite / cases
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(mean, float(low), float(high), cases)


def compare(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Two systems' values of the same cases (cases,), by Wilcoxon's signed-rank test (1945), two-sided.

    Cases that one of them has no value for are left out; equal values count for ranks alone (Pratt 1959).
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    differences = first[both] - second[both]
    p = signed_rank_p(differences)
    return Comparison(bootstrap_mean(differences), p, p)


def signed_rank_p(differences: Floats) -> float:
    """Wilcoxon's two-sided p of paired differences (pairs,); 1 without any difference.

    Exact, ties and zeros included: the sum of positive ranks under every choice of signs, counted by adding
    one pair after the other. With more than `EXACT_PAIRS` by the normal approximation.
    """
    # Rounded: differences that differ in the last bits alone are tied.
    differences = np.round(differences, 12)
    if not np.any(differences):
        return 1.0
    if differences.size > EXACT_PAIRS:
        return float(wilcoxon(differences, zero_method="pratt", method="approx").pvalue)
    # Tied ranks are halves: doubled they are whole numbers.
    ranks = np.round(2 * rankdata(np.abs(differences))).astype(int)
    positive = int(ranks[differences > 0].sum())
    ranks = ranks[differences != 0]
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return float(min(1.0, 2 * min(chances[: positive + 1].sum(), chances[positive:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of tests that were made together, corrected so that no one of them is found by luck.

    Holm's step-down procedure (1979), which holds whatever the tests have to do with each other.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - step)))
        adjusted[index] = highest
    return adjusted


def rank_systems(
    values: ArrayLike,
    systems: Sequence[str],
    higher_is_better: Sequence[bool],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[Place]:
    """Rank systems as challenges do: for each case, structure and measure, then by the mean of ranks.

    "Rank then aggregate" (Maier-Hein et al., Nature Communications 2018); equal values share their ranks.
    Where a system has no value and another has one, it ranks last.

    Args:
        values: (systems, cases, scores); each score is one measure of one structure.
        systems: their names.
        higher_is_better: for each score.
    """
    table = np.asarray(values, np.float64)
    better = np.where(np.asarray(higher_is_better), -1.0, 1.0) * table
    asked: NDArray[np.bool_] = np.any(np.isfinite(table), axis=0)
    judged = np.any(asked, axis=1)
    # Rounded: values that differ in the last bits alone are equal.
    ranks = rankdata(np.where(np.isfinite(better), np.round(better, 9), np.inf), axis=0)
    ranks = np.where(asked, ranks, np.nan)
    ranks = ranks[:, judged]
    cases = ranks.shape[1]
    if not cases:
        return [Place(system, math.nan, math.nan, math.nan) for system in systems]
    counts, sums = asked[judged].sum(axis=1), np.nansum(ranks, axis=2)
    draws = _draws(cases, resamples, seed)
    resampled = draws @ sums.T / (draws @ counts)[:, None]
    winners = np.isclose(resampled, resampled.min(axis=1, keepdims=True))
    first = (winners / winners.sum(axis=1, keepdims=True)).mean(axis=0)
    means = sums.sum(axis=1) / counts.sum()
    places = [
        Place(system, float(mean), float(place), float(share))
        for system, mean, place, share in zip(
            systems, means, rankdata(means, method="min"), first, strict=True
        )
    ]
    return sorted(places, key=lambda place: place.mean_rank)


def bland_altman(a: ArrayLike, b: ArrayLike) -> Agreement:
    """How far two measurements (pairs,) of one thing are apart (Bland, Altman, Lancet 1986).

    The limits are NaN with fewer than two pairs.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    differences = differences[np.isfinite(differences)]
    if not differences.size:
        return Agreement(math.nan, math.nan, math.nan, 0)
    bias = float(differences.mean())
    spread = 1.96 * float(differences.std(ddof=1)) if differences.size > 1 else math.nan
    return Agreement(bias, bias - spread, bias + spread, differences.size)


@lru_cache(maxsize=8)
def _draws(cases: int, resamples: int, seed: int) -> Floats:
    """(resamples, cases): how often each case was drawn, `cases` in all, with replacement."""
    random = np.random.default_rng(seed)
    return random.multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(np.float64)
