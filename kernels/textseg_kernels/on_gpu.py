"""The kernels on tensors of a CUDA device: which blocks and threads to start, and with what.

A `Launch` starts one kernel; `compile.launch` does it with CuPy. Arguments are those of the functions in
`textseg_kernels`, which has checked them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg_kernels.results import Labels, Masks

Launch = Callable[[str, str, tuple[int, ...], tuple[int, ...], Sequence[Any]], None]
Shape = tuple[int, int, int]
Weights = Tensor | tuple[Tensor, Tensor, Tensor]

# A warp takes 32 voxels along z, the axis that is contiguous, and a block 8 rows.
BLOCK = (32, 8)
THREADS = 256
# Enough blocks to fill any device; each thread then takes many voxels, and adds its tallies up once.
BLOCKS_OF_A_PASS = 4096
# The most blocks along a grid's x.
MOST_BLOCKS = 2**31 - 1
NULL = np.uint64(0)
NOWHERE = 2**63 - 1


def gather(
    launch: Launch,
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
    batch, x, y, z, channels = out.shape
    if out.numel() == 0:
        return
    kernel = {torch.int16: "gather_int16", torch.float32: "gather_float32"}[scan.dtype]
    numbers = [np.float32(number) for number in (lowest, highest, mean, sd, padding)]
    sizes = (batch, x, y, z, channels, channel)
    on_device = _moved(torch.from_numpy(maps), scan.device)
    arguments = (scan, *scan.shape, on_device, out, *sizes, *numbers)
    launch("gather.cu", kernel, _grid_of_rows(batch * x * y), BLOCK, arguments)


def blend(
    launch: Launch,
    logits: Tensor,
    starts: NDArray[np.int64],
    tables: tuple[Tensor, Tensor, Tensor],
    slab: Tensor,
) -> None:
    windows, prompts, *window = logits.shape
    if windows == 0 or prompts == 0:
        return
    # Only the part of the slab that some window covers is read and written.
    low = np.maximum(starts.min(axis=0), 0)
    stop = np.minimum(starts.max(axis=0) + np.array(window), np.array(slab.shape[1:]))
    size = stop - low
    if (size <= 0).any():
        return
    kernel = {torch.float16: "blend_float16", torch.float32: "blend_float32"}[logits.dtype]
    on_device = _moved(torch.from_numpy(starts), slab.device)
    box = [int(n) for n in (*low, *size)]
    arguments = (logits, on_device, windows, *tables, *window, slab, *slab.shape, *box)
    launch("blend.cu", kernel, _grid_of_rows(prompts * int(size[0] * size[1])), BLOCK, arguments)


def finalise(
    launch: Launch, slab: Tensor, weights: Weights, map: NDArray[np.float64], shape: Shape, threshold: float
) -> Masks[Tensor]:
    prompts = len(slab)
    x, y, z = shape
    bits = torch.empty((prompts, x, y, -(-z // 8)), dtype=torch.uint8, device=slab.device)
    tallies = _no_tallies(prompts, slab.device)
    if bits.numel():
        stripes = min(-(-bits[0].numel() // THREADS), BLOCKS_OF_A_PASS)
        arguments = _finalise_arguments(slab, weights, map, shape, threshold)
        launch("finalise.cu", "finalise", (prompts, stripes), (THREADS, 1), (*arguments, bits, tallies))
    return Masks(bits, *_read_tallies(tallies))


def finalise_labels(
    launch: Launch, slab: Tensor, weights: Weights, map: NDArray[np.float64], shape: Shape, threshold: float
) -> Labels[Tensor]:
    labels = torch.zeros(shape, dtype=torch.int16, device=slab.device)
    tallies = _no_tallies(len(slab), slab.device)
    if len(slab) and labels.numel():
        grid = (min(_grid_of_rows(shape[0] * shape[1])[0], BLOCKS_OF_A_PASS), 1)
        arguments = _finalise_arguments(slab, weights, map, shape, threshold)
        launch("finalise.cu", "finalise_labels", grid, BLOCK, (*arguments, labels, tallies))
    return Labels(labels, *_read_tallies(tallies))


def keep_components(launch: Launch, mask: Tensor, least: int, depth: int | None) -> Tensor:
    labels, sizes = _components(launch, mask, depth)
    return _kept(launch, mask, depth, labels, sizes, NULL, least)


def keep_largest_component(launch: Launch, mask: Tensor, depth: int | None) -> Tensor:
    if mask.numel() == 0:
        return mask.clone()
    labels, sizes = _components(launch, mask, depth)
    # The first of equals; it stays on the device, so that nothing waits for it.
    only = sizes.argmax()
    return _kept(launch, mask, depth, labels, sizes, only, 0)


def _components(launch: Launch, mask: Tensor, depth: int | None) -> tuple[Tensor, Tensor]:
    """Each voxel's root, -1 outside, and at each root its part's size, both (x, y, z) int64."""
    shape = _shape(mask, depth)
    labels = torch.empty(shape, dtype=torch.int64, device=mask.device)
    sizes = torch.zeros(shape, dtype=torch.int64, device=mask.device)
    if labels.numel():
        grid = _grid_of_rows(shape[0] * shape[1])
        packed = np.bool_(depth is not None)
        launch("components.cu", "components_start", grid, BLOCK, (mask, packed, *shape, labels))
        launch("components.cu", "components_join", grid, BLOCK, (*shape, labels))
        blocks = min(-(-labels.numel() // THREADS), BLOCKS_OF_A_PASS)
        arguments = (labels.numel(), labels, sizes)
        launch("components.cu", "components_count", (blocks, 1), (THREADS, 1), arguments)
    return labels, sizes


def _kept(
    launch: Launch,
    mask: Tensor,
    depth: int | None,
    labels: Tensor,
    sizes: Tensor,
    only: Tensor | np.uint64,
    least: int,
) -> Tensor:
    kept = torch.empty_like(mask)
    if kept.numel():
        shape = _shape(mask, depth)
        arguments = (labels, sizes, only, least, np.bool_(depth is not None), *shape, kept)
        launch("components.cu", "components_keep", _grid_of_rows(shape[0] * shape[1]), BLOCK, arguments)
    return kept


def _finalise_arguments(
    slab: Tensor, weights: Weights, map: NDArray[np.float64], shape: Shape, threshold: float
) -> tuple[Any, ...]:
    on_device = _moved(torch.from_numpy(map), slab.device)
    dividing = (*weights, NULL) if isinstance(weights, tuple) else (NULL, NULL, NULL, weights)
    return (slab, *slab.shape, *dividing, on_device, np.float32(threshold), *shape)


def _no_tallies(prompts: int, device: torch.device) -> Tensor:
    """(prompts, 10) int64: count, sums, lowest and highest indices of masks without a voxel."""
    nothing = torch.tensor([0] * 4 + [NOWHERE] * 3 + [-1] * 3, dtype=torch.int64)
    return _moved(nothing, device).repeat(prompts, 1)


def _read_tallies(tallies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts, sums, low, high = tallies[:, 0], tallies[:, 1:4], tallies[:, 4:7], tallies[:, 7:]
    boxes = torch.stack([low, high + 1], dim=1)
    return counts, torch.where(counts[:, None, None] > 0, boxes, 0), sums


def _grid_of_rows(rows: int) -> tuple[int, int]:
    return min(-(-rows // BLOCK[1]), MOST_BLOCKS), 1


def _moved(small: Tensor, device: torch.device) -> Tensor:
    """A few numbers brought to the device; from pinned memory, so that the host does not wait."""
    return small.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else small


def _shape(mask: Tensor, depth: int | None) -> Shape:
    x, y, last = mask.shape
    return x, y, last if depth is None else depth
