"""Lesion by lesion: which pieces of a prediction are which pieces of the reference.

Pieces are matched one to one, best overlap first, as in Panoptica's threshold matching (Kofler et al. 2023,
Panoptica: instance-wise evaluation of 3D semantic and instance segmentation maps, arXiv 2312.02608). Above an
overlap of a half no other matching has more pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.scores.overlap import Mask

Touching = Literal["faces", "corners"]
Measure = Literal["iou", "dice"]
Labels = NDArray[np.integer]

# What counts as the same lesion for F1 (panoptic quality, Kirillov et al., CVPR 2019).
SAME_LESION_IOU = 0.5
# What counts as seen at all (nnDetection, Baumgartner et al., MICCAI 2021): its size may be far off.
SEEN_LESION_IOU = 0.1


@dataclass(frozen=True)
class Matching:
    """Pieces of a prediction and of a reference, and how well those are alike that were matched.

    Args:
        predicted, reference: how many pieces there are.
        dices: (matched pairs,) Dice of each.
    """

    predicted: int
    reference: int
    dices: tuple[float, ...]

    @property
    def true_positives(self) -> int:
        return len(self.dices)

    @property
    def false_positives(self) -> int:
        return self.predicted - self.true_positives

    @property
    def sensitivity(self) -> float:
        """The share of the reference's pieces that are matched; NaN where there are none."""
        return self.true_positives / self.reference if self.reference else math.nan

    @property
    def precision(self) -> float:
        return self.true_positives / self.predicted if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """2 TP / (predicted + reference); NaN where neither has a piece."""
        pieces = self.predicted + self.reference
        return 2 * self.true_positives / pieces if pieces else math.nan

    @property
    def dice_of_matched(self) -> float:
        """The mean Dice of matched pairs (DSC over true positives); NaN where there are none."""
        return float(np.mean(self.dices)) if self.dices else math.nan


def pieces_of(mask: Mask, touching: Touching = "corners") -> tuple[Labels, int]:
    """The connected pieces of a mask (x, y, z) bool: labels (x, y, z) from 1, and how many there are."""
    structure = np.ones((3, 3, 3)) if touching == "corners" else None
    labels, count = ndimage.label(mask, structure=structure)
    return labels, int(count)


def match_pieces(
    predicted: Labels,
    reference: Labels,
    threshold: float = SAME_LESION_IOU,
    measure: Measure = "iou",
) -> Matching:
    """Match pieces one to one whose overlap is at least the threshold.

    Args:
        predicted, reference: (x, y, z) whole numbers on one grid, 0 for background, one number a piece.
        threshold: the least overlap of a pair, above 0.
        measure: of overlap, intersection over union or Dice.
    """
    in_predicted, predicted_sizes = np.unique(predicted[predicted > 0], return_counts=True)
    in_reference, reference_sizes = np.unique(reference[reference > 0], return_counts=True)
    both = (predicted > 0) & (reference > 0)
    pairs, shared = np.unique(
        np.stack([predicted[both], reference[both]]).astype(np.int64), axis=1, return_counts=True
    )
    a = np.searchsorted(in_predicted, pairs[0])
    b = np.searchsorted(in_reference, pairs[1])
    sizes = predicted_sizes[a] + reference_sizes[b]
    dices = 2 * shared / sizes
    overlaps = dices if measure == "dice" else shared / (sizes - shared)
    used_a, used_b, matched = set(), set(), []
    for pair in np.argsort(-overlaps, kind="stable"):
        if overlaps[pair] < threshold:
            break
        if a[pair] not in used_a and b[pair] not in used_b:
            used_a.add(a[pair])
            used_b.add(b[pair])
            matched.append(float(dices[pair]))
    return Matching(in_predicted.size, in_reference.size, tuple(matched))
