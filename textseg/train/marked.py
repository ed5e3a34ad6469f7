"""Marks in training: what a person might draw on a prompt's thing at first, and after seeing a wrong mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from textseg.geometry import Shape
from textseg.network.spatial_prompts import CHANNELS, PREVIOUS, draw_maps
from textseg.train.interactions import KINDS, Mask, corrected, drawn_on

# People click most of all; a box or a closed line says more but takes longer.
KIND_WEIGHTS = (0.4, 0.15, 0.15, 0.2, 0.1)
MOST_MARKS = 3
# Maps travel between processes as bytes: a quarter of the memory, and 1 / 255 is no loss for a drawn ball.
FULL = 255


def first_marks(mask: Tensor, random: np.random.Generator) -> Tensor:
    """One to three marks that mean a thing, as maps (7, x, y, z) uint8.

    Args:
        mask: (x, y, z) 0 or 1, with at least one voxel of the thing.
    """
    structure = mask.numpy() > 0.5
    kinds = random.choice(KINDS, size=int(random.integers(1, MOST_MARKS + 1)), p=KIND_WEIGHTS)
    drawn = [drawn_on(structure, kind, random) for kind in kinds]
    return packed(draw_maps(drawn, _shape(structure)))


def next_marks(
    logits: Tensor, masks: Tensor, maps: Tensor, valid: Tensor | None, random: np.random.Generator
) -> Tensor:
    """The maps after a person saw these masks: what was drawn before, the mask, and one correction more.

    Args:
        logits: (batch, prompts, x, y, z) what the network said.
        masks: (batch, prompts, x, y, z) what is right, 0 or 1.
        maps: (batch, prompts, 7, x, y, z) float, what was drawn before.
        valid: (batch, x, y, z) bool, False in voxels that nobody labelled, where nobody corrects either.
    """
    said = (logits.detach() > 0).cpu().numpy()
    wanted = (masks > 0.5).cpu().numpy()
    if valid is not None:
        unknown = ~valid[:, None].cpu().numpy()
        wanted = np.where(unknown, said, wanted)
    following = maps.clone()
    following[:, :, PREVIOUS] = torch.from_numpy(said).to(maps)
    for sample, prompt in np.ndindex(*said.shape[:2]):
        drawn = _correction(wanted[sample, prompt], said[sample, prompt], random)
        if drawn is not None:
            marks = following[sample, prompt]
            torch.maximum(marks, drawn.to(marks), out=marks)
    return following


def no_marks(shape: Shape) -> Tensor:
    """Empty maps (7, x, y, z) uint8."""
    return torch.zeros((CHANNELS, *shape), dtype=torch.uint8)


def packed(maps: Tensor) -> Tensor:
    """Maps in 0 to 1 as bytes."""
    return (maps * FULL).round().to(torch.uint8)


def unpacked(maps: Tensor) -> Tensor:
    """What `packed` made, in 0 to 1 again."""
    return maps.float() / FULL


def _correction(wanted: Mask, said: Mask, random: np.random.Generator) -> Tensor | None:
    one = corrected(wanted, said, random)
    return None if one is None else draw_maps([one], _shape(wanted))


def _shape(mask: Mask) -> Shape:
    x, y, z = mask.shape
    return x, y, z
