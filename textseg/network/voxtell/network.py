"""VoxTell's network; names of modules are the names of tensors in its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.errors import ModelError, PromptError
from textseg.network.build import Decoded, Features
from textseg.network.voxtell.plan import ArchitecturePlan, VoxTellPlan, stride_to
from textseg.plan import Triple
from textseg.quick_layers import norm_and_rectify

# The only size that neither the plan nor a tensor tells.
ATTENTION_HEADS = 8


class ConvNorm(nn.Module):
    """Convolution and instance norm: (batch, channels, z, y, x) → the same over the stride."""

    def __init__(
        self,
        plan: ArchitecturePlan,
        channels_in: int,
        channels_out: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride, _half(kernel), bias=bias)
        norm = plan.norm_op_kwargs
        self.norm = nn.InstanceNorm3d(channels_out, eps=norm.eps, affine=norm.affine)

    def forward(self, x: Tensor, slope: float | None = None, added: Tensor | None = None) -> Tensor:
        """What is to be added comes after the norm, and the leaky rectifier last, where a slope is given."""
        return norm_and_rectify(self.conv(x), self.norm, slope, added)


class ResidualBlock(nn.Module):
    """Two convolutions and a short cut, which is pooled over the stride and projected where widths differ."""

    def __init__(
        self, plan: ArchitecturePlan, channels_in: int, channels_out: int, kernel: Triple, stride: Triple
    ) -> None:
        super().__init__()
        self.slope = plan.nonlin_kwargs.negative_slope
        bias = plan.conv_bias
        self.conv1 = ConvNorm(plan, channels_in, channels_out, kernel, stride, bias=bias)
        self.conv2 = ConvNorm(plan, channels_out, channels_out, kernel, bias=bias)
        skip: list[nn.Module] = [nn.AvgPool3d(stride, stride)] if stride != (1, 1, 1) else []
        if channels_in != channels_out:
            skip.append(ConvNorm(plan, channels_in, channels_out, (1, 1, 1), bias=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x, self.slope), self.slope, self.skip(x))
        return out


class Stem(nn.Module):
    def __init__(self, plan: ArchitecturePlan) -> None:
        super().__init__()
        self.slope = plan.nonlin_kwargs.negative_slope
        width, kernel = plan.features_per_stage[0], plan.kernel_sizes[0]
        self.convs = nn.ModuleList([ConvNorm(plan, 1, width, kernel, bias=plan.conv_bias)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs[0](x, self.slope)
        return out


class EncoderStage(nn.Module):
    def __init__(self, plan: ArchitecturePlan, stage: int) -> None:
        super().__init__()
        width, kernel = plan.features_per_stage[stage], plan.kernel_sizes[stage]
        width_in = plan.features_per_stage[max(stage - 1, 0)]
        blocks = [ResidualBlock(plan, width_in, width, kernel, plan.strides[stage])]
        for _ in range(plan.n_blocks_per_stage[stage] - 1):
            blocks.append(ResidualBlock(plan, width, width, kernel, (1, 1, 1)))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class ResidualEncoder(nn.Module):
    """(batch, 1, z, y, x) → one feature map a stage, finest first."""

    def __init__(self, plan: ArchitecturePlan) -> None:
        super().__init__()
        self.stem = Stem(plan)
        self.stages = nn.ModuleList(EncoderStage(plan, k) for k in range(len(plan.features_per_stage)))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class CrossAttention(nn.Module):
    """Queries look at image tokens with several heads; tokens themselves are never projected.

    score = (Wq q + bq) · (Wk k + bk) = (Wkᵀ (Wq q + bq)) · k + a constant that softmax ignores, and
    Σ a (Wv v + bv) = Wv (Σ a v) + bv. With 8 heads that saves work up to some 250 prompts a call.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (batch, prompts, width), keys and values (batch, tokens, width) → like the queries."""
        to_query, to_key, to_value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        batch, prompts, width = queries.shape
        per_head = (ATTENTION_HEADS, width // ATTENTION_HEADS)
        query = F.linear(queries, to_query, query_bias).reshape(batch, prompts, *per_head)
        query = query * per_head[1] ** -0.5
        query = torch.einsum("bphd,hdw->bphw", query, to_key.reshape(*per_head, width))
        attention = torch.einsum("bphw,btw->bpht", query, keys).softmax(dim=-1)
        seen = torch.einsum("bpht,btw->bphw", attention, values)
        seen = torch.einsum("bphw,hdw->bphd", seen, to_value.reshape(*per_head, width))
        out: Tensor = self.out_proj(seen.flatten(2) + value_bias)
        return out


class PromptLayer(nn.Module):
    """Cross-attention and a small network, each after a norm and added; prompts don't see one another."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width)
        self.multihead_attn = CrossAttention(width)
        self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = queries + self.multihead_attn(self.norm2(queries), keys, values)
        out: Tensor = queries + self.linear2(F.relu(self.linear1(self.norm3(queries))))
        return out


class PromptTransformer(nn.Module):
    def __init__(self, width: int, hidden_widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PromptLayer(width, hidden) for hidden in hidden_widths)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        for layer in self.layers:
            queries = layer(queries, keys, values)
        out: Tensor = self.norm(queries)
        return out


class DecoderStage(nn.Module):
    """Convolutions over [upsampled, skip], where the skip's part of the first is computed apart."""

    def __init__(self, plan: ArchitecturePlan, stage: int, convolutions: int) -> None:
        super().__init__()
        self.slope = plan.nonlin_kwargs.negative_slope
        self.width = plan.features_per_stage[stage]
        widths_in = [2 * self.width] + [self.width] * (convolutions - 1)
        kernel, bias = plan.kernel_sizes[stage], plan.conv_bias
        self.padding = _half(kernel)
        self.convs = nn.ModuleList(ConvNorm(plan, n, self.width, kernel, bias=bias) for n in widths_in)

    def skip_part(self, skip: Tensor) -> Tensor:
        """What the skip adds to the first convolution, with its bias: the same for every prompt."""
        conv = self._first.conv
        return F.conv3d(skip, conv.weight[:, self.width :], conv.bias, padding=self.padding)

    def forward(self, upsampled: Tensor, skip_part: Tensor) -> Tensor:
        conv, norm = self._first.conv, self._first.norm
        x = F.conv3d(upsampled, conv.weight[:, : self.width], padding=self.padding)
        x = norm_and_rectify(x.add_(skip_part), norm, self.slope)
        for block in list(self.convs)[1:]:
            x = block(x, self.slope)
        return x

    @property
    def _first(self) -> ConvNorm:
        return cast(ConvNorm, self.convs[0])


class MaskDecoder(nn.Module):
    """Image features and a prompt's kernels → logits at every scale.

    VoxTell multiplies the features of every scale with a prompt's vectors, `heads[k]` of them for stage k. At
    the finest that is the mask. At the others the products are channels joined to the features, and all that
    follows them is linear: a transposed convolution and the layer for deep supervision. So the vectors go
    into the kernels of these two, and the products are never made.
    """

    def __init__(self, plan: ArchitecturePlan, heads: Sequence[int]) -> None:
        super().__init__()
        widths = plan.features_per_stage
        self.heads = tuple(heads)
        self.widths = widths[:-1]
        self.stages = nn.ModuleList()
        self.transpconvs = nn.ModuleList()
        self.seg_layers = nn.ModuleList()
        coarsest = len(widths) - 2
        for stage in range(coarsest, -1, -1):
            stride = plan.strides[stage + 1]
            width_in = widths[stage + 1] + (heads[stage + 1] if stage < coarsest else 0)
            self.transpconvs.append(
                nn.ConvTranspose3d(width_in, widths[stage], stride, stride, bias=plan.conv_bias)
            )
            convolutions = plan.n_conv_per_stage_decoder[coarsest - stage]
            self.stages.append(DecoderStage(plan, stage, convolutions))
            if stage > 0:
                self.seg_layers.append(nn.Conv3d(widths[stage] + heads[stage], 1, 1))

    def without_prompt(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Encoder features, finest first → skip parts of the decoder's stages, then its coarsest stage."""
        *skips, coarsest = features
        # The decoder's stages run the other way.
        stages = [cast(DecoderStage, stage) for stage in reversed(self.stages)]
        parts = [stage.skip_part(skip) for stage, skip in zip(stages, skips, strict=True)]
        first = self.stages[0](self.transpconvs[0](coarsest), parts[-1])
        return (*parts[:-1], first)

    def kernels(self, vectors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Every prompt's vectors (batch, prompts, heads · channels), finest first → its kernels.

        Returns:
            of the transposed convolutions but the first, in their order: (batch, prompts, channels, channels
            out, z, y, x); and from features to logits, finest first: (batch, prompts, channels).
        """
        per_stage = [
            v.reshape(*v.shape[:2], heads, width)
            for v, heads, width in zip(vectors, self.heads, self.widths, strict=True)
        ]
        to_logits = [per_stage[0][:, :, 0]]
        to_finer: list[Tensor] = []
        for stage in range(1, len(self.widths)):
            # The first index of the decoder's layers is the coarsest.
            index = len(self.widths) - 1 - stage
            weight = cast(nn.Conv3d, self.seg_layers[index]).weight.flatten()
            to_logits.append(_with_products(per_stage[stage], weight))
            weight = cast(nn.ConvTranspose3d, self.transpconvs[index + 1]).weight
            to_finer.insert(0, _with_products(per_stage[stage], weight))
        return to_finer, to_logits

    def forward(
        self, trunk: Sequence[Tensor], to_finer: Sequence[Tensor], to_logits: Sequence[Tensor]
    ) -> list[Tensor]:
        """One prompt's logits (batch, z, y, x) at every scale, finest first.

        Args:
            trunk: from `without_prompt`.
            to_finer, to_logits: this prompt's part of `kernels`, without the axis of prompts.
        """
        *skip_parts, x = trunk
        logits: list[Tensor] = []
        for index, kernel in enumerate(to_finer, start=1):
            stage = len(skip_parts) - index
            bias = cast(nn.Conv3d, self.seg_layers[index - 1]).bias
            logits.insert(0, _product(x, to_logits[stage + 1]) + cast(Tensor, bias))
            x = _upsampled(x, kernel, cast(nn.ConvTranspose3d, self.transpconvs[index]).bias)
            x = self.stages[index](x, skip_parts[stage])
        return [_product(x, to_logits[0]), *logits]


def _with_products(vectors: Tensor, weight: Tensor) -> Tensor:
    """Weights (channels + heads, ...) over features and their products → over the features alone.

    Takes vectors (batch, prompts, heads, channels), gives (batch, prompts, channels, ...).
    """
    width = vectors.shape[-1]
    return weight[:width] + torch.einsum("bphc,h...->bpc...", vectors, weight[width:])


def _product(features: Tensor, vector: Tensor) -> Tensor:
    return torch.einsum("bczyx,bc->bzyx", features, vector)


def _upsampled(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed convolution with a stride as large as its kernel, which each image has its own of."""
    batch = len(x)
    up = F.conv_transpose3d(
        x.reshape(1, -1, *x.shape[2:]),
        kernel.flatten(0, 1),
        None if bias is None else bias.repeat(batch),
        kernel.shape[3:],
        groups=batch,
    )
    return up.reshape(batch, -1, *up.shape[2:])


class VoxTellNetwork(nn.Module):
    """VoxTell as a `PromptableNetwork`: windows of exactly `window` (z, y, x), text and no spatial prompts.

    Build it from a plan and the tensors of its weights, which tell the widths that the plan does not.

    Raises:
        ModelError: tensors that tell a width are missing, or don't agree with the plan.
    """

    def __init__(self, plan: VoxTellPlan, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.plan = plan
        self.window: Triple = plan.patch_size
        self.total_stride: Triple = plan.architecture.total_stride
        sizes = _Sizes(weights)
        stages = len(plan.architecture.features_per_stage)
        tokens, query_width = sizes.of("pos_embed", 0), sizes.of("pos_embed", 2)
        self.text_width = sizes.of("project_text_embed.0.weight", 1)
        self.memory_stage = _memory_stage(plan, tokens, sizes.of("project_bottleneck_embed.0.weight", 1))
        if query_width % ATTENTION_HEADS:
            raise ModelError(
                f"VoxTell's queries have {ATTENTION_HEADS} heads, so their width must be a multiple of that, "
                f"got {query_width}."
            )
        widths = plan.architecture.features_per_stage
        projections = [f"project_to_decoder_channels.{k}" for k in range(stages - 1)]
        # One vector at the finest stage, the mask's; as many as the projection gives at the others.
        heads = [max(1, sizes.of(f"{name}.2.weight", 0) // widths[k]) for k, name in enumerate(projections)]
        self.encoder = ResidualEncoder(plan.architecture)
        self.decoder = MaskDecoder(plan.architecture, [1, *heads[1:]])
        self.project_bottleneck_embed = _projection(
            widths[self.memory_stage], sizes.of("project_bottleneck_embed.0.weight", 0), query_width
        )
        self.project_text_embed = _projection(
            self.text_width, sizes.of("project_text_embed.0.weight", 0), query_width
        )
        self.project_to_decoder_channels = nn.ModuleList(
            _projection(query_width, sizes.of(f"{name}.0.weight", 0), count * width)
            for name, count, width in zip(projections, self.decoder.heads, self.decoder.widths, strict=True)
        )
        layers = sizes.count(r"transformer_decoder\.layers\.(\d+)\.")
        self.transformer_decoder = PromptTransformer(
            query_width,
            [sizes.of(f"transformer_decoder.layers.{n}.linear1.weight", 0) for n in range(layers)],
        )
        self.register_buffer("pos_embed", torch.empty(tokens, 1, query_width))
        self.pos_embed: Tensor

    def encode(self, image: Tensor) -> Features:
        """image (batch, 1, z, y, x) of the size of `window`, in z-scores.

        Returns:
            coarsest: what prompts look at, (batch, query width, z, y, x) at the coarseness of its stage;
            trunk: all of the decoder that needs no prompt.
        """
        if tuple(image.shape[2:]) != self.window:
            raise ModelError(
                f"VoxTell's windows have the size {self.window} that it was trained on, "
                f"got {tuple(image.shape[2:])}."
            )
        features = self.encoder(image)
        seen = features[self.memory_stage]
        memory = self.project_bottleneck_embed(seen.flatten(2).transpose(1, 2))
        memory = memory.transpose(1, 2).reshape(len(image), -1, *seen.shape[2:])
        return Features(memory, self.decoder.without_prompt(features))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        """Masks for prompts over encoded windows.

        Args:
            features: from `encode`.
            text: (prompts, text width), the same for every window, or (batch, prompts, text width).
            spatial: None; VoxTell knows no clicks.

        Returns:
            logits at every scale, the coarser ones as its deep supervision saw them. VoxTell has no presence
            score; the logit of the surest voxel stands for it, so a prompt is present where a mask is.
        """
        if text is None or spatial is not None:
            raise PromptError(
                "VoxTell takes text and no points, boxes or scribbles; choose another model for those."
            )
        batch = features.coarsest.shape[0]
        text = text.expand(batch, -1, -1) if text.ndim == 2 else text
        to_finer, to_logits = self._kernels(text, features.coarsest)
        # One prompt after the other: its maps at full size fill the memory, and keep any processor busy.
        apart = [
            self.decoder(features.trunk, [k[:, n] for k in to_finer], [k[:, n] for k in to_logits])
            for n in range(text.shape[1])
        ]
        logits = tuple(torch.stack(scale, dim=1) for scale in zip(*apart, strict=True))
        return Decoded(logits, logits[0].amax(dim=(2, 3, 4)))

    def _kernels(self, text: Tensor, memory: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Every prompt's kernels for the decoder, see there.

        Always in float32: it is a thousandth of the work, and scores rounded to bfloat16 are not the same.
        """
        with torch.autocast(text.device.type, enabled=False):
            # Positions are stored for the order (y, x, z), z fastest.
            values = memory.float().permute(0, 3, 4, 2, 1).flatten(1, 3)
            keys = values + self.pos_embed.transpose(0, 1)
            queries = self.transformer_decoder(self.project_text_embed(text.float()), keys, values)
            return self.decoder.kernels([project(queries) for project in self.project_to_decoder_channels])


class _Sizes:
    """Widths as the tensors of a checkpoint tell them."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def of(self, name: str, axis: int) -> int:
        tensor = self._weights.get(name)
        if tensor is None or tensor.ndim <= axis:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ModelError(
                f"VoxTell's weights tell its widths, but {name} {found}. Is this another network?"
            )
        return int(tensor.shape[axis])

    def count(self, pattern: str) -> int:
        numbers = {int(match[1]) for name in self._weights if (match := re.match(pattern, name))}
        return len(numbers)


def _projection(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))


def _half(kernel: Triple) -> Triple:
    z, y, x = (size // 2 for size in kernel)
    return z, y, x


def _memory_stage(plan: VoxTellPlan, tokens: int, width: int) -> int:
    """The stage that prompts look at: as many voxels in a patch as there are positions, and as wide as asked.

    A stage without a stride has the voxels of the one before it, so the width decides between such two.
    """
    strides, widths = plan.architecture.strides, plan.architecture.features_per_stage
    voxels = [
        prod(n // s for n, s in zip(plan.patch_size, stride_to(strides[: k + 1]), strict=True))
        for k in range(len(strides))
    ]
    fitting = [stage for stage, count in enumerate(voxels) if count == tokens]
    if not fitting:
        raise ModelError(
            f"VoxTell has a position for each voxel of one stage, {' or '.join(map(str, voxels))} by its "
            f"plan, but its weights have {tokens}."
        )
    return next((stage for stage in fitting if widths[stage] == width), fitting[0])
