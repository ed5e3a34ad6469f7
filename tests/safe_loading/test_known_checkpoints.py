"""Every kind of checkpoint that users bring, with the names and metadata that its training code writes."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.errors import ModelError
from textseg.safe_loading import check_fit, load_checkpoint, network_weights

NNUNET_LOGGING = {
    "mean_fg_dice": [np.float64(0.5), np.float64(0.75)],
    "ema_fg_dice": [np.float64(0.5)],
    "dice_per_class_or_region": [[np.float32(0.25), np.float64(1)]],
    "train_losses": [np.float32(-0.5)],
    "val_losses": [np.float32(-0.25)],
    "lrs": [0.01],
    "epoch_start_timestamps": [1700000000.5],
    "epoch_end_timestamps": [1700000100.5],
}


@dataclass(frozen=True)
class Known:
    """A checkpoint as its project writes it.

    network: the weights' own names and shapes, as they should come out.
    by_torch_alone: whether torch's own list of types is enough for it.
    """

    content: dict[str, Any]
    network: dict[str, tuple[int, ...]]
    by_torch_alone: bool


def tensors(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> OrderedDict[str, Tensor]:
    made = OrderedDict((prefix + name, torch.full(shape, 0.5)) for name, shape in shapes.items())
    # Modules keep the versions of their layers beside the tensors; pickles keep that attribute.
    made._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return made


def nnunet_like(shapes: dict[str, tuple[int, ...]], trainer: str) -> Known:
    """nnU-Net v2 and those that were trained with it."""
    weights = tensors(shapes)
    content = {
        "network_weights": weights,
        "optimizer_state": {
            "state": {0: {"momentum_buffer": torch.zeros(3)}},
            "param_groups": [{"lr": 0.01, "momentum": 0.99, "params": [0]}],
        },
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12},
        "logging": NNUNET_LOGGING,
        "_best_ema": np.float64(0.75),
        "current_epoch": 1000,
        "init_args": {
            "plans": {"configurations": {"3d_fullres": {"patch_size": [64, 64, 64]}}},
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": {"labels": {"background": 0, "liver": 1}},
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    return Known(content, shapes, by_torch_alone=False)


VOXTELL = {
    "encoder.stem.convs.0.conv.weight": (4, 1, 3, 3, 3),
    "encoder.stem.convs.0.all_modules.0.weight": (4, 1, 3, 3, 3),
    "decoder.encoder.stem.convs.0.conv.weight": (4, 1, 3, 3, 3),
    "pos_embed": (8, 1, 16),
    "transformer_decoder.layers.0.multihead_attn.in_proj_weight": (48, 16),
    "project_to_decoder_channels.0.2.bias": (4,),
}
NNUNET = {
    "encoder.stages.0.0.convs.0.conv.weight": (4, 1, 3, 3, 3),
    "encoder.stages.0.0.convs.0.norm.weight": (4,),
    "decoder.transpconvs.0.weight": (8, 4, 2, 2, 2),
    "decoder.seg_layers.0.weight": (2, 4, 1, 1, 1),
}
NNINTERACTIVE = {
    # The image, and seven maps of what was clicked and drawn.
    "encoder.stem.convs.0.conv.weight": (4, 8, 3, 3, 3),
    "encoder.stages.0.blocks.0.conv1.conv.weight": (4, 4, 3, 3, 3),
    "decoder.seg_layers.0.weight": (2, 4, 1, 1, 1),
}
STUNET = {
    "conv_blocks_context.0.0.conv1.weight": (4, 1, 3, 3, 3),
    "conv_blocks_context.0.0.norm1.weight": (4,),
    "conv_blocks_localization.0.0.conv1.weight": (4, 8, 3, 3, 3),
    "seg_outputs.0.weight": (105, 4, 1, 1, 1),
}
SAT = {
    "backbone.encoder.stages.0.0.convs.0.conv.weight": (4, 3, 3, 3, 3),
    "mid_mask_embed_proj.0.weight": (4, 4),
    "query_proj.0.bias": (4,),
}
SAT_TEXT = {
    "text_tower.biolord.embeddings.word_embeddings.weight": (10, 8),
    "text_tower.biolord.encoder.layer.0.attention.self.query.weight": (8, 8),
    "projection_layer.0.weight": (8, 8),
    "projection_layer.2.bias": (8,),
    "modality_embed.weight": (4, 8),
}
MONAI_SEGRESNET = {
    "convInit.conv.weight": (4, 1, 3, 3, 3),
    "down_layers.0.1.conv1.conv.weight": (4, 4, 3, 3, 3),
    "conv_final.2.conv.bias": (105,),
}
MONAI_SWIN_UNETR = {
    "swinViT.patch_embed.proj.weight": (4, 1, 2, 2, 2),
    "encoder1.layer.conv1.conv.weight": (4, 1, 3, 3, 3),
    "out.conv.conv.bias": (14,),
}
SAM = {
    "image_encoder.pos_embed": (1, 4, 4, 8),
    "image_encoder.patch_embed.proj.weight": (8, 3, 16, 16),
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 8),
    "mask_decoder.iou_token.weight": (1, 8),
}

KNOWN = {
    "VoxTell": nnunet_like(VOXTELL, "VoxTellTrainer"),
    "nnU-Net": nnunet_like(NNUNET, "nnUNetTrainer"),
    "nnInteractive": nnunet_like(NNINTERACTIVE, "nnInteractiveTrainer"),
    # nnU-Net v1 keeps its curves as NumPy numbers in a tuple.
    "STU-Net": Known(
        {
            "epoch": 4000,
            "state_dict": tensors(STUNET),
            "optimizer_state_dict": None,
            "lr_scheduler_state_dict": None,
            "plot_stuff": ([np.float64(-0.5)], [np.float64(-0.25)], [], [np.float64(0.5)], np.arange(3)),
            "best_stuff": (np.float64(-0.5), np.float64(0.75), np.float64(0.5)),
            "amp_grad_scaler": {"scale": 65536.0},
        },
        STUNET,
        by_torch_alone=False,
    ),
    "SAT": Known(
        {
            "step": 106000,
            "model_state_dict": tensors(SAT, "module."),
            "optimizer_state_dict": {"state": {}, "param_groups": [{"betas": (0.9, 0.999)}]},
        },
        SAT,
        by_torch_alone=True,
    ),
    "SAT's text encoder": Known(
        {"epoch": 7, "model_state_dict": tensors(SAT_TEXT, "module."), "loss": np.float32(0.5)},
        SAT_TEXT,
        by_torch_alone=False,
    ),
    "MONAI bundle, model.pt": Known(dict(tensors(MONAI_SEGRESNET)), MONAI_SEGRESNET, by_torch_alone=True),
    "MONAI, CheckpointSaver": Known(
        {
            "model": tensors(MONAI_SEGRESNET),
            "optimizer": {"state": {}, "param_groups": []},
            "trainer": OrderedDict(epoch_length=10, iteration=20, max_epochs=2),
        },
        MONAI_SEGRESNET,
        by_torch_alone=True,
    ),
    # The scripts of MONAI's research contributions, and many others.
    "MONAI, a script with its options": Known(
        {
            "epoch": 800,
            "best_acc": np.float32(0.75),
            "state_dict": tensors(MONAI_SWIN_UNETR, "module."),
            "args": argparse.Namespace(lr=0.1, roi=(96, 96, 96), name="swin", inner=argparse.Namespace(a=1)),
        },
        MONAI_SWIN_UNETR,
        by_torch_alone=False,
    ),
    "SAM": Known(tensors(SAM), SAM, by_torch_alone=True),
}

each_known = pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN.keys())


@each_known
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_its_network_comes_out_under_its_own_names(known, zipped, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(known.content, path, _use_new_zipfile_serialization=zipped)
    found = network_weights(load_checkpoint(path))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == known.network
    assert all((tensor == 0.5).all() for tensor in found.values())


@each_known
def test_torch_alone_refuses_what_only_the_list_allows(known, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(known.content, path)
    if known.by_torch_alone:
        torch.load(path, weights_only=True)
        return
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)


@each_known
def test_one_foreign_type_in_it_is_refused_by_name(known, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({**known.content, "trainer": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(ModelError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        load_checkpoint(path)


@each_known
def test_nan_and_other_shapes_are_told(known, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(known.content, path)
    found = network_weights(load_checkpoint(path))
    name = next(iter(found))
    expected = {**found, name: torch.ones(7)}
    with pytest.raises(ModelError, match=rf"(?s)1 tensor\(s\) of .*{name}  \(7,\) "):
        check_fit(expected, found, path)
    spoilt = {**found, name: torch.full_like(found[name], torch.nan)}
    with pytest.raises(ModelError, match=f"{name} holds NaN"):
        check_fit(found, spoilt, path)


def test_options_are_facts(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(KNOWN["MONAI, a script with its options"].content, path)
    assert load_checkpoint(path).facts["args"] == {
        "lr": 0.1,
        "roi": [96, 96, 96],
        "name": "swin",
        "inner": {"a": 1},
    }


def test_options_that_hold_themselves_are_refused(tmp_path):
    options = argparse.Namespace()
    options.options = options
    torch.save({"weight": torch.ones(1), "args": options}, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelError, match="a few levels deep"):
        load_checkpoint(tmp_path / "checkpoint.pth")
