"""What each kernel computes, in NumPy: the definition that the kernels are tested against.

Names and arguments are those of the functions in `textseg_kernels`, with arrays in place of tensors. Numbers
are rounded where the kernels round them, so results agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textseg_kernels.results import Labels, Masks

Floats = NDArray[np.float32]
Positions = NDArray[np.float64]
Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Shape = tuple[int, int, int]
Weights = Floats | tuple[Floats, Floats, Floats]

# Positions are rounded to this part of a voxel, so that maps that differ by rounding give equal values.
POSITION_STEP = 2.0**-17


def gather(
    scan: NDArray[np.int16] | Floats,
    maps: ArrayLike,
    out: NDArray[np.float16],
    channel: int,
    *,
    lowest: float,
    highest: float,
    mean: float,
    sd: float,
    padding: float,
) -> None:
    for patch, map in zip(out, np.asarray(maps, np.float64), strict=True):
        where = positions(map, _shape(patch[..., 0]))
        sampled = interpolated(scan, where)
        normalised = (
            np.clip(sampled, np.float32(lowest), np.float32(highest)) - np.float32(mean)
        ) / np.float32(sd)
        known = inside(where, _shape(scan)) & ~np.isnan(sampled)
        patch[..., channel] = np.where(known, normalised, np.float32(padding))


def blend(
    logits: NDArray[np.float16] | Floats,
    starts: Sequence[Sequence[int]],
    tables: tuple[Floats, Floats, Floats],
    slab: Floats,
) -> None:
    weights = weights_of(tables)
    for window, start in zip(logits, starts, strict=True):
        theirs, ours = [], []
        for first, size, room in zip(start, weights.shape, slab.shape[1:], strict=True):
            low, stop = max(0, first), max(0, first, min(room, first + size))
            theirs.append(slice(low - first, stop - first))
            ours.append(slice(low, stop))
        added = weights[tuple(theirs)] * window[(slice(None), *theirs)].astype(np.float32)
        slab[(slice(None), *ours)] += added


def finalise(
    slab: Floats, weights: Weights, map: ArrayLike, shape: Shape, threshold: float
) -> Masks[NDArray[Any]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = slab / weights_of(weights)
    where = positions(np.asarray(map, np.float64), shape)
    known = inside(where, mean.shape[1:])
    masks = np.zeros((len(slab), *shape), bool)
    for mask, logits in zip(masks, mean, strict=True):
        mask[:] = known & (interpolated(logits, where) > np.float32(threshold))
    return Masks(np.packbits(masks, axis=-1, bitorder="little"), *tallies(masks))


def finalise_labels(
    slab: Floats, weights: Weights, map: ArrayLike, shape: Shape, threshold: float
) -> Labels[NDArray[Any]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = slab / weights_of(weights)
    where = positions(np.asarray(map, np.float64), shape)
    known = inside(where, mean.shape[1:])
    labels = np.zeros(shape, np.int16)
    highest = np.full(shape, np.float32(threshold))
    for label, logits in enumerate(mean, start=1):
        values = interpolated(logits, where)
        wins = known & (values > highest)
        labels[wins] = label
        highest[wins] = values[wins]
    masks = labels == np.arange(1, len(slab) + 1)[:, None, None, None]
    return Labels(labels, *tallies(masks))


def keep_components(mask: Mask | Bytes, least: int, depth: int | None = None) -> Mask | Bytes:
    labels = components(mask, depth)
    sizes = np.bincount(labels[labels >= 0], minlength=labels.size)
    return _in_the_format_of(mask, (labels >= 0) & (sizes[labels] >= least))


def keep_largest_component(mask: Mask | Bytes, depth: int | None = None) -> Mask | Bytes:
    labels = components(mask, depth)
    sizes = np.bincount(labels[labels >= 0], minlength=max(1, labels.size))
    return _in_the_format_of(mask, (labels >= 0) & (labels == sizes.argmax()))


def components(mask: Mask | Bytes, depth: int | None = None) -> Integers:
    """(x, y, z): for each mask voxel the index of the first voxel of its part, -1 outside.

    Every voxel takes the lowest label among its 26 neighbours until none changes.
    """
    if depth is not None:
        mask = np.unpackbits(np.asarray(mask, np.uint8), axis=-1, count=depth, bitorder="little")
    inside = np.asarray(mask != 0)
    nowhere = inside.size
    labels = np.where(inside, np.arange(inside.size).reshape(inside.shape), nowhere)
    while True:
        padded = np.pad(labels, 1, constant_values=nowhere)
        around = [
            padded[tuple(slice(i, i + n) for i, n in zip(offset, labels.shape, strict=True))]
            for offset in product(range(3), repeat=3)
        ]
        lowest = np.where(inside, np.min(around, axis=0), nowhere)
        if (lowest == labels).all():
            return np.where(inside, labels, -1)
        labels = lowest


def weights_of(weights: Weights) -> Floats:
    """(x, y, z): one weight a voxel, as it is or as the product of three tables."""
    if not isinstance(weights, tuple):
        return weights
    x, y, z = weights
    return x[:, None, None] * y[None, :, None] * z[None, None, :]


def positions(map: Positions, shape: Shape) -> Positions:
    """(3, x, y, z): where each voxel of a grid lies in the volume, by a map (3, 4) in voxels."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij", sparse=True)
    exact = np.stack([a * x + b * y + c * z + d for a, b, c, d in map])
    return np.asarray(np.rint(exact / POSITION_STEP) * POSITION_STEP)


def inside(where: Positions, shape: tuple[int, ...]) -> Mask:
    """(x, y, z): which positions lie in a volume; each voxel reaches half a voxel to each side."""
    stops = np.array(shape)[:, None, None, None] - 0.5
    return np.asarray(((where >= -0.5) & (where <= stops)).all(axis=0))


def interpolated(volume: NDArray[Any], where: Positions) -> Floats:
    """(x, y, z) float32: the volume at positions; beyond the outer centres the border's value holds.

    A voxel that has no weight is not read, so NaN does not spread to whole positions.
    """
    last = np.array(volume.shape)[:, None, None, None] - 1
    within = np.clip(np.nan_to_num(where), 0, last)
    low = np.floor(within).astype(np.int64)
    fraction = (within - low).astype(np.float32)
    ends = np.stack([low, low + (fraction > 0)])
    corners = np.array(
        [[[volume[ends[i, 0], ends[j, 1], ends[k, 2]] for k in (0, 1)] for j in (0, 1)] for i in (0, 1)],
        np.float32,
    )
    along_z = corners[:, :, 0] + (corners[:, :, 1] - corners[:, :, 0]) * fraction[2]
    along_y = along_z[:, 0] + (along_z[:, 1] - along_z[:, 0]) * fraction[1]
    return np.asarray(along_y[0] + (along_y[1] - along_y[0]) * fraction[0])


def tallies(masks: Mask) -> tuple[Integers, Integers, Integers]:
    """Counts (prompts,), boxes (prompts, 2, 3) and index sums (prompts, 3) of masks (prompts, x, y, z)."""
    counts = np.zeros(len(masks), np.int64)
    boxes = np.zeros((len(masks), 2, 3), np.int64)
    sums = np.zeros((len(masks), 3), np.int64)
    for prompt, mask in enumerate(masks):
        voxels = np.argwhere(mask)
        if len(voxels):
            counts[prompt] = len(voxels)
            boxes[prompt] = voxels.min(axis=0), voxels.max(axis=0) + 1
            sums[prompt] = voxels.sum(axis=0)
    return counts, boxes, sums


def _in_the_format_of(mask: Mask | Bytes, kept: Mask) -> Mask | Bytes:
    if mask.dtype == np.bool_:
        return kept
    return np.packbits(kept, axis=-1, bitorder="little")


def _shape(volume: NDArray[Any]) -> Shape:
    x, y, z = volume.shape
    return x, y, z
