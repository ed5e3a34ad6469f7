"""Logits that are finished slab by slab: windows come in order, and what no later one reaches goes out.

So no more sums are kept than the windows that lie side by side need, however long the image is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from textseg_kernels import blend, summed_weights
from torch import Tensor

from textseg.geometry import Box, Shape

Tables = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class Slab:
    """Finished logits of some prompts in some planes of an image.

    logits: (prompts, planes, y, z) float32. They lie in memory that the next slab takes: use or copy them
    before asking for that.
    start: the first plane's index x.
    prompts: which of all prompts these are.
    """

    start: int
    logits: Tensor
    prompts: range

    @property
    def stop(self) -> int:
        return self.start + int(self.logits.shape[1])


class SlabBlender:
    """The weighted sums of windows in the planes that are not finished yet.

    Args:
        prompts: how many.
        shape: of the image (x, y, z), in which all windows lie.
        boxes: all windows, x slowest, as `textseg.windows.place_windows` gives them.
        tables: how much a window's voxels count along x, y and z.
        device: where sums are kept.
    """

    def __init__(
        self, prompts: int, shape: Shape, boxes: Sequence[Box], tables: Tables, device: torch.device
    ) -> None:
        self.window = boxes[0].shape
        self.first = 0
        self.sums = torch.zeros((prompts, self.window[0], *shape[1:]), device=device)
        starts = [sorted({box.start[axis] for box in boxes}) for axis in range(3)]
        along = [torch.from_numpy(summed_weights(*pair)) for pair in zip(starts, tables, shape, strict=True)]
        self._along = [table.to(device) for table in along]
        x, y, z = (torch.from_numpy(np.ascontiguousarray(table)).to(device) for table in tables)
        self._tables = x, y, z

    def add(self, box: Box, logits: Tensor, first_prompt: int = 0) -> None:
        """A window's logits (prompts, x, y, z) of the prompts from `first_prompt` on."""
        start = (box.start[0] - self.first, *box.start[1:])
        own_type = logits if logits.dtype in (torch.float16, torch.float32) else logits.float()
        windows = own_type[None].to(self.sums.device).contiguous()
        blend(windows, [start], self._tables, self.sums[first_prompt : first_prompt + len(logits)])

    def finish(self, stop: int) -> Tensor:
        """The mean logits (prompts, planes, y, z) up to a plane; in place, so add nothing to them."""
        ready = self.sums[:, : stop - self.first]
        x, y, z = self._along
        ready /= x[self.first : stop, None, None] * y[:, None] * z
        return ready

    def move_to(self, start: int) -> None:
        """Forget the planes before this one and make room for as many behind."""
        by = start - self.first
        kept = self.window[0] - by
        # Forwards in steps no longer than the way, so that nothing is overwritten before it is moved.
        for at in range(0, kept, by):
            stop = min(at + by, kept)
            self.sums[:, at:stop] = self.sums[:, at + by : stop + by]
        self.sums[:, max(kept, 0) :] = 0
        self.first = start

    def move_to_cpu(self) -> None:
        """Keep the sums in the processor's memory from now on."""
        self.sums = self.sums.cpu()
        self._along = [table.cpu() for table in self._along]
        x, y, z = (table.cpu() for table in self._tables)
        self._tables = x, y, z


def rows_of(boxes: Iterable[Box], planes: int) -> list[tuple[int, int, list[Box]]]:
    """Windows that begin at one x, x slowest: the first plane and the stop that they finish, and the windows.

    Args:
        planes: of the image.
    """
    rows = [(start, list(row)) for start, row in groupby(boxes, key=lambda box: box.start[0])]
    stops = [*(start for start, _ in rows[1:]), planes]
    return [(start, stop, row) for (start, row), stop in zip(rows, stops, strict=True)]
