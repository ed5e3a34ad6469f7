"""What training minimises: each prompt's overlap and cross-entropy at every scale, and its presence.

Voxels that nobody labelled (`valid` is False) say nothing. They take no part in cross-entropy and Dice, and a
coarse cell counts by the part of it that is known. Presence is asked of a whole patch: what shows in a known
voxel is there, whatever the rest holds; what shows in none may still lie in the unknown ones, so it counts as
absent only where the whole patch is known, and otherwise its presence is not scored at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from textseg.network.build import Decoded


def prompt_loss(
    decoded: Decoded,
    masks: Tensor,
    scale_weights: Sequence[float],
    presence_weight: float,
    valid: Tensor | None = None,
) -> Tensor:
    """The loss of one batch, a scalar.

    Every prompt counts the same, whatever its size. A prompt whose mask is empty is scored by cross-entropy
    alone: Dice of an empty mask would reward a wrong map as much as an empty one.

    Args:
        decoded: logits (batch, prompts, x, y, z) a scale, finest first, and presence logits.
        masks: (batch, prompts, x, y, z) float in 0 to 1 at the finest scale.
        scale_weights: the weight of each scale, finest first; further scales do not count.
        presence_weight: of the presence score's cross-entropy.
        valid: (batch, x, y, z) bool, False in voxels that nobody labelled; None for all of them known.
    """
    if valid is not None:
        masks = masks * valid[:, None]
    present = (masks.flatten(2).amax(dim=2) > 0.5).float()
    total = presence_weight * _presence_loss(decoded.presence, present, _sure(present, valid))
    used = sum(scale_weights)
    for logits, weight in zip(decoded.logits, scale_weights, strict=False):
        inside = _resized(masks, logits)
        known = None if valid is None else _resized(valid[:, None].float(), logits)
        total = total + weight / used * mask_loss(logits.float(), inside, present, known)
    return total


def mask_loss(logits: Tensor, masks: Tensor, present: Tensor, known: Tensor | None = None) -> Tensor:
    """Soft Dice over the present prompts plus cross-entropy over all.

    Args:
        logits: (batch, prompts, x, y, z).
        masks: the same shape, the part of each cell that is known to lie inside, 0 to `known`.
        present: (batch, prompts) 0 or 1.
        known: (batch, 1, x, y, z), the part of each cell that is known, 0 to 1; None for all of it.
    """
    logits, masks = logits.flatten(2), masks.flatten(2)
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum(dim=2)
    if known is None:
        entropies = nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        cross_entropy = entropies.mean(dim=2)
        sizes = probabilities.sum(dim=2) + masks.sum(dim=2)
    else:
        known = known.flatten(2)
        # Where nothing of a cell is known its weight is 0, and so is the part of it that lies inside.
        entropies = nn.functional.binary_cross_entropy_with_logits(
            logits, masks / known.clamp_min(FAINT), weight=known, reduction="none"
        )
        cross_entropy = entropies.sum(dim=2) / known.sum(dim=2).clamp_min(1)
        sizes = (probabilities * known).sum(dim=2) + masks.sum(dim=2)
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    # Small structures fill a thousandth of a patch: cross-entropy hardly hears them, so Dice leads.
    return cross_entropy.mean() + (dice * present).sum() / present.sum().clamp_min(1)


# Far below the smallest part of a coarse cell that can be known, one voxel of it.
FAINT = 1e-6


def sharing_loss(
    shared: Decoded,
    labels: Tensor,
    asked: Tensor,
    scale_weights: Sequence[float],
    presence_weight: float,
    valid: Tensor | None = None,
) -> Tensor:
    """How well a patch's structures share out its voxels: soft-max cross-entropy plus soft Dice, a scalar.

    Structures that exclude each other compete for every voxel, as in a network with one channel a class, so a
    step teaches all names in the patch and not only the few whose masks are decoded. "None of them" has logit
    0. In the mean of Dice a structure of few voxels counts less.

    Args:
        shared: logits (batch, structures, x, y, z) a scale, and presence logits (batch, structures).
        labels: (batch, x, y, z) int64 at the full scale; 0 is no structure that is asked, k the k-th of them.
        asked: (batch, structures) bool; False is padding.
        scale_weights: one weight a scale.
        presence_weight: of the presence score's cross-entropy.
        valid: (batch, x, y, z) bool, False in voxels that nobody labelled; None for all of them known.
    """
    structures = asked.shape[1]
    unknown = structures + 1
    if valid is not None:
        labels = labels.masked_fill(~valid, unknown)
    voxels = _counts(labels, unknown + 1)[:, 1:unknown]
    heard = voxels / (voxels + HALF_HEARD_VOXELS)
    total = torch.zeros((), device=labels.device)
    for shares, weight in zip(shared.logits, scale_weights, strict=True):
        shape = shares.shape[2:]
        shares = shares.float().flatten(2).masked_fill(~asked[..., None], -1e4)
        log_shares = nn.functional.pad(shares, (0, 0, 1, 0)).log_softmax(dim=1)
        if shape == labels.shape[1:]:
            sums = _fine_sums(log_shares, labels.flatten(1), voxels)
        else:
            sums = _coarse_sums(log_shares, share_labels(labels, unknown + 1, shape).flatten(2))
        cross_entropy = -sums.said.sum() / sums.known.clamp_min(1)
        dice = 1 - (2 * sums.overlap + 1) / (sums.shares + sums.wanted + 1)
        weights = heard * (sums.wanted > 0.5)
        total = total + weight * (cross_entropy + (dice * weights).sum() / weights.sum().clamp_min(1))
    there = (voxels > 0).float()
    presence = _presence_loss(shared.presence, there, asked * _sure(there, valid))
    return total / sum(scale_weights) + presence_weight * presence


# Of a structure with so many voxels Dice counts half: that of a few voxels is mostly luck, and would drown
# the others.
HALF_HEARD_VOXELS = 200


class _Sums(NamedTuple):
    """said: (batch,) the sums of the log shares of who is there; known: how many cells are known, a scalar.

    overlap, shares, wanted: (batch, structures) sums over the known cells.
    """

    said: Tensor
    known: Tensor
    overlap: Tensor
    shares: Tensor
    wanted: Tensor


def _fine_sums(log_shares: Tensor, labels: Tensor, wanted: Tensor) -> _Sums:
    """log_shares (batch, 1 + structures, voxels), labels (batch, voxels), 1 + structures where unknown, and
    wanted (batch, structures), the voxels of each structure."""
    classes = log_shares.shape[1]
    known = labels < classes
    said = log_shares.gather(1, labels.clamp_max(classes - 1)[:, None])[:, 0] * known
    parts = log_shares[:, 1:].exp()
    overlap = said.new_zeros(len(labels), classes + 1).scatter_add(1, labels, said.exp())
    return _Sums(
        said=said.sum(dim=1),
        known=known.sum(),
        overlap=overlap[:, 1:classes],
        shares=torch.bmm(parts, known[..., None].to(parts.dtype))[..., 0],
        wanted=wanted,
    )


def _coarse_sums(log_shares: Tensor, cells: Tensor) -> _Sums:
    """log_shares (batch, 1 + structures, cells), cells (batch, 2 + structures, cells), the unknown part last.

    What is wanted of a cell adds up to what is known of it.
    """
    wanted, known = cells[:, :-1], 1 - cells[:, -1:]
    parts = log_shares[:, 1:].exp()
    return _Sums(
        said=(wanted * log_shares).sum(dim=(1, 2)),
        known=known.sum(),
        overlap=(parts * wanted[:, 1:]).sum(dim=2),
        shares=(parts * known).sum(dim=2),
        wanted=wanted[:, 1:].sum(dim=2),
    )


def _counts(labels: Tensor, classes: int) -> Tensor:
    """How many voxels each class has: labels (batch, …) → (batch, classes) float."""
    flat = labels.flatten(1)
    ones = torch.ones_like(flat, dtype=torch.float32)
    return ones.new_zeros(len(flat), classes).scatter_add(1, flat, ones)


def share_labels(labels: Tensor, classes: int, shape: Sequence[int]) -> Tensor:
    """What part of each coarse cell every class fills: labels (batch, x, y, z) → (batch, classes, *shape)."""
    step = [fine // coarse for fine, coarse in zip(labels.shape[1:], shape, strict=True)]
    cells = torch.zeros((len(labels), classes, *shape), device=labels.device)
    part = 1.0 / math.prod(step)
    for x, y, z in itertools.product(*map(range, step)):
        corner = labels[:, None, x :: step[0], y :: step[1], z :: step[2]]
        cells.scatter_add_(1, corner, torch.full_like(corner, part, dtype=cells.dtype))
    return cells


def _sure(there: Tensor, valid: Tensor | None) -> Tensor:
    """Whose presence is known, (batch, prompts) 0 or 1: those seen, and all in patches known whole."""
    if valid is None:
        return torch.ones_like(there)
    whole = valid.flatten(1).all(dim=1, keepdim=True).to(there.dtype)
    return torch.maximum(there, whole)


def _presence_loss(presence: Tensor, there: Tensor, sure: Tensor) -> Tensor:
    """The mean cross-entropy of presence logits (batch, prompts) where `sure` is 1."""
    entropies = nn.functional.binary_cross_entropy_with_logits(
        presence.float(), there, weight=sure, reduction="sum"
    )
    return entropies / sure.sum().clamp_min(1)


def _resized(masks: Tensor, logits: Tensor) -> Tensor:
    if masks.shape[2:] == logits.shape[2:]:
        return masks
    return nn.functional.interpolate(masks, size=logits.shape[2:], mode="area")
