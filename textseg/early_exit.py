"""A prompt that a window's coarse logits deny is not decoded at the finer scales there.

Approximate: what would appear at the finer scales alone is missed. It saves the more, the more prompts are
asked, since most structures are in few windows, and nearly all of a prompt's work is at the finest scales.
"""

from __future__ import annotations

import copy
from typing import Protocol

from torch import Tensor, nn

from textseg.network.build import Decoded, Features, PromptableNetwork, TextPromptedNetwork
from textseg.plan import Triple

# The scale whose logits decide, 0 the finest: at a quarter of the resolution a prompt costs a hundredth.
SCALE = 2
# Nowhere above this, a probability of half a per cent, a prompt is given up.
BELOW = -5.0


class Glance(Protocol):
    """Logits (windows, prompts, x, y, z) at a coarse scale of encoded windows, and presence."""

    def __call__(self, features: Features, text: Tensor) -> Decoded: ...


class EarlyExit:
    """A network that gives up a prompt in windows where a glance gives no logit above a number.

    There the prompt's logits are the highest one of the glance, all over. `given_up` and `asked` count the
    pairs of window and prompt.

    Args:
        network: encodes, and decodes what is not given up.
        glance: see `CoarseScales`.
        below: the number.
    """

    def __init__(self, network: PromptableNetwork, glance: Glance, below: float = BELOW) -> None:
        self._network, self._glance, self._below = network, glance, below
        self.given_up = self.asked = 0

    @property
    def total_stride(self) -> Triple:
        return self._network.total_stride

    def encode(self, image: Tensor) -> Features:
        return self._network.encode(image)

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        """Logits at the finest scale alone. With spatial prompts, or without text, nothing is given up."""
        if text is None or spatial is not None:
            return self._network.decode(features, text, spatial)
        seen = self._glance(features, text)
        highest = seen.logits[0].amax(dim=(2, 3, 4))
        hopeful = (highest > self._below).any(dim=0)
        self.asked += highest.numel()
        self.given_up += len(highest) * int((~hopeful).sum())
        if hopeful.all():
            return self._network.decode(features, text)
        if not hopeful.any():
            everywhere = highest[..., None, None, None].expand(*highest.shape, *features.trunk[0].shape[2:])
            return Decoded((everywhere,), seen.presence)
        decoded = self._network.decode(features, text[..., hopeful, :])
        finest = decoded.logits[0]
        logits = finest.new_empty((*highest.shape, *finest.shape[2:]))
        logits[:, hopeful] = finest
        logits[:, ~hopeful] = highest[:, ~hopeful, None, None, None].to(finest)
        return Decoded((logits,), seen.presence)


class CoarseScales:
    """Our own network's decoder without its finer scales.

    Args:
        network: whose weights they are.
        scale: the finest scale that is decoded, at most the coarsest of the network.
    """

    def __init__(self, network: TextPromptedNetwork, scale: int = SCALE) -> None:
        self._network = network
        self._scale = min(scale, len(network.decoder.scales) - 1)
        decoder = copy.copy(network.decoder)
        # Of its own, so that the network keeps all of its scales; their weights are the same ones.
        decoder._modules = dict(decoder._modules)
        decoder.scales = nn.ModuleList(list(decoder.scales)[self._scale :])
        self._decoder = decoder

    def __call__(self, features: Features, text: Tensor) -> Decoded:
        """text (prompts, text width), or one for each window."""
        windows = len(features.coarsest)
        queries, presence = self._network.fusion(
            text.expand(windows, -1, -1) if text.ndim == 2 else text, features.coarsest
        )
        logits = self._decoder(features.trunk[self._scale :], queries, None)
        return Decoded(tuple(logits), presence)


def with_early_exit(network: PromptableNetwork, own: TextPromptedNetwork, below: float = BELOW) -> EarlyExit:
    """A network that gives prompts up early by the coarse scales of its own decoder.

    Args:
        network: `own` as it is, or what runs its encoder in another way.
    """
    return EarlyExit(network, CoarseScales(own), below)
