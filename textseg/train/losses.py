"""What training minimises: each prompt's overlap and cross-entropy at every scale, and its presence."""

from __future__ import annotations

from collections.abc import Sequence

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


def _resized(masks: Tensor, logits: Tensor) -> Tensor:
    if masks.shape == logits.shape:
        return masks
    return nn.functional.interpolate(masks, size=logits.shape[2:], mode="area")
