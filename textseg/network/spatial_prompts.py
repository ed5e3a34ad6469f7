"""Points, boxes, scribbles and lassos: as things that were drawn, as maps, and as part of a prompt's query.

The maps enter the decoder at every scale; what the trunk's features are like under them enters the query, so
that a click without words still says what to look for. The channels are those of nnInteractive (Isensee et
al. 2025): a previous mask, then regions, points and scribbles, each as "this" and as "not this".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.geometry import Shape
from textseg.plan import NetworkPlan

PREVIOUS, REGION, NOT_REGION, POINT, NOT_POINT, SCRIBBLE, NOT_SCRIBBLE = range(7)
CHANNELS = 7
# A click is drawn as a small ball: one voxel is easily lost in a coarse scale, a large ball covers a vessel.
POINT_RADIUS_VOXELS = 2.0


@dataclass(frozen=True)
class Point:
    """A click at a place (x, y, z) in voxels of the working grid, whole numbers at voxel centres."""

    position: tuple[float, float, float]
    positive: bool = True


@dataclass(frozen=True)
class Region:
    """A box from `start` up to `stop`, half-open, in voxels (x, y, z); on a slice, one voxel thick."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    positive: bool = True


@dataclass(frozen=True, eq=False)
class Scribble:
    """The voxels (n, 3), axes (x, y, z), that a line was drawn over."""

    voxels: NDArray[np.integer]
    positive: bool = True


@dataclass(frozen=True, eq=False)
class Lasso:
    """The voxels (n, 3), axes (x, y, z), inside of a closed line drawn by hand on a slice."""

    voxels: NDArray[np.integer]
    positive: bool = True


Interaction = Point | Region | Scribble | Lasso


def draw_maps(interactions: Iterable[Interaction], shape: Shape, previous: Tensor | None = None) -> Tensor:
    """The maps (7, x, y, z), float32 in 0 to 1, that the decoder sees of what was drawn on a grid.

    What lies outside of the grid is left out.

    Args:
        previous: (x, y, z) an earlier mask, 0 to 1.
    """
    maps = torch.zeros((CHANNELS, *shape))
    if previous is not None:
        maps[PREVIOUS] = previous
    for one in interactions:
        if isinstance(one, Point):
            _draw_ball(maps[POINT if one.positive else NOT_POINT], one.position)
        elif isinstance(one, Region):
            box = tuple(
                slice(max(0, a), max(0, min(n, b)))
                for a, b, n in zip(one.start, one.stop, shape, strict=True)
            )
            maps[REGION if one.positive else NOT_REGION][box] = 1.0
        else:
            kind = (SCRIBBLE, NOT_SCRIBBLE) if isinstance(one, Scribble) else (REGION, NOT_REGION)
            _mark(maps[kind[0] if one.positive else kind[1]], one.voxels)
    return maps


def _draw_ball(channel: Tensor, position: Sequence[float]) -> None:
    """A ball that fades from 1 at the click's voxel to 0 beyond its radius."""
    reach = int(POINT_RADIUS_VOXELS) + 1
    nearest = [round(p) for p in position]
    slices, squares = [], []
    for axis, (centre, n) in enumerate(zip(nearest, channel.shape, strict=True)):
        start, stop = max(0, centre - reach), min(n, centre + reach + 1)
        if start >= stop:
            return
        slices.append(slice(start, stop))
        offsets = (torch.arange(start, stop) - float(centre)) ** 2
        squares.append(offsets.reshape([-1 if i == axis else 1 for i in range(3)]))
    distance = (squares[0] + squares[1] + squares[2]).sqrt()
    ball = (1 - distance / (POINT_RADIUS_VOXELS + 1)).clamp_min(0)
    channel[tuple(slices)] = torch.maximum(channel[tuple(slices)], ball)


def _mark(channel: Tensor, voxels: NDArray[np.integer]) -> None:
    inside = np.all((voxels >= 0) & (voxels < np.array(channel.shape)), axis=1)
    x, y, z = torch.from_numpy(np.asarray(voxels[inside], np.int64)).unbind(1)
    channel[x, y, z] = 1.0


class SpatialQuery(nn.Module):
    """What the trunk's features are like under positive and under negative marks, as a part of the query.

    After the prototypes of few-shot segmentation (Wang et al. 2019, PANet): the mean of the features under a
    mark, at every scale but the finest, is projected to the query's width. It starts at zero, and it is zero
    for a prompt without marks.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Linear(2 * width, plan.query_width, bias=False) for width in plan.widths[1:]
        )
        for layer in self.project:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, trunk: Sequence[Tensor], pyramid: Sequence[Tensor]) -> Tensor:
        """trunk and pyramid, finest scale first: (batch, width, x, y, z) and (batch, prompts, 7, x, y, z).

        The finest scale, which is not looked at, may be missing.

        Returns:
            (batch, prompts, query width), to be added to the prompts' queries.
        """
        parts, count = [], len(self.project)
        for project, features, maps in zip(self.project, trunk[-count:], pyramid[-count:], strict=True):
            this = maps[:, :, [REGION, POINT, SCRIBBLE]].amax(dim=2)
            other = maps[:, :, [NOT_REGION, NOT_POINT, NOT_SCRIBBLE]].amax(dim=2)
            means = [_mean_under(mark, features) for mark in (this, other)]
            parts.append(project(torch.cat(means, dim=-1)))
        return torch.stack(parts).sum(dim=0)


def _mean_under(mark: Tensor, features: Tensor) -> Tensor:
    """mark (batch, prompts, x, y, z), features (batch, width, x, y, z) → (batch, prompts, width)."""
    weights = mark.flatten(2).to(features.dtype)
    total = torch.bmm(weights, features.flatten(2).transpose(1, 2))
    return total / weights.sum(dim=2, keepdim=True).clamp_min(1e-3)


def pyramid_of(maps: Tensor, strides: Sequence[Sequence[int]]) -> list[Tensor]:
    """Maps (batch, prompts, 7, x, y, z) at every scale, finest first.

    Max-pooled, so that a single clicked voxel is never lost.
    """
    batch, prompts = maps.shape[:2]
    x = maps.flatten(0, 1)
    pyramid = []
    for stride in strides:
        if tuple(stride) != (1, 1, 1):
            x = nn.functional.max_pool3d(x, tuple(stride), tuple(stride))
        pyramid.append(x.reshape(batch, prompts, *x.shape[1:]))
    return pyramid
