"""Whether a structure is there at all: what a mask, or a score from 0 to 1, says against the truth.

And what to make of the score: a threshold, and a probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata

BINS = 10
# Scores of exactly 0 and 1 have no logit.
CLOSEST_TO_CERTAIN = 1e-6


@dataclass(frozen=True)
class Detection:
    """How often what is there is found, and what is absent is denied; NaN where there was nothing to ask."""

    found: int
    missed: int
    denied: int
    false_alarms: int

    @property
    def sensitivity(self) -> float:
        there = self.found + self.missed
        return self.found / there if there else math.nan

    @property
    def specificity(self) -> float:
        absent = self.denied + self.false_alarms
        return self.denied / absent if absent else math.nan


@dataclass(frozen=True)
class Bin:
    """Prompts with presence scores of one range: how many, their mean score, the share that is there."""

    low: float
    high: float
    count: int
    mean_score: float
    share_there: float


@dataclass(frozen=True)
class Calibration:
    """The reliability curve, and the expected calibration error, from 0 (honest) to 1."""

    bins: tuple[Bin, ...]
    expected_error: float


def detection(found: Sequence[bool], there: Sequence[bool]) -> Detection:
    """Counts over prompts: `found` is what the prediction says, `there` the truth."""
    said, true = np.asarray(found, bool), np.asarray(there, bool)
    return Detection(
        int((said & true).sum()),
        int((~said & true).sum()),
        int((~said & ~true).sum()),
        int((said & ~true).sum()),
    )


def auroc(scores: ArrayLike, there: ArrayLike) -> float:
    """The area under the ROC curve: how often a present structure scores above an absent one, ties a half.

    Args:
        scores: (prompts,) presence, higher for surer.
        there: (prompts,) bool, the truth.

    Returns:
        0 to 1; NaN unless some are there and some are not. The Mann-Whitney statistic (Hanley, McNeil 1982).
    """
    true = np.asarray(there, bool)
    present, absent = int(true.sum()), int((~true).sum())
    if not present or not absent:
        return math.nan
    ranks = rankdata(np.asarray(scores, np.float64))
    return float((ranks[true].sum() - present * (present + 1) / 2) / (present * absent))


def calibration(scores: ArrayLike, there: ArrayLike, bins: int = BINS) -> Calibration:
    """The reliability curve over equally wide bins, and its expected error (Naeini et al., AAAI 2015).

    Args:
        scores: (prompts,) presence from 0 to 1.
        there: (prompts,) bool, the truth.

    Returns:
        Only bins that hold a prompt; the error is NaN without prompts.
    """
    said, true = np.asarray(scores, np.float64), np.asarray(there, bool)
    edges = np.linspace(0, 1, bins + 1)
    # A score of 1 belongs to the last bin.
    places = np.clip(np.searchsorted(edges, said, side="right") - 1, 0, bins - 1)
    found = []
    for place in range(bins):
        here = places == place
        if here.any():
            found.append(
                Bin(
                    float(edges[place]),
                    float(edges[place + 1]),
                    int(here.sum()),
                    float(said[here].mean()),
                    float(true[here].mean()),
                )
            )
    gaps = sum(one.count * abs(one.mean_score - one.share_there) for one in found)
    return Calibration(tuple(found), gaps / said.size if said.size else math.nan)


@dataclass(frozen=True)
class Rates:
    """What a threshold on presence does: the share of absent things that are found, of present ones missed.

    Either is NaN where nothing of its kind was asked.
    """

    threshold: float
    false_positives: float
    missed: float

    @property
    def worse(self) -> float:
        """The larger of the two; the other one where one is NaN."""
        return float(np.nanmax([self.false_positives, self.missed]))


def rates(scores: ArrayLike, there: ArrayLike, threshold: float, marked: ArrayLike | None = None) -> Rates:
    """How often prompts are found wrongly and missed if those below a threshold are not reported.

    Args:
        scores: (prompts,) presence from 0 to 1.
        there: (prompts,) bool, the truth.
        marked: (prompts,) bool, whether the mask is large enough to be reported; all by default.
    """
    said, true = np.asarray(scores, np.float64), np.asarray(there, bool)
    found = said >= threshold
    if marked is not None:
        found &= np.asarray(marked, bool)
    told = detection(found.tolist(), true.tolist())
    return Rates(float(threshold), 1 - told.specificity, 1 - told.sensitivity)


def balanced_threshold(scores: ArrayLike, there: ArrayLike, marked: ArrayLike | None = None) -> Rates:
    """The threshold at which the worse of the two rates is smallest, in the middle of those that are as good.

    Args:
        scores, there, marked: as for `rates`.

    Raises:
        ValueError: there is no present thing, or no absent one.
    """
    said, true = np.asarray(scores, np.float64), np.asarray(there, bool)
    if not true.any() or true.all():
        raise ValueError(
            f"A threshold is balanced between present and absent things, got {int(true.sum())} present of "
            f"{true.size}."
        )
    # Between neighbouring scores every threshold decides alike.
    steps = np.unique(np.concatenate([[0.0], said, [1.0]]))
    middles = [0.0, *((steps[1:] + steps[:-1]) / 2), 1.0]
    tried = [rates(said, true, each, marked) for each in middles]
    best = min((each.worse, each.false_positives + each.missed) for each in tried)
    equal = [each for each in tried if (each.worse, each.false_positives + each.missed) == best]
    return equal[len(equal) // 2]


@dataclass(frozen=True)
class Calibrator:
    """Scores to probabilities: the sigmoid of slope times the score's logit plus an offset (Platt 1999).

    With an offset of 0 the temperature is 1 / slope (Guo et al., ICML 2017).
    """

    slope: float
    offset: float

    @property
    def temperature(self) -> float:
        return 1 / self.slope

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Calibrated (prompts,) of scores (prompts,), both from 0 to 1."""
        return np.asarray(expit(self.slope * _logits(scores) + self.offset))


def calibrator(scores: ArrayLike, there: ArrayLike, *, with_offset: bool = True) -> Calibrator:
    """The calibrator of the highest likelihood: Platt's with an offset, else a temperature.

    Args:
        scores: (prompts,) presence from 0 to 1.
        there: (prompts,) bool, the truth. As Platt does it, n present things count as 1 - 1 / (n + 2), n
            absent ones as 1 / (n + 2), so that scores that part them perfectly have a finite slope.

    Raises:
        ValueError: there is no present thing, or no absent one.
    """
    true = np.asarray(there, bool)
    present, absent = int(true.sum()), int((~true).sum())
    if not present or not absent:
        raise ValueError(
            f"Calibrating needs present and absent things, got {present} present and {absent} absent."
        )
    logits = _logits(scores)
    wanted = np.where(true, (present + 1) / (present + 2), 1 / (absent + 2))

    def loss(numbers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, offset = numbers if with_offset else (numbers[0], 0.0)
        values = slope * logits + offset
        # Cross-entropy from logits, without overflow.
        value = float((np.logaddexp(0, values) - wanted * values).mean())
        errors = expit(values) - wanted
        gradient = np.array([(errors * logits).mean(), errors.mean()])
        return value, gradient if with_offset else gradient[:1]

    start = np.array([1.0, 0.0] if with_offset else [1.0])
    found = minimize(loss, start, jac=True, method="BFGS").x
    return Calibrator(float(found[0]), float(found[1]) if with_offset else 0.0)


def _logits(scores: ArrayLike) -> NDArray[np.float64]:
    said = np.asarray(scores, np.float64)
    return np.asarray(logit(np.clip(said, CLOSEST_TO_CERTAIN, 1 - CLOSEST_TO_CERTAIN)))
