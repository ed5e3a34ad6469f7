"""What a person would draw: clicks, boxes, scribbles and lassos on a structure, or where a mask is wrong.

Scribbles are those of ScribblePrompt (Wong et al. 2024): centre lines, contours and straight strokes on one
slice, warped and broken as a hand does. Corrections go where nnInteractive's do (Isensee et al. 2025): into
the largest error, off its rim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.network.spatial_prompts import Interaction, Lasso, Point, Region, Scribble

Mask = NDArray[np.bool_]
Kind = Literal["point", "box", "slice_box", "scribble", "lasso"]
KINDS: tuple[Kind, ...] = ("point", "box", "slice_box", "scribble", "lasso")
# Errors of fewer voxels are left alone, as a person would.
SMALLEST_ERROR = 3
# A box is drawn off by up to this part of its edge.
BOX_JITTER = 0.15


def drawn_on(
    structure: Mask, kind: Kind, random: np.random.Generator, *, positive: bool = True
) -> Interaction:
    """One interaction that means a structure (x, y, z), which has at least one voxel.

    Args:
        kind: a click inside, a box around it, a box around it on one slice, a stroke or a closed line on one
            slice.
        positive: "this", or "not this".
    """
    if kind == "point":
        box, origin = _surroundings(structure)
        x, y, z = (float(a + b) for a, b in zip(_inside(structure[box], random), origin, strict=True))
        return Point((x, y, z), positive)
    if kind == "box":
        return _box(np.argwhere(structure), structure.shape, random, positive)
    axis, index = _slice(structure, random)
    flat = np.asarray(np.take(structure, index, axis=axis))
    if kind == "slice_box":
        return _box(
            _lifted(np.argwhere(flat), axis, index), structure.shape, random, positive, flat_axis=axis
        )
    if kind == "scribble":
        return Scribble(_lifted(np.argwhere(scribble(flat, random)), axis, index), positive)
    return Lasso(_lifted(np.argwhere(_warped(flat, random)), axis, index), positive)


def corrected(
    wanted: Mask,
    mask: Mask,
    random: np.random.Generator,
    kinds: Sequence[Kind] = ("point", "scribble", "lasso"),
) -> Interaction | None:
    """What a person would draw next on a mask (x, y, z): a mark on its largest error; None where it is right.

    Something that was missed is marked as "this", something too much as "not this".
    """
    missed, extra = largest_part(wanted & ~mask), largest_part(mask & ~wanted)
    error, positive = (missed, True) if missed.sum() >= extra.sum() else (extra, False)
    if error.sum() < SMALLEST_ERROR:
        return None
    return drawn_on(error, kinds[int(random.integers(len(kinds)))], random, positive=positive)


def largest_part(mask: Mask) -> Mask:
    """The largest part of a mask whose voxels touch by their faces."""
    box, _ = _surroundings(mask)
    parts, count = ndimage.label(mask[box])
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = np.zeros_like(mask)
    largest[box] = parts == sizes.argmax()
    return largest


def scribble(flat: Mask, random: np.random.Generator) -> Mask:
    """A scribble within a structure on one slice (a, b); never empty, never outside of it."""
    strokes: tuple[Callable[[Mask, np.random.Generator], Mask], ...] = (_centre_line, _contour, _line)
    drawn = strokes[int(random.integers(len(strokes)))](flat, random)
    broken = drawn & _unbroken(flat.shape, random)
    kept = broken if broken.any() else drawn
    return kept if kept.any() else flat


def _surroundings(mask: Mask) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """The smallest box around a mask and where it starts: distances in it cost less than in a patch."""
    found = ndimage.find_objects(mask.view(np.uint8))
    box = found[0] if found else tuple(slice(0, n) for n in mask.shape)
    return box, tuple(part.start for part in box)


def _inside(structure: Mask, random: np.random.Generator) -> tuple[float, float, float]:
    """A voxel off the rim: one of the deeper half, since people click into the middle."""
    depth = _depth(structure)
    deep = np.argwhere(depth >= random.uniform(0.4, 0.9) * depth.max())
    x, y, z = (float(value) for value in deep[random.integers(len(deep))])
    return x, y, z


def _depth(structure: Mask) -> NDArray[np.float64]:
    """How far every voxel lies inside, in voxels; the border of the array is a rim, too."""
    inner = tuple(slice(1, -1) for _ in structure.shape)
    return np.asarray(ndimage.distance_transform_edt(np.pad(structure, 1)))[inner]


def _box(
    voxels: NDArray[np.int64],
    shape: Sequence[int],
    random: np.random.Generator,
    positive: bool,
    flat_axis: int | None = None,
) -> Region:
    start, stop = voxels.min(axis=0), voxels.max(axis=0) + 1
    edge = (stop - start) * BOX_JITTER
    new_start = np.round(start + random.uniform(-edge, edge))
    new_stop = np.round(stop + random.uniform(-edge, edge))
    if flat_axis is not None:
        new_start[flat_axis], new_stop[flat_axis] = start[flat_axis], stop[flat_axis]
    new_start = np.clip(new_start, 0, np.array(shape) - 1).astype(int)
    new_stop = np.clip(new_stop, new_start + 1, shape).astype(int)
    x, y, z = (int(n) for n in new_start)
    a, b, c = (int(n) for n in new_stop)
    return Region((x, y, z), (a, b, c), positive)


def _slice(structure: Mask, random: np.random.Generator) -> tuple[int, int]:
    """An axis, mostly z as people scroll, and one of the slices that show more of the structure."""
    axis = int(random.choice(3, p=(0.2, 0.2, 0.6)))
    others = tuple(other for other in range(3) if other != axis)
    areas = structure.sum(axis=others)
    good = np.flatnonzero(areas >= 0.5 * areas.max())
    return axis, int(good[random.integers(len(good))])


def _lifted(places: NDArray[np.int64], axis: int, index: int) -> NDArray[np.int64]:
    return np.insert(places, axis, index, axis=1)


def _centre_line(flat: Mask, random: np.random.Generator) -> Mask:
    """The ridge of the depth: a voxel no less deep than its neighbours, without the shallow ends."""
    depth = _depth(flat)
    ridge = depth >= ndimage.maximum_filter(depth, size=3) - 0.42
    return np.asarray(ridge & flat & (depth >= random.uniform(0.3, 0.7) * depth.max()))


def _contour(flat: Mask, random: np.random.Generator) -> Mask:
    """A line along the rim, some way inside of it."""
    depth = _depth(flat)
    inside = random.uniform(0.2, 0.6) * depth.max()
    return np.asarray(flat & (np.abs(depth - max(inside, 1.0)) <= 0.5))


def _line(flat: Mask, random: np.random.Generator) -> Mask:
    """A stroke between two places of the structure, bent a little, without what leaves it."""
    places = np.argwhere(flat)
    first, last = places[random.integers(len(places), size=2)]
    along = np.linspace(0, 1, 2 * max(flat.shape))[:, None]
    across = np.array([last[1] - first[1], first[0] - last[0]])
    bend = random.normal(0, 0.15) * np.sin(np.pi * along)
    stroke = np.round(first + along * (last - first) + bend * across).astype(int)
    stroke = np.clip(stroke, 0, np.array(flat.shape) - 1)
    drawn = np.zeros_like(flat)
    drawn[stroke[:, 0], stroke[:, 1]] = True
    return np.asarray(drawn & flat)


def _unbroken(shape: Sequence[int], random: np.random.Generator) -> Mask:
    """Where a hand keeps the pen down: most of a slice, without some blobs."""
    noise = ndimage.gaussian_filter(random.standard_normal(tuple(shape)), 3)
    return np.asarray(noise > np.quantile(noise, random.uniform(0.0, 0.5)))


def _warped(flat: Mask, random: np.random.Generator) -> Mask:
    """What a closed line drawn around a structure encloses: its outline, off by a voxel or two."""
    depth = ndimage.distance_transform_edt(flat) - ndimage.distance_transform_edt(~flat)
    wobble = ndimage.gaussian_filter(random.standard_normal(flat.shape), 4)
    wobble *= random.uniform(0, 1.5) / max(float(wobble.std()), 1e-9)
    drawn = depth + wobble > 0
    return np.asarray(drawn if drawn.any() else flat)
