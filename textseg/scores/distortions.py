"""A scan changed in ways that should change nothing, or only what is known: turned, coarser, noisier, cut.

Every function takes a scan in canonical axis order and gives changed copies, each with the way by which a
mask on the scan's own grid gets to where it should be found in the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.geometry import AxisOrder, Box, Geometry
from textseg.resample import resample
from textseg.scores.overlap import Mask
from textseg.volume import Volume

# Isotropic, mm. Those finer than the scan along every axis would only invent voxels.
SPACINGS_MM = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
# Standard deviations: in HU for a CT, else as a share of the scan's 99th percentile.
NOISE = (("slight noise", 20.0, 0.05), ("noise", 50.0, 0.1), ("strong noise", 100.0, 0.2))
# What a CT's positive values are multiplied with, as another tube voltage does; else a gamma.
CONTRASTS = (("low contrast", 0.8, 0.7), ("high contrast", 1.25, 1.5))
CLOSE_UP_MM = 10.0
# The side of the part that is turned in all 48 ways: 47 passes over a whole scan would take hours.
PART_MM = 120.0


@dataclass(frozen=True, eq=False)
class Distortion:
    """A changed scan.

    Args:
        test: what was done, in words.
        volume: the scan after it, on a grid of its own.
        carry: brings a mask (x, y, z) bool from the grid of the scan before to that of `volume`.
    """

    test: str
    volume: Volume
    carry: Callable[[Mask], Mask]


def mirrored(volume: Volume) -> Distortion:
    """The scan with the patient's left and right exchanged, on the same grid."""

    def flip(voxels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.flip(voxels, voxels.ndim - 3))

    return Distortion("mirrored scan", replace(volume, voxels=flip(volume.voxels)), flip)


def in_all_orders(volume: Volume) -> Iterator[Distortion]:
    """The scan in the 47 other orders and directions of its axes; no voxel moves in the world."""
    for axes, flipped in product(permutations((0, 1, 2)), product((False, True), repeat=3)):
        order = AxisOrder((axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2]))
        if axes != (0, 1, 2) or any(flipped):
            geometry = volume.geometry.reordered(order)
            voxels = np.ascontiguousarray(order.apply(volume.voxels))
            name = f"axes {geometry.orientation}"
            yield Distortion(name, replace(volume, voxels=voxels, geometry=geometry), order.apply)


def at_spacings(volume: Volume) -> Iterator[Distortion]:
    """The scan averaged to coarser grids; a mask there has the voxels that it fills by half or more."""
    for mm in spacings_for(volume.geometry):
        grid = volume.geometry.with_spacing((mm, mm, mm))
        voxels = _onto(volume.voxels, volume.geometry, grid)
        yield Distortion(
            f"{mm:g} mm", replace(volume, voxels=voxels, geometry=grid), _coverage(volume.geometry, grid)
        )


def spacings_for(grid: Geometry) -> list[float]:
    """Which of `SPACINGS_MM` are no finer than the grid along every axis."""
    return [mm for mm in SPACINGS_MM if mm >= min(grid.spacing_mm) * 0.99]


def with_noise_or_contrast(volume: Volume, random: np.random.Generator) -> Iterator[Distortion]:
    """The scan with white noise, and with its contrast lowered and raised."""
    is_ct = volume.modality == "ct"
    voxels = np.asarray(volume.voxels, np.float32)
    bright = np.percentile(voxels, 99, axis=(1, 2, 3), keepdims=True).astype(np.float32)
    for test, hu, share in NOISE:
        width = np.float32(hu) if is_ct else np.float32(share) * np.abs(bright)
        noisy = voxels + width * random.standard_normal(voxels.shape, np.float32)
        yield Distortion(test, replace(volume, voxels=noisy), _same)
    for test, factor, gamma in CONTRASTS:
        changed = np.where(voxels > 0, voxels * np.float32(factor), voxels) if is_ct else _bent(voxels, gamma)
        yield Distortion(test, replace(volume, voxels=changed), _same)


def crops(volume: Volume, around: Box) -> Iterator[Distortion]:
    """The half towards the head, the half towards the feet, and a close-up of what lies in a box."""
    shape = volume.geometry.shape
    middle = min(max((around.start[2] + around.stop[2]) // 2, 1), shape[2] - 1)
    margin = [round(CLOSE_UP_MM / mm) for mm in volume.geometry.spacing_mm]
    boxes = {"close-up": around.grown(margin).within(shape)}
    if shape[2] > 1:
        boxes["head half"] = Box((0, 0, middle), shape)
        boxes["foot half"] = Box((0, 0, 0), (shape[0], shape[1], middle))
    for test, box in boxes.items():
        if box != volume.geometry.whole:
            yield cropped(volume, box, test)


def cropped(volume: Volume, box: Box, test: str) -> Distortion:
    """The part of the scan in a box that lies within it."""

    def cut(mask: Mask) -> Mask:
        return mask[box.slices]

    voxels = np.ascontiguousarray(volume.voxels[(slice(None), *box.slices)])
    return Distortion(test, replace(volume, voxels=voxels, geometry=volume.geometry.cropped(box)), cut)


def part_around(grid: Geometry, centre: Sequence[int], side_mm: float = PART_MM) -> Box:
    """A cube of this side in the grid, moved inwards where it would reach outside, cut if it is too large."""
    start, stop = [], []
    for middle, n, mm in zip(centre, grid.shape, grid.spacing_mm, strict=True):
        size = min(n, max(1, round(side_mm / mm)))
        first = min(max(middle - size // 2, 0), n - size)
        start.append(first)
        stop.append(first + size)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _same(mask: Mask) -> Mask:
    return mask


def _bent(voxels: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Values between each channel's 1st and 99th percentile bent by a gamma; those beyond stay."""
    low, high = np.percentile(voxels, (1, 99), axis=(1, 2, 3), keepdims=True).astype(np.float32)
    width = np.maximum(high - low, np.float32(1e-6))
    share = (voxels - low) / width
    inside = (share > 0) & (share < 1)
    bent = low + width * np.power(np.clip(share, 0, 1), np.float32(gamma))
    return np.asarray(np.where(inside, bent, voxels), np.float32)


def _coverage(source: Geometry, target: Geometry) -> Callable[[Mask], Mask]:
    def carry(mask: Mask) -> Mask:
        return np.asarray(_onto(mask.astype(np.float32), source, target) >= 0.5)

    return carry


def _onto(voxels: NDArray[Any], source: Geometry, target: Geometry) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))
    return np.asarray(resample(tensor, source, target).numpy())
