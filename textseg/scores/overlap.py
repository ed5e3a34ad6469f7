"""Voxel by voxel: how much of two masks is the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textseg.geometry import Box, Shape, bounding_box

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Counts of voxels, and the measures that follow from them; NaN where a measure is not defined.

    With both masks empty none is; with an empty reference sensitivity and the volume error are not, with an
    empty prediction precision is not.
    """

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def predicted(self) -> int:
        return self.true_positives + self.false_positives

    @property
    def reference(self) -> int:
        return self.true_positives + self.false_negatives

    @property
    def dice(self) -> float:
        """2 |a ∩ b| / (|a| + |b|) (Dice 1945)."""
        return _ratio(2 * self.true_positives, self.predicted + self.reference)

    @property
    def iou(self) -> float:
        """|a ∩ b| / |a ∪ b| (Jaccard 1901)."""
        return _ratio(self.true_positives, self.predicted + self.false_negatives)

    @property
    def sensitivity(self) -> float:
        """The share of the reference that is found."""
        return _ratio(self.true_positives, self.reference)

    @property
    def precision(self) -> float:
        """The share of the prediction that is right."""
        return _ratio(self.true_positives, self.predicted)

    @property
    def volume_error(self) -> float:
        """(predicted - reference) / reference: 0.1 is a tenth too large, -1 is nothing found."""
        return _ratio(self.predicted - self.reference, self.reference)


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask (x, y, z) without its empty border, so that hundreds of one scan can be kept and compared."""

    shape: Shape
    box: Box
    inside: Mask
    voxels: int

    def whole(self) -> Mask:
        mask = np.zeros(self.shape, np.bool_)
        mask[self.box.slices] = self.inside
        return mask

    def within(self, low: NDArray[np.intp], high: NDArray[np.intp]) -> Mask:
        """The mask from `low` to before `high`, voxels of the grid; a box within the mask's own."""
        start = np.array(self.box.start)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
        return self.inside[x, y, z]

    def overlap(self, reference: PackedMask) -> Overlap:
        """What this mask, as the prediction, shares with another on the same grid."""
        low = np.maximum(self.box.start, reference.box.start)
        high = np.minimum(self.box.stop, reference.box.stop)
        shared = 0
        if (high > low).all():
            parts = [mask.within(low, high) for mask in (self, reference)]
            shared = int(np.count_nonzero(parts[0] & parts[1]))
        return Overlap(shared, self.voxels - shared, reference.voxels - shared)


def pack(mask: Mask) -> PackedMask:
    """A mask (x, y, z) bool, packed; what is kept is a copy."""
    box = bounding_box(mask) or Box((0, 0, 0), (0, 0, 0))
    inside = mask[box.slices].copy()
    x, y, z = mask.shape
    return PackedMask((x, y, z), box, inside, int(np.count_nonzero(inside)))


def overlap(predicted: Mask, reference: Mask) -> Overlap:
    """What two masks (x, y, z) bool on one grid share."""
    shared = int(np.count_nonzero(predicted & reference))
    return Overlap(
        shared, int(np.count_nonzero(predicted)) - shared, int(np.count_nonzero(reference)) - shared
    )


def dice(predicted: Mask, reference: Mask) -> float:
    """2 |a ∩ b| / (|a| + |b|) of masks (x, y, z) bool on one grid; NaN where both are empty (Dice 1945)."""
    return overlap(predicted, reference).dice


def around(boxes: Iterable[Box]) -> Box | None:
    """The smallest box around all of these; None for none."""
    listed = list(boxes)
    if not listed:
        return None
    low = np.min([box.start for box in listed], axis=0)
    high = np.max([box.stop for box in listed], axis=0)
    return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
