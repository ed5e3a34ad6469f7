"""The image encoder: a residual 3D network that gives one feature map a stage, finest first."""

from __future__ import annotations

from torch import Tensor, nn

from textseg.network.blocks import ConvNormAct, ResidualBlock
from textseg.plan import NetworkPlan


class ImageEncoder(nn.Module):
    """(batch, channels, x, y, z) → a list of (batch, widths[i], x, y, z over its stride), finest first.

    As in nnU-Net's residual encoder the stem has the first stage's kernel, and the convolution that steps
    down to a stage has that stage's own.
    """

    def __init__(self, channels: int, plan: NetworkPlan) -> None:
        super().__init__()
        self.stem = ConvNormAct(channels, plan.widths[0], plan.norm, kernel=plan.stage_kernels[0])
        self.stages = nn.ModuleList()
        width_in = plan.widths[0]
        stages = zip(plan.widths, plan.strides, plan.stage_kernels, plan.blocks_per_stage, strict=True)
        for width, stride, kernel, blocks in stages:
            # A first stage without blocks is its stem alone, and has its width.
            first = [ResidualBlock(width_in, width, plan.norm, stride, kernel)] if blocks else []
            rest = [ResidualBlock(width, width, plan.norm, kernel=kernel) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*first, *rest))
            width_in = width

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
