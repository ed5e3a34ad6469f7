"""The whole network: encode an image once, decode it once a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from textseg.network.image_encoder import ImageEncoder
from textseg.network.mask_decoder import DecoderTrunk, PromptDecoder
from textseg.network.spatial_prompts import SpatialQuery, pyramid_of
from textseg.network.text_fusion import TextFusion
from textseg.plan import Plan, Triple


@dataclass(frozen=True)
class Features:
    """What an image window looks like to the decoder, without any prompt.

    coarsest: (batch, channels, x, y, z) of the last encoder stage; trunk: decoder features, finest first.
    """

    coarsest: Tensor
    trunk: tuple[Tensor, ...]


@dataclass(frozen=True)
class Decoded:
    """logits: one (batch, prompts, x, y, z) a scale, finest first; presence: logits (batch, prompts)."""

    logits: tuple[Tensor, ...]
    presence: Tensor


class PromptableNetwork(Protocol):
    """What the sliding window asks of a network; our own and foreign ones offer it."""

    @property
    def total_stride(self) -> Triple: ...

    def encode(self, image: Tensor) -> Features: ...

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded: ...


class TextPromptedNetwork(nn.Module):
    """Our network: residual encoder, prompt-free trunk, queries from text, a thin decoder a prompt."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.spatial_channels = plan.network.spatial_channels
        self.total_stride = plan.network.total_stride
        self.encoder = ImageEncoder(len(plan.channels), plan.network)
        self.trunk = DecoderTrunk(plan.network)
        self.fusion = TextFusion(plan.network)
        self.decoder = PromptDecoder(plan.network)
        self.marks = SpatialQuery(plan.network) if plan.network.marks_in_query else None

    def encode(self, image: Tensor, skipped: int = 0) -> Features:
        """image (batch, channels, x, y, z), each size a multiple of `total_stride`.

        Without the trunk's `skipped` finest scales, 0 or 1, decoding ends a scale earlier: training does so.
        """
        features = self.encoder(image)
        return Features(features[-1], tuple(self.trunk(features, skipped)))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        """Masks for prompts over encoded images.

        Args:
            features: from `encode`.
            text: (prompts, text width), the same prompts for every image of the batch, or
                (batch, prompts, text width); None when spatial prompts stand alone.
            spatial: (batch, prompts, spatial channels, x, y, z) maps of points, boxes, scribbles and a
                previous mask at the image's size, or None.
        """
        batch = features.coarsest.shape[0]
        pyramid = None if spatial is None else pyramid_of(spatial, self.decoder.strides)
        marked = None if pyramid is None or self.marks is None else self.marks(features.trunk, pyramid)
        queries, presence = self.fusion(self._text(text, spatial, batch), features.coarsest, marked)
        logits = self.decoder(features.trunk, queries, pyramid)
        return Decoded(tuple(logits), presence)

    def share(self, features: Features, text: Tensor, count: int) -> Decoded:
        """Logits at the finest scales straight from the trunk, cheap for many prompts, and their presence.

        Training uses it to ask for everything in a patch at once; a mask is what `decode` gives.

        Args:
            features: from `encode`.
            text: (batch, prompts, text width).
            count: of how many scales, the finest first.
        """
        queries, presence = self.fusion(text, features.coarsest)
        return Decoded(tuple(self.decoder.share(features.trunk, queries, count)), presence)

    def forward(self, image: Tensor, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        return self.decode(self.encode(image), text, spatial)

    def _text(self, text: Tensor | None, spatial: Tensor | None, batch: int) -> Tensor:
        if text is None:
            prompts = 1 if spatial is None else spatial.shape[1]
            return self.fusion.no_text.expand(batch, prompts, -1)
        return text.expand(batch, -1, -1) if text.ndim == 2 else text


def build_network(plan: Plan) -> TextPromptedNetwork:
    """The network of a plan with fresh weights; seed torch first for the same ones each time."""
    return TextPromptedNetwork(plan)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def for_inference(network: TextPromptedNetwork, device: torch.device) -> TextPromptedNetwork:
    """The network on its device, folded and channels-last: faster, and the same values up to rounding.

    Weights that are loaded into it later have no effect on what was folded.

    Channels-last made a bfloat16 3D convolution 1.5 times faster on a processor with AVX-512.
    """
    folded = fold_batch_norm(network).to(device)
    if device.type == "cpu":
        folded.trunk.fold()
    return folded.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def fold_batch_norm(network: TextPromptedNetwork) -> TextPromptedNetwork:
    """The same network for inference with every batch norm folded into the convolution before it, in place.

    Gives the same values up to rounding; on CPUs a norm can cost more than the convolution that it follows.
    """
    network.eval()
    for module in network.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "norm", None)
        if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            module.conv = nn.utils.fuse_conv_bn_eval(conv, norm)
            module.norm = nn.Identity()
        elif isinstance(module, nn.Sequential):
            _fold_sequence(module)
    return network


def _fold_sequence(sequence: nn.Sequential) -> None:
    for index in range(len(sequence) - 1):
        conv, norm = sequence[index], sequence[index + 1]
        if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            sequence[index] = nn.utils.fuse_conv_bn_eval(conv, norm)
            sequence[index + 1] = nn.Identity()
