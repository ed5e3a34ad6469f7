"""The optimiser whose steps are orthogonal matrices: fewer steps to the same loss than AdamW takes.

Muon (Jordan et al. 2024): the momentum of a weight matrix, or of a convolution's kernel as a matrix of one
row a channel, is replaced by the nearest matrix with orthogonal rows, so that a step moves all directions of
it alike and not mostly the few that dominate a gradient. Its size is that of AdamW's steps (Liu et al. 2025,
arXiv 2502.16982), so both take the same learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from textseg.network.mask_decoder import DynamicKernel

MOMENTUM = 0.95
# Jordan's quintic: five rounds bring singular values from 0.01 to 1 near 1, between 0.7 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# AdamW's steps have entries of about this size, in units of the learning rate.
ENTRY = 0.2
# Fewer rows than this are a head's outputs, not a map between features.
FEWEST_ROWS = 8


class Muon(torch.optim.AdamW):
    """Groups with `orthogonal` set take Muon's steps, the others AdamW's, at the same learning rate."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__([{"orthogonal": False, **group} for group in groups], lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; gradients are used up."""
        if closure is not None:
            raise ValueError("Muon takes no closure: call backward, then step.")
        for group in self.param_groups:
            if group["orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._turn(parameter, group)
                        parameter.grad = None  # AdamW has nothing more to do for it
        super().step()

    def _turn(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient: Tensor = parameter.grad  # type: ignore[assignment]
        state = self.state[parameter]
        if not state:
            # AdamW wants a step in every state that it loads.
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)
        moved = orthogonal(ahead.flatten(1)).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(moved, alpha=-group["lr"] * ENTRY * math.sqrt(max(ahead.flatten(1).shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (rows, columns) with its singular values near 1, by Newton–Schulz.

    All rounds but the last product happen on the small square matrix of the rows' products: the polynomial of
    a matrix is that of its square times the matrix, so a wide one is multiplied twice and not ten times.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-7)
    square = wide @ wide.T
    turned = one = torch.eye(len(square), dtype=square.dtype, device=square.device)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        polynomial = a * one + b * square + c * (square @ square)
        turned = polynomial @ turned
        square = polynomial @ square @ polynomial
    done: Tensor = turned @ wide
    return done if matrix.shape[0] <= matrix.shape[1] else done.T


def split(groups: list[dict[str, Any]], network: nn.Module) -> list[dict[str, Any]]:
    """Groups of a network's parameters, each with what Muon turns in a group of its own."""
    ours = {id(parameter) for parameter in turned(network)}
    parted = []
    for group in groups:
        for orthogonal_ones in (False, True):
            those = [p for p in group["params"] if (id(p) in ours) == orthogonal_ones]
            parted.append({**group, "params": those, "orthogonal": orthogonal_ones})
    return parted


def turned(network: nn.Module) -> Iterator[nn.Parameter]:
    """What of a network Muon turns: the convolutions and linear layers between features.

    The first convolution, the dynamic kernels, which are heads of hundreds of structures, and heads of a few
    outputs stay with AdamW.
    """
    heads = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, DynamicKernel)
        for parameter in module.parameters()
    }
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            small = parameter.ndim < 2 or len(parameter) < FEWEST_ROWS or parameter[0].numel() < FEWEST_ROWS
            first = isinstance(module, nn.Conv3d) and module.in_channels < FEWEST_ROWS
            if not small and not first and id(parameter) not in heads:
                yield parameter
