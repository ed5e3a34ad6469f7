"""The 3D building blocks that encoder and decoder share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from textseg.plan import Kernel, Triple
from textseg.quick_layers import norm_and_rectify

Norm = Literal["batch", "instance"]
CUBE: Kernel = (3, 3, 3)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The plan's normalisation layer; for inference batch norm is folded into the convolution before it."""
    return nn.BatchNorm3d(channels) if kind == "batch" else InstanceNorm(channels, affine=True)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm (Ulyanov et al. 2016) that keeps a channels-last image as it lies on processors.

    torch's own turns it into planes and back and hands the convolution before it a gradient in planes, for
    which that is slower, too: training steps of the default network took 1.4 times as long with it on two
    cores of an AMD EPYC with AVX2.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_ours(x):
            return super().forward(x)
        normalised: Tensor = _NormaliseVoxels.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.eps
        )
        return normalised

    @staticmethod
    def _is_ours(x: Tensor) -> bool:
        """bfloat16 is left to torch, which adds up in float32; tracing is to find torch's own layer."""
        return (
            x.device.type in ("cpu", "meta")
            and x.dtype == torch.float32
            and x.shape[1] > 1
            and x.is_contiguous(memory_format=torch.channels_last_3d)
            and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        )


class _NormaliseVoxels(torch.autograd.Function):
    """Every channel of every sample of (batch, channels, x, y, z) to mean 0 and spread 1, then scaled.

    Images become voxels in here: outside, an activation in place would work on a view, and autograd copies
    the gradients of views several times.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        voxels = _voxels(image)
        mean = _sums(voxels) / voxels.shape[1]
        variance = (_dots(voxels, voxels) / voxels.shape[1] - mean.square()).clamp_min(0)
        rate = (variance + eps).rsqrt()
        ctx.save_for_backward(voxels, weight, mean, rate)
        scale = rate * weight
        normalised = torch.empty_like(image, memory_format=torch.channels_last_3d)
        torch.addcmul(bias - mean * scale, voxels, scale, out=_voxels(normalised))
        return normalised

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        voxels, weight, mean, rate = ctx.saved_tensors
        batch, channels, *size = gradients[0].shape
        count, gradient = voxels.shape[1], _voxels(gradients[0]).contiguous()
        of_bias = _sums(gradient)
        of_weight = (_dots(gradient, voxels) - mean * of_bias) * rate
        # d loss / d x = scale · (g - mean g - normalised x · mean (g · normalised x)), linear in g and in x.
        scale = rate * weight
        slope = -scale * rate * of_weight / count
        offset = -scale * of_bias / count - slope * mean
        of_voxels = torch.addcmul(offset, gradient, scale).addcmul_(voxels, slope)
        of_image = of_voxels.reshape(batch, *size, channels).permute(0, 4, 1, 2, 3)
        return of_image, of_weight.sum(dim=(0, 1)), of_bias.sum(dim=(0, 1)), None


def _voxels(image: Tensor) -> Tensor:
    """(batch, channels, x, y, z) → (batch, voxels, channels), without a copy where channels lie last."""
    return image.permute(0, 2, 3, 4, 1).flatten(1, 3)


def _sums(voxels: Tensor) -> Tensor:
    """(batch, voxels, channels) → (batch, 1, channels) over the voxels."""
    return voxels.sum(dim=1, keepdim=True)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a · b over the voxels, channel by channel: (batch, 1, channels)."""
    # The diagonal of a matrix product: it adds up in blocks, and needs no map of all the products.
    return torch.bmm(a.transpose(1, 2), b).diagonal(dim1=1, dim2=2)[:, None]


def make_conv(
    channels_in: int, channels_out: int, kernel: Kernel, stride: Triple = (1, 1, 1), *, bias: bool
) -> nn.Conv3d:
    """A convolution that keeps the size but for its stride; 1 along an axis does not mix along it."""
    x, y, z = (edge // 2 for edge in kernel)
    return nn.Conv3d(channels_in, channels_out, kernel, stride=stride, padding=(x, y, z), bias=bias)


class ConvNormAct(nn.Module):
    """Convolution, norm, leaky rectifier: (batch, channels, x, y, z) → the same over the stride."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        norm: Norm,
        stride: Triple = (1, 1, 1),
        kernel: Kernel = CUBE,
    ) -> None:
        super().__init__()
        self.conv = make_conv(channels_in, channels_out, kernel, stride, bias=False)
        self.norm = make_norm(norm, channels_out)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the convolution, of a map that nobody else needs."""
        return _normed_and_rectified(x, self.norm, self.act)


class ResidualBlock(nn.Module):
    """Two convolutions and a short cut (He et al. 2016), the basic block of nnU-Net's residual encoders."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        norm: Norm,
        stride: Triple = (1, 1, 1),
        kernel: Kernel = CUBE,
    ) -> None:
        super().__init__()
        self.first = ConvNormAct(channels_in, channels_out, norm, stride, kernel)
        self.conv = make_conv(channels_out, channels_out, kernel, bias=False)
        self.norm = make_norm(norm, channels_out)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.shortcut = _shortcut(channels_in, channels_out, norm, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv(self.first(x))
        return _normed_and_rectified(inner, self.norm, self.act, self.shortcut(x))


def _normed_and_rectified(
    x: Tensor, norm: nn.Module, act: nn.LeakyReLU, added: Tensor | None = None
) -> Tensor:
    """What a convolution gave, which nobody else needs, through its norm, a sum and the rectifier."""
    if isinstance(norm, nn.InstanceNorm3d):
        return norm_and_rectify(x, norm, act.negative_slope, added)
    normed = norm(x)
    out: Tensor = act(normed if added is None else normed + added)
    return out


def _shortcut(channels_in: int, channels_out: int, norm: Norm, stride: Triple) -> nn.Module:
    pool: list[nn.Module] = [] if stride == (1, 1, 1) else [nn.AvgPool3d(stride, stride)]
    if channels_in == channels_out:
        return nn.Sequential(*pool) if pool else nn.Identity()
    project = [nn.Conv3d(channels_in, channels_out, 1, bias=False), make_norm(norm, channels_out)]
    return nn.Sequential(*pool, *project)


def instance_normed(network: nn.Module) -> Iterator[nn.Conv3d]:
    """The convolutions whose output goes straight into an instance norm, so that their scale says nothing."""
    for module in network.modules():
        pairs: list[tuple[nn.Module, nn.Module]] = []
        if isinstance(module, (ConvNormAct, ResidualBlock)):
            pairs = [(module.conv, module.norm)]
        elif isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(module))
        for conv, norm in pairs:
            if isinstance(conv, nn.Conv3d) and conv.bias is None and isinstance(norm, nn.InstanceNorm3d):
                yield conv
