"""What training minimises: each prompt's overlap and cross-entropy at every scale, and its presence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from textseg.network.build import Decoded


def prompt_loss(
    decoded: Decoded, masks: Tensor, scale_weights: Sequence[float], presence_weight: float
) -> Tensor:
    """The loss of one batch, a scalar.

    Every prompt counts the same, whatever its size. A prompt whose mask is empty is scored by cross-entropy
    alone: Dice of an empty mask would reward a wrong map as much as an empty one.

    Args:
        decoded: logits (batch, prompts, x, y, z) a scale, finest first, and presence logits.
        masks: (batch, prompts, x, y, z) float in 0 to 1 at the finest scale.
        scale_weights: the weight of each scale, finest first; further scales do not count.
        presence_weight: of the presence score's cross-entropy.
    """
    present = (masks.flatten(2).amax(dim=2) > 0.5).float()
    total = presence_weight * nn.functional.binary_cross_entropy_with_logits(
        decoded.presence.float(), present
    )
    used = sum(scale_weights)
    for logits, weight in zip(decoded.logits, scale_weights, strict=False):
        target = _resized(masks, logits)
        total = total + weight / used * mask_loss(logits.float(), target, present)
    return total


def mask_loss(logits: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Soft Dice over the present prompts plus cross-entropy over all.

    logits and masks (batch, prompts, x, y, z), masks 0 to 1; present (batch, prompts) 0 or 1.
    """
    logits, masks = logits.flatten(2), masks.flatten(2)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(
        dim=2
    )
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum(dim=2)
    sizes = probabilities.sum(dim=2) + masks.sum(dim=2)
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    # Small structures fill a thousandth of a patch: cross-entropy hardly hears them, so Dice leads.
    return cross_entropy.mean() + (dice * present).sum() / present.sum().clamp_min(1)


def sharing_loss(
    shared: Decoded,
    labels: Tensor,
    asked: Tensor,
    scale_weights: Sequence[float],
    presence_weight: float,
) -> Tensor:
    """How well a patch's structures share out its voxels: soft-max cross-entropy plus soft Dice, a scalar.

    Structures that exclude each other compete for every voxel, as in a network with one channel a class, so a
    step teaches all names in the patch and not only the few whose masks are decoded. "None of them" has logit
    0.

    Args:
        shared: logits (batch, structures, x, y, z) a scale, and presence logits (batch, structures).
        labels: (batch, x, y, z) int64 at the full scale; 0 is no structure that is asked, k the k-th of them.
        asked: (batch, structures) bool; False is padding.
        scale_weights: one weight a scale.
        presence_weight: of the presence score's cross-entropy.
    """
    total = torch.zeros((), device=labels.device)
    for shares, weight in zip(shared.logits, scale_weights, strict=True):
        structures = shares.shape[1]
        wanted = share_labels(labels, structures + 1, shares.shape[2:]).flatten(2)
        shares = shares.float().flatten(2).masked_fill(~asked[..., None], -1e4)
        log_shares = nn.functional.pad(shares, (0, 0, 1, 0)).log_softmax(dim=1)
        cross_entropy = -(wanted * log_shares).sum(dim=1).mean()
        parts, wanted = log_shares[:, 1:].exp(), wanted[:, 1:]
        overlap, sizes = (parts * wanted).sum(dim=2), parts.sum(dim=2) + wanted.sum(dim=2)
        present = (wanted.sum(dim=2) > 0.5).float()
        dice = 1 - (2 * overlap + 1) / (sizes + 1)
        total = total + weight * (cross_entropy + (dice * present).sum() / present.sum().clamp_min(1))
    numbers = torch.arange(1, asked.shape[1] + 1, device=labels.device)
    there = (labels.flatten(1)[:, None] == numbers[:, None]).any(dim=2).float()
    presence = nn.functional.binary_cross_entropy_with_logits(
        shared.presence.float(), there, weight=asked.float(), reduction="sum"
    )
    return total / sum(scale_weights) + presence_weight * presence / asked.sum().clamp_min(1)


def share_labels(labels: Tensor, classes: int, shape: Sequence[int]) -> Tensor:
    """What part of each coarse cell every class fills: labels (batch, x, y, z) → (batch, classes, *shape)."""
    step = [fine // coarse for fine, coarse in zip(labels.shape[1:], shape, strict=True)]
    cells = torch.zeros((len(labels), classes, *shape), device=labels.device)
    part = 1.0 / math.prod(step)
    for x, y, z in itertools.product(*map(range, step)):
        corner = labels[:, None, x :: step[0], y :: step[1], z :: step[2]]
        cells.scatter_add_(1, corner, torch.full_like(corner, part, dtype=cells.dtype))
    return cells


def _resized(masks: Tensor, logits: Tensor) -> Tensor:
    if masks.shape == logits.shape:
        return masks
    return nn.functional.interpolate(masks, size=logits.shape[2:], mode="area")
