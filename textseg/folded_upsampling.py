"""A U-Net's step from coarse to fine without the upsampled map: torch's values with a third less work.

A transposed convolution whose stride is its kernel, joined with a skip, then a convolution: all of it is
linear. So the convolution's skip half runs alone, and its upsampled half becomes one convolution of the
coarse map, which gives every fine voxel that lies in a coarse one at once. For a step by two along three axes
and 3 × 3 × 3 kernels a fine voxel costs 8 · coarse · out products in place of 27 · middle · out + coarse ·
middle, and neither the upsampled map nor the joined one is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]

CHANNELS_LAST = torch.channels_last_3d
# Where less of the work than this is saved, moving what comes out to its place costs as much.
LEAST_SAVED = 0.2


@dataclass(frozen=True)
class Axis:
    """How a convolution after upsampling looks at the coarse voxels along one axis.

    kernel, padding: of the folded convolution.
    taps: for each place that a fine voxel can have in its coarse one, what each tap of the convolution sees:
        (the folded convolution's tap, the tap, the place of the fine voxel that it sees).
    shifts: for each place, how far along the folded convolution's answer begins.
    """

    kernel: int
    padding: int
    taps: tuple[tuple[tuple[int, int, int], ...], ...]
    shifts: tuple[int, ...]


def axis_of(stride: int, kernel: int) -> Axis:
    """For a step by `stride` and a convolution of 1 or 3 voxels along an axis.

    Place p of coarse voxel i is fine voxel i · stride + p, whose tap k lies at k - kernel // 2 from there.
    """
    taps, shifts = [], []
    edge = kernel if stride == 1 else min(kernel, 2)
    for place in range(stride):
        seen = [(place + tap - kernel // 2, tap) for tap in range(kernel)]
        # Two coarse taps suffice: the voxel itself and the one before it, or for the last place behind it.
        shift = int(edge == 2 and seen[-1][0] >= stride)
        first = kernel // 2 - shift
        taps.append(tuple((fine // stride + first, tap, fine % stride) for fine, tap in seen))
        shifts.append(shift)
    return Axis(edge, kernel // 2, tuple(taps), tuple(shifts))


class FoldedUpsampling:
    """`conv(cat([up(coarse), skip]))` for modules that `is_worth_folding`, with their weights of now.

    Args:
        up: its kernel is its stride.
        conv: 1 or 3 voxels along each axis, size kept, over the upsampled channels and then the skip's.
    """

    def __init__(self, up: nn.ConvTranspose3d, conv: nn.Conv3d) -> None:
        weight = conv.weight.detach()
        self.stride, self.padding = cast(Shape, up.stride), cast(Shape, conv.padding)
        self.axes = _axes(up, conv)
        self.upsampled = weight[:, : up.out_channels]
        self.skip = weight[:, up.out_channels :].contiguous(memory_format=CHANNELS_LAST)
        self.folded = _folded(up.weight.detach(), self.upsampled, self.axes)
        self.up_bias = up.weight.new_zeros(up.out_channels) if up.bias is None else up.bias.detach()
        # What the upsampled map's bias gives where no border is near.
        self.within = self.upsampled.sum(dim=(2, 3, 4)) @ self.up_bias
        self.bias = self.within if conv.bias is None else conv.bias.detach() + self.within

    def __call__(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """coarse (batch, channels, x, y, z), skip (batch, channels, the same sizes times the stride)."""
        out = torch.conv3d(skip, self.skip, self.bias, 1, self.padding)
        out = out.contiguous(memory_format=CHANNELS_LAST)
        apart = torch.conv3d(coarse, self.folded, None, 1, [axis.padding for axis in self.axes])
        self._add_in_place(out, apart, coarse.shape[2:])
        if self.up_bias.any():
            _add_near_borders(out, self._bias_near_borders(out.shape[2:]))
        return out

    def _add_in_place(self, out: Tensor, apart: Tensor, coarse: torch.Size) -> None:
        """What each place in a coarse voxel gets, (batch, places · channels, x, y, z), to where it lies."""
        batch, channels = out.shape[:2]
        apart = apart.permute(0, 2, 3, 4, 1)
        apart = apart.reshape(*apart.shape[:4], *self.stride, channels)
        sizes = [n for pair in zip(coarse, self.stride, strict=True) for n in pair]
        fine = out.permute(0, 2, 3, 4, 1).view(batch, *sizes, channels)
        for x, y, z in product(*(range(step) for step in self.stride)):
            here = apart[..., x, y, z, :]
            for axis, place in enumerate((x, y, z)):
                here = here.narrow(axis + 1, self.axes[axis].shifts[place], coarse[axis])
            fine[:, :, x, :, y, :, z] += here

    def _bias_near_borders(self, fine: torch.Size) -> Tensor:
        """By how much less the upsampled map's bias gives near borders, beyond which there are zeros.

        (1, channels, 3, 3, 3): along each axis for the first voxel, for all within, and for the last one; of
        shorter axes for each voxel.
        """
        shape = [min(n, 3) for n in fine]
        constant = self.up_bias[None, :, None, None, None].expand(1, -1, *shape)
        here = torch.conv3d(constant, self.upsampled, None, 1, self.padding)
        return here - self.within[:, None, None, None]


def is_worth_folding(up: nn.Module, conv: nn.Module) -> bool:
    """Whether an upsampling and the convolution over it and a skip can be folded, and less is computed."""
    if not (isinstance(up, nn.ConvTranspose3d) and isinstance(conv, nn.Conv3d)):
        return False
    plain = (
        up.kernel_size == up.stride
        and up.groups == conv.groups == 1
        and up.padding == up.output_padding == (0, 0, 0)
        and up.dilation == conv.dilation == conv.stride == (1, 1, 1)
        and all(kernel in (1, 3) for kernel in conv.kernel_size)
        and conv.padding == tuple(kernel // 2 for kernel in conv.kernel_size)
        and conv.padding_mode == "zeros"
        and conv.in_channels > up.out_channels
    )
    if not plain:
        return False
    folded = prod(axis.kernel for axis in _axes(up, conv)) * up.in_channels * conv.out_channels
    apart = (prod(conv.kernel_size) * conv.out_channels + up.in_channels) * up.out_channels
    return folded <= (1 - LEAST_SAVED) * apart


def _axes(up: nn.ConvTranspose3d, conv: nn.Conv3d) -> list[Axis]:
    return [axis_of(*pair) for pair in zip(up.stride, conv.kernel_size, strict=True)]


def _folded(up: Tensor, conv: Tensor, axes: Sequence[Axis]) -> Tensor:
    """up (coarse, middle, stride), conv (out, middle, kernel) → (places · out, coarse, folded kernel)."""
    places = up.shape[2:]
    given = up.dtype
    # In float64, so that folding rounds no more than once.
    up, conv = up.double(), conv.double()
    folded = up.new_zeros(*places, len(conv), len(up), *(axis.kernel for axis in axes))
    for x, y, z in product(*(range(n) for n in places)):
        kernel = folded[x, y, z]
        for along in product(axes[0].taps[x], axes[1].taps[y], axes[2].taps[z]):
            (a, i, p), (b, j, q), (c, k, r) = along
            kernel[..., a, b, c] += conv[:, :, i, j, k] @ up[:, :, p, q, r].T
    return folded.flatten(0, 3).to(given).contiguous(memory_format=CHANNELS_LAST)


def _add_near_borders(out: Tensor, borders: Tensor) -> None:
    """Add maps of up to three voxels along each axis; the middle one is for all within, and adds nothing."""
    for axis in range(2, 5):
        last, own_last = out.shape[axis] - 1, borders.shape[axis] - 1
        for at, own in {0: 0, last: own_last}.items():
            out.narrow(axis, at, 1).add_(_stretched(borders.narrow(axis, own, 1), out.shape))
        if own_last < 2:
            return
        # The other axes' borders where this one has none.
        out, borders = out.narrow(axis, 1, last - 1), borders.narrow(axis, 1, 1)


def _stretched(borders: Tensor, shape: torch.Size) -> Tensor:
    for axis in range(2, 5):
        if borders.shape[axis] == 3:
            times = torch.tensor([1, shape[axis] - 2, 1], device=borders.device)
            borders = borders.repeat_interleave(times, dim=axis)
    return borders
