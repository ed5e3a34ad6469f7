"""The 3D building blocks that encoder and decoder share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from textseg.plan import Kernel, Triple

Norm = Literal["batch", "instance"]
CUBE: Kernel = (3, 3, 3)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """The plan's normalisation layer; for inference batch norm is folded into the convolution before it."""
    return nn.BatchNorm3d(channels) if kind == "batch" else nn.InstanceNorm3d(channels, affine=True)


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
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


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
        out: Tensor = self.act(self.norm(self.conv(self.first(x))) + self.shortcut(x))
        return out


def _shortcut(channels_in: int, channels_out: int, norm: Norm, stride: Triple) -> nn.Module:
    pool: list[nn.Module] = [] if stride == (1, 1, 1) else [nn.AvgPool3d(stride, stride)]
    if channels_in == channels_out:
        return nn.Sequential(*pool) if pool else nn.Identity()
    project = [nn.Conv3d(channels_in, channels_out, 1, bias=False), make_norm(norm, channels_out)]
    return nn.Sequential(*pool, *project)
