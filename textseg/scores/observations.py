"""One answer of a model beside its answer to the canonical prompt, and what was lost between the two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from textseg.geometry import Geometry
from textseg.scores.overlap import Mask, PackedMask, pack

Suite = Literal[
    "paraphrases", "laterality", "absent", "sentences", "orientation", "spacing", "noise", "crops"
]
SUITES: tuple[Suite, ...] = (
    "paraphrases",
    "laterality",
    "absent",
    "sentences",
    "orientation",
    "spacing",
    "noise",
    "crops",
)


@dataclass(frozen=True)
class Observation:
    """One answer against the answer to the canonical prompt.

    Args:
        prompt: what was asked.
        canonical: Dice of the canonical prompt's mask; 1 where denying is right.
        dice: of this answer; where denying is right 1 for no mask and 0 for any.
        same: Dice of the two masks with each other, 1 with both empty; NaN where they can't be compared.
        predicted_ml: volume of this answer's mask.
        refused: the model took no such prompt, which counts as an empty mask.
    """

    suite: Suite
    test: str
    case: str
    structure: str
    prompt: str
    canonical: float
    dice: float
    same: float = math.nan
    predicted_ml: float = 0.0
    refused: bool = False

    @property
    def drop(self) -> float:
        """What is lost, in Dice; negative where this prompt does better than the canonical one."""
        return self.canonical - self.dice


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked, and what would be right: a mask on the grid of the answer, or None for nothing at all.

    `canonical_reference` is what the canonical prompt means, where that is something else.
    """

    suite: Suite
    test: str
    structure: str
    prompt: str
    reference: PackedMask | None
    canonical_reference: PackedMask | None = None


def observe(
    case: str,
    question: Question,
    mask: PackedMask | None,
    canonical: PackedMask | None,
    grid: Geometry,
    ignored: Mask | None,
) -> Observation:
    """Judge an answer.

    Args:
        mask: on the grid; None for a prompt that was refused.
        canonical: the answer to the canonical prompt on the same grid; None for what is not in the scan.
        ignored: voxels (x, y, z) that nobody labelled, on the grid.
    """
    answer = judged(mask, ignored, grid)
    before, after, same = _compared(question, answer, canonical)
    return Observation(
        question.suite,
        question.test,
        case,
        question.structure,
        question.prompt,
        before,
        after,
        same,
        volume_ml(answer, grid),
        mask is None,
    )


def judged(mask: PackedMask | None, ignored: Mask | None, grid: Geometry) -> PackedMask:
    """The part of an answer that counts; empty for one that was refused."""
    if mask is None:
        return pack(np.zeros(grid.shape, np.bool_))
    return mask if ignored is None else pack(mask.whole() & ~ignored)


def volume_ml(mask: PackedMask, grid: Geometry) -> float:
    return mask.voxels * grid.voxel_volume_mm3 / 1000


def _compared(
    question: Question, answer: PackedMask, canonical: PackedMask | None
) -> tuple[float, float, float]:
    """Dice of the canonical answer, of this one, and of the two with each other."""
    if question.reference is None or canonical is None:
        return 1.0, 0.0 if answer.voxels else 1.0, math.nan
    same = answer.overlap(canonical).dice if answer.voxels or canonical.voxels else 1.0
    before = canonical.overlap(question.canonical_reference or question.reference).dice
    return before, answer.overlap(question.reference).dice, same
