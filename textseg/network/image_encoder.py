"""The image encoder: a residual 3D network that gives one feature map a stage, finest first."""

from __future__ import annotations

from torch import Tensor, nn

from textseg.network.blocks import ConvNormAct, ResidualBlock
from textseg.plan import NetworkPlan


class ImageEncoder(nn.Module):
    """(batch, channels, x, y, z) → a list of (batch, widths[i], x, y, z over its stride), finest first."""

    def __init__(self, channels: int, plan: NetworkPlan) -> None:
        super().__init__()
        self.stem = ConvNormAct(channels, plan.widths[0], plan.norm)
        self.stages = nn.ModuleList()
        width_in = plan.widths[0]
        for width, stride, blocks in zip(plan.widths, plan.strides, plan.blocks_per_stage, strict=True):
            first = ResidualBlock(width_in, width, plan.norm, stride)
            rest = [ResidualBlock(width, width, plan.norm) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            width_in = width

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
