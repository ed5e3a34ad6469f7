"""VoxTell's weights in our flow: its folder, network, text vectors and way through a scan.

VoxTell (Rokuss et al. 2025) runs its whole decoder for every prompt. Here only what depends on a prompt is
computed for it, with the same values up to rounding:

- prompts don't attend to one another, so any number of them goes through the transformer together;
- attention scores every image token with every query; the key's matrix is applied to the few queries rather
  than to the many tokens, and the value's matrix to the few sums;
- the decoder's first stage sees no prompt, and neither does the skip half of every later stage's first
  convolution, which is linear in its input channels: both belong to the window;
- the channels that a prompt adds to a stage are linear in the stage's features, and so is what follows: they
  become part of the prompt's own kernels.

A further prompt costs half: 0.25 s instead of 0.52 s in a window of 64³ voxels with the release's widths of
the three finest stages (float32, one thread of an AMD EPYC with AVX-512).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from textseg.device import Compute
from textseg.embeddings.encoder import TextEncoder
from textseg.errors import ModelError, OutputError, PlanError, PromptError, ScanError
from textseg.geometry import Box, Shape, bounding_box
from textseg.masks import above_threshold
from textseg.network.build import Decoded, Features
from textseg.plan import Triple
from textseg.safe_loading import check_archive, check_fit, load_checkpoint, network_weights
from textseg.volume import Volume
from textseg.windows import place_windows

PLANS_FILE = "plans.json"
CHECKPOINT_FILE = Path("fold_0") / "checkpoint_final.pth"
CONVERTED_FILE = "network.safetensors"
BANK_FILE = "text_embeddings.npz"

# The only size that neither the plan nor a tensor tells.
ATTENTION_HEADS = 8
# The query that the text model was asked with in training.
TASK = "Given an anatomical term query, retrieve the precise anatomical entity and location it represents"
TEXT_MODEL = "Qwen/Qwen3-Embedding-4B"

OVERLAP = 0.5
SIGMA_FRACTION = 1 / 8
# Prompts whose logits over one window are kept at a time.
PROMPTS_AT_ONCE = 8
# A bank is packed: its labels, fixed-width text, shrink to a twentieth.
BANK_GROWTH = 100

Progress = Callable[[int, int], None]


# ---- the plan ----


def _triple(value: Any) -> Any:
    return (value, value, value) if isinstance(value, int) else value


Size = Annotated[Triple, BeforeValidator(_triple)]


class _Part(BaseModel):
    """A frozen section of plans.json; what we have no use for is left unread."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class NormPlan(_Part):
    """Of the instance norms."""

    eps: float = Field(default=1e-5, gt=0)
    affine: bool = False


class RectifierPlan(_Part):
    """Of the leaky rectifiers."""

    negative_slope: float = 0.01


class ArchitecturePlan(_Part):
    """Of encoder and decoder; stages are counted from the finest, the decoder's from the coarsest."""

    features_per_stage: tuple[PositiveInt, ...] = Field(min_length=2)
    kernel_sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    n_blocks_per_stage: tuple[PositiveInt, ...]
    n_conv_per_stage_decoder: tuple[PositiveInt, ...]
    conv_bias: bool
    conv_op: Literal["torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"]
    norm_op: Literal["torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"]
    norm_op_kwargs: NormPlan
    nonlin: Literal["torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"]
    nonlin_kwargs: RectifierPlan
    dropout_op: None = None

    @model_validator(mode="before")
    @classmethod
    def one_number_stands_for_all_stages(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("features_per_stage"), list):
            return values
        stages = len(values["features_per_stage"])
        filled = dict(values)
        for name in ("kernel_sizes", "strides", "n_blocks_per_stage"):
            if isinstance(filled.get(name), int):
                filled[name] = [filled[name]] * stages
        if isinstance(filled.get("n_conv_per_stage_decoder"), int):
            filled["n_conv_per_stage_decoder"] = [filled["n_conv_per_stage_decoder"]] * (stages - 1)
        for name in ("norm_op_kwargs", "nonlin_kwargs"):
            filled[name] = filled.get(name) or {}
        return filled

    @model_validator(mode="after")
    def stages_agree(self) -> ArchitecturePlan:
        stages = len(self.features_per_stage)
        if {len(self.kernel_sizes), len(self.strides), len(self.n_blocks_per_stage)} != {stages}:
            raise ValueError("kernel_sizes, strides and n_blocks_per_stage need one entry a stage")
        if len(self.n_conv_per_stage_decoder) != stages - 1:
            raise ValueError("n_conv_per_stage_decoder needs one entry for every stage but the coarsest")
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stage has stride (1, 1, 1), since masks are as large as their window")
        if any(size % 2 == 0 for kernel in self.kernel_sizes for size in kernel):
            raise ValueError("kernels have odd sizes")
        return self

    @property
    def total_stride(self) -> Triple:
        """By how much the coarsest stage is smaller than the image, per array axis."""
        return _stride_to(self.strides)


class VoxTellPlan(_Part):
    """What plans.json says of the network and its windows; array axes are (z, y, x)."""

    patch_size: Triple
    normalization_schemes: tuple[Literal["ZScoreNormalization"]]
    architecture: ArchitecturePlan

    @model_validator(mode="after")
    def patch_fits_the_strides(self) -> VoxTellPlan:
        if any(n % stride for n, stride in zip(self.patch_size, self.architecture.total_stride, strict=True)):
            raise ValueError(
                f"a patch of {self.patch_size} can't be divided by {self.architecture.total_stride}"
            )
        return self


def read_voxtell_plan(folder: Path) -> VoxTellPlan:
    """The plan of a folder in VoxTell's format.

    Raises:
        PlanError: plans.json is missing, is no JSON, or asks for something that VoxTell's network has not.
    """
    path = folder / PLANS_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        configuration = document["configurations"]["3d_fullres"]
        configuration = {**configuration, "architecture": configuration["architecture"]["arch_kwargs"]}
    except OSError as error:
        raise PlanError(
            f"A VoxTell folder holds {PLANS_FILE}, but {path} can't be read: {error.strerror}."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"VoxTell's {PLANS_FILE} describes the network in configurations.3d_fullres.architecture."
            f"arch_kwargs, but {path} does not ({type(error).__name__}: {error})."
        ) from error
    try:
        return VoxTellPlan.model_validate(configuration)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "3d_fullres"
        raise PlanError(f"The plan {path} is not one of VoxTell: {where}: {first['msg']}.") from error


# ---- the network; names of modules are the names of tensors in VoxTell's checkpoints ----


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

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


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
        inner = F.leaky_relu(self.conv1(x), self.slope, inplace=True)
        return F.leaky_relu(self.conv2(inner) + self.skip(x), self.slope, inplace=True)


class Stem(nn.Module):
    def __init__(self, plan: ArchitecturePlan) -> None:
        super().__init__()
        self.slope = plan.nonlin_kwargs.negative_slope
        width, kernel = plan.features_per_stage[0], plan.kernel_sizes[0]
        self.convs = nn.ModuleList([ConvNorm(plan, 1, width, kernel, bias=plan.conv_bias)])

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.convs[0](x), self.slope, inplace=True)


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
        x = F.leaky_relu(norm(x.add_(skip_part)), self.slope, inplace=True)
        for block in list(self.convs)[1:]:
            x = F.leaky_relu(block(x), self.slope, inplace=True)
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
        self.memory_stage = _memory_stage(plan, tokens)
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


def _stride_to(strides: Sequence[Triple]) -> Triple:
    z, y, x = (prod(stride[axis] for stride in strides) for axis in range(3))
    return z, y, x


def _memory_stage(plan: VoxTellPlan, tokens: int) -> int:
    """The stage that prompts look at: the one that has as many voxels in a patch as there are positions."""
    strides = plan.architecture.strides
    voxels = [
        prod(n // s for n, s in zip(plan.patch_size, _stride_to(strides[: k + 1]), strict=True))
        for k in range(len(strides))
    ]
    if tokens not in voxels:
        raise ModelError(
            f"VoxTell has a position for each voxel of one stage, {' or '.join(map(str, voxels))} by its "
            f"plan, but its weights have {tokens}."
        )
    return voxels.index(tokens)


# ---- the folder ----


def is_voxtell_folder(folder: Path) -> bool:
    """Whether a folder is in VoxTell's format, as released or as `convert` writes it."""
    weights = ((folder / CHECKPOINT_FILE).is_file(), (folder / CONVERTED_FILE).is_file())
    return (folder / PLANS_FILE).is_file() and any(weights)


def load_voxtell(folder: Path) -> VoxTellNetwork:
    """The network of a folder in VoxTell's format, released or converted, in float32 on the CPU.

    Raises:
        PlanError: plans.json is missing or describes another network.
        ModelError: the weights are missing, damaged, unsafe, do not fit the plan, or hold NaN or infinity.
    """
    plan = read_voxtell_plan(folder)
    path = _weights_file(folder)
    stages = len(plan.architecture.features_per_stage)
    found = network_weights(load_checkpoint(path))
    weights = {name: tensor.float() for name, tensor in found.items() if _is_needed(name, stages)}
    with torch.device("meta"):
        network = VoxTellNetwork(plan, weights)
    check_fit(network.state_dict(), weights, path)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def convert(folder: Path, out: Path) -> None:
    """Write a smaller folder that gives the same masks, bit for bit: each tensor once, none that never runs.

    The released weights shrink from 440 M to 339 M numbers, and no pickle is left. The licence of the weights
    stays what it is.

    Raises:
        PlanError, ModelError: see `load_voxtell`.
        OutputError: the folder can't be written, or is the very folder that is read.
    """
    if out.resolve() == folder.resolve():
        raise OutputError(f"A converted folder lies beside the one it is made of, got {out} for both.")
    network = load_voxtell(folder)
    bank = find_bank(folder)
    source = _weights_file(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".converting.") as workshop:
            parts = Path(workshop)
            weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
            save_file(weights, parts / CONVERTED_FILE, {"format": "pt", "converted_from": source.name})
            shutil.copyfile(folder / PLANS_FILE, parts / PLANS_FILE)
            if bank is not None:
                shutil.copyfile(bank, parts / BANK_FILE)
            for part in parts.iterdir():
                os.replace(part, out / part.name)
    except OSError as error:
        raise OutputError(
            f"A converted folder needs a place that can be written, but {out} can't: {error.strerror}."
        ) from error


def _weights_file(folder: Path) -> Path:
    converted, released = folder / CONVERTED_FILE, folder / CHECKPOINT_FILE
    if converted.is_file():
        return converted
    if released.is_file():
        return released
    raise ModelError(
        f"A VoxTell folder holds {CHECKPOINT_FILE}, or {CONVERTED_FILE} once converted, "
        f"but {folder} has neither."
    )


def _is_needed(name: str, stages: int) -> bool:
    """Whether a tensor of the released checkpoint has a part in the result and is not there already.

    The decoder holds the encoder once more and every convolution block its parts twice; self-attention of the
    prompts and the finest of the layers for deep supervision are never called.
    """
    return not (
        name.startswith("decoder.encoder.")
        or ".all_modules." in name
        or re.match(r"transformer_decoder\.layers\.\d+\.(self_attn|norm1)\.", name)
        or name.startswith(f"decoder.seg_layers.{stages - 2}.")
    )


# ---- the text ----


class BankTextEncoder:
    """Ready vectors by lower-case prompt as a `TextEncoder`, and an encoder for all other prompts.

    Args:
        bank: vectors (width,) by prompt.
        encoder: makes the vectors of Qwen3-Embedding-4B for texts as `instruct` wraps them; None for none.
    """

    def __init__(self, bank: Mapping[str, Tensor], width: int, encoder: TextEncoder | None = None) -> None:
        if encoder is not None and encoder.width != width:
            raise ModelError(
                f"This VoxTell takes text vectors of {width} numbers, as {TEXT_MODEL} gives, "
                f"but {encoder.name} gives {encoder.width}."
            )
        self.width = width
        self._bank = bank
        self._encoder = encoder
        self.name = f"voxtell-{_fingerprint(bank)}" + (f"-{encoder.name}" if encoder else "")

    @property
    def prompts(self) -> tuple[str, ...]:
        """What can be asked without an encoder."""
        return tuple(self._bank)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU, not normalised.

        Raises:
            PromptError: a text is not in the bank and there is no encoder.
        """
        prompts = [text.lower() for text in texts]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._bank]
        made: dict[str, Tensor] = {}
        if missing:
            if self._encoder is None:
                raise PromptError(self._refusal(missing[0]))
            vectors = self._encoder.embed([instruct(prompt) for prompt in missing])
            made = dict(zip(missing, vectors, strict=True))
        found = [self._bank[p] if p in self._bank else made[p] for p in prompts]
        return torch.stack(found) if found else torch.empty((0, self.width))

    def _refusal(self, prompt: str) -> str:
        near = difflib.get_close_matches(prompt, self._bank, n=3, cutoff=0.5)
        names = " or ".join(f'"{name}"' for name in near)
        return (
            f'VoxTell has no ready text vector for "{prompt}", and for other prompts than the '
            f"{len(self._bank):,} of its bank it needs a Qwen3-Embedding-4B encoder."
            + (f" Try {names}." if near else "")
        )


def instruct(prompt: str) -> str:
    """The prompt as VoxTell's text model was asked it: lower-case, after the task."""
    return f"Instruct: {TASK}\nQuery: {prompt.lower()}"


def load_text(folder: Path, width: int, encoder: TextEncoder | None = None) -> BankTextEncoder:
    """The text vectors that come with a VoxTell folder, and an encoder for what they lack.

    Raises:
        ModelError: the bank is damaged or of another width, or there is neither bank nor encoder.
    """
    path = find_bank(folder)
    if path is None and encoder is None:
        raise ModelError(
            f"VoxTell needs {BANK_FILE}, its bank of text vectors, or a Qwen3-Embedding-4B encoder, "
            f"but there is no bank in {folder} or beside it. Fetch it from embeddings/ of the release."
        )
    bank = {} if path is None else _read_bank(path, width)
    return BankTextEncoder(bank, width, encoder)


def find_bank(folder: Path) -> Path | None:
    """The bank in a VoxTell folder, or beside it where the release has it; None if there is none."""
    folder = folder.resolve()
    beside = folder.parent / "embeddings"
    inside = folder / "embeddings"
    places = [folder, inside, inside / folder.name, beside / folder.name, beside]
    return next((place / BANK_FILE for place in places if (place / BANK_FILE).is_file()), None)


def _read_bank(path: Path, width: int) -> dict[str, Tensor]:
    try:
        check_archive(path, BANK_GROWTH)
        with np.load(path, allow_pickle=False) as arrays:
            labels, vectors = arrays["labels"], arrays["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(
            f"VoxTell's bank holds the arrays labels and embeddings, but {path} can't be read so ({error})."
        ) from error
    if labels.dtype.kind != "U" or vectors.shape != (labels.size, width):
        raise ModelError(
            f"VoxTell's bank has a vector of {width} numbers for each label, but {path} has "
            f"{labels.size} labels and vectors {vectors.shape}. Is it the bank of another version?"
        )
    values = torch.from_numpy(vectors.astype(np.float32))
    if not torch.isfinite(values).all():
        raise ModelError(f"Text vectors must be finite numbers, but {path} holds NaN or infinity.")
    return dict(zip(labels.ravel().tolist(), values, strict=True))


def _fingerprint(bank: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for label, vector in bank.items():
        digest.update(label.encode() + b"\0" + vector.numpy().tobytes())
    return digest.hexdigest()[:12]


# ---- the way through a scan; arrays are (z, y, x) of canonical axes, as VoxTell was trained ----


def segment_like_voxtell(
    volume: Volume,
    network: VoxTellNetwork,
    text: Tensor,
    compute: Compute,
    progress: Progress = lambda done, of: None,
) -> NDArray[np.bool_]:
    """Masks (prompts, x, y, z) on the scan's own grid, in VoxTell's own steps.

    RAS+ axes, crop to what is not 0, z-score, windows at the scan's own spacing, sigmoid above a half. No
    more logits are kept than the windows that lie side by side need.

    Args:
        network: on the compute's device.
        text: (prompts, text width) float32.
        progress: called with the windows done and all windows.

    Raises:
        ScanError: the scan has several channels.
    """
    if volume.channels != 1:
        raise ScanError(f"VoxTell takes scans of one channel, got {volume.channels}. Give one file.")
    order = volume.geometry.canonical_order()
    canonical = order.apply(volume.voxels)[0].transpose(2, 1, 0)
    image, box = prepare_like_voxtell(canonical)
    masks = np.zeros((len(text), *canonical.shape), np.bool_)
    inside = masks[(slice(None), *box.slices)]
    for start, logits in blended_slabs(network, image, text, compute, progress):
        inside[:, start : start + logits.shape[1]] = above_threshold(logits, 0.5).cpu().numpy()
    return np.ascontiguousarray(order.inverse().apply(masks.transpose(0, 3, 2, 1)))


def prepare_like_voxtell(voxels: NDArray[Any]) -> tuple[Tensor, Box]:
    """Voxels (z, y, x) → z-scores (1, z, y, x) float32 of the box of all that is not 0, and that box."""
    box = bounding_box(voxels != 0) or Box((0, 0, 0), _shape(voxels))
    crop = voxels[box.slices].astype(np.float32)
    # Sums in float64: a crop may have a hundred million voxels.
    mean, sd = crop.mean(dtype=np.float64), crop.std(dtype=np.float64)
    crop -= np.float32(mean)
    crop /= np.float32(max(sd, 1e-8))
    return torch.from_numpy(crop)[None], box


@torch.inference_mode()
def blended_slabs(
    network: VoxTellNetwork,
    image: Tensor,
    text: Tensor,
    compute: Compute,
    progress: Progress = lambda done, of: None,
) -> Iterator[tuple[int, Tensor]]:
    """Slab after slab of finished logits: its first slice along z and (prompts, slices, y, x) float32.

    Windows go along z; what no later window reaches is given out, so memory is that of a window's height.

    Args:
        image: (1, z, y, x) from `prepare_like_voxtell`, of any size.
    """
    window = network.window
    padded, whole = _padded(image, window)
    boxes = place_windows(_shape(padded[0]), window, OVERLAP)
    weight = window_weight(window).to(compute.device)
    padded, text = padded.to(compute.device), text.to(compute.device)
    total = torch.zeros((len(text), window[0], *padded.shape[2:]), device=compute.device)
    weights = torch.zeros(total.shape[1:], device=compute.device)
    rows = [(start, list(row)) for start, row in groupby(boxes, key=lambda box: box.start[0])]
    stops = [*(start for start, _ in rows[1:]), padded.shape[1]]
    done = 0
    for (start, row), stop in zip(rows, stops, strict=True):
        for box in row:
            _, y, x = box.slices
            total[..., y, x] += (
                _window_logits(network, padded[(slice(None), *box.slices)], text, compute) * weight
            )
            weights[..., y, x] += weight
            done += 1
            progress(done, len(boxes))
        ready = stop - start
        logits = total[:, :ready] / weights[:ready]
        # Slices of the padding are nobody's.
        z, y, x = whole.slices
        first, last = max(start, z.start), min(stop, z.stop)
        yield first - z.start, logits[:, first - start : last - start, y, x]
        total, weights = _moved_on(total, 1, ready), _moved_on(weights, 0, ready)


def window_weight(window: Triple) -> Tensor:
    """nnU-Net's Gaussian (z, y, x), largest at voxel n // 2: how much a window's voxels count.

    In float32 the corners, 4e-11 of the centre, still count; in the float16 of the original they do not.
    """
    z, y, x = (
        torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - n // 2) / (n * SIGMA_FRACTION)) ** 2)
        for n in window
    )
    return (z[:, None, None] * y[:, None] * x).float()


def _window_logits(network: VoxTellNetwork, image: Tensor, text: Tensor, compute: Compute) -> Tensor:
    """One window (1, z, y, x) → logits (prompts, z, y, x) float32; it is encoded once."""
    with compute.autocast():
        features = network.encode(image[None].contiguous(memory_format=torch.channels_last_3d))
        parts = [
            network.decode(features, prompts).logits[0][0].float()
            for prompts in torch.split(text, PROMPTS_AT_ONCE)
        ]
    return torch.cat(parts)


def _padded(image: Tensor, window: Triple) -> tuple[Tensor, Box]:
    """The image with zeros around it where it is smaller than a window, and where in that it lies."""
    shape = _shape(image[0])
    missing = [max(0, size - n) for n, size in zip(shape, window, strict=True)]
    z, y, x = (m // 2 for m in missing)
    pads = [
        side for before, m in zip((x, y, z), reversed(missing), strict=True) for side in (before, m - before)
    ]
    whole = Box((z, y, x), (z + shape[0], y + shape[1], x + shape[2]))
    return F.pad(image, pads), whole


def _moved_on(buffer: Tensor, axis: int, by: int) -> Tensor:
    """The buffer without its first slices along an axis, and zeros behind."""
    kept = buffer.narrow(axis, by, buffer.shape[axis] - by)
    return torch.cat([kept, torch.zeros_like(buffer.narrow(axis, 0, by))], dim=axis)


def _shape(voxels: NDArray[Any] | Tensor) -> Shape:
    z, y, x = voxels.shape
    return z, y, x
