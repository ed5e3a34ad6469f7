"""VoxTell's way through a scan; arrays are (z, y, x) of canonical axes, as it was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from textseg.device import Compute
from textseg.errors import ScanError
from textseg.geometry import Box, Shape, bounding_box
from textseg.masks import above_threshold
from textseg.network.voxtell.network import VoxTellNetwork
from textseg.plan import Triple
from textseg.volume import Volume
from textseg.windows import place_windows

OVERLAP = 0.5
SIGMA_FRACTION = 1 / 8
# Prompts whose logits over one window are kept at a time.
PROMPTS_AT_ONCE = 8

Progress = Callable[[int, int], None]


def segment_like_voxtell(
    volume: Volume,
    network: VoxTellNetwork,
    text: Tensor,
    compute: Compute,
    progress: Progress = lambda done, of: None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Masks (prompts, x, y, z) on the scan's own grid, in VoxTell's own steps, and how sure they are.

    VoxTell has no presence score; the probability (prompts,) of each prompt's surest voxel stands for it.

    RAS+ axes, crop to what is not 0, z-score, windows at the scan's own spacing, sigmoid above a half. No
    more logits are kept than the windows that lie side by side need.

    Args:
        network: on the compute's device.
        text: (prompts, text width) float32.
        progress: called with the windows done and all windows.

    Raises:
        ScanError: the scan has several channels.
    """
    if volume.channels != 1:
        raise ScanError(f"VoxTell takes scans of one channel, got {volume.channels}. Give one file.")
    order = volume.geometry.canonical_order()
    canonical = order.apply(volume.voxels)[0].transpose(2, 1, 0)
    image, box = prepare_like_voxtell(canonical)
    masks = np.zeros((len(text), *canonical.shape), np.bool_)
    inside = masks[(slice(None), *box.slices)]
    surest = torch.full((len(text),), -torch.inf)
    for start, logits in blended_slabs(network, image, text, compute, progress):
        inside[:, start : start + logits.shape[1]] = above_threshold(logits, 0.5).cpu().numpy()
        if logits.shape[1]:
            surest = torch.maximum(surest, logits.amax(dim=(1, 2, 3)).cpu())
    whole = np.ascontiguousarray(order.inverse().apply(masks.transpose(0, 3, 2, 1)))
    return whole, surest.double().sigmoid().numpy()


def prepare_like_voxtell(voxels: NDArray[Any]) -> tuple[Tensor, Box]:
    """Voxels (z, y, x) → z-scores (1, z, y, x) float32 of the box of all that is not 0, and that box."""
    box = bounding_box(voxels != 0) or Box((0, 0, 0), _shape(voxels))
    crop = voxels[box.slices].astype(np.float32)
    # Sums in float64: a crop may have a hundred million voxels.
    mean, sd = crop.mean(dtype=np.float64), crop.std(dtype=np.float64)
    crop -= np.float32(mean)
    crop /= np.float32(max(sd, 1e-8))
    return torch.from_numpy(crop)[None], box


@torch.inference_mode()
def blended_slabs(
    network: VoxTellNetwork,
    image: Tensor,
    text: Tensor,
    compute: Compute,
    progress: Progress = lambda done, of: None,
) -> Iterator[tuple[int, Tensor]]:
    """Slab after slab of finished logits: its first slice along z and (prompts, slices, y, x) float32.

    Windows go along z; what no later window reaches is given out, so memory is that of a window's height.

    Args:
        image: (1, z, y, x) from `prepare_like_voxtell`, of any size.
    """
    window = network.window
    padded, whole = _padded(image, window)
    boxes = place_windows(_shape(padded[0]), window, OVERLAP)
    weight = window_weight(window).to(compute.device)
    padded, text = padded.to(compute.device), text.to(compute.device)
    total = torch.zeros((len(text), window[0], *padded.shape[2:]), device=compute.device)
    weights = torch.zeros(total.shape[1:], device=compute.device)
    rows = [(start, list(row)) for start, row in groupby(boxes, key=lambda box: box.start[0])]
    stops = [*(start for start, _ in rows[1:]), padded.shape[1]]
    done = 0
    for (start, row), stop in zip(rows, stops, strict=True):
        for box in row:
            _, y, x = box.slices
            total[..., y, x] += (
                _window_logits(network, padded[(slice(None), *box.slices)], text, compute) * weight
            )
            weights[..., y, x] += weight
            done += 1
            progress(done, len(boxes))
        ready = stop - start
        logits = total[:, :ready] / weights[:ready]
        # Slices of the padding are nobody's.
        z, y, x = whole.slices
        first, last = max(start, z.start), min(stop, z.stop)
        yield first - z.start, logits[:, first - start : last - start, y, x]
        total, weights = _moved_on(total, 1, ready), _moved_on(weights, 0, ready)


def window_weight(window: Triple) -> Tensor:
    """nnU-Net's Gaussian (z, y, x), largest at voxel n // 2: how much a window's voxels count.

    In float32 the corners, 4e-11 of the centre, still count; in the float16 of the original they do not.
    """
    z, y, x = (
        torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - n // 2) / (n * SIGMA_FRACTION)) ** 2)
        for n in window
    )
    return (z[:, None, None] * y[:, None] * x).float()


def _window_logits(network: VoxTellNetwork, image: Tensor, text: Tensor, compute: Compute) -> Tensor:
    """One window (1, z, y, x) → logits (prompts, z, y, x) float32; it is encoded once."""
    with compute.autocast():
        features = network.encode(image[None].contiguous(memory_format=torch.channels_last_3d))
        parts = [
            network.decode(features, prompts).logits[0][0].float()
            for prompts in torch.split(text, PROMPTS_AT_ONCE)
        ]
    return torch.cat(parts)


def _padded(image: Tensor, window: Triple) -> tuple[Tensor, Box]:
    """The image with zeros around it where it is smaller than a window, and where in that it lies."""
    shape = _shape(image[0])
    missing = [max(0, size - n) for n, size in zip(shape, window, strict=True)]
    z, y, x = (m // 2 for m in missing)
    pads = [
        side for before, m in zip((x, y, z), reversed(missing), strict=True) for side in (before, m - before)
    ]
    whole = Box((z, y, x), (z + shape[0], y + shape[1], x + shape[2]))
    return F.pad(image, pads), whole


def _moved_on(buffer: Tensor, axis: int, by: int) -> Tensor:
    """The buffer without its first slices along an axis, and zeros behind."""
    kept = buffer.narrow(axis, by, buffer.shape[axis] - by)
    return torch.cat([kept, torch.zeros_like(buffer.narrow(axis, 0, by))], dim=axis)


def _shape(voxels: NDArray[Any] | Tensor) -> Shape:
    z, y, x = voxels.shape
    return z, y, x
