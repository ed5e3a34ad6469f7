"""The building blocks: sizes, short cuts, and norms that can be folded away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textseg.network.blocks import ConvNormAct, InstanceNorm, ResidualBlock, make_norm

STRIDES = [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1), (4, 2, 1)]


def divided(shape, stride):
    return tuple(n // step for n, step in zip(shape, stride, strict=True))


@pytest.mark.parametrize("stride", STRIDES, ids=str)
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("block", [ConvNormAct, ResidualBlock])
def test_a_block_divides_each_axis_by_its_stride(block, norm, stride):
    out = block(3, 5, norm, stride)(torch.randn(2, 3, 8, 12, 16))
    assert out.shape == (2, 5, *divided((8, 12, 16), stride))


@pytest.mark.parametrize("kernel", [(3, 3, 1), (1, 3, 3), (3, 1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("stride", STRIDES[:3], ids=str)
@pytest.mark.parametrize("block", [ConvNormAct, ResidualBlock])
def test_a_kernel_does_not_change_the_size(block, stride, kernel):
    out = block(3, 5, "instance", stride, kernel)(torch.randn(2, 3, 8, 12, 16))
    assert out.shape == (2, 5, *divided((8, 12, 16), stride))


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("block", [ConvNormAct, ResidualBlock])
def test_a_kernel_of_one_does_not_mix_along_its_axis(block, axis):
    flat = tuple(1 if one == axis else 3 for one in range(3))
    x = torch.randn(1, 2, 7, 8, 9)
    changed = x.clone()
    changed.select(2 + axis, 3).add_(1)
    layers = [block(2, 5, "batch", kernel=kernel).eval() for kernel in (flat, (3, 3, 3))]
    reached = [slices_that_differ(layer(changed), layer(x), axis) for layer in layers]
    assert reached[0] == [3]
    assert {2, 3, 4} <= set(reached[1])


def slices_that_differ(one, other, axis):
    difference = (one - other).abs().amax(dim=[dim for dim in range(5) if dim != 2 + axis])
    return torch.nonzero(difference).flatten().tolist()


@pytest.mark.parametrize("channels_out", [4, 6])
@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_without_its_convolutions_a_block_is_its_short_cut(stride, channels_out):
    block = ResidualBlock(4, channels_out, "batch", stride).eval()
    nn.init.zeros_(block.conv.weight)
    x = torch.randn(1, 4, 8, 12, 16)
    expected = nn.functional.avg_pool3d(x, stride, stride)
    if channels_out != 4:
        project = next(module for module in block.shortcut if isinstance(module, nn.Conv3d))
        expected = project(expected) / (1 + 1e-5) ** 0.5
    expected = nn.functional.leaky_relu(expected, 0.01)
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_a_short_cut_of_equal_size_is_the_very_input():
    assert isinstance(ResidualBlock(4, 4, "batch").shortcut, nn.Identity)


def test_the_plan_chooses_the_norm():
    assert isinstance(make_norm("batch", 4), nn.BatchNorm3d)
    norm = make_norm("instance", 4)
    assert isinstance(norm, nn.InstanceNorm3d)
    assert norm.affine


def test_an_instance_norm_does_not_see_the_other_images():
    block = ResidualBlock(2, 3, "instance")
    images = torch.randn(2, 2, 4, 6, 8)
    assert torch.allclose(block(images)[:1], block(images[:1]), atol=1e-6)


def test_the_input_is_left_as_it_is():
    x = torch.randn(1, 4, 4, 6, 8)
    before = x.clone()
    ResidualBlock(4, 4, "batch")(x)
    assert torch.equal(x, before)


# ---- our instance norm against torch's ----


def as_channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


def a_pair_of_norms(channels):
    ours, theirs = InstanceNorm(channels, affine=True), nn.InstanceNorm3d(channels, affine=True)
    nn.init.uniform_(ours.weight, 0.5, 2.0)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", [(2, 8, 13, 9, 7), (1, 3, 5, 1, 6), (3, 2, 1, 2, 1)], ids=str)
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_our_instance_norm_gives_what_torchs_gives(shape, mean):
    torch.manual_seed(1)
    ours, theirs = a_pair_of_norms(shape[1])
    x = as_channels_last(torch.randn(shape) * 3 + mean)
    assert torch.allclose(ours(x), theirs(x), atol=1e-4)


def test_our_instance_norm_learns_as_torchs_does():
    torch.manual_seed(1)
    ours, theirs = a_pair_of_norms(8)
    x = as_channels_last(torch.randn(2, 8, 13, 9, 7) * 3 + 5)
    wanted = torch.randn(x.shape)
    found = []
    for norm in (ours, theirs):
        image = x.clone().requires_grad_()
        # In place, as in a block: what the norm keeps for its gradient must be its input.
        nn.functional.leaky_relu_(norm(image), 0.01).backward(wanted)
        found.append((image.grad, norm.weight.grad, norm.bias.grad))
    for our_gradient, their_gradient in zip(*found, strict=True):
        assert torch.allclose(our_gradient, their_gradient, rtol=1e-3, atol=1e-3)


def test_channels_that_lie_last_stay_there():
    norm = InstanceNorm(4, affine=True)
    x = as_channels_last(torch.randn(2, 4, 5, 6, 7)).requires_grad_()
    out = norm(x)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    (gradient,) = torch.autograd.grad(out, x, torch.randn(2, 4, 5, 6, 7))
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_an_even_channel_becomes_its_bias():
    norm = InstanceNorm(3, affine=True)
    nn.init.normal_(norm.bias)
    out = norm(as_channels_last(torch.full((1, 3, 4, 5, 6), 7.0)))
    assert torch.allclose(out, norm.bias.reshape(1, 3, 1, 1, 1).expand_as(out), atol=1e-3)
