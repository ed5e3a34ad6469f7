"""Scores as two challenges count them, and one of them made to charge for what is not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from textseg.scores.measures import Rules, StructureScore

# ReXGroundingCT (Baharoon et al. 2025, arXiv 2507.22030) calls a finding hit, an instance found, from here.
HIT_DICE = 0.1
FOUND_INSTANCE_DICE = 0.2

CVPR_RULES = Rules(tolerance_mm=2.0, touching="faces", same_lesion=0.5, same_lesion_by="iou")
REX_RULES = Rules(same_lesion=FOUND_INSTANCE_DICE, same_lesion_by="dice")


@dataclass(frozen=True)
class Challenge:
    """A challenge: its rules for masks, what it counts, and in which words."""

    name: str
    rules: Rules
    summary: Callable[[Sequence[StructureScore]], Mapping[str, float]]
    explanation: str


def cvpr(scores: Sequence[StructureScore]) -> dict[str, float]:
    """DSC, NSD at 2 mm, F1 at IoU 0.5 and DSC over true positives, as the CVPR text-guided challenge does.

    CVPR 2025, Foundation Models for Text-Guided 3D Biomedical Image Segmentation. Structures are judged by
    DSC and NSD, lesions by F1 and DSC_TP; each is the mean over cases of the mean over what is there in the
    case. A case whose lesions are all missed has 0 for both. What is absent is not looked at.

    Args:
        scores: of all cases, with lesions judged by `CVPR_RULES`.
    """
    return _cvpr([score for score in scores if score.there])


def cvpr_with_absent(scores: Sequence[StructureScore]) -> dict[str, float]:
    """As `cvpr`, and a mask of something that is absent counts 0 in the case's means.

    An absent structure that is denied counts nothing, so asking for more of them improves no score.
    """
    return _cvpr([score for score in scores if score.there or score.found])


def rexgrounding(scores: Sequence[StructureScore]) -> dict[str, float]:
    """ReXGroundingCT's Dice and hit rate over findings, and precision, recall and F1 over all instances.

    A finding is hit with a Dice of 0.1 or more; an instance is found with a Dice of 0.2 or more.

    Args:
        scores: of all findings of all cases, judged by `REX_RULES` with every one of them as lesions.
    """
    there = [score for score in scores if score.there]
    found = sum(score.lesions_found for score in there)
    predicted = sum(score.predicted_lesions for score in there)
    reference = sum(score.reference_lesions for score in there)
    return {
        "Dice": _mean(score.dice for score in there),
        "Hit rate": _mean(float(score.dice >= HIT_DICE) for score in there),
        "Instance precision": found / predicted if predicted else math.nan,
        "Instance recall": found / reference if reference else math.nan,
        "Instance F1": 2 * found / (predicted + reference) if predicted + reference else math.nan,
    }


CHALLENGES = {
    challenge.name: challenge
    for challenge in (
        Challenge(
            "cvpr",
            CVPR_RULES,
            cvpr,
            "CVPR text-guided segmentation challenge: mean over cases of the mean over what is there; "
            "lesions (joined across faces, IoU 0.5) by F1 and DSC over true positives. Masks of absent "
            "structures cost nothing here.",
        ),
        Challenge(
            "cvpr-with-absent",
            CVPR_RULES,
            cvpr_with_absent,
            "As the CVPR text-guided segmentation challenge, but a mask of an absent structure counts 0.",
        ),
        Challenge(
            "rexgrounding",
            REX_RULES,
            rexgrounding,
            "ReXGroundingCT: Dice and hit rate (Dice of 0.1 or more) over findings, instances found with a "
            "Dice of 0.2 or more over the whole set.",
        ),
    )
}


def _cvpr(counted: Sequence[StructureScore]) -> dict[str, float]:
    structures = [score for score in counted if not score.lesions]
    lesions = [score for score in counted if score.lesions]
    return {
        "DSC": _mean_of_cases(structures, lambda score: score.dice),
        "NSD": _mean_of_cases(structures, lambda score: score.nsd),
        "F1": _mean_of_cases(lesions, lambda score: score.lesion_f1),
        "DSC_TP": _mean_of_cases(lesions, lambda score: score.lesion_dice),
    }


def _mean_of_cases(scores: Sequence[StructureScore], value: Callable[[StructureScore], float]) -> float:
    cases: dict[str, list[float]] = {}
    for score in scores:
        # NaN: of something absent, or of lesions of which none is found.
        cases.setdefault(score.case, []).append(0.0 if math.isnan(value(score)) else value(score))
    return _mean(float(np.mean(values)) for values in cases.values())


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else math.nan
