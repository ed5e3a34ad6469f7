"""A folder in VoxTell's format: loading its network, and writing a smaller folder that gives the same."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from textseg.errors import ModelError, OutputError
from textseg.network.voxtell.network import VoxTellNetwork
from textseg.network.voxtell.plan import (
    BANK_FILE,
    CHECKPOINT_FILE,
    CONVERTED_FILE,
    PLANS_FILE,
    read_voxtell_plan,
)
from textseg.network.voxtell.text import find_bank
from textseg.safe_loading import check_fit, load_checkpoint, network_weights


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
