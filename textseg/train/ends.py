"""Where a scan ends: patches of which only a slab was scanned, as a chest CT ends in the liver.

Anatomy of some maps alone would show a network ends at these maps' own borders, and nowhere else: a slab of
four centimetres, with what lies around it padded, is then read as lung around a narrow body.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Slices of a torso are the axis along which most scans end; of the rest, each axis is as likely.
ALONG_Z = 0.7
# A slab is no thinner than this, in voxels: forty millimetres of a torso at four.
THINNEST = 8


def scanned_part(shape: Sequence[int], random: np.random.Generator) -> tuple[slice, slice, slice]:
    """The part of a patch (x, y, z) that a scan covers, which ends on one or both sides of one axis."""
    axis = 2 if random.random() < ALONG_Z else int(random.integers(3))
    size = shape[axis]
    thickness = int(random.integers(min(THINNEST, size - 1), size))
    first = int(random.integers(0, size - thickness + 1))
    if random.random() < 0.5:  # ends on one side alone
        first = 0 if first < (size - thickness) / 2 else size - thickness
    part = [slice(0, n) for n in shape]
    part[axis] = slice(first, first + thickness)
    return part[0], part[1], part[2]


def ended(voxels: Tensor, part: tuple[slice, slice, slice], beyond: float) -> Tensor:
    """A map (x, y, z) that is `beyond` wherever nothing was scanned."""
    kept = torch.full_like(voxels, beyond)
    kept[part] = voxels[part]
    return kept
