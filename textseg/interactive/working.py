"""A scan at one working spacing: its image, where windows lie in it, and which of them a place concerns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from textseg.geometry import Box, Geometry, Shape
from textseg.interactive.kept import FAR_BELOW, STEPS_A_LOGIT, quantised
from textseg.interactive.marks import Voxels
from textseg.network.spatial_prompts import Interaction
from textseg.plan import Millimetres, Plan
from textseg.prepare import Prepared
from textseg.resample import resample
from textseg.sliding import padded, window_weight, windows_of
from textseg.windows import blend_weights, placed, window_shape

Slices = tuple[slice, slice, slice]
# Where a change counts as coming near to a mark's voxel.
NEAR_VOXELS = np.array(list(product((-2, 0, 2), repeat=3)))

# Places that decide which windows are needed; a scribble or a face of a window has few more.
MOST_PLACES = 4096
# A change has reached a plane with so many voxels, and this part of what the mask has there: windows that
# look at the same border of an organ differ by a few voxels, and that alone is no reason to look further.
REACHED_VOXELS = 4
REACHED_PART = 0.1


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
        """Where windows lie; where the image is smaller than a window they reach beyond it on both sides."""
        return [box.moved([-n for n in self._before]) for box in windows_of(self.shape, self.plan)]

    @cached_property
    def _before(self) -> Shape:
        """How far the first window reaches beyond the image."""
        return placed(self.shape, self.window).start

    @cached_property
    def _padded(self) -> Tensor:
        """(channels, x, y, z), at least as large as a window."""
        return padded(self.prepared.image, self.window)

    def image(self, index: int) -> Tensor:
        """What a window sees, (channels, x, y, z)."""
        return self._padded[(slice(None), *self.boxes[index].moved(self._before).slices)]

    @cached_property
    def weight(self) -> Tensor:
        """How much each voxel of a window counts, (x, y, z)."""
        return window_weight(self.window, self.plan)

    @cached_property
    def margin(self) -> Shape:
        """How far from its faces a window sees well: half of what neighbours share, a quarter at most.

        So every voxel is seen well by a window, and where two of them see it equally well both margins begin.
        """
        share = min(0.5, self.plan.windows.overlap) / 2
        x, y, z = (int(size * share) for size in self.window)
        return x, y, z

    def ramp(self, index: int) -> Tensor:
        """How well a window sees the voxels of the image in it, (x, y, z): 1, falling in its margins.

        Where the image ends there is no margin.
        """
        inside, ramp = self.inside(index), torch.ones(self.inside(index).shape)
        for axis, (size, margin) in enumerate(zip(inside.shape, self.margin, strict=True)):
            rise = (torch.arange(size) + 0.5) / max(margin, 1)
            table = torch.ones(size)
            if inside.start[axis] > 0:
                table = torch.minimum(table, rise)
            if inside.stop[axis] < self.shape[axis]:
                table = torch.minimum(table, rise.flip(0))
            ramp *= table.reshape([-1 if other == axis else 1 for other in range(3)])
        return ramp

    def inside(self, index: int) -> Box:
        """The part of a window that lies in the image."""
        return self.boxes[index].within(self.shape)

    def in_window(self, index: int) -> Slices:
        """Where in a window that part lies."""
        return self.inside(index).moved([-n for n in self.boxes[index].start]).slices

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
        for axis, margin in enumerate(self.margin):
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

    Where windows of this step overlap they are blended as in any sliding window. What none of them covers
    stays as it was, and in the margins of what they cover the step before fades out: there, windows that were
    not looked at again see better.

    Args:
        before: (x, y, z) int8, the field of the step before.
        above: the logit of the plan's threshold.
        marks: everything drawn so far, on this grid.
        newest: voxels (n, 3) of what is new among them.
    """

    def __init__(
        self,
        grid: WorkingGrid,
        before: NDArray[np.int8],
        above: float,
        marks: Sequence[Interaction],
        newest: Voxels,
    ) -> None:
        self.grid = grid
        self.marks = marks
        self.newest = newest
        self.above = above
        self.before = before
        self.was = before > 0
        self.restart(self.was.copy())

    def restart(self, mask: NDArray[np.bool_]) -> None:
        """Forget what came in, and show the next windows this mask (x, y, z) as the one before."""
        self.mask = mask
        self.decoded: set[int] = set()
        self._seen = self.was.copy()
        self._total = torch.zeros(self.grid.shape)
        self._weights = torch.zeros(self.grid.shape)
        self._share = torch.zeros(self.grid.shape)

    def add(self, index: int, logits: Tensor) -> None:
        """The logits (x, y, z) of a window."""
        box = self.grid.inside(index)
        local = self.grid.in_window(index)
        weight = self.grid.weight[local]
        self._total[box.slices] += logits[local] * weight
        self._weights[box.slices] += weight
        self._share[box.slices] = torch.maximum(self._share[box.slices], self.grid.ramp(index))
        self.decoded.add(index)
        self.mask[box.slices] = (self.logits(box) > self.above).numpy()
        self._seen[box.slices] = (self._total[box.slices] > self.above * self._weights[box.slices]).numpy()

    def reached(self) -> Voxels:
        """Voxels (n, 3) that nothing saw well yet, next to where what the mark changed ends in what was.

        A change elsewhere, that does not hang together with the mark, is not followed: windows differ a
        little in what they say, and a click on the liver is no reason to look at the lungs again.
        """
        changed = self._changed_at_mark()
        sides = [(index, axis, side) for index in self.decoded for axis in range(3) for side in (0, 1)]
        return np.concatenate([np.zeros((0, 3), np.int64), *(self._border(changed, *each) for each in sides)])

    def _changed_at_mark(self) -> NDArray[np.bool_]:
        """(x, y, z) the parts of the change that come near to the newest mark."""
        changed, box = np.zeros(self.grid.shape, bool), self.box()
        parts, count = ndimage.label(self.mask[box.slices] != self.was[box.slices])
        near = (self.newest[:, None] + NEAR_VOXELS).reshape(-1, 3) - box.start
        near = near[((near >= 0) & (near < box.shape)).all(axis=1)]
        touched = np.zeros(count + 1, bool)
        touched[parts[tuple(near.T)]] = True
        touched[0] = False
        changed[box.slices] = touched[parts]
        return changed

    def crosses_a_window(self) -> bool:
        """Whether the mask changed on two opposite faces of a window, as of something larger than it."""
        return any(
            self._changed_on_face(index, axis, 0) and self._changed_on_face(index, axis, 1)
            for index in self.decoded
            for axis in range(3)
        )

    def _border(self, change: NDArray[np.bool_], index: int, axis: int, side: int) -> Voxels:
        """Of one side of a window, at the margin."""
        plane, beyond = self._planes(index, axis, side, self.grid.margin[axis])
        changed = change[plane]
        unseen = self._share[beyond].numpy() < 1
        if not _counts(changed & unseen, self.mask[plane] | self.was[plane]):
            return np.zeros((0, 3), np.int64)
        start = [part.start for part in beyond]
        return np.asarray(np.argwhere(changed & unseen) + start)

    def _changed_on_face(self, index: int, axis: int, side: int) -> bool:
        plane, _ = self._planes(index, axis, side, 0)
        return _counts(self._seen[plane] != self.was[plane], self._seen[plane] | self.was[plane])

    def _planes(self, index: int, axis: int, side: int, margin: int) -> tuple[Slices, Slices]:
        """A plane so far from a window's face, and the next one outwards; both empty at the image's end."""
        box, size = self.grid.inside(index), self.grid.shape[axis]
        plane = box.stop[axis] - 1 - margin if side else box.start[axis] + margin
        ends = box.stop[axis] == size if side else box.start[axis] == 0
        one, next_one = list(box.slices), list(box.slices)
        beyond = plane + (1 if side else -1)
        one[axis] = slice(plane, plane if ends else plane + 1)
        next_one[axis] = slice(beyond, beyond if ends else beyond + 1)
        return (one[0], one[1], one[2]), (next_one[0], next_one[1], next_one[2])

    def box(self) -> Box:
        """The smallest box of what was decoded."""
        boxes = [self.grid.inside(index) for index in self.decoded]
        low = np.min([box.start for box in boxes], axis=0)
        high = np.max([box.stop for box in boxes], axis=0)
        x, y, z = (int(n) for n in low)
        u, v, w = (int(n) for n in high)
        return Box((x, y, z), (u, v, w))

    def logits(self, box: Box) -> Tensor:
        """Logits (x, y, z) in a box: of this step as far as it saw well, else of the one before."""
        weights, share = self._weights[box.slices], self._share[box.slices]
        before = torch.from_numpy(self.before[box.slices]).float() / STEPS_A_LOGIT + self.above
        new = self._total[box.slices] / weights.clamp_min(1e-12)
        return torch.where(share == 1, new, torch.lerp(before, new, share))

    def steps(self, box: Box) -> NDArray[np.int8]:
        """The same, as a field keeps them."""
        new = quantised((self.logits(box) - self.above).numpy())
        return np.where(self._weights[box.slices].numpy() > 0, new, self.before[box.slices])


def _counts(changed: NDArray[np.bool_], inside: NDArray[np.bool_]) -> bool:
    """Whether a change on a plane is more than two windows' difference of opinion."""
    return int(changed.sum()) >= max(REACHED_VOXELS, REACHED_PART * int(inside.sum()))


def empty_field(shape: Shape) -> NDArray[np.int8]:
    return np.full(shape, FAR_BELOW, np.int8)
