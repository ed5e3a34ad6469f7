"""A folder in VoxTell's format: loading its network, and writing a smaller folder that gives the same."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from textseg.errors import OutputError
from textseg.network.voxtell.network import VoxTellNetwork
from textseg.network.voxtell.plan import (
    BANK_FILE,
    CONVERTED_FILE,
    LICENCE,
    PLANS_FILE,
    find_bank,
    read_voxtell_plan,
    weights_file,
)
from textseg.safe_loading import check_fit, load_checkpoint, network_weights


def load_voxtell(folder: Path) -> VoxTellNetwork:
    """The network of a folder in VoxTell's format, released or converted, in float32 on the CPU.

    Raises:
        PlanError: plans.json is missing or describes another network.
        ModelError: the weights are missing, damaged, unsafe, do not fit the plan, or hold NaN or infinity.
    """
    plan = read_voxtell_plan(folder)
    path = weights_file(folder)
    stages = len(plan.architecture.features_per_stage)
    found = network_weights(load_checkpoint(path))
    # Copied into memory of our own: products of matrices round by where their operands lie, and the tensors
    # of a safetensors file lie as they lie in the file.
    weights = {
        name: found.pop(name).to(torch.float32, copy=True) for name in list(found) if _is_needed(name, stages)
    }
    with torch.device("meta"):
        network = VoxTellNetwork(plan, weights)
    check_fit(network.state_dict(), weights, path)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def convert(folder: Path, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a smaller folder that gives the same masks, bit for bit: each tensor once, none that never runs.

    The released weights shrink from 440 M to 339 M numbers, and no pickle is left. The licence of the weights
    stays what it is, and is written into the file. Gives the files written.

    Raises:
        PlanError, ModelError: see `load_voxtell`.
        OutputError: the folder can't be written, is the very folder that is read, or holds such files already
            and may not lose them.
    """
    if out.resolve() == folder.resolve():
        raise OutputError(f"A converted folder lies beside the one it is made of, got {out} for both.")
    there = [name for name in (CONVERTED_FILE, PLANS_FILE, BANK_FILE) if (out / name).exists()]
    if there and not overwrite:
        raise OutputError(
            f"Files are never replaced unasked, but {out} already holds {', '.join(there)}. "
            "Use --overwrite or another folder."
        )
    network = load_voxtell(folder)
    bank = find_bank(folder)
    source = weights_file(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".converting.") as workshop:
            parts = Path(workshop)
            weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
            facts = {"format": "pt", "converted_from": source.name, "license": LICENCE}
            _save_for_all(weights, parts / CONVERTED_FILE, facts)
            shutil.copyfile(folder / PLANS_FILE, parts / PLANS_FILE)
            if bank is not None:
                shutil.copyfile(bank, parts / BANK_FILE)
            made = sorted(parts.iterdir())
            for part in made:
                os.replace(part, out / part.name)
        return [out / part.name for part in made]
    except OSError as error:
        raise OutputError(
            f"A converted folder needs a place that can be written, but {out} can't: {error.strerror}."
        ) from error


def _save_for_all(weights: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """As `save_file`, whose files only their owner may read, for whom the umask lets read."""
    path.touch()
    permissions = path.stat().st_mode
    save_file(weights, path, facts)
    path.chmod(permissions)


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
