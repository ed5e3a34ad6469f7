"""Stray parts: pieces of a mask that lie apart from it, of an organ that is a single piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.packed import PackedMasks

Mask = NDArray[np.bool_]


def drop_stray_parts(masks: PackedMasks, index: int, cell_voxels: Sequence[int], least: float) -> int:
    """Empty the parts of a mask that are smaller than a share of its largest one; gives the voxels dropped.

    Parts are told apart in cells of several voxels, as large as those that the network saw, which touch
    across faces, edges and corners: finer gaps are interpolation's, and there are a hundred times fewer of
    them.

    Args:
        cell_voxels: how many voxels a cell has along each axis of the bits.
        least: the share of the largest part, in voxels, that a part must have to stay; 0 to 1.
    """
    found = masks.cropped(index)
    if found is None:
        return 0
    box, inside = found
    # Cells lie on one grid in every scan, wherever the mask begins.
    counts: NDArray[Any] = inside.view(np.uint8)
    edges = []
    for axis, (start, side) in enumerate(zip(box.start, cell_voxels, strict=True)):
        n = inside.shape[axis]
        first = np.unique(np.maximum(np.arange(start // side, (start + n - 1) // side + 1) * side - start, 0))
        counts = np.add.reduceat(counts, first, axis=axis, dtype=np.uint32)
        edges.append(np.diff(first, append=n))
    parts, number = ndimage.label(counts, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), weights=counts.ravel(), minlength=number + 1)
    stays = sizes >= least * sizes.max()
    if number < 2 or stays[1:].all():
        return 0
    stays[0] = False
    kept = stays[parts]
    for axis, widths in enumerate(edges):
        kept = np.repeat(kept, widths, axis=axis)
    masks.keep(index, box, inside & kept)
    return int(sizes[1:][~stays[1:]].sum())
