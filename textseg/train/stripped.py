"""Heads as skull stripping leaves them: a brain, with more or less of the fluid around it, in nothing.

Half of the world's brain scans are stored so. A network that has seen whole heads alone takes the outermost
gyri of a stripped one for scalp and skull.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def stripped(
    labels: Tensor, tissue: frozenset[int], fluid: frozenset[int], random: np.random.Generator
) -> Tensor:
    """Labels (x, y, z) int64 with 0 outside of the brain; each stripper draws that border in its own way.

    Half of the time the fluid around the brain belongs to it, else only what lies in furrows and hollows; a
    rim of a voxel may be left around all, as generous strippers leave one.

    Args:
        tissue: label values of the brain.
        fluid: those of the fluid around it.
    """
    kept = tissue | fluid if random.random() < 0.5 else tissue - fluid
    reach = int(random.integers(1, 4))
    rim = int(random.random() < 0.3)
    brain = torch.isin(labels, torch.tensor(sorted(kept), dtype=labels.dtype))
    filled = grown(brain, reach)
    if reach > rim:
        filled = ~grown(~filled, reach - rim)
    return torch.where(filled | brain, labels, torch.zeros_like(labels))


def grown(mask: Tensor, voxels: int) -> Tensor:
    """A mask (x, y, z) bool and all within so many voxels of it along every axis."""
    x = mask[None, None].float()
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * voxels + 1, voxels
        x = nn.functional.max_pool3d(x, kernel, stride=1, padding=padding)
    return x[0, 0] > 0
