"""Upsampling folded into the convolution after it gives what the two give one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textseg.folded_upsampling import FoldedUpsampling, axis_of, is_worth_folding


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(4)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("coarse", [(3, 4, 5), (1, 2, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(
    ("stride", "kernel"),
    [
        ((2, 2, 2), (3, 3, 3)),
        ((1, 2, 2), (3, 3, 3)),
        ((2, 1, 2), (1, 3, 3)),
        ((1, 2, 1), (3, 1, 1)),
        ((3, 2, 4), (3, 3, 3)),
    ],
    ids=str,
)
def test_folded_is_what_the_two_layers_give(stride, kernel, coarse, bias):
    up = nn.ConvTranspose3d(6, 4, stride, stride, bias=bias)
    conv = nn.Conv3d(4 + 3, 5, kernel, padding=tuple(k // 2 for k in kernel), bias=bias)
    x = torch.randn(2, 6, *coarse)
    skip = torch.randn(2, 3, *(n * step for n, step in zip(coarse, stride, strict=True)))
    expected = conv(torch.cat([up(x), skip], dim=1))
    found = FoldedUpsampling(up, conv)(x, skip)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


def test_an_axis_in_two_says_what_each_voxel_sees():
    axis = axis_of(2, 3)
    # The first voxel in a coarse one sees the second of the one before it; the second the first of the next.
    assert axis.taps == (((0, 0, 1), (1, 1, 0), (1, 2, 1)), ((0, 0, 0), (0, 1, 1), (1, 2, 0)))
    assert (axis.kernel, axis.padding, axis.shifts) == (2, 1, (0, 1))


@pytest.mark.parametrize(
    ("up", "conv"),
    [
        (nn.ConvTranspose3d(6, 4, 3, 2), nn.Conv3d(7, 5, 3, padding=1)),
        (nn.ConvTranspose3d(6, 4, 2, 2, groups=2), nn.Conv3d(7, 5, 3, padding=1)),
        (nn.ConvTranspose3d(6, 4, 2, 2), nn.Conv3d(7, 5, 3)),
        (nn.ConvTranspose3d(6, 4, 2, 2), nn.Conv3d(7, 5, 5, padding=2)),
        (nn.ConvTranspose3d(6, 4, 2, 2), nn.Conv3d(7, 5, 3, padding=1, padding_mode="replicate")),
        (nn.ConvTranspose3d(6, 4, 2, 2), nn.Conv3d(7, 5, 3, padding=1, stride=2)),
        (nn.Upsample(scale_factor=2), nn.Conv3d(7, 5, 3, padding=1)),
        # 12 products of a coarse channel for 27 of one that is a third as wide.
        (nn.ConvTranspose3d(12, 4, (1, 2, 2), (1, 2, 2)), nn.Conv3d(7, 5, 3, padding=1)),
    ],
    ids=str,
)
def test_other_layers_and_more_work_are_not_worth_it(up, conv):
    assert not is_worth_folding(up, conv)
    assert is_worth_folding(nn.ConvTranspose3d(8, 4, 2, 2), nn.Conv3d(7, 5, 3, padding=1))
