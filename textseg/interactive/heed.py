"""Logits that heed the marks: an error that a mark shows is carried to what lies and looks like it.

A mark tells the network's error at its voxels exactly. Gaussian-process regression (Rasmussen and Williams
2006, equation 2.25) carries that error on, with a kernel over place and over the trunk's finest features, as
the bilateral kernels of dense conditional random fields have (Krähenbühl and Koltun 2011). Marks that the
network already obeys have no error, and hold what is around them. Nothing is learnt.

Both lengths and the goal were chosen on training cases of sarcoma and hippocampus.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.geometry import Shape
from textseg.network.spatial_prompts import Interaction, Point, Region

# How far an error reaches: in the shortest voxel edges, and in standard deviations of the features.
PLACE, LOOK = 8.0, 0.7
# Beyond so many lengths nothing of it is left.
REACH = 2.5
# What a mark asks for, in logits beyond the threshold: probability 0.98.
GOAL = 4.0
# The variance that marks are trusted with, against the kernel's 1.
NOISE = 0.1
# Voxels that speak for a mark, and for all of them together; evenly chosen where there are more.
MOST_OF_A_MARK, MOST = 30, 128
CHUNK = 1 << 12
# A click speaks for its voxel, which comes first and so is always chosen, and for the six that touch it.
AROUND = np.array(sorted((at for at in product((-1, 0, 1), repeat=3) if np.abs(at).sum() <= 1), key=np.any))


def heed(
    logits: Tensor,
    finest: Tensor,
    marks: Sequence[Interaction],
    spacing_mm: Sequence[float],
    above: float = 0.0,
) -> Tensor:
    """A window's logits (x, y, z), moved towards what was drawn on it.

    Points, scribbles and lassos count, voxel by voxel the latest of them; boxes, of which the edges are meant
    and not the voxels, do not.

    Args:
        logits: (x, y, z) what the network says.
        finest: (channels, x, y, z) features at the same scale.
        marks: in voxels of the window, oldest first.
        spacing_mm: along x, y, z; only their ratios count.
        above: the logit of the threshold.
    """
    voxels, signs, spoken_by = _heard(marks, tuple(logits.shape))  # type: ignore[arg-type]
    if len(voxels) == 0:
        return logits
    places = torch.from_numpy(voxels).to(logits.device)
    wanted = torch.from_numpy(signs).to(logits)
    error = wanted * (GOAL - wanted * (logits[tuple(places.T)] - above)).clamp_min(0)
    if not bool(error.any()):
        return logits
    steps = np.asarray(spacing_mm) / min(spacing_mm)
    box = _reached(voxels, steps, logits.shape)
    start = torch.tensor([part.start for part in box], device=logits.device)
    looks = _looks(finest[(slice(None), *box)].float())
    x, y, z = (part.stop - part.start for part in box)
    points = _joined((x, y, z), steps, looks).view(x, y, z, -1)
    known = points[tuple((places - start).T)]
    kernel = _kernel(known, known)
    kernel.diagonal().add_(NOISE)
    weights = torch.linalg.solve(kernel, error)
    moved = logits.clone()
    for mark in np.unique(spoken_by):
        # Each mark where it reaches: together they span most of a window, of which each fills a part.
        own = np.flatnonzero(spoken_by == mark)
        reached = _reached(voxels[own], steps, logits.shape)
        within = tuple(slice(r.start - b.start, r.stop - b.start) for r, b in zip(reached, box, strict=True))
        around = points[within]
        parts = torch.split(around.flatten(0, 2), CHUNK)
        carried = torch.cat([_kernel(part, known[own]) @ weights[own] for part in parts])
        moved[reached] += carried.view(around.shape[:3])
    return moved


def _heard(
    marks: Sequence[Interaction], shape: Shape
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Voxels (n, 3) that marks speak of, no voxel twice, what each is to be, 1 or -1, and by which mark."""
    drawn = [mark for mark in marks if not isinstance(mark, Region)]
    most = max(1, min(MOST_OF_A_MARK, MOST // max(1, len(drawn))))
    heard: dict[tuple[int, ...], tuple[float, int]] = {}
    for number, mark in enumerate(drawn[-MOST:]):
        if isinstance(mark, Point):
            voxels = np.floor(np.array(mark.position) + 0.5).astype(np.int64) + AROUND
        else:
            voxels = np.asarray(mark.voxels, np.int64)
        voxels = voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]
        if len(voxels) > most:
            voxels = voxels[np.linspace(0, len(voxels) - 1, most).round().astype(int)]
        said = (1.0 if mark.positive else -1.0, number)
        heard.update(dict.fromkeys(map(tuple, voxels.tolist()), said))
    places = np.array(list(heard), np.int64).reshape(-1, 3)
    signs = np.array([sign for sign, _ in heard.values()], np.float32)
    return places, signs, np.array([number for _, number in heard.values()], np.int64)


def _reached(
    voxels: NDArray[np.int64], steps: NDArray[np.float64], shape: Sequence[int]
) -> tuple[slice, slice, slice]:
    reach = np.ceil(REACH * PLACE / steps).astype(int)
    low = np.maximum(voxels.min(axis=0) - reach, 0)
    high = np.minimum(voxels.max(axis=0) + 1 + reach, shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z


def _looks(features: Tensor) -> Tensor:
    """(voxels, channels) whose squared distances are mean squared differences in standard deviations."""
    # Channels lie together: sums along them are four times as slow.
    voxels = features.permute(1, 2, 3, 0).flatten(0, 2)
    apart = voxels - voxels.mean(dim=0)
    spread = apart.square().mean(dim=0).sqrt()
    looks: Tensor = apart / (spread.clamp_min(1e-6) * len(features) ** 0.5)
    return looks


def _joined(shape: Shape, steps: NDArray[np.float64], looks: Tensor) -> Tensor:
    """Place and looks of every voxel, (voxels, 3 + channels), each in units of its length."""
    axes = [
        torch.arange(n, device=looks.device) * (float(step) / PLACE)
        for n, step in zip(shape, steps, strict=True)
    ]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return torch.cat([places.to(looks), looks / LOOK], dim=1)


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """exp(-d² / 2) between all of (n, k) and all of (m, k): (n, m).

    The exponent a · b - a² / 2 - b² / 2 is one matrix product of vectors with two entries more.
    """
    halves = [points.square().sum(dim=1, keepdim=True) / -2 for points in (one, other)]
    ones = [torch.ones_like(half) for half in halves]
    rows = torch.cat([one, halves[0], ones[0]], dim=1)
    columns = torch.cat([other, ones[1], halves[1]], dim=1)
    near: Tensor = (rows @ columns.T).exp_()
    return near
