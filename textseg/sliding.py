"""Running the network over an image window by window and blending what the windows say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.device import Compute
from textseg.geometry import Box, Shape
from textseg.network.build import PromptableNetwork
from textseg.plan import Plan
from textseg.windows import blend_weights, place_windows, window_shape

Progress = Callable[[int, int], None]
# Prompts that are decoded together; more only cost memory, since each prompt's part is thin.
PROMPTS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Answer:
    """logits (prompts, x, y, z) float32 on the image's grid and presence (prompts,) in 0 to 1, on the CPU."""

    logits: Tensor
    presence: Tensor


@dataclass(frozen=True, eq=False)
class MaskAnswer:
    """What a model says of a scan: masks (prompts, x, y, z) bool on the scan's own grid, presence (prompts,)
    in 0 to 1, and the words that the network was asked for each prompt."""

    masks: NDArray[np.bool_]
    presence: NDArray[np.float64]
    asked: tuple[str, ...]


@torch.inference_mode()
def segment_windows(
    network: PromptableNetwork,
    image: Tensor,
    text: Tensor,
    plan: Plan,
    compute: Compute,
    progress: Progress = lambda done, of: None,
) -> Answer:
    """Logits of every prompt over a whole image: each window is encoded once and decoded for all prompts.

    Logits of overlapping windows are averaged with Gaussian weights. A prompt is present in the scan as far
    as it is in the window that is surest of it.

    Args:
        image: (channels, x, y, z) float32, normalised, of any size.
        text: (prompts, text width) float32.
        progress: called with the windows done and all windows.
    """
    shape = _shape(image)
    window = window_shape(shape, plan)
    boxes = place_windows(shape, window, plan.windows.overlap)
    padded = _padded(image, window).to(compute.device)
    text = text.to(compute.device)
    weight = _weight(window, plan).to(compute.device)
    total = torch.zeros((len(text), *padded.shape[1:]), device=compute.device)
    weights = torch.zeros(padded.shape[1:], device=compute.device)
    presence = torch.zeros(len(text), device=compute.device)
    for done, box in enumerate(boxes, start=1):
        logits, seen = _decoded(network, padded[(slice(None), *box.slices)], text, compute)
        total[(slice(None), *box.slices)] += logits * weight
        weights[box.slices] += weight
        presence = torch.maximum(presence, seen)
        progress(done, len(boxes))
    whole = Box((0, 0, 0), shape).slices
    total /= weights
    return Answer(total[(slice(None), *whole)].cpu(), presence.cpu())


def _decoded(
    network: PromptableNetwork, image: Tensor, text: Tensor, compute: Compute
) -> tuple[Tensor, Tensor]:
    """One window (channels, x, y, z) → logits (prompts, x, y, z) and presence (prompts,), both float32."""
    batch = image[None].contiguous(memory_format=torch.channels_last_3d)
    logits, presence = [], []
    with compute.autocast():
        features = network.encode(batch)
        for prompts in torch.split(text, PROMPTS_AT_ONCE):
            decoded = network.decode(features, prompts)
            logits.append(decoded.logits[0][0].float())
            presence.append(decoded.presence[0].float().sigmoid())
    return torch.cat(logits), torch.cat(presence)


def _padded(image: Tensor, window: Shape) -> Tensor:
    """The image, grown to the window where it is smaller, with its own darkest value, which is air."""
    missing = [max(0, size - n) for n, size in zip(image.shape[1:], window, strict=True)]
    if not any(missing):
        return image
    grown = [nn.functional.pad(channel, _pads(missing), value=float(channel.min())) for channel in image]
    return torch.stack(grown)


def _pads(missing: list[int]) -> list[int]:
    x, y, z = missing
    return [0, z, 0, y, 0, x]


def _weight(window: Shape, plan: Plan) -> Tensor:
    x, y, z = (torch.from_numpy(table) for table in blend_weights(window, plan.windows))
    return x[:, None, None] * y[None, :, None] * z[None, None, :]


def _shape(image: Tensor) -> Shape:
    _, x, y, z = image.shape
    return x, y, z
