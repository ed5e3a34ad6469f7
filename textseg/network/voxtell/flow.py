"""VoxTell's way through a scan; arrays are (z, y, x) of canonical axes, as it was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.device import Compute
from textseg.errors import ScanError
from textseg.geometry import AxisOrder, Box, Shape, bounding_box
from textseg.masks import above_threshold
from textseg.network.voxtell.network import VoxTellNetwork
from textseg.packed import PackedMasks
from textseg.plan import Triple
from textseg.slabs import Slab
from textseg.sliding import Batches, WindowRun, padded
from textseg.volume import Volume
from textseg.windows import place_windows, placed

OVERLAP = 0.5
SIGMA_FRACTION = 1 / 8

Progress = Callable[[int, int], None]
Item = TypeVar("Item")


def segment_like_voxtell(
    volume: Volume,
    network: VoxTellNetwork,
    text: Tensor,
    compute: Compute,
    progress: Progress = lambda done, of: None,
) -> tuple[PackedMasks, NDArray[np.float64]]:
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
    zyx = AxisOrder(_backwards(order.axes), _backwards(order.flipped))
    masks = PackedMasks(len(text), _shape(canonical), zyx)
    surest = torch.full((len(text),), -torch.inf)
    for slab in _run(network, image, text, compute, progress).slabs():
        _put(masks, slab, box)
        here = slice(slab.prompts.start, slab.prompts.stop)
        surest[here] = torch.maximum(surest[here], slab.logits.amax(dim=(1, 2, 3)).cpu())
    return masks, surest.double().sigmoid().numpy()


def _put(masks: PackedMasks, slab: Slab, box: Box) -> None:
    """Where a slab's logits (prompts, z, y, x) are above one half, in the crop's place in the scan."""
    z, y, x = box.start
    # Packed masks take whole bytes along the last axis.
    before = x % 8
    for prompt, logits in zip(slab.prompts, slab.logits, strict=True):
        mask = above_threshold(logits, 0.5).cpu().numpy()
        if mask.any():
            place = Box((z + slab.start, y, x - before), (z + slab.stop, box.stop[1], box.stop[2]))
            masks.put(prompt, place, np.pad(mask, ((0, 0), (0, 0), (before, 0))))


def prepare_like_voxtell(voxels: NDArray[Any]) -> tuple[Tensor, Box]:
    """Voxels (z, y, x) → z-scores (1, z, y, x) float32 of the box of all that is not 0, and that box."""
    box = bounding_box(voxels != 0) or Box((0, 0, 0), _shape(voxels))
    crop = voxels[box.slices].astype(np.float32)
    # Sums in float64: a crop may have a hundred million voxels.
    mean, sd = crop.mean(dtype=np.float64), crop.std(dtype=np.float64)
    crop -= np.float32(mean)
    crop /= np.float32(max(sd, 1e-8))
    return torch.from_numpy(crop)[None], box


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
    for slab in _run(network, image, text, compute, progress).slabs():
        # A copy, since a slab's memory is used again.
        yield slab.start, slab.logits.clone()


def _run(
    network: VoxTellNetwork, image: Tensor, text: Tensor, compute: Compute, progress: Progress
) -> WindowRun:
    window = network.window
    whole = placed(_shape(image[0]), window)
    image = padded(image, window, beyond=0.0)
    boxes = place_windows(_shape(image[0]), window, OVERLAP)
    return WindowRun(network, image, text, boxes, weight_tables(window), compute, whole, progress, Batches())


def window_weight(window: Triple) -> Tensor:
    """nnU-Net's Gaussian (z, y, x), largest at voxel n // 2: how much a window's voxels count."""
    z, y, x = (torch.from_numpy(table) for table in weight_tables(window))
    return z[:, None, None] * y[:, None] * x


def weight_tables(window: Triple) -> tuple[NDArray[np.float32], ...]:
    """The same along z, y and x; a voxel's weight is the product of its three.

    In float32 the corners, 4e-11 of the centre, still count; in the float16 of the original they do not.
    """
    return tuple(
        np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * SIGMA_FRACTION)) ** 2).astype(np.float32)
        for n in window
    )


def _backwards(three: tuple[Item, Item, Item]) -> tuple[Item, Item, Item]:
    """What belongs to (x, y, z) for axes (z, y, x)."""
    x, y, z = three
    return z, y, x


def _shape(voxels: NDArray[Any] | Tensor) -> Shape:
    z, y, x = voxels.shape
    return z, y, x
