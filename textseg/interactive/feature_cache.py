"""Encoded windows that stay in memory: the ones used last, as many as the budget holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from textseg.network.build import Features


class FeatureCache:
    """Features by window, in half precision; the longest unused go first.

    Args:
        budget_bytes: what all of them together may take; features larger than it are not kept at all.
        dtype: what they are kept as.
    """

    def __init__(self, budget_bytes: int, dtype: torch.dtype) -> None:
        self.budget_bytes = budget_bytes
        self.dtype = dtype
        self.used_bytes = 0
        self._kept: OrderedDict[Hashable, Features] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, encode: Callable[[], Features]) -> Features:
        """The features of a window, from memory or encoded now; the same values either way."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        features = self._halved(encode())
        size = _bytes(features)
        if size <= self.budget_bytes:
            self._kept[key] = features
            self.used_bytes += size
        while self.used_bytes > self.budget_bytes:
            self.used_bytes -= _bytes(self._kept.popitem(last=False)[1])
        return features

    def clear(self) -> None:
        self._kept.clear()
        self.used_bytes = 0

    def _halved(self, features: Features) -> Features:
        coarsest, *trunk = (tensor.to(self.dtype) for tensor in (features.coarsest, *features.trunk))
        # The coarsest of the trunk is the encoder's own last stage: kept once.
        if features.trunk and features.trunk[-1] is features.coarsest:
            trunk[-1] = coarsest
        return Features(coarsest, tuple(trunk))


def _bytes(features: Features) -> int:
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in (features.coarsest, *features.trunk)}
    return sum(tensor.nbytes for tensor in tensors.values())
