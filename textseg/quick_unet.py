"""U-Nets as nnU-Net builds them, with a decoder that never makes its upsampled and joined maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from textseg.folded_upsampling import FoldedUpsampling, is_worth_folding

# Of dynamic_network_architectures: an encoder that gives skips, and a decoder of transposed convolutions.
UNETS = ("PlainConvUNet", "ResidualEncoderUNet")


def quicken(network: nn.Module) -> nn.Module:
    """A network of the same values that is quicker on processors; the same one where none is known.

    On GPUs nothing is gained: there the joined maps cost little.
    """
    decoder: Any = getattr(network, "decoder", None)
    known = type(network).__name__ in UNETS and type(decoder).__name__ == "UNetDecoder"
    if not known or getattr(decoder, "deep_supervision", True):
        return network
    steps = zip(decoder.transpconvs, decoder.stages, strict=True)
    if not any(is_worth_folding(up, _layers(stage)[0]) for up, stage in steps):
        return network
    return QuickUNet(network)


class QuickUNet(nn.Module):
    """(batch, channels, x, y, z) → logits (batch, classes, x, y, z), as the network that it holds.

    Its state is that of the network; loading other weights folds anew.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._steps = _folded_steps(network)

    def forward(self, image: Tensor) -> Tensor:
        network = cast(Any, self.network)
        *skips, x = network.encoder(image)
        for step, stage, skip in zip(self._steps, network.decoder.stages, reversed(skips), strict=True):
            x = step(x, skip)
            for layer in _layers(stage)[1:]:
                x = layer(x)
        logits: Tensor = network.decoder.seg_layers[-1](x)
        return logits

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.network.state_dict(*args, **options)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        found = self.network.load_state_dict(state, strict, assign)
        self._steps = _folded_steps(self.network)
        return found

    def _apply(self, function: Any, recurse: bool = True) -> QuickUNet:
        # Whatever moves or casts weights.
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]
        self._steps = _folded_steps(self.network)
        return self


class _Joined:
    """A step that is not worth folding."""

    def __init__(self, up: nn.Module, conv: nn.Module) -> None:
        self._up, self._conv = up, conv

    def __call__(self, coarse: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self._conv(torch.cat([self._up(coarse), skip], dim=1))
        return joined


def _folded_steps(network: nn.Module) -> list[FoldedUpsampling | _Joined]:
    """From coarse to fine, each up to the first convolution of its stage."""
    decoder = cast(Any, network.decoder)
    steps: list[FoldedUpsampling | _Joined] = []
    for up, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
        conv: Any = _layers(stage)[0]
        steps.append(FoldedUpsampling(up, conv) if is_worth_folding(up, conv) else _Joined(up, conv))
    return steps


def _layers(stage: Any) -> Sequence[nn.Module]:
    """A stage's layers one after the other: convolution, norm and rectifier, as often as it has them."""
    return [layer for block in stage.convs for layer in block.all_modules]
