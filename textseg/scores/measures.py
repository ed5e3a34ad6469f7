"""All measures of one structure in one scan, and what holds where a mask is empty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from textseg.geometry import Geometry
from textseg.scores.instances import (
    SAME_LESION_IOU,
    SEEN_LESION_IOU,
    Measure,
    Touching,
    match_pieces,
    pieces_of,
)
from textseg.scores.overlap import Mask, overlap
from textseg.scores.surface import surface_distances

EMPTY_RULE = (
    "Where the reference is empty, overlap, surface and lesion measures are not defined and are left out of "
    "every mean; presence counts it (specificity), and predicted lesions count as false positives. Where the "
    "reference is there and the prediction is empty, Dice, IoU, sensitivity, NSD and F1 are 0, precision is "
    "not defined, and distances are the diagonal of the scan's field of view."
)


@dataclass(frozen=True)
class Rules:
    """How masks are judged.

    Args:
        tolerance_mm: up to which two surfaces count as the same, for NSD.
        further_mm: more such tolerances, each reported beside.
        touching: what joins voxels to one lesion.
        same_lesion: the least overlap of a lesion that is found, for F1 and DSC over true positives.
        same_lesion_by: intersection over union or Dice.
    """

    tolerance_mm: float = 2.0
    further_mm: tuple[float, ...] = ()
    touching: Touching = "corners"
    same_lesion: float = SAME_LESION_IOU
    same_lesion_by: Measure = "iou"


@dataclass(frozen=True)
class StructureScore:
    """One structure in one scan; a measure that is not defined is NaN.

    Volumes in ml, distances in mm, the rest are shares; `nsd_at` are pairs of a further tolerance in mm and
    NSD there. Lesions are counted only where `lesions` says so:
    `lesions_found` at the rules' overlap for F1, `lesions_seen` at an IoU of 0.1.
    """

    case: str
    structure: str
    reference_ml: float
    predicted_ml: float
    dice: float
    iou: float
    sensitivity: float
    precision: float
    volume_error: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    presence: float = math.nan
    lesions: bool = False
    reference_lesions: int = 0
    predicted_lesions: int = 0
    lesions_found: int = 0
    lesion_f1: float = math.nan
    lesion_dice: float = math.nan
    lesions_seen: int = 0
    lesion_sensitivity: float = math.nan
    false_lesions: float = math.nan
    nsd_at: tuple[tuple[float, float], ...] = ()

    @property
    def there(self) -> bool:
        return self.reference_ml > 0

    @property
    def found(self) -> bool:
        return self.predicted_ml > 0


@dataclass(frozen=True)
class Column:
    """A measure as tables show it: the field of `StructureScore`, its heading, and which way is better.

    With `tolerance_mm` it is NSD at that further tolerance.
    """

    field: str
    heading: str
    higher_is_better: bool
    digits: int = 3
    tolerance_mm: float | None = None

    def of(self, score: StructureScore) -> float:
        """The measure's value."""
        if self.tolerance_mm is not None:
            return dict(score.nsd_at).get(self.tolerance_mm, math.nan)
        return float(getattr(score, self.field))


COLUMNS = (
    Column("dice", "Dice", True),
    Column("iou", "IoU", True),
    Column("nsd", "NSD", True),
    Column("hd95_mm", "HD95 (mm)", False, 1),
    Column("assd_mm", "ASSD (mm)", False, 2),
    Column("sensitivity", "Sensitivity", True),
    Column("precision", "Precision", True),
)
LESION_COLUMNS = (
    Column("lesion_f1", "F1", True),
    Column("lesion_dice", "DSC over TP", True),
    Column("lesion_sensitivity", "Lesion sensitivity", True),
    Column("false_lesions", "False positives a scan", False, 2),
)


def tolerance_columns(scores: Sequence[StructureScore]) -> tuple[Column, ...]:
    """NSD at each of the further tolerances that these were judged at."""
    tolerances = dict.fromkeys(mm for score in scores for mm, _ in score.nsd_at)
    return tuple(Column(f"nsd_{mm:g}mm", f"NSD at {mm:g} mm", True, tolerance_mm=mm) for mm in tolerances)


def score_structure(
    case: str,
    structure: str,
    predicted: Mask,
    reference: Mask,
    grid: Geometry,
    rules: Rules | None = None,
    *,
    presence: float = math.nan,
    lesions: bool = False,
) -> StructureScore:
    """Judge one mask; see `EMPTY_RULE` for empty ones.

    Args:
        predicted, reference: (x, y, z) bool, the part of the grid that holds both; outside there is nothing.
        grid: the scan's whole grid, whose spacing, shear and diagonal count.
        rules: how to judge.
        presence: how sure the system is that the structure is there, 0 to 1, if it says so.
        lesions: also judge connected pieces one by one.

    Raises:
        GeometryError: the masks' shapes differ.
    """
    rules = rules or Rules()
    distances = surface_distances(predicted, reference, grid)
    counts = overlap(predicted, reference)
    voxel_ml = grid.voxel_volume_mm3 / 1000
    judged: dict[str, Any] = _lesion_scores(predicted, reference, rules) if lesions else {}
    defined = counts.reference > 0

    def where_there(value: float) -> float:
        return value if defined else math.nan

    return StructureScore(
        case=case,
        structure=structure,
        reference_ml=counts.reference * voxel_ml,
        predicted_ml=counts.predicted * voxel_ml,
        dice=where_there(counts.dice),
        iou=where_there(counts.iou),
        sensitivity=counts.sensitivity,
        precision=where_there(counts.precision),
        volume_error=counts.volume_error,
        nsd=where_there(distances.surface_dice(rules.tolerance_mm)),
        hd95_mm=where_there(min(distances.hausdorff(), diagonal_mm(grid))),
        assd_mm=where_there(min(distances.average(), diagonal_mm(grid))),
        presence=presence,
        nsd_at=tuple((mm, where_there(distances.surface_dice(mm))) for mm in rules.further_mm),
        **judged,
    )


def diagonal_mm(grid: Geometry) -> float:
    """The greatest distance within a field of view: what a structure that was not found is away."""
    return max(float(np.linalg.norm(a - b)) for a, b in combinations(grid.corners_mm(), 2))


def _lesion_scores(predicted: Mask, reference: Mask, rules: Rules) -> dict[str, Any]:
    a, predicted_count = pieces_of(predicted, rules.touching)
    b, reference_count = pieces_of(reference, rules.touching)
    same = match_pieces(a, b, rules.same_lesion, rules.same_lesion_by)
    seen = match_pieces(a, b, SEEN_LESION_IOU)
    return {
        "lesions": True,
        "reference_lesions": reference_count,
        "predicted_lesions": predicted_count,
        "lesions_found": same.true_positives,
        "lesion_f1": same.f1 if reference_count else math.nan,
        "lesion_dice": same.dice_of_matched,
        "lesions_seen": seen.true_positives,
        "lesion_sensitivity": seen.sensitivity,
        "false_lesions": float(seen.false_positives),
    }
