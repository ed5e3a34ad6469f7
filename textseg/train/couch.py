"""What a CT shows beside the patient: the couch that he lies on, and arms along his sides.

Label maps of torsos end at the skin. A network that has seen nothing but air around a body takes the air that
a couch or an arm encloses for lung.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from textseg.train.synth import AIR_HU

# Bodies whose skin is this near to a patch's end leave no room for a couch, in voxels.
ROOM = 3


def with_couch(image: Tensor, labels: Tensor, random: np.random.Generator) -> Tensor:
    """A CT (x, y, z) in HU, canonical axes, with a couch behind the body, an arm beside it, or both.

    Nothing is drawn where a label is, and nothing where the patch shows no air behind or beside the body.

    Args:
        labels: (x, y, z), 0 outside of the body.
    """
    outside = labels == 0
    kinds = random.permutation(3)[: int(random.integers(1, 4))]
    drawn = image.clone()
    if 0 in kinds:
        drawn = _with_plates(drawn, outside, random)
    for kind, low in ((1, True), (2, False)):
        if kind in kinds:
            drawn = _with_arm(drawn, outside, low, random)
    return torch.where(outside, drawn, image)


def _with_plates(image: Tensor, outside: Tensor, random: np.random.Generator) -> Tensor:
    """Two thin shells, bent up at the sides, with foam or air between them, close behind the skin."""
    body = (~outside).any(dim=2).any(dim=0)  # (y,): planes that show the body
    if not body.any():
        return image
    skin = int(body.float().argmax())
    if skin < ROOM:
        return image
    x, y = torch.arange(image.shape[0]).float(), torch.arange(image.shape[1]).float()
    middle = image.shape[0] * float(random.uniform(0.3, 0.7))
    bend = float(random.uniform(0, 0.006))
    upper = skin - float(random.uniform(0.5, 3)) + bend * (x - middle) ** 2
    depth = float(random.uniform(2, 8))
    half = 0.5 * float(random.uniform(0.8, 1.6))
    below = upper[:, None] - y[None]  # (x, y): how far behind the upper shell
    shell = (below.abs() < half) | ((below - depth).abs() < half)
    within = (below >= half) & (below <= depth - half)
    shell_hu, foam_hu = float(random.uniform(-500, 300)), float(random.uniform(AIR_HU, -850))
    image = torch.where(within[..., None], torch.full_like(image, foam_hu), image)
    return torch.where(shell[..., None], torch.full_like(image, shell_hu), image)


def _with_arm(image: Tensor, outside: Tensor, low: bool, random: np.random.Generator) -> Tensor:
    """A cylinder of soft tissue along z at one side of the body, without bone: no name fits what it shows."""
    body = (~outside).any(dim=2).any(dim=1)  # (x,)
    if not body.any():
        return image
    columns = torch.nonzero(body).flatten()
    skin = int(columns[0] if low else columns[-1])
    room = skin if low else image.shape[0] - 1 - skin
    radius = float(random.uniform(7, 12))
    if room < ROOM:
        return image
    x, y, z = (torch.arange(n).float() for n in image.shape)
    away = radius * float(random.uniform(0.9, 1.3))
    centre_x = skin - away if low else skin + away
    centre_y = image.shape[1] * float(random.uniform(0.2, 0.8))
    slope = random.uniform(-0.2, 0.2, 2)
    dx = x[:, None, None] - centre_x - float(slope[0]) * (z - z.mean())
    dy = y[None, :, None] - centre_y - float(slope[1]) * (z - z.mean())
    arm = (dx**2 + (dy * float(random.uniform(0.8, 1.2))) ** 2) < radius**2
    noise = torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32))
    tissue = float(random.uniform(-60, 70)) + 15 * noise
    return torch.where(arm, tissue, image)
