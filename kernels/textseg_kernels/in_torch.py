"""The kernels' work in plain torch, for CPU tensors and for CUDA devices without CuPy.

Slower and in need of more memory than the kernels, with the same results. Arguments are those of the
functions in `textseg_kernels`, which has checked them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg_kernels.results import Labels, Masks
from textseg_kernels.twins import POSITION_STEP

Shape = tuple[int, int, int]
Weights = Tensor | tuple[Tensor, Tensor, Tensor]

# Voxels whose positions and neighbours are held at once: about 300 MB of them.
VOXELS_AT_ONCE = 2**21


def gather(
    scan: Tensor,
    maps: NDArray[np.float64],
    out: Tensor,
    channel: int,
    *,
    lowest: float,
    highest: float,
    mean: float,
    sd: float,
    padding: float,
) -> None:
    flat = scan.view(-1)
    # A tensor, since CUDA divides by a plain number by multiplying with its rounded reciprocal.
    divisor = torch.tensor(sd, dtype=torch.float32, device=scan.device)
    for patch, map in zip(out, maps, strict=True):
        for planes, near in _nearby(map, _shape(patch[..., 0]), _shape(scan), scan.device):
            sampled = near.mixed([flat[corner].float() for corner in near.corners])
            clipped = sampled.clamp(_float32(lowest), _float32(highest))
            known = near.inside & ~sampled.isnan()
            normalised = torch.where(known, (clipped - _float32(mean)) / divisor, _float32(padding))
            patch[planes, :, :, channel] = normalised.half()


def blend(
    logits: Tensor, starts: NDArray[np.int64], tables: tuple[Tensor, Tensor, Tensor], slab: Tensor
) -> None:
    weights = _product(tables)
    for window, start in zip(logits, starts.tolist(), strict=True):
        theirs, ours = [], []
        for first, size, room in zip(start, weights.shape, slab.shape[1:], strict=True):
            low, stop = max(0, first), max(0, first, min(room, first + size))
            theirs.append(slice(low - first, stop - first))
            ours.append(slice(low, stop))
        added = weights[tuple(theirs)] * window[(slice(None), *theirs)].float()
        slab[(slice(None), *ours)] += added


def finalise(
    slab: Tensor, weights: Weights, map: NDArray[np.float64], shape: Shape, threshold: float
) -> Masks[Tensor]:
    x, y, z = shape
    bits = torch.zeros((len(slab), x, y, -(-z // 8)), dtype=torch.uint8, device=slab.device)
    tallies = _no_tallies(len(slab), shape, slab.device)
    divisors = _divisors(weights)
    for planes, near in _nearby(map, shape, _shape(divisors), slab.device):
        for prompt, sums in enumerate(slab):
            mask = near.inside & (_logits(sums, divisors, near) > _float32(threshold))
            bits[prompt, planes] = _packed(mask)
            tallies.add(prompt, planes, mask)
    return Masks(bits, *tallies.read())


def finalise_labels(
    slab: Tensor, weights: Weights, map: NDArray[np.float64], shape: Shape, threshold: float
) -> Labels[Tensor]:
    labels = torch.zeros(shape, dtype=torch.int16, device=slab.device)
    tallies = _no_tallies(len(slab), shape, slab.device)
    divisors = _divisors(weights)
    for planes, near in _nearby(map, shape, _shape(divisors), slab.device):
        highest = torch.full(near.inside.shape, threshold, dtype=torch.float32, device=slab.device)
        for prompt, sums in enumerate(slab):
            logits = _logits(sums, divisors, near)
            wins = near.inside & (logits > highest)
            labels[planes][wins] = prompt + 1
            highest = torch.where(wins, logits, highest)
        for prompt in range(len(slab)):
            tallies.add(prompt, planes, labels[planes] == prompt + 1)
    return Labels(labels, *tallies.read())


def keep_components(mask: Tensor, least: int, depth: int | None) -> Tensor:
    inside = _unpacked(mask, depth)
    if inside.numel() == 0:
        return mask.clone()
    labels = _components(inside)
    sizes = torch.bincount(labels[inside], minlength=labels.numel())
    return _in_the_format_of(mask, inside & (sizes[labels] >= least))


def keep_largest_component(mask: Tensor, depth: int | None) -> Tensor:
    inside = _unpacked(mask, depth)
    if inside.numel() == 0:
        return mask.clone()
    labels = _components(inside)
    sizes = torch.bincount(labels[inside], minlength=labels.numel())
    return _in_the_format_of(mask, inside & (labels == sizes.argmax()))


def _components(inside: Tensor) -> Tensor:
    """For each mask voxel (x, y, z) the index of the first voxel of its part, int64; outside, its own index.

    Each part's trees hang themselves below the lowest root around them, and every voxel then below its root,
    until nothing changes (Shiloach and Vishkin 1982).
    """
    nowhere = inside.numel()
    parents = torch.arange(nowhere, device=inside.device)
    while True:
        labels = torch.where(inside, parents.view(inside.shape), nowhere)
        lowest = labels
        for axis in range(3):
            lowest = _lowest_of_three(lowest, axis, nowhere)
        better = inside & (lowest < labels)
        if not better.any():
            return parents.view(inside.shape)
        parents = parents.scatter_reduce(0, labels[better], lowest[better], "amin")
        while not torch.equal(parents, above := parents[parents]):
            parents = above


def _lowest_of_three(labels: Tensor, axis: int, nowhere: int) -> Tensor:
    """Each label's minimum with those before and after it along an axis."""
    size = labels.shape[axis]
    edge = labels.narrow(axis, 0, 1).new_full(labels.narrow(axis, 0, 1).shape, nowhere)
    padded = torch.cat([edge, labels, edge], dim=axis)
    return torch.minimum(labels, torch.minimum(padded.narrow(axis, 0, size), padded.narrow(axis, 2, size)))


@dataclass(frozen=True, eq=False)
class _Nearby:
    """The eight voxels around each position of some planes of a grid.

    inside (planes, y, z) bool: the position lies in the volume.
    corners: eight of (planes, y, z) int64, indices into the flat volume, z fastest.
    fractions: along x, y and z, (planes, y, z) float32.
    """

    inside: Tensor
    corners: list[Tensor]
    fractions: list[Tensor]

    def mixed(self, values: Sequence[Tensor]) -> Tensor:
        """Trilinear interpolation of the corners' values, along z first."""
        for fraction in reversed(self.fractions):
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [low + (high - low) * fraction for low, high in pairs]
        return values[0]


def _nearby(
    map: NDArray[np.float64], shape: Shape, volume: Shape, device: torch.device
) -> Iterator[tuple[slice, _Nearby]]:
    """Neighbours in a volume of the voxels of a grid, some planes of it at a time."""
    planes_at_once = max(1, VOXELS_AT_ONCE // max(1, shape[1] * shape[2]))
    y, z = (torch.arange(n, dtype=torch.float64, device=device) for n in shape[1:])
    for first in range(0, shape[0], planes_at_once):
        planes = slice(first, min(first + planes_at_once, shape[0]))
        x = torch.arange(planes.start, planes.stop, dtype=torch.float64, device=device)
        inside = torch.tensor(True, device=device)
        ends, fractions = [], []
        for (a, b, c, d), size in zip(map.tolist(), volume, strict=True):
            exact = a * x[:, None, None] + b * y[:, None] + c * z + d
            at = (exact / POSITION_STEP).round() * POSITION_STEP
            inside = inside & (at >= -0.5) & (at <= size - 0.5)
            at = at.nan_to_num().clamp(0, size - 1)
            low = at.floor()
            fraction = (at - low).float()
            # At a whole position both ends are one: no voxel is read that has no weight.
            ends.append((low.long(), low.long() + (fraction > 0)))
            fractions.append(fraction)
        corners = [(i * volume[1] + j) * volume[2] + k for i, j, k in product(*ends)]
        yield planes, _Nearby(inside, corners, fractions)


@dataclass(frozen=True, eq=False)
class _Tallies:
    """Mask voxels in each plane across x, y and z: three of (prompts, planes) int64."""

    along: list[Tensor]

    def add(self, prompt: int, planes: slice, mask: Tensor) -> None:
        along_x, along_y, along_z = self.along
        along_x[prompt, planes] += mask.sum((1, 2))
        along_y[prompt] += mask.sum((0, 2))
        along_z[prompt] += mask.sum((0, 1))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (prompts,), boxes (prompts, 2, 3) and index sums (prompts, 3)."""
        counts = self.along[0].sum(1)
        boxes = torch.zeros((len(counts), 2, 3), dtype=torch.int64, device=counts.device)
        sums = torch.zeros((len(counts), 3), dtype=torch.int64, device=counts.device)
        for axis, planes in enumerate(self.along):
            indices = torch.arange(planes.shape[1], device=planes.device)
            sums[:, axis] = (planes * indices).sum(1)
            if planes.numel():
                boxes[:, 0, axis] = torch.where(planes > 0, indices, planes.shape[1]).amin(1)
                boxes[:, 1, axis] = torch.where(planes > 0, indices + 1, 0).amax(1)
        return counts, torch.where(counts[:, None, None] > 0, boxes, 0), sums


def _no_tallies(prompts: int, shape: Shape, device: torch.device) -> _Tallies:
    return _Tallies([torch.zeros((prompts, n), dtype=torch.int64, device=device) for n in shape])


def _logits(sums: Tensor, divisors: Tensor, near: _Nearby) -> Tensor:
    flat, flat_divisors = sums.view(-1), divisors.view(-1)
    return near.mixed([flat[corner] / flat_divisors[corner] for corner in near.corners])


def _divisors(weights: Weights) -> Tensor:
    return _product(weights) if isinstance(weights, tuple) else weights


def _product(tables: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, y, z = tables
    return x[:, None, None] * y[None, :, None] * z[None, None, :]


def _packed(mask: Tensor) -> Tensor:
    """(x, y, z) bool → (x, y, bytes) uint8, the lowest bit first."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[2] % 8))
    eights = padded.view(*mask.shape[:2], padded.shape[2] // 8, 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1, dtype=torch.uint8)


def _unpacked(mask: Tensor, depth: int | None) -> Tensor:
    if depth is None:
        return mask
    bits = mask[..., None] >> torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits & 1).bool().flatten(-2)[..., :depth]


def _in_the_format_of(mask: Tensor, kept: Tensor) -> Tensor:
    return kept if mask.dtype == torch.bool else _packed(kept)


def _float32(number: float) -> float:
    return float(np.float32(number))


def _shape(volume: Tensor) -> Shape:
    x, y, z = volume.shape
    return x, y, z
