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
        self.padding = cast(Shape, conv.padding)
        self.axes = _axes(up, conv)
        self.upsampled = weight[:, : up.out_channels]
        self.skip = weight[:, up.out_channels :].contiguous(memory_format=CHANNELS_LAST)
        # In float64, so that folding rounds no more than once.
        folded = fold(up.weight.detach().double(), self.upsampled.double(), self.axes)
        self.folded = folded.to(weight)
        self.up_bias = up.weight.new_zeros(up.out_channels) if up.bias is None else up.bias.detach()
        # What the upsampled map's bias gives where no border is near.
        self.within = self.upsampled.sum(dim=(2, 3, 4)) @ self.up_bias
        self.bias = self.within if conv.bias is None else conv.bias.detach() + self.within

    def __call__(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """coarse (batch, channels, x, y, z), skip (batch, channels, the same sizes times the stride)."""
        out = torch.conv3d(skip, self.skip, self.bias, 1, self.padding)
        out = out.contiguous(memory_format=CHANNELS_LAST)
        apart = torch.conv3d(coarse, self.folded, None, 1, [axis.padding for axis in self.axes])
        put_in_place(apart, self.axes, out, out)
        if self.up_bias.any():
            near = bias_map(self.up_bias, self.upsampled, out.shape[2:]) - self.within[:, None, None, None]
            add_near_borders(out, near)
        return out


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


def fold(up: Tensor, conv: Tensor, axes: Sequence[Axis]) -> Tensor:
    """up (coarse, middle, stride), conv (out, middle, kernel) → (places · out, coarse, folded kernel)."""
    # Each tap of the one with each tap of the other: (coarse, p, q, r, out, i, j, k).
    both = torch.tensordot(up.movedim(1, -1), conv.movedim(1, 0), dims=1)
    x, y, z = (_where_taps_go(axis).to(both) for axis in axes)
    both = torch.einsum("npqroijk,scrk->npqoijsc", both, z)
    both = torch.einsum("npqoijsc,tbqj->npoistcb", both, y)
    both = torch.einsum("npoistcb,uapi->utsonabc", both, x)
    return both.flatten(0, 3).contiguous(memory_format=CHANNELS_LAST)


def _where_taps_go(axis: Axis) -> Tensor:
    """(places, folded taps, stride, taps): 1 where a tap that sees a place belongs to a folded tap."""
    kernel = max(tap for seen in axis.taps for _, tap, _ in seen) + 1
    where = torch.zeros(len(axis.taps), axis.kernel, len(axis.taps), kernel)
    for place, seen in enumerate(axis.taps):
        for folded, tap, fine in seen:
            where[place, folded, fine, tap] = 1
    return where


def places(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """The places of a fine voxel in its coarse one, in the order of the folded convolution's channels."""
    return list(product(*(range(len(axis.taps)) for axis in axes)))


def shifted(apart: Tensor, axes: Sequence[Axis], place: Sequence[int]) -> Tensor:
    """Of what a folded convolution gives one place, (batch, channels, x, y, z), the coarse map's voxels."""
    for dim, (axis, at) in enumerate(zip(axes, place, strict=True), start=2):
        more = 2 * axis.padding - axis.kernel + 1
        apart = apart.narrow(dim, axis.shifts[at], apart.shape[dim] - more)
    return apart


def by_place(fine: Tensor, axes: Sequence[Axis]) -> Tensor:
    """A fine channels-last map seen as (x, stride, y, stride, z, stride) behind (batch, channels)."""
    stride = [len(axis.taps) for axis in axes]
    sizes = [n for size, step in zip(fine.shape[2:], stride, strict=True) for n in (size // step, step)]
    batch, channels = fine.shape[:2]
    return fine.permute(0, 2, 3, 4, 1).view(batch, *sizes, channels).movedim(-1, 1)


def put_in_place(apart: Tensor, axes: Sequence[Axis], skip: Tensor, out: Tensor) -> None:
    """Write the sum of a skip's part and of what the folded convolution gives each place.

    Args:
        apart: (batch, places · channels, x, y, z), up to one voxel longer than the coarse map.
        skip, out: (batch, channels, x, y, z) of the fine map, channels-last; they may be the same.
    """
    theirs, ours = by_place(skip, axes), by_place(out, axes)
    for (x, y, z), each in zip(places(axes), torch.split(apart, out.shape[1], dim=1), strict=True):
        here = shifted(each, axes, (x, y, z))
        torch.add(theirs[:, :, :, x, :, y, :, z], here, out=ours[:, :, :, x, :, y, :, z])


def bias_map(bias: Tensor, conv: Tensor, fine: Sequence[int]) -> Tensor:
    """What a convolution (out, middle, kernel) gives of a map that is one value a channel, beyond which is 0.

    (1, out, 3, 3, 3): along each axis for the first voxel, for all within, and for the last one; of shorter
    axes for each voxel.
    """
    shape = [min(n, 3) for n in fine]
    constant = bias[None, :, None, None, None].expand(1, -1, *shape)
    return torch.conv3d(constant, conv, None, 1, [n // 2 for n in conv.shape[2:]])


def add_near_borders(out: Tensor, borders: Tensor) -> None:
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
