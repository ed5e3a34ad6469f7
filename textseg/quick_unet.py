"""U-Nets as nnU-Net builds them, run with fewer passes over memory and less work, and with the same values.

Norm, sum and rectifier are one pass; the decoder never makes its upsampled and joined maps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from textseg.folded_upsampling import FoldedUpsampling, is_worth_folding
from textseg.quick_layers import norm_and_rectify

# Of dynamic_network_architectures: an encoder that gives skips, and a decoder of transposed convolutions.
UNETS = ("PlainConvUNet", "ResidualEncoderUNet")


def quicken(network: nn.Module) -> nn.Module:
    """A network of the same values that is quicker on processors; the same one where none is known.

    On GPUs nothing is gained: there joined maps cost little.
    """
    decoder: Any = getattr(network, "decoder", None)
    known = type(network).__name__ in UNETS and type(decoder).__name__ == "UNetDecoder"
    if not known or getattr(decoder, "deep_supervision", True):
        return network
    return QuickUNet(network)


class QuickUNet(nn.Module):
    """(batch, channels, x, y, z) → logits (batch, classes, x, y, z), as the network that it holds.

    Its state is that of the network; loading other weights folds anew.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._prepare()

    def forward(self, image: Tensor) -> Tensor:
        *skips, x = self._encode(image)
        for step, layers, skip in zip(self._steps, self._rest, reversed(skips), strict=True):
            x = step(x, skip)
            for layer in layers:
                x = layer(x)
        logits: Tensor = cast(Any, self.network).decoder.seg_layers[-1](x)
        return logits

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.network.state_dict(*args, **options)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        found = self.network.load_state_dict(state, strict, assign)
        self._prepare()
        return found

    def _apply(self, function: Any, recurse: bool = True) -> QuickUNet:
        # Whatever moves or casts weights.
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def _prepare(self) -> None:
        network = cast(Any, self.network)
        # Not modules of this one: their weights are the network's.
        self._encode = _Hidden(_in_fewer_passes(network.encoder))
        stages = [
            [layer for block in stage.convs for layer in block.all_modules]
            for stage in network.decoder.stages
        ]
        self._steps = [
            FoldedUpsampling(up, cast(Any, conv)) if is_worth_folding(up, conv) else _Joined(up, conv)
            for up, (conv, *_) in zip(network.decoder.transpconvs, stages, strict=True)
        ]
        self._rest = [_joined_passes(layers[1:]) for layers in stages]


class _Hidden:
    """A module that is not one of whoever holds it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Any:
        return self._module(x)


class _Joined:
    """A step that is not worth folding."""

    def __init__(self, up: nn.Module, conv: nn.Module) -> None:
        self._up, self._conv = up, conv

    def __call__(self, coarse: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self._conv(torch.cat([self._up(coarse), skip], dim=1))
        return joined


class _OnePass(nn.Module):
    """Instance norm and a leaky rectifier of a map that nobody else needs, what a convolution gave."""

    def __init__(self, norm: nn.InstanceNorm3d, slope: float | None) -> None:
        super().__init__()
        self.norm, self.slope = norm, slope

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        return norm_and_rectify(x, self.norm, self.slope, added)


class _ResidualBlock(nn.Module):
    """BasicBlockD whose last norm, sum and rectifier are one pass."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first = _in_fewer_passes(block.conv1)
        *self.conv, norm = block.conv2.all_modules
        self.last = _OnePass(norm, block.nonlin2.negative_slope)
        self.skip = _in_fewer_passes(block.skip) if isinstance(block.skip, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        for layer in self.conv:
            inner = layer(inner)
        out: Tensor = self.last(inner, self.skip(x))
        return out


def _in_fewer_passes(module: Any) -> nn.Module:
    """The same module with the same weights; norms and what follows them are one pass where that is known."""
    if _is_residual_block(module):
        return _ResidualBlock(module)
    if type(module).__name__ == "ConvDropoutNormReLU":
        return nn.Sequential(*_joined_passes(list(module.all_modules)))
    if not module._modules:
        return cast(nn.Module, module)
    twin: nn.Module = copy.copy(module)
    twin._modules = {name: _in_fewer_passes(child) for name, child in module._modules.items()}
    return twin


def _is_residual_block(module: Any) -> bool:
    if type(module).__name__ != "BasicBlockD" or module.apply_se or module.apply_stochastic_depth:
        return False
    norm = module.conv2.all_modules[-1]
    return isinstance(norm, nn.InstanceNorm3d) and isinstance(module.nonlin2, nn.LeakyReLU)


def _joined_passes(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers one after the other; an instance norm behind a convolution is one with its rectifier."""
    joined: list[nn.Module] = []
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        before = joined[-1] if joined else None
        if isinstance(layer, nn.InstanceNorm3d) and (before is None or isinstance(before, nn.Conv3d)):
            joined.append(_OnePass(layer, after.negative_slope if isinstance(after, nn.LeakyReLU) else None))
        elif not (
            isinstance(layer, nn.LeakyReLU) and isinstance(before, _OnePass) and before.slope is not None
        ):
            joined.append(layer)
    return joined
