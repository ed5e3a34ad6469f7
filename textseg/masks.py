"""From logits to masks, and from masks to one label map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from textseg_kernels import keep_largest_component
from torch import Tensor

from textseg.device import tried
from textseg.geometry import bounding_box
from textseg.packed import PackedMasks, within

Mask = NDArray[np.bool_]

# A mask of fewer voxels of the working grid is nothing: a network is never taught to mark so little, and a
# person would not see it. At 4 mm that is a ball of 8 mm, at 1 mm one of 2 mm.
FEWEST_WORKING_VOXELS = 4


def logit_of(probability: float) -> float:
    """The logit whose sigmoid is a probability."""
    return math.log(probability / (1 - probability))


def above_threshold(logits: Tensor, probability: float) -> Tensor:
    """Where the sigmoid of the logits is above a probability; the comparison is made on the logits."""
    return logits > logit_of(probability)


def largest_component(mask: Mask, device: torch.device | None = None) -> Mask:
    """The largest connected part of a mask (x, y, z), parts joined across faces, edges and corners.

    Args:
        device: where a GPU is, it looks for the parts, as long as its memory suffices.
    """
    if device is not None and device.type == "cuda":
        found = tried(partial(largest_component_on, mask, device))
        if found is not None:
            return found
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def largest_component_on(mask: Mask, device: torch.device) -> Mask:
    """The same by the kernels, or plain torch where CuPy is missing, on a device."""
    box = bounding_box(mask)
    if box is None:
        return mask
    inside = torch.from_numpy(np.ascontiguousarray(mask[box.slices])).to(device)
    largest = np.zeros_like(mask)
    largest[box.slices] = keep_largest_component(inside).cpu().numpy()
    return largest


def fill_holes(mask: Mask) -> Mask:
    """The mask with every cavity filled that no path of face-joined background leads out of."""
    return np.asarray(ndimage.binary_fill_holes(mask))


def combine(
    masks: Mask | PackedMasks, certainties: Sequence[NDArray[np.floating]] | None = None
) -> NDArray[np.uint16]:
    """One label map (x, y, z) from masks (prompts, x, y, z): 0 is background, n the n-th prompt.

    Where masks overlap the smaller structure wins, so that a tumour stays visible in its organ; with
    `certainties` (prompts, x, y, z) the surer prompt wins instead.
    """
    labels = np.zeros(masks.shape[1:], np.uint16)
    if certainties is not None:
        unpacked = np.asarray(masks)
        best = np.argmax(np.where(unpacked, certainties, -np.inf), axis=0)
        labels[:] = np.where(unpacked.any(axis=0), best + 1, 0)
        return labels
    sizes = masks.sizes() if isinstance(masks, PackedMasks) else np.count_nonzero(masks, axis=(1, 2, 3))
    # One after the other, since packed masks are many.
    for index in np.argsort(-np.asarray(sizes), kind="stable"):
        found = within(masks, int(index))
        if found is not None:
            box, inside = found
            labels[box.slices][inside] = index + 1
    return labels
