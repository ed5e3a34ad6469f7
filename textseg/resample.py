"""Moving voxels from one grid to another, there and back with the same function.

Grids whose axes run along each other (permuted, flipped, cropped, padded, of other spacing) are resampled
one axis at a time; where the new voxels lie exactly on old ones that is a copy, so values survive to the
last bit. Any other pair of grids (rotated, sheared) is interpolated in 3D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.geometry import Floats, Geometry, Shape

Interpolation = Literal["linear", "nearest"]
Integers = NDArray[np.int64]

# Positions are rounded to this part of a voxel, so that affines that differ by rounding give equal masks. It
# is a power of two because grids over one field of view meet at fractions such as 1/64, and those must not
# lie halfway between two steps, as 0.015625 does between decimals.
POSITION_STEP = 2.0**-17
# How far, in voxels over the whole grid, two axes may drift apart and still count as parallel.
PARALLEL_VOXELS = 1e-3


@dataclass(frozen=True)
class AxisMap:
    """Along one target axis: the source axis it runs along, which has `size` voxels, and, for each target
    voxel, the position on it."""

    source_axis: int
    positions: Floats
    step: float
    size: int

    def reach(self) -> tuple[Integers, Integers]:
        """For each target voxel the first source voxel that it looks at, and the stop, (targets,) each."""
        reach = max(1.0, abs(self.step))
        clamped = np.clip(self.positions, 0, self.size - 1)
        first = np.maximum(np.floor(clamped - reach) + 1, 0).astype(np.int64)
        stop = np.minimum(np.ceil(clamped + reach), self.size).astype(np.int64)
        return first, stop

    def inside(self) -> NDArray[np.bool_]:
        """Which target voxels have their centre in the source's field of view, (targets,)."""
        return (self.positions >= -0.5) & (self.positions <= self.size - 0.5)

    def part(self, targets: slice, sources: slice) -> AxisMap:
        """The same for some target voxels, where only those source voxels are at hand that they look at."""
        positions = self.positions[targets] - sources.start
        return AxisMap(self.source_axis, positions, self.step, sources.stop - sources.start)


AxisMaps = tuple[AxisMap, AxisMap, AxisMap]


def resample(
    voxels: Tensor,
    source: Geometry,
    target: Geometry,
    interpolation: Interpolation = "linear",
    fill: float = 0.0,
) -> Tensor:
    """Voxels of the source grid brought to the target grid.

    Linear interpolation averages over a target voxel where that is larger than a source voxel (a triangle
    filter as wide as the step, as in Pillow and `torch.nn.functional.interpolate(antialias=True)`), so
    nothing aliases.

    Args:
        voxels: (..., x, y, z) on the source grid, any real type; all leading axes are treated alike.
        source: where the voxels lie.
        target: where values are wanted.
        interpolation: "nearest" for labels.
        fill: the value of target voxels whose centre lies outside of the source's field of view.

    Returns:
        (..., x, y, z) on the target grid; the type of `voxels` for "nearest" and copies, else floating.
    """
    maps = parallel_axes(source, target)
    if maps is None:
        return _resample_freely(voxels, source, target, interpolation, fill)
    first = voxels.ndim - 3
    order = [*range(first), *(first + axis_map.source_axis for axis_map in maps)]
    moved = voxels.permute(order)
    for axis in shrinking_first(maps):
        moved = along_axis(moved, first + axis, maps[axis], interpolation)
    return _filled_outside(moved.contiguous(), maps, fill)


def shrinking_first(maps: AxisMaps) -> list[int]:
    """The order in which target axes are resampled with the least work."""
    return sorted(range(3), key=lambda axis: len(maps[axis].positions) / maps[axis].size)


def parallel_axes(source: Geometry, target: Geometry) -> AxisMaps | None:
    """How target axes run along source axes, or None where they do not (rotated or sheared grids)."""
    to_source = np.linalg.solve(source.affine, target.affine)
    steps, origin = to_source[:3, :3], to_source[:3, 3]
    source_axes = np.abs(steps).argmax(axis=0)
    if len(set(source_axes.tolist())) != 3:
        return None
    along = steps[source_axes, (0, 1, 2)]
    drift = steps.copy()
    drift[source_axes, (0, 1, 2)] = 0
    if (np.abs(drift) @ np.array(target.shape)).max() > PARALLEL_VOXELS:
        return None
    x, y, z = (
        AxisMap(
            int(axis),
            _rounded(origin[axis] + along[i] * np.arange(target.shape[i])),
            float(along[i]),
            source.shape[axis],
        )
        for i, axis in enumerate(source_axes)
    )
    return x, y, z


def _rounded(positions: Floats) -> Floats:
    return np.asarray(np.round(positions / POSITION_STEP) * POSITION_STEP)


def along_axis(
    voxels: Tensor, axis: int, axis_map: AxisMap, interpolation: Interpolation = "linear"
) -> Tensor:
    """Voxels resampled along one of their axes."""
    size = voxels.shape[axis]
    positions = axis_map.positions
    nearest = np.clip(np.floor(positions + 0.5), 0, size - 1).astype(np.int64)
    exact = bool((positions == np.round(positions)).all()) and abs(axis_map.step) < 1.5
    if exact or interpolation == "nearest":
        return _picked(voxels, axis, nearest)
    weights = torch.from_numpy(_triangle_weights(positions, abs(axis_map.step), size)).to(voxels.device)
    if not voxels.is_floating_point():
        voxels = voxels.float()
    weights = weights.to(voxels.dtype)
    return torch.movedim(torch.movedim(voxels, axis, -1) @ weights.T, -1, axis)


def _picked(voxels: Tensor, axis: int, indices: np.ndarray) -> Tensor:
    if indices.size == voxels.shape[axis] and (indices == np.arange(indices.size)).all():
        return voxels
    return voxels.index_select(axis, torch.from_numpy(indices).to(voxels.device))


def _triangle_weights(positions: Floats, step: float, size: int) -> np.ndarray:
    """(targets, sources) float64; each row sums to one. Beyond the outer centres the border value holds."""
    reach = max(1.0, step)
    clamped = np.clip(positions, 0, size - 1)
    distance = np.abs(clamped[:, None] - np.arange(size)[None, :])
    weights = np.maximum(0.0, 1.0 - distance / reach)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _filled_outside(voxels: Tensor, maps: AxisMaps, fill: float) -> Tensor:
    for axis, axis_map in enumerate(maps):
        outside = ~axis_map.inside()
        if outside.any():
            across = [-1 if other == axis else 1 for other in range(3)]
            where = torch.from_numpy(outside).reshape(across).to(voxels.device)
            # Not index_fill, which torch lacks for the uint16 of label maps.
            voxels = torch.where(where, torch.tensor(fill, dtype=voxels.dtype, device=voxels.device), voxels)
    return voxels


def _resample_freely(
    voxels: Tensor, source: Geometry, target: Geometry, interpolation: Interpolation, fill: float
) -> Tensor:
    """Interpolation between grids at any angle; where the target is coarser the source is averaged first."""
    if interpolation == "linear":
        coarser = averaging_grid(source, target)
        voxels, source = resample(voxels, source, coarser), coarser
    to_source = np.asarray(np.linalg.solve(source.affine, target.affine), dtype=np.float64)
    flat = voxels.reshape(1, -1, *source.shape)
    working = flat if flat.is_floating_point() and flat.dtype != torch.float16 else flat.float()
    mode = "bilinear" if interpolation == "linear" else "nearest"
    slabs = [
        _sampled_slab(working, to_source, x, target.shape, mode, fill).to(
            voxels.dtype if interpolation == "nearest" else working.dtype
        )
        for x in range(target.shape[0])
    ]
    return torch.cat(slabs, dim=2).reshape(*voxels.shape[:-3], *target.shape)


def averaging_grid(source: Geometry, target: Geometry) -> Geometry:
    """The source's grid at about the target's spacing where that is larger than its own."""
    # For each source axis, the spacing of the target axis that runs most nearly along it.
    nearest_axis = np.abs(source.directions.T @ target.directions).argmax(axis=1)
    wanted = [max(own, target.spacing_mm[i]) for own, i in zip(source.spacing_mm, nearest_axis, strict=True)]
    return source.with_spacing(wanted)


def _sampled_slab(voxels: Tensor, to_source: Floats, x: int, shape: Shape, mode: str, fill: float) -> Tensor:
    """The target's plane of index x: (1, channels, 1, y, z)."""
    y, z = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    indices = np.stack([np.full(y.shape, x), y, z], axis=-1)
    positions = _rounded(indices @ to_source[:3, :3].T + to_source[:3, 3])
    sizes = np.array(voxels.shape[2:])
    inside = ((positions >= -0.5) & (positions <= sizes - 0.5)).all(axis=-1)
    # grid_sample wants -1 to 1 over the whole extent of the outer voxels, last axis first.
    unit = ((2 * positions + 1) / sizes - 1)[..., ::-1].copy()
    grid = torch.from_numpy(unit)[None, None].to(voxels)
    sampled = nn.functional.grid_sample(voxels, grid, mode=mode, padding_mode="border", align_corners=False)
    outside = torch.from_numpy(~inside).to(voxels.device)
    return sampled.masked_fill(outside, fill)
