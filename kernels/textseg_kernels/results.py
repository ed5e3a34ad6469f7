"""What finalising gives; arrays are torch tensors, or NumPy arrays from the twins."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

Array = TypeVar("Array")


class Masks(NamedTuple, Generic[Array]):
    """A mask a prompt, and where it lies in voxels of its own grid.

    bits (prompts, x, y, bytes) uint8: eight voxels along z a byte, the lowest bit first, as
    `numpy.packbits(..., axis=-1, bitorder="little")` packs them.
    counts (prompts,) int64: voxels.
    boxes (prompts, 2, 3) int64: first voxel and stop along x, y, z; all zero for an empty mask.
    sums (prompts, 3) int64: the sum of the voxels' indices, so sums / counts is the centroid.
    """

    bits: Array
    counts: Array
    boxes: Array
    sums: Array


class Labels(NamedTuple, Generic[Array]):
    """One label map for all prompts, with counts, boxes and sums as in `Masks`.

    labels (x, y, z) int16: 0 for background, n for the n-th prompt.
    The type is int16 because torch has hardly any arithmetic for uint16.
    """

    labels: Array
    counts: Array
    boxes: Array
    sums: Array
