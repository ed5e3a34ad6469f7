"""From features to masks: a trunk that no prompt touches, and a thin part that each prompt pays for.

The trunk is a U-Net decoder that runs once per image. At every scale a prompt's query gives a dynamic
1 × 1 × 1 kernel over the trunk's features (after Tian et al. 2020, CondInst). Its first map is added to the
logits of the coarser scale, as in a Laplacian pyramid (Ghiasi and Fowlkes 2016): all scales together have
enough channels to tell hundreds of structures apart, where the finest one alone has too few. Its further maps
are joined with the coarser scale and with spatial prompts by one small 3D convolution. So the hundredth
prompt, or a click, costs a few per cent of the first look. All convolutions at a scale have the kernel of its
stage, as in nnU-Net's decoders. The finest scale, which has most of the voxels, may do without convolutions
of a prompt's own: it then refines the logits of the scale below by one dynamic map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from textseg.folded_upsampling import FoldedUpsampling, is_worth_folding
from textseg.network.blocks import ConvNormAct, ResidualBlock, make_conv
from textseg.network.text_fusion import Query
from textseg.plan import NetworkPlan, Triple
from textseg.quick_layers import can_be_quick


class DecoderTrunk(nn.Module):
    """Encoder features, finest first → trunk features of the same sizes and widths, finest first.

    Those of the `skipped` finest scales are left out.

    One convolution joins a scale with the coarser one. The plan's blocks after it let what the coarser scale
    knows decide what a brightness means: in MR white matter is the brighter tissue here and the darker there.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.ups = nn.ModuleList()
        self.merges = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for stage in range(len(plan.widths) - 1):
            width, coarser, stride = plan.widths[stage], plan.widths[stage + 1], plan.strides[stage + 1]
            self.ups.append(nn.ConvTranspose3d(coarser, width, stride, stride=stride))
            kernel = plan.stage_kernels[stage]
            self.merges.append(ConvNormAct(2 * width, width, plan.norm, kernel=kernel))
            count = plan.trunk_blocks[stage] if plan.trunk_blocks else 0
            blocks = [ResidualBlock(width, width, plan.norm, kernel=kernel) for _ in range(count)]
            for block in blocks:
                # It begins as what it is given, so that a trained trunk may get blocks.
                nn.init.zeros_(block.norm.weight)  # type: ignore[arg-type]
            self.blocks.append(nn.Sequential(*blocks))
        self._folded: list[FoldedUpsampling | None] = [None] * len(self.ups)

    def fold(self) -> None:
        """Fold upsamplings into the convolutions after them where that is less work, as weights are now."""
        pairs = zip(self.ups, self.merges, strict=True)
        self._folded = [
            FoldedUpsampling(up, merge.conv) if is_worth_folding(up, merge.conv) else None
            for up, merge in cast(Iterator[tuple[nn.ConvTranspose3d, ConvNormAct]], pairs)
        ]

    def forward(self, features: list[Tensor], skipped: int = 0) -> list[Tensor]:
        x = features[-1]
        trunk = [x]
        for stage in reversed(range(skipped, len(self.ups))):
            folded, merge = self._folded[stage], cast(ConvNormAct, self.merges[stage])
            if folded is not None and can_be_quick(x):
                x = merge.finish(folded(x, features[stage]))
            else:
                x = merge(torch.cat([self.ups[stage](x), features[stage]], dim=1))
            x = self.blocks[stage](x)
            trunk.insert(0, x)
        return trunk


class PromptScale(nn.Module):
    """One scale of a prompt's part: dynamic maps, coarser scale, spatial prompts → hidden maps and logits.

    The logits of the coarser scale, upsampled, plus the first dynamic map are what the words alone say of
    this scale; the hidden maps, which know the neighbourhood and the marks, correct it.
    """

    def __init__(self, plan: NetworkPlan, stage: int) -> None:
        super().__init__()
        coarsest = stage == len(plan.widths) - 1
        maps, hidden, width = plan.dynamic_maps, plan.prompt_channels[stage], plan.widths[stage]
        mixing = plan.stage_kernels[stage]
        self.maps = maps
        self.kernel = DynamicKernel(plan, width, maps, RARE if coarsest else 0.0)
        # Fewer channels before the upsampling, not after it: at the finest scale memory is what costs.
        self.reduce = None if coarsest else nn.Conv3d(plan.prompt_channels[stage + 1], hidden, 1)
        self.join = make_conv(maps if coarsest else maps + hidden, hidden, mixing, bias=True)
        self.spatial = make_conv(plan.spatial_channels, hidden, mixing, bias=False)
        self.correction = nn.Conv3d(hidden, 1, 1)
        # Without training on spatial prompts they have no effect, rather than a random one; and what the
        # words say stands until there is something to correct.
        for weight in (self.spatial.weight, self.correction.weight, self.correction.bias):
            nn.init.zeros_(weight)  # type: ignore[arg-type]

    def forward(
        self,
        trunk: Tensor,
        queries: Query,
        coarser: Tensor | None,
        coarser_logits: Tensor | None,
        spatial: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One scale, after the one below it.

        Args:
            trunk: (batch, width, x, y, z).
            coarser: (batch · prompts, hidden channels of the coarser scale, at its size).
            coarser_logits: (batch, prompts, at the coarser scale's size).
            spatial: (batch · prompts, its channels, x, y, z).

        Returns:
            hidden maps (batch · prompts, hidden, x, y, z) and logits (batch, prompts, x, y, z).
        """
        batch, prompts = queries.seen.shape[:2]
        maps = self.kernel(trunk, queries, self.maps)
        said = finer(coarser_logits, maps[:, :, 0])
        parts = [said[:, :, None], maps[:, :, 1:]]
        joined = [part.flatten(0, 1) for part in parts]
        if self.reduce is not None and coarser is not None:
            joined.append(upsampled(self.reduce(coarser), trunk.shape[2:]))
        mixed = self.join(torch.cat(joined, dim=1))
        if spatial is not None:
            mixed = mixed + self.spatial(spatial)
        hidden = nn.functional.leaky_relu(mixed, 0.01)
        return hidden, said + self.correction(hidden).reshape(batch, prompts, *trunk.shape[2:])

    def direct(self, trunk: Tensor, queries: Query) -> Tensor:
        """(batch, prompts, x, y, z): the first dynamic map alone, before any convolution."""
        maps: Tensor = self.kernel(trunk, queries, 1)
        return maps[:, :, 0]


class RefiningScale(nn.Module):
    """A finest scale without convolutions of a prompt's own: the coarser logits, refined by one dynamic map.

    What the coarser scale's hidden maps still know, and the spatial prompts just where they were drawn, are
    added. So a prompt costs one weighted sum of the trunk's channels a voxel.
    """

    def __init__(self, plan: NetworkPlan, stage: int) -> None:
        super().__init__()
        self.kernel = DynamicKernel(plan, plan.widths[stage], 1)
        self.reduce = nn.Conv3d(plan.prompt_channels[stage + 1], 1, 1)
        self.spatial = nn.Conv3d(plan.spatial_channels, 1, 1, bias=False)
        # At first there is nothing to add: the coarser scale's logits are what this one begins with.
        for module in (self.reduce, self.spatial):
            nn.init.zeros_(module.weight)
        nn.init.zeros_(self.reduce.bias)  # type: ignore[arg-type]

    def forward(
        self, trunk: Tensor, queries: Query, coarser: Tensor, coarser_logits: Tensor, spatial: Tensor | None
    ) -> Tensor:
        """Logits (batch, prompts, x, y, z); the arguments are those of `PromptScale`."""
        batch, prompts = queries.seen.shape[:2]
        known = coarser_logits + self.reduce(coarser).reshape(coarser_logits.shape)
        logits = finer(known, self.direct(trunk, queries))
        if spatial is not None:
            logits = logits + self.spatial(spatial).reshape(batch, prompts, *trunk.shape[2:])
        return logits

    def direct(self, trunk: Tensor, queries: Query) -> Tensor:
        """(batch, prompts, x, y, z): the dynamic map alone."""
        maps: Tensor = self.kernel(trunk, queries, 1)
        return maps[:, :, 0]


# The logit of a structure before anything is learnt: a rare one starts as improbable, and the first steps are
# not spent on unlearning a half-full mask.
RARE = -2.0


class DynamicKernel(nn.Module):
    """Maps of the trunk's features whose weights come from a prompt: from its words and what its query saw.

    Words come at length one and queries at that size, too, not with entries of unit size. Adam moves each
    weight by the learning rate whatever the gradient, so a kernel moves by that times the sum of its input's
    entries: with entries of unit size its logits jumped by several a step, and queries of 200 structures had
    a mean cosine of 0.81 after 6,500 steps.
    """

    def __init__(self, plan: NetworkPlan, width: int, maps: int, logit: float = 0.0) -> None:
        super().__init__()
        rows = maps * (width + 1)
        self.by_words = nn.Linear(plan.text_width, rows)
        self.by_sight = nn.Linear(plan.query_width, rows, bias=False)
        self.sight_size = plan.query_width**-0.5
        # The kernel is a product of two random vectors: keep its maps at about unit size.
        nn.init.normal_(self.by_words.weight, std=width**-0.5)
        nn.init.zeros_(self.by_words.bias)
        nn.init.zeros_(self.by_sight.weight)
        with torch.no_grad():
            self.by_words.bias[width] = logit

    def forward(self, trunk: Tensor, queries: Query, count: int) -> Tensor:
        """The first `count` maps of each prompt: (batch, prompts, count, x, y, z).

        Args:
            trunk: (batch, width, x, y, z).
        """
        rows = count * (trunk.shape[1] + 1)
        weights = self.weights(queries)[..., :rows]
        weights = weights.reshape(*weights.shape[:2], count, -1)
        weight, bias = weights[..., :-1].flatten(1, 2), weights[..., -1].flatten(1, 2)
        # Channels lie last: so the voxels are a matrix without a copy.
        voxels = trunk.permute(0, 2, 3, 4, 1).flatten(1, 3).transpose(1, 2)
        maps = torch.baddbmm(bias[..., None], weight, voxels)
        return maps.reshape(*weights.shape[:2], count, *trunk.shape[2:])

    def weights(self, queries: Query) -> Tensor:
        """(batch, prompts, maps · (width + 1)): map by map one weight a channel, then a bias."""
        weights: Tensor = self.by_words(queries.words) + self.by_sight(queries.seen * self.sight_size)
        return weights


class PromptDecoder(nn.Module):
    """Trunk features and queries → one logit map a prompt and scale, finest first."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.strides: tuple[Triple, ...] = plan.strides
        self.scales = nn.ModuleList(
            PromptScale(plan, stage) if channels else RefiningScale(plan, stage)
            for stage, channels in enumerate(plan.prompt_channels)
        )

    def forward(
        self, trunk: Sequence[Tensor], queries: Query, spatial: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """Logits (batch, prompts, x, y, z) at every scale of the trunk, finest first.

        Args:
            spatial: at every scale (batch, prompts, its channels, x, y, z).
        """
        hidden: Tensor | None = None
        logits: list[Tensor] = []
        for stage, features in self._scales_of(trunk):
            marks = None if spatial is None else spatial[stage].flatten(0, 1)
            scale = self.scales[stage]
            if isinstance(scale, RefiningScale):
                assert hidden is not None  # the plan has coarser scales
                logit = scale(features, queries, hidden, logits[0], marks)
            else:
                coarser = logits[0] if logits else None
                hidden, logit = scale(features, queries, hidden, coarser, marks)
            logits.insert(0, logit)
        return logits

    def share(self, trunk: Sequence[Tensor], queries: Query, count: int) -> list[Tensor]:
        """Logits (batch, prompts, x, y, z) at the network's `count` finest scales, finest first.

        Scales that the trunk left out are missing there, too.

        Just what the words say, without the corrections of the prompt's own convolutions: cheap for many
        prompts.
        """
        logits: list[Tensor] = []
        for stage, features in self._scales_of(trunk):
            said = self.scales[stage].direct(features, queries)  # type: ignore[operator]
            logits.insert(0, finer(logits[0] if logits else None, said))
        return logits[: count - (len(self.scales) - len(trunk))]

    def _scales_of(self, trunk: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The trunk's scales, coarsest first: each one's number among the network's, and its features."""
        return zip(reversed(range(len(self.scales))), reversed(trunk), strict=False)


def finer(coarser: Tensor | None, added: Tensor) -> Tensor:
    """Logits of a coarser scale, upsampled, plus what this one adds, (batch, prompts, x, y, z) each."""
    return added if coarser is None else added + upsampled(coarser, added.shape[2:])


def upsampled(x: Tensor, shape: torch.Size) -> Tensor:
    """Maps (batch, channels, x, y, z) at a finer scale's size."""
    return nn.functional.interpolate(x, size=shape, mode="trilinear", align_corners=False)
