"""From slabs of logits to packed masks on the scan's own grid, as soon as a plane of it can be known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from textseg_kernels import finalise
from torch import Tensor

from textseg.geometry import Box, Geometry, Shape
from textseg.overlap import Behind
from textseg.packed import PackedMasks
from textseg.resample import (
    AxisMap,
    AxisMaps,
    along_axis,
    averaging_grid,
    parallel_axes,
    shrinking_first,
)
from textseg.slabs import Slab

Integers = NDArray[np.int64]
# Voxels of the scan that are interpolated at once: 64 MB of logits.
VOXELS_AT_ONCE = 2**24
# Interpolating mixes logits with weights that sum to one, up to rounding: what is this far below the
# threshold all around stays below it.
MARGIN = 1e-3


def empty_masks(prompts: int, scan: Geometry) -> PackedMasks:
    """Masks (prompts, x, y, z) on the scan's own grid for a `MaskFinisher` to fill."""
    order = scan.canonical_order()
    return PackedMasks(prompts, scan.reordered(order).shape, order)


class MaskFinisher:
    """Takes slabs, those of one prompt with x ascending, and fills masks.

    Logits are brought to the scan's grid and only then compared with the threshold, as by
    `textseg.prepare.restore_mask`. A plane of the scan is finished with the last slab that it looks at, and
    only where logits near the threshold are at all: the rest of a large scan costs next to nothing.

    Args:
        masks: from `empty_masks`.
        members: of the masks, the one that each of the slabs' prompts goes to.
        working: the grid of the logits, canonical axes.
        scan: the scan's own grid.
        threshold: of the logits.
    """

    def __init__(
        self, masks: PackedMasks, members: Sequence[int], working: Geometry, scan: Geometry, threshold: float
    ) -> None:
        self._masks, self._members, self._threshold = masks, members, threshold
        # By way of canonical axes: sums in another order of the axes would differ in the last bit, and so
        # would the masks of a scan's permuted copies.
        averaging, last = _stages_between(working, scan.canonical())
        self._averaging = _Buffer(averaging) if averaging else None
        self._last = _Buffer(last)

    def add(self, slab: Slab) -> None:
        if slab.start == 0:
            self._last.restart()
        start, logits = slab.start, slab.logits
        if self._averaging is not None:
            start, logits = _averaged(self._averaging, slab)
        planes = self._last.take(start, logits)
        if len(planes):
            for prompt, joined in zip(slab.prompts, self._last.joined(), strict=True):
                self._finish(self._members[prompt], joined, planes)
        self._last.leave(planes)

    def _finish(self, mask: int, logits: Tensor, planes: range) -> None:
        """Some planes of a mask, from logits (x, y, z) whose first plane is the buffer's."""
        stage, first = self._last.stage, self._last.first
        around = _bounds(logits > self._threshold - MARGIN * max(1.0, abs(self._threshold)))
        if around is None:
            return
        box = stage.reached_from(around, first, planes)
        if min(box.shape) <= 0:
            return
        depth = max(1, VOXELS_AT_ONCE // (box.shape[1] * box.shape[2]))
        for x in range(box.start[0], box.stop[0], depth):
            stop = min(x + depth, box.stop[0])
            part = Box((x, *box.start[1:]), (stop, *box.stop[1:]))
            self._masks.put_bits(mask, part, stage.bits(logits, first, part, self._threshold))


def finish_slabs(slabs: Iterable[Slab], finisher: MaskFinisher, *, beside: bool) -> None:
    """Give a finisher all slabs.

    Args:
        beside: in a thread of its own, of copies, while the next slab is being made; for GPUs, which would
            else wait. A processor's cores are all busy with the network.
    """
    if not beside:
        for slab in slabs:
            finisher.add(slab)
        return
    with Behind(finisher.add) as behind:
        for slab in slabs:
            behind.give(replace(slab, logits=slab.logits.clone()))


@dataclass(frozen=True, eq=False)
class _Parallel:
    """From one grid to another whose axes run along its own: one axis after the other."""

    maps: AxisMaps
    target: Shape

    def needs(self) -> tuple[Integers, Integers]:
        return self.maps[0].reach()

    def reached_from(self, around: Box, first: int, planes: range) -> Box:
        """The voxels of these planes that can be in a mask; along z from a multiple of 8."""
        start, stop = [], []
        for axis, axis_map in enumerate(self.maps):
            offset = first if axis == 0 else 0
            reached = _reached(axis_map, around.start[axis] + offset, around.stop[axis] + offset)
            start.append(reached.start)
            stop.append(reached.stop)
        low, high = max(start[0], planes.start), min(stop[0], planes.stop)
        return Box((low, start[1], start[2] // 8 * 8), (high, stop[1], stop[2]))

    def bits(self, logits: Tensor, first: int, box: Box, threshold: float) -> NDArray[np.uint8]:
        found = self.bring(logits, first, box) > threshold
        for axis, axis_map in enumerate(self.maps):
            within = torch.from_numpy(axis_map.inside()[box.slices[axis]]).to(found.device)
            found &= within.reshape([-1 if other == axis else 1 for other in range(3)])
        return np.packbits(found.cpu().numpy(), axis=-1, bitorder="little")

    def bring(self, logits: Tensor, first: int, box: Box) -> Tensor:
        """Logits (x, y, z) in a box of the target."""
        parts = []
        for axis, axis_map in enumerate(self.maps):
            targets = box.slices[axis]
            low, high = (ends[targets] for ends in axis_map.reach())
            sources = slice(int(low.min()), int(high.max()))
            offset = first if axis == 0 else 0
            logits = logits.narrow(axis, sources.start - offset, sources.stop - sources.start)
            parts.append(axis_map.part(targets, sources))
        # The order of the whole, whatever the box: sums in another order differ in the last bit.
        for axis in shrinking_first(self.maps):
            logits = along_axis(logits, axis, parts[axis])
        return logits


@dataclass(frozen=True, eq=False)
class _Free:
    """Between grids at any angle: each voxel of the target on its own."""

    to_source: NDArray[np.float64]
    source: Shape
    target: Shape

    def needs(self) -> tuple[Integers, Integers]:
        """The planes of the source that each plane of the target looks at; its corners tell."""
        y, z = self.target[1] - 1, self.target[2] - 1
        a, b, c, d = self.to_source[0]
        corners = np.array([0, b * y, c * z, b * y + c * z]) + d
        along = a * np.arange(self.target[0])[:, None] + corners
        # A hair around, since positions are rounded.
        last = self.source[0] - 1
        low = np.clip(np.floor(along.min(axis=1) - 1e-4), 0, last).astype(np.int64)
        high = np.clip(np.ceil(along.max(axis=1) + 1e-4), 0, last).astype(np.int64)
        return low, high + 1

    def reached_from(self, around: Box, first: int, planes: range) -> Box:
        return Box((planes.start, 0, 0), (planes.stop, *self.target[1:]))

    def bits(self, logits: Tensor, first: int, box: Box, threshold: float) -> NDArray[np.uint8]:
        transform = self.to_source.copy()
        transform[:, 3] += transform[:, 0] * box.start[0]
        transform[0, 3] -= first
        ones = [torch.ones(n, device=logits.device) for n in logits.shape]
        slab = logits[None].contiguous()
        found = finalise(slab, (ones[0], ones[1], ones[2]), transform, box.shape, threshold)
        return np.asarray(found.bits[0].cpu().numpy())


class _Buffer:
    """The planes of a stage's source that are still needed, and how far its target has come."""

    def __init__(self, stage: _Parallel | _Free) -> None:
        self.stage = stage
        low, stop = stage.needs()
        # Planes of the target go out in their order, so each waits for those before it.
        self._ready_at = np.maximum.accumulate(stop)
        self._needed_from = np.minimum.accumulate(low[::-1])[::-1]
        self.restart()

    def restart(self) -> None:
        self.first = self._next = 0
        self._kept: Tensor | None = None
        self._new = torch.empty(0)

    def take(self, start: int, logits: Tensor) -> range:
        """Take in logits (prompts, planes, y, z); gives the planes of the target that can now be had."""
        self._new, self._stop = logits, start + int(logits.shape[1])
        return range(self._next, int(np.searchsorted(self._ready_at, self._stop, side="right")))

    def joined(self) -> Iterator[Tensor]:
        """Each prompt's logits (x, y, z) from plane `first` on; one at a time is copied into one piece."""
        for prompt, new in enumerate(self._new):
            yield new if self._kept is None else torch.cat([self._kept[prompt], new])

    def leave(self, planes: range) -> None:
        """These planes of the target are done: what only they needed can go."""
        self._next = planes.stop
        needed = self._needed_from[self._next] if self._next < len(self._needed_from) else self._stop
        first = min(max(int(needed), self.first), self._stop)
        old = 0 if self._kept is None else int(self._kept.shape[1])
        skipped = first - self.first
        # A copy, since a slab's memory is used again.
        rest = self._new[:, max(skipped - old, 0) :].clone()
        if self._kept is not None and skipped < old:
            rest = torch.cat([self._kept[:, skipped:], rest], dim=1)
        self._kept, self._new, self.first = rest, torch.empty(0), first


def _averaged(buffer: _Buffer, slab: Slab) -> tuple[int, Tensor]:
    """Planes that are ready on a grid that is coarser along some axes: the first one's index, and logits."""
    stage = buffer.stage
    assert isinstance(stage, _Parallel)
    if slab.start == 0:
        buffer.restart()
    planes = buffer.take(slab.start, slab.logits)
    if len(planes) == 0:
        brought = slab.logits.new_empty((len(slab.logits), 0, *stage.target[1:]))
    else:
        box = Box((planes.start, 0, 0), (planes.stop, *stage.target[1:]))
        brought = torch.stack([stage.bring(logits, buffer.first, box) for logits in buffer.joined()])
    buffer.leave(planes)
    return planes.start, brought


def _stages_between(working: Geometry, target: Geometry) -> tuple[_Parallel | None, _Parallel | _Free]:
    """The way from the working grid to the scan's: along the axes, or freely after averaging where needed."""
    maps = parallel_axes(working, target)
    if maps is not None and [axis_map.source_axis for axis_map in maps] == [0, 1, 2]:
        return None, _Parallel(maps, target.shape)
    coarser = averaging_grid(working, target)
    to_source = np.linalg.solve(coarser.affine, target.affine)[:3]
    free = _Free(np.asarray(to_source), coarser.shape, target.shape)
    if coarser.shape == working.shape:
        return None, free
    along = parallel_axes(working, coarser)
    assert along is not None, "a grid and its coarser copy have the same axes"
    return _Parallel(along, coarser.shape), free


def _bounds(inside: Tensor) -> Box | None:
    """The smallest box that holds every true voxel (x, y, z); None where there is none."""
    start, stop = [], []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        hit = torch.nonzero(inside.amax(dim=others)).flatten()
        if len(hit) == 0:
            return None
        start.append(int(hit[0]))
        stop.append(int(hit[-1]) + 1)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _reached(axis_map: AxisMap, start: int, stop: int) -> range:
    """Target voxels inside the field of view that look at source voxels from start to stop."""
    low, high = axis_map.reach()
    targets = np.flatnonzero((low < stop) & (high > start) & axis_map.inside())
    return range(int(targets[0]), int(targets[-1]) + 1) if len(targets) else range(0)
