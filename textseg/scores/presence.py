"""Whether a structure is there at all: what a mask, or a score from 0 to 1, says against the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

BINS = 10


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
