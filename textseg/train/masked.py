"""A masked autoencoder of our encoder and trunk: it paints the hidden blocks of an image from the rest.

Masked autoencoding (He et al. 2022, MAE) as it suits convolutions (Tian et al. 2023, SparK): the encoder sees
the visible blocks only. A dense convolution would carry the pattern of the mask into every feature and every
norm's statistics; so each norm of the encoder looks at visible voxels alone, and leaves 0 at the hidden ones,
which is what a sparse convolution computes. At every scale a learnt vector takes the hidden places, then the
trunk, a U-Net decoder as SparK's, and one 1 × 1 × 1 convolution paint the image. Only hidden voxels count in
the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.errors import PlanError
from textseg.network.image_encoder import ImageEncoder
from textseg.network.mask_decoder import DecoderTrunk
from textseg.plan import Plan, Triple

# As in SparK; more, such as MAE's 75 %, leaves a convolution too few neighbours.
HIDDEN_FRACTION = 0.6
# Hidden blocks are no thinner than this: a thin slab is painted by interpolation, without knowing anatomy.
SHORTEST_BLOCK = 4


def block_size(plan: Plan) -> Triple:
    """The edges of the blocks that are hidden, in voxels (x, y, z): whole voxels of the coarsest stage.

    Raises:
        PlanError: a patch is a single block.
    """
    patch, strides = plan.training.patch_voxels, plan.network.total_stride
    x, y, z = (_edge(size, stride) for size, stride in zip(patch, strides, strict=True))
    if (x, y, z) == patch:
        raise PlanError(
            f"Part of a patch is hidden, but one of {patch} voxels is a single block at the coarsest stage. "
            "Plan larger patches."
        )
    return x, y, z


def _edge(size: int, stride: int) -> int:
    """The smallest multiple of the stride that divides the patch and is not too thin."""
    edges = [edge for edge in range(stride, size + 1, stride) if size % edge == 0]
    return next((edge for edge in edges if edge >= SHORTEST_BLOCK), edges[-1])


def visible_blocks(blocks: Sequence[int], random: np.random.Generator) -> NDArray[np.bool_]:
    """Which blocks are visible, bool of this shape; as many in every patch, so that they can be stacked."""
    count = math.prod(blocks)
    hidden = min(max(1, round(count * HIDDEN_FRACTION)), count - 1)
    visible = np.ones(count, bool)
    visible[random.choice(count, hidden, replace=False)] = False
    return visible.reshape(blocks)


class MaskedAutoencoder(nn.Module):
    """Encoder and trunk of a plan's network, which paint what of an image is hidden."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.encoder = ImageEncoder(len(plan.channels), plan.network)
        self.trunk = DecoderTrunk(plan.network)
        self.hidden = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(1, width, 1, 1, 1)) for width in plan.network.widths
        )
        self.head = nn.Conv3d(plan.network.widths[0], len(plan.channels), 1)
        # Of the image that is being encoded: its visible blocks, and where they are at each size.
        self._visible: Tensor | None = None
        self._where: dict[torch.Size, Tensor] = {}
        self._shape = torch.Size()
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d):
                module.register_forward_pre_hook(self._visible_only)
                module.register_forward_hook(self._back_in_place)

    def forward(self, image: Tensor, visible: Tensor) -> Tensor:
        """image (batch, channels, x, y, z), visible blocks (batch, blocks along x, y, z) → image painted."""
        self._visible, self._where = visible, {}
        features = self.encoder(image * at_size(visible, image.shape[2:]))
        painted = []
        for feature, hidden in zip(features, self.hidden, strict=True):
            painted.append(torch.where(at_size(visible, feature.shape[2:]), feature, hidden.to(feature)))
        out: Tensor = self.head(self.trunk(painted)[0])
        return out

    def _visible_only(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """What a norm sees: the visible voxels in a row, (batch, channels, voxels, 1, 1)."""
        (x,) = inputs
        self._shape = x.shape[2:]
        where = self._indices().expand(-1, x.shape[1], -1)
        return (x.flatten(2).gather(2, where)[..., None, None],)

    def _back_in_place(self, norm: nn.Module, inputs: tuple[Tensor, ...], normed: Tensor) -> Tensor:
        """The visible voxels where they were, and 0 at the hidden ones."""
        where = self._indices().expand(-1, normed.shape[1], -1)
        empty = normed.new_zeros(*normed.shape[:2], math.prod(self._shape))
        return empty.scatter(2, where, normed[..., 0, 0]).reshape(*normed.shape[:2], *self._shape)

    def _indices(self) -> Tensor:
        """Of the visible voxels at the size that a norm is at, (batch, 1, voxels)."""
        assert self._visible is not None
        if self._shape not in self._where:
            flat = at_size(self._visible, self._shape).flatten(1)
            self._where[self._shape] = flat.nonzero()[:, 1].reshape(len(flat), 1, -1)
        return self._where[self._shape]


def at_size(visible: Tensor, shape: torch.Size) -> Tensor:
    """Visible blocks (batch, blocks along x, y, z) as voxels (batch, 1, x, y, z) of this size."""
    for axis, size in enumerate(shape, start=1):
        visible = visible.repeat_interleave(size // visible.shape[axis], dim=axis)
    return visible[:, None]


def hidden_loss(painted: Tensor, image: Tensor, visible: Tensor) -> Tensor:
    """The mean squared error over the hidden voxels, a scalar; 1 is one spread of the plan's intensities."""
    hidden = ~at_size(visible, image.shape[2:]).expand_as(image)
    return nn.functional.mse_loss(painted.float()[hidden], image[hidden])
