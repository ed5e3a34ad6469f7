"""A folder in VoxTell's format with random weights, and the network written down plainly.

Nothing of `textseg.network.voxtell` is used here. The plain network joins with `torch.cat`, runs everything
for every prompt and lets torch do the attention, so that what the library saves can be held against it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = ("liver", "left kidney", "a small cyst in the right kidney", "spleen", "aorta")

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Tiny:
    """All sizes of a VoxTell; `memory_stage` is where prompts look at the image."""

    patch: Triple = (16, 24, 16)
    widths: tuple[int, ...] = (4, 6, 10, 12)
    kernels: tuple[Triple, ...] = ((1, 3, 3), (3, 3, 3), (3, 5, 3), (3, 3, 3))
    strides: tuple[Triple, ...] = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 3, 2))
    blocks: tuple[int, ...] = (1, 2, 1, 2)
    decoder_convolutions: tuple[int, ...] = (1, 2, 1)
    heads: int = 3
    memory_stage: int = 2
    query: int = 32
    text: int = 20
    text_hidden: int = 24
    channel_hidden: int = 28
    hidden: int = 40
    layers: int = 2
    conv_bias: bool = True
    slope: float = 0.02
    eps: float = 1e-4

    def stride_to(self, stage: int) -> Triple:
        z, y, x = (prod(stride[axis] for stride in self.strides[: stage + 1]) for axis in range(3))
        return z, y, x

    @property
    def tokens(self) -> int:
        return prod(n // s for n, s in zip(self.patch, self.stride_to(self.memory_stage), strict=True))


# Three stages rather than four, no bias, the coarsest stage but one as memory, one attention layer.
SHALLOW = Tiny(
    patch=(8, 16, 8),
    widths=(6, 6, 8),
    kernels=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks=(2, 1, 1),
    decoder_convolutions=(1, 1),
    heads=5,
    memory_stage=1,
    query=16,
    layers=1,
    conv_bias=False,
    slope=0.01,
    eps=1e-5,
)

# Five stages, one of them without a stride, so that two have the same voxels; one channel at the finest stage
# and one head at the others, so that every projection to the decoder gives as many numbers as its stage has
# channels; several convolutions in the decoder; widths that are multiples of nothing.
ODD = Tiny(
    patch=(8, 16, 24),
    widths=(1, 5, 6, 10, 11),
    kernels=((1, 1, 3), (3, 1, 3), (3, 3, 3), (1, 3, 5), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 2, 3)),
    blocks=(1, 1, 2, 1, 3),
    decoder_convolutions=(2, 1, 1, 2),
    heads=1,
    memory_stage=3,
    query=24,
    text=7,
    text_hidden=5,
    channel_hidden=9,
    hidden=11,
    layers=3,
)

# Two stages, the coarsest as memory, so that no prompt adds a channel; a text wider than all else.
FLAT = Tiny(
    patch=(6, 8, 10),
    widths=(3, 4),
    kernels=((3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (3, 2, 2)),
    blocks=(1, 1),
    decoder_convolutions=(1,),
    heads=1,
    memory_stage=1,
    query=8,
    text=33,
    hidden=64,
    layers=1,
)


def write_folder(folder: Path, tiny: Tiny, seed: int = 3) -> Path:
    """The folder as it is released: plan, pickle with aliases, dead attention and training log, bank."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(tiny)), encoding="utf-8")
    torch.save(checkpoint(released_weights(tiny, seed)), folder / "fold_0" / "checkpoint_final.pth")
    write_bank(folder / "embeddings" / "text_embeddings.npz", tiny.text)
    return folder


def checkpoint(weights: dict[str, Tensor]) -> dict[str, object]:
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.001}]},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.6)], "epochs": [np.int64(3)]},
        "_best_ema": np.float64(0.6),
        "init_args": {"device": torch.device("cuda"), "fold": 0},
    }


def write_bank(path: Path, width: int, labels: tuple[str, ...] = LABELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(5).normal(size=(len(labels), width)).astype(np.float16)
    np.savez_compressed(path, labels=np.array(labels), embeddings=vectors)
    return path


def plans(tiny: Tiny) -> dict[str, object]:
    arguments = {
        "n_stages": len(tiny.widths),
        "features_per_stage": list(tiny.widths),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(kernel) for kernel in tiny.kernels],
        "strides": [list(stride) for stride in tiny.strides],
        "n_blocks_per_stage": list(tiny.blocks),
        "n_conv_per_stage_decoder": list(tiny.decoder_convolutions),
        "conv_bias": tiny.conv_bias,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": tiny.eps, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True, "negative_slope": tiny.slope},
    }
    configuration = {
        "patch_size": list(tiny.patch),
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {"network_class_name": "…", "arch_kwargs": arguments},
    }
    return {"dataset_name": "VoxTellDataset", "configurations": {"3d_fullres": configuration}}


def released_weights(tiny: Tiny, seed: int = 3) -> OrderedDict[str, Tensor]:
    """Random weights under every name of a released checkpoint, with what is stored twice or never runs."""
    made = _Maker(torch.Generator().manual_seed(seed))
    made.add("pos_embed", (tiny.tokens, 1, tiny.query), 1.0)
    _add_encoder(made, tiny)
    _add_decoder(made, tiny)
    made.linear("project_bottleneck_embed.0", tiny.widths[tiny.memory_stage], tiny.query)
    made.linear("project_bottleneck_embed.2", tiny.query, tiny.query)
    made.linear("project_text_embed.0", tiny.text, tiny.text_hidden)
    made.linear("project_text_embed.2", tiny.text_hidden, tiny.query)
    for stage, width in enumerate(tiny.widths[:-1]):
        name = f"project_to_decoder_channels.{stage}"
        made.linear(f"{name}.0", tiny.query, tiny.channel_hidden)
        made.linear(f"{name}.2", tiny.channel_hidden, width * (tiny.heads if stage else 1))
    for layer in range(tiny.layers):
        _add_attention_layer(made, f"transformer_decoder.layers.{layer}", tiny)
    made.norm("transformer_decoder.norm", tiny.query)
    return made.weights


def plain_logits(weights: dict[str, Tensor], tiny: Tiny, image: Tensor, text: Tensor) -> list[Tensor]:
    """image (batch, 1, z, y, x), text (prompts, width) → logits (batch, prompts, z, y, x), finest first."""
    features = _plain_encoder(weights, tiny, image)
    vectors = _plain_prompts(weights, tiny, features[tiny.memory_stage], text)
    prompts = [
        _plain_decoder(weights, tiny, features, [v[:, prompt] for v in vectors])
        for prompt in range(len(text))
    ]
    return [torch.cat(scale, dim=1) for scale in zip(*prompts, strict=True)]


# ---- weights ----


class _Maker:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.weights: OrderedDict[str, Tensor] = OrderedDict()

    def add(self, name: str, shape: tuple[int, ...], spread: float, centre: float = 0.0) -> None:
        self.weights[name] = torch.randn(shape, generator=self.generator) * spread + centre

    def linear(self, name: str, width_in: int, width_out: int) -> None:
        self.add(f"{name}.weight", (width_out, width_in), 1.5 * width_in**-0.5)
        self.add(f"{name}.bias", (width_out,), 0.2)

    def norm(self, name: str, width: int) -> None:
        self.add(f"{name}.weight", (width,), 0.2, 1.0)
        self.add(f"{name}.bias", (width,), 0.2)

    def conv_norm(self, name: str, width_in: int, width_out: int, kernel: Triple, bias: bool) -> None:
        self.add(f"{name}.conv.weight", (width_out, width_in, *kernel), (width_in * prod(kernel)) ** -0.5)
        if bias:
            self.add(f"{name}.conv.bias", (width_out,), 0.2)
        self.norm(f"{name}.norm", width_out)
        for part, number in (("conv", 0), ("norm", 1)):
            self.alias(f"{name}.{part}.", f"{name}.all_modules.{number}.")

    def alias(self, prefix: str, other: str) -> None:
        for name in [name for name in self.weights if name.startswith(prefix)]:
            self.weights[other + name.removeprefix(prefix)] = self.weights[name]


def _add_encoder(made: _Maker, tiny: Tiny) -> None:
    made.conv_norm("encoder.stem.convs.0", 1, tiny.widths[0], tiny.kernels[0], tiny.conv_bias)
    width_in = tiny.widths[0]
    for stage, width in enumerate(tiny.widths):
        for block in range(tiny.blocks[stage]):
            name, kernel = f"encoder.stages.{stage}.blocks.{block}", tiny.kernels[stage]
            made.conv_norm(f"{name}.conv1", width_in, width, kernel, tiny.conv_bias)
            made.conv_norm(f"{name}.conv2", width, width, kernel, tiny.conv_bias)
            if width_in != width:
                pooled = block == 0 and tiny.strides[stage] != (1, 1, 1)
                made.conv_norm(f"{name}.skip.{1 if pooled else 0}", width_in, width, (1, 1, 1), False)
            width_in = width
    made.alias("encoder.", "decoder.encoder.")


def _add_decoder(made: _Maker, tiny: Tiny) -> None:
    stages = len(tiny.widths) - 1
    for index in range(stages):
        stage = stages - 1 - index
        width = tiny.widths[stage]
        for number in range(tiny.decoder_convolutions[index]):
            width_in = width if number else 2 * width
            name = f"decoder.stages.{index}.convs.{number}"
            made.conv_norm(name, width_in, width, tiny.kernels[stage], tiny.conv_bias)
        below = tiny.widths[stage + 1] + (tiny.heads if index else 0)
        made.add(f"decoder.transpconvs.{index}.weight", (below, width, *tiny.strides[stage + 1]), below**-0.5)
        if tiny.conv_bias:
            made.add(f"decoder.transpconvs.{index}.bias", (width,), 0.2)
        made.add(f"decoder.seg_layers.{index}.weight", (1, width + tiny.heads, 1, 1, 1), 0.3)
        made.add(f"decoder.seg_layers.{index}.bias", (1,), 0.2)


def _add_attention_layer(made: _Maker, name: str, tiny: Tiny) -> None:
    for attention in ("self_attn", "multihead_attn"):
        made.add(f"{name}.{attention}.in_proj_weight", (3 * tiny.query, tiny.query), 1.5 * tiny.query**-0.5)
        made.add(f"{name}.{attention}.in_proj_bias", (3 * tiny.query,), 0.2)
        made.linear(f"{name}.{attention}.out_proj", tiny.query, tiny.query)
    made.linear(f"{name}.linear1", tiny.query, tiny.hidden)
    made.linear(f"{name}.linear2", tiny.hidden, tiny.query)
    for number in (1, 2, 3):
        made.norm(f"{name}.norm{number}", tiny.query)


# ---- the plain network ----


def _conv_norm(w: dict[str, Tensor], name: str, tiny: Tiny, x: Tensor, stride: Triple = (1, 1, 1)) -> Tensor:
    kernel = w[f"{name}.conv.weight"]
    padding = [size // 2 for size in kernel.shape[2:]]
    x = F.conv3d(x, kernel, w.get(f"{name}.conv.bias"), stride, padding)
    return F.instance_norm(x, weight=w[f"{name}.norm.weight"], bias=w[f"{name}.norm.bias"], eps=tiny.eps)


def _plain_encoder(w: dict[str, Tensor], tiny: Tiny, image: Tensor) -> list[Tensor]:
    x = F.leaky_relu(_conv_norm(w, "encoder.stem.convs.0", tiny, image), tiny.slope)
    features = []
    for stage, blocks in enumerate(tiny.blocks):
        for block in range(blocks):
            name = f"encoder.stages.{stage}.blocks.{block}"
            stride = tiny.strides[stage] if block == 0 else (1, 1, 1)
            inner = F.leaky_relu(_conv_norm(w, f"{name}.conv1", tiny, x, stride), tiny.slope)
            inner = _conv_norm(w, f"{name}.conv2", tiny, inner)
            skip = x if stride == (1, 1, 1) else F.avg_pool3d(x, stride, stride)
            for number in (0, 1):
                if f"{name}.skip.{number}.conv.weight" in w:
                    skip = _conv_norm(w, f"{name}.skip.{number}", tiny, skip)
            x = F.leaky_relu(inner + skip, tiny.slope)
        features.append(x)
    return features


def _plain_prompts(w: dict[str, Tensor], tiny: Tiny, seen: Tensor, text: Tensor) -> list[Tensor]:
    # Tokens in the order (y, x, z) of the array's axes; sequence first, as torch's attention wants it.
    tokens = seen.permute(3, 4, 2, 0, 1).flatten(0, 2)
    memory = _mlp(w, "project_bottleneck_embed", tokens)
    keys = memory + w["pos_embed"]
    queries = _mlp(w, "project_text_embed", text)[:, None].expand(-1, seen.shape[0], -1)
    for number in range(tiny.layers):
        name = f"transformer_decoder.layers.{number}"
        attention = torch.nn.MultiheadAttention(tiny.query, 8)
        prefix = f"{name}.multihead_attn."
        attention.load_state_dict({k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)})
        queries = queries + attention(_layer_norm(w, f"{name}.norm2", queries), keys, memory)[0]
        hidden = F.relu(_linear(w, f"{name}.linear1", _layer_norm(w, f"{name}.norm3", queries)))
        queries = queries + _linear(w, f"{name}.linear2", hidden)
    queries = _layer_norm(w, "transformer_decoder.norm", queries).transpose(0, 1)
    return [_mlp(w, f"project_to_decoder_channels.{k}", queries) for k in range(len(tiny.widths) - 1)]


def _plain_decoder(
    w: dict[str, Tensor], tiny: Tiny, features: list[Tensor], vectors: list[Tensor]
) -> list[Tensor]:
    stages = len(tiny.widths) - 1
    x, logits = features[-1], []
    for index in range(stages):
        stage = stages - 1 - index
        name = f"decoder.transpconvs.{index}"
        stride = tiny.strides[stage + 1]
        x = F.conv_transpose3d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride)
        x = torch.cat([x, features[stage]], dim=1)
        for number in range(tiny.decoder_convolutions[index]):
            x = F.leaky_relu(_conv_norm(w, f"decoder.stages.{index}.convs.{number}", tiny, x), tiny.slope)
        heads = vectors[stage].reshape(len(x), -1, tiny.widths[stage])
        maps = torch.stack([(x * v[:, :, None, None, None]).sum(dim=1) for v in heads.unbind(1)], dim=1)
        if stage == 0:
            return [maps, *logits]
        x = torch.cat([x, maps], dim=1)
        name = f"decoder.seg_layers.{index}"
        logits.insert(0, F.conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"]))
    return logits


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _mlp(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return _linear(w, f"{name}.2", F.gelu(_linear(w, f"{name}.0", x)))


def _layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
