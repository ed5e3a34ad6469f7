"""A scan at one working spacing: its image, where windows lie in it, and which of them a place concerns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.geometry import Box, Geometry, Shape
from textseg.interactive.kept import FAR_BELOW, STEPS_A_LOGIT, quantised
from textseg.interactive.marks import Voxels
from textseg.plan import Millimetres, Plan
from textseg.prepare import Prepared
from textseg.resample import resample
from textseg.sliding import _padded, _weight
from textseg.windows import blend_weights, place_windows, window_shape

# A place is seen well by a window that reaches this part of its own size further.
SURROUNDINGS = 1 / 8
# Places that decide which windows are needed; a scribble or a face of a window has few more.
MOST_PLACES = 4096
# A face of what was decoded counts as reached where at least so many voxels changed on it.
REACHED_VOXELS = 4


@dataclass(frozen=True, eq=False)
class WorkingGrid:
    """A scan prepared at one spacing, cut into windows.

    coarser: how many times coarser than the plan's spacing this one is, 1 for the plan's own.
    """

    prepared: Prepared
    plan: Plan
    spacing_mm: Millimetres
    coarser: int = 1

    @property
    def geometry(self) -> Geometry:
        return self.prepared.geometry

    @cached_property
    def shape(self) -> Shape:
        return self.prepared.geometry.shape

    @cached_property
    def window(self) -> Shape:
        return window_shape(self.shape, self.plan)

    @cached_property
    def boxes(self) -> list[Box]:
        """Where windows lie; where the image is smaller than a window they reach beyond it."""
        return place_windows(self.shape, self.window, self.plan.windows.overlap)

    @cached_property
    def image(self) -> Tensor:
        """(channels, x, y, z), at least as large as a window."""
        return _padded(self.prepared.image, self.window)

    @cached_property
    def weight(self) -> Tensor:
        """How much each voxel of a window counts, (x, y, z)."""
        return _weight(self.window, self.plan)

    def inside(self, index: int) -> Box:
        """The part of a window that lies in the image."""
        return self.boxes[index].within(self.shape)

    def cover(self, places: Voxels, without: set[int] | None = None) -> list[int]:
        """Few windows that see all these places (n, 3) well, those that see most of them centrally first.

        Greedy: the window in whose middle most of the places lie, then the same for the places left over.
        """
        if len(places) > MOST_PLACES:
            places = places[:: -(-len(places) // MOST_PLACES)]
        free = [index for index in range(len(self.boxes)) if index not in (without or set())]
        central = np.stack([self._weight_at(places, self.boxes[i]) for i in free]) if free else None
        chosen: list[int] = []
        while central is not None and central.shape[1]:
            best = int(central.sum(axis=1).argmax())
            if central[best].sum() == 0:
                break
            chosen.append(free[best])
            kept = ~self._seen_well(places, self.boxes[free[best]])
            # A place that no free window sees well is left to the most central one.
            kept &= ~((central[best] > 0) & (central[best] == central.max(axis=0)))
            places, central = places[kept], central[:, kept]
        return chosen

    def _weight_at(self, places: Voxels, box: Box) -> NDArray[np.float32]:
        weight = np.ones(len(places), np.float32)
        for axis, table in enumerate(blend_weights(self.window, self.plan.windows)):
            offset = places[:, axis] - box.start[axis]
            within = (offset >= 0) & (offset < len(table))
            weight *= np.where(within, table[np.clip(offset, 0, len(table) - 1)], 0)
        return weight

    def _seen_well(self, places: Voxels, box: Box) -> NDArray[np.bool_]:
        seen = np.ones(len(places), bool)
        for axis, size in enumerate(self.window):
            margin = int(size * SURROUNDINGS)
            low = box.start[axis] + (margin if box.start[axis] > 0 else 0)
            high = box.stop[axis] - (margin if box.stop[axis] < self.shape[axis] else 0)
            seen &= (places[:, axis] >= low) & (places[:, axis] < high)
        return seen

    def zoomed_out(self) -> WorkingGrid:
        """The same image at twice the spacing, at which a window sees twice as far."""
        geometry = self.geometry.with_spacing([2 * mm for mm in self.geometry.spacing_mm])
        image = resample(self.prepared.image, self.geometry, geometry)
        x, y, z = (2 * mm for mm in self.spacing_mm)
        prepared = Prepared(image, geometry, self.prepared.scan)
        return WorkingGrid(prepared, self.plan, (x, y, z), 2 * self.coarser)


class Canvas:
    """Logits of a step as they come in window by window, over those of the step before.

    Where windows of this step overlap they are blended as in any sliding window; what none of them covers
    stays as it was.

    Args:
        before: (x, y, z) int8, the field of the step before.
        above: the logit of the plan's threshold.
    """

    def __init__(self, grid: WorkingGrid, before: NDArray[np.int8], above: float) -> None:
        self.grid = grid
        self.above = above
        self.before = before
        self.was = before > 0
        self.mask = self.was.copy()
        self.decoded: set[int] = set()
        self._total = torch.zeros(grid.shape)
        self._weights = torch.zeros(grid.shape)

    def add(self, index: int, logits: Tensor) -> None:
        """The logits (x, y, z) of a window."""
        box = self.grid.inside(index)
        local = tuple(slice(0, n) for n in box.shape)
        weight = self.grid.weight[local]
        self._total[box.slices] += logits[local] * weight
        self._weights[box.slices] += weight
        self.decoded.add(index)
        blended = self._total[box.slices] / self._weights[box.slices]
        self.mask[box.slices] = (blended > self.above).numpy()

    def restart(self, mask: NDArray[np.bool_]) -> None:
        """Forget what came in, but not the mask (x, y, z), which the next windows see as the one before."""
        self.decoded.clear()
        self._total.zero_()
        self._weights.zero_()
        self.mask = mask

    def reached(self) -> Voxels:
        """Voxels (n, 3) just outside of what was decoded, next to where the mask changed on its faces."""
        faces = [
            self._face(index, axis, side) for index in self.decoded for axis in range(3) for side in (0, 1)
        ]
        return np.concatenate([np.zeros((0, 3), np.int64), *faces])

    def crosses_a_window(self) -> bool:
        """Whether the mask changed on two opposite faces of a window, as of something larger than it."""
        return any(
            len(self._face(index, axis, 0)) and len(self._face(index, axis, 1))
            for index in self.decoded
            for axis in range(3)
        )

    def _face(self, index: int, axis: int, side: int) -> Voxels:
        box = self.grid.inside(index)
        plane = box.stop[axis] - 1 if side else box.start[axis]
        beyond = plane + 1 if side else plane - 1
        if not 0 <= beyond < self.grid.shape[axis]:
            return np.zeros((0, 3), np.int64)
        face, next_to_it = list(box.slices), list(box.slices)
        face[axis], next_to_it[axis] = slice(plane, plane + 1), slice(beyond, beyond + 1)
        changed = self.mask[tuple(face)] != self.was[tuple(face)]
        changed &= self._weights[tuple(next_to_it)].numpy() == 0
        if np.count_nonzero(changed) < REACHED_VOXELS:
            return np.zeros((0, 3), np.int64)
        start = np.array(box.start)
        start[axis] = beyond
        return np.asarray(np.argwhere(changed) + start)

    def box(self) -> Box:
        """The smallest box of what was decoded."""
        boxes = [self.grid.inside(index) for index in self.decoded]
        low = np.min([box.start for box in boxes], axis=0)
        high = np.max([box.stop for box in boxes], axis=0)
        x, y, z = (int(n) for n in low)
        u, v, w = (int(n) for n in high)
        return Box((x, y, z), (u, v, w))

    def logits(self, box: Box) -> Tensor:
        """Logits (x, y, z) in a box: of this step where it looked, else of the one before."""
        weights = self._weights[box.slices]
        before = torch.from_numpy(self.before[box.slices]).float() / STEPS_A_LOGIT + self.above
        return torch.where(weights > 0, self._total[box.slices] / weights.clamp_min(1e-12), before)

    def steps(self, box: Box) -> NDArray[np.int8]:
        """The same, as a field keeps them."""
        new = quantised((self.logits(box) - self.above).numpy())
        return np.where(self._weights[box.slices].numpy() > 0, new, self.before[box.slices])


def empty_field(shape: Shape) -> NDArray[np.int8]:
    return np.full(shape, FAR_BELOW, np.int8)
