"""VoxTell's network on processors with less work a prompt, and the same values.

A prompt's kernel is in VoxTell's transposed convolutions (see `textseg.network.voxtell.network.MaskDecoder`),
so each prompt folds them anew into the convolutions that follow, by one product of matrices, which costs a
hundredth of what it saves where a map has many voxels. Norm and rectifier are one pass. The finest map, of
which only one number a voxel is wanted, is kept in parts, one for each place in a coarse voxel, and worked on
while it is in the processor's cache. Logits at coarser scales, which training asks for, are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.folded_upsampling import (
    CHANNELS_LAST,
    LEAST_SAVED,
    Axis,
    add_near_borders,
    axis_of,
    bias_map,
    by_place,
    fold,
    places,
    put_in_place,
    shifted,
)
from textseg.network.build import Decoded, Features
from textseg.network.voxtell.network import VoxTellNetwork
from textseg.network.voxtell.plan import stride_to
from textseg.plan import Triple
from textseg.quick_layers import norm_and_rectify, norm_rectify_and_mix

# Numbers of a matrix for folding: 128 MB.
LARGEST = 2**25


@dataclass(frozen=True, eq=False)
class _Step:
    """From one decoder stage to the next finer one.

    axes: how the transposed convolution and the one after it fold.
    folding: (middle · stride, places · out · taps), by which a transposed convolution's weights become those
        of the folded one; None where folding would be more work.
    upsampled: what the stage's first convolution does to the upsampled map, (out, middle, kernel).
    bias: of the transposed convolution.
    """

    axes: list[Axis]
    folding: Tensor | None
    upsampled: Tensor
    bias: Tensor | None
    stage: Any

    @property
    def is_one_convolution(self) -> bool:
        return self.folding is not None and len(self.stage.convs) == 1


class QuickVoxTell:
    """A `PromptableNetwork` with the values of the one that it is made of, its weights as now; for CPUs."""

    def __init__(self, network: VoxTellNetwork) -> None:
        self._network = network
        self.window: Triple = network.window
        self.total_stride: Triple = network.total_stride
        self._steps = [_step(network, index) for index in range(1, len(network.decoder.stages))]

    def encode(self, image: Tensor) -> Features:
        """As the network's, but what each upsampling's bias gives is in the skip parts, once for all prompts.

        A finest skip part whose stage is one convolution lies as (batch, places, z, y, x, channels).
        """
        features = self._network.encode(image)
        *skip_parts, first = features.trunk
        for step, part in zip(self._steps, reversed(skip_parts), strict=True):
            if step.folding is not None and step.bias is not None:
                within = step.upsampled.sum(dim=(2, 3, 4)) @ step.bias
                part += within[:, None, None, None]
                near = bias_map(step.bias, step.upsampled, part.shape[2:]) - within[:, None, None, None]
                add_near_borders(part, near)
        if skip_parts and self._steps[-1].is_one_convolution:
            finest = skip_parts[0].contiguous(memory_format=CHANNELS_LAST)
            skip_parts[0] = (
                by_place(finest, self._steps[-1].axes).permute(0, 3, 5, 7, 2, 4, 6, 1).flatten(1, 3)
            )
        return Features(features.coarsest, (*skip_parts, first))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        """As the network's, logits at the finest scale alone."""
        if text is None or spatial is not None:
            return self._network.decode(features, text, spatial)
        batch = features.coarsest.shape[0]
        text = text.expand(batch, -1, -1) if text.ndim == 2 else text
        to_finer, to_logits = self._network._kernels(text, features.coarsest)
        logits = torch.empty((batch, text.shape[1], *self.window))
        for image in range(batch):
            trunk = [part[image : image + 1] for part in features.trunk]
            for prompt in range(text.shape[1]):
                kernels = [kernel[image, prompt] for kernel in to_finer]
                logits[image, prompt] = self._decode(trunk, kernels, to_logits[0][image, prompt])
        return Decoded((logits,), logits.amax(dim=(2, 3, 4)))

    def _decode(self, trunk: Sequence[Tensor], kernels: Sequence[Tensor], mask: Tensor) -> Tensor:
        """One prompt's logits (z, y, x) in one window.

        Args:
            kernels: of its transposed convolutions (channels, channels out, z, y, x), coarse to fine.
            mask: its vector (channels,) at the finest scale.
        """
        *skip_parts, x = trunk
        for step, kernel, part in zip(self._steps, kernels, reversed(skip_parts), strict=True):
            if step is self._steps[-1] and step.is_one_convolution:
                return self._mask(step, x, kernel, part[0], mask)
            x = _first_convolution(step, x, kernel, part)
            for number, block in enumerate(step.stage.convs):
                x = block.conv(x) if number else x
                x = norm_and_rectify(x, block.norm, step.stage.slope)
        return torch.einsum("bczyx,c->bzyx", x, mask)[0]

    def _mask(self, step: _Step, x: Tensor, kernel: Tensor, parts: Tensor, mask: Tensor) -> Tensor:
        """Logits (z, y, x) from the finest stage but one; parts (places, z, y, x, channels) of the skip."""
        sums = _sums(step, x, kernel, parts)
        mixed = norm_rectify_and_mix(sums, step.stage.convs[0].norm, step.stage.slope, mask)
        stride = [len(axis.taps) for axis in step.axes]
        apart = mixed.view(*stride, *mixed.shape[1:])
        return apart.permute(3, 0, 4, 1, 5, 2).reshape(self.window)


def _sums(step: _Step, x: Tensor, kernel: Tensor, parts: Tensor) -> Iterator[Tensor]:
    """Place after place the first convolution's values (channels, z, y, x)."""
    padding = [axis.padding for axis in step.axes]
    weights = torch.split(_folded(step, kernel), parts.shape[-1])
    for place, weight, part in zip(places(step.axes), weights, parts, strict=True):
        apart = shifted(torch.conv3d(x, weight, None, 1, padding), step.axes, place)[0]
        yield torch.add(part, apart.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)


def _first_convolution(step: _Step, x: Tensor, kernel: Tensor, part: Tensor) -> Tensor:
    """The upsampled map and the skip's part of it, through a stage's first convolution but for its norm."""
    if step.folding is None:
        up = F.conv_transpose3d(x, kernel, step.bias, kernel.shape[2:])
        return torch.conv3d(up, step.upsampled, None, 1, step.stage.padding) + part
    apart = torch.conv3d(x, _folded(step, kernel), None, 1, [axis.padding for axis in step.axes])
    part = part.contiguous(memory_format=CHANNELS_LAST)
    out = torch.empty_like(part)
    put_in_place(apart, step.axes, part, out)
    return out


def _folded(step: _Step, kernel: Tensor) -> Tensor:
    """(places · out, coarse, taps) of a prompt's transposed convolution (coarse, middle, stride)."""
    assert step.folding is not None
    folded = kernel.flatten(1) @ step.folding
    return folded.view(len(kernel), -1, *(axis.kernel for axis in step.axes)).transpose(0, 1)


def _step(network: VoxTellNetwork, index: int) -> _Step:
    """To the decoder's stage of this index, 0 the coarsest."""
    plan, decoder = network.plan.architecture, network.decoder
    up = cast(nn.ConvTranspose3d, decoder.transpconvs[index])
    stage: Any = decoder.stages[index]
    weight = stage.convs[0].conv.weight[:, : stage.width]
    finer = len(decoder.stages) - 1 - index
    strides = stride_to(plan.strides[: finer + 1])
    voxels = prod(n // stride for n, stride in zip(network.window, strides, strict=True))
    # Without the prompt's channels, which are in the kernels of the others.
    coarse = plan.features_per_stage[finer + 1]
    stride = cast(Triple, up.stride)
    axes = [axis_of(*pair) for pair in zip(stride, weight.shape[2:], strict=True)]
    folding = _folding(weight, stride, axes) if _is_worth_it(coarse, weight, axes, voxels) else None
    return _Step(axes, folding, weight, up.bias, stage)


def _is_worth_it(coarse: int, weight: Tensor, axes: Sequence[Axis], voxels: int) -> bool:
    """Whether folding for each prompt, and what is folded, are less work for a fine map of so many voxels.

    Args:
        coarse: channels of the coarse map.
        weight: (out, middle, kernel) of the convolution over the upsampled map.
    """
    out, middle, *kernel = weight.shape
    stride, taps = prod(len(axis.taps) for axis in axes), prod(axis.kernel for axis in axes)
    folding = middle * stride * out * stride * taps
    folded = taps * coarse * out * voxels
    apart = (prod(kernel) * out + coarse) * middle * voxels
    cubes = all(edge in (1, 3) for edge in kernel)
    return cubes and folding <= LARGEST and folded + coarse * folding <= (1 - LEAST_SAVED) * apart


def _folding(weight: Tensor, stride: Triple, axes: Sequence[Axis]) -> Tensor:
    """What folding makes of every single weight of a transposed convolution, see `_Step`."""
    middle = weight.shape[1]
    each = torch.eye(middle * prod(stride), dtype=torch.float64).view(-1, middle, *stride)
    return fold(each, weight.double(), axes).transpose(0, 1).flatten(1).to(weight).contiguous()
