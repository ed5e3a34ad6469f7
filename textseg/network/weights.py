"""A network's weights on disk: safetensors in float16, checked against the plan when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from textseg.embeddings.files import write_bytes
from textseg.errors import ModelError
from textseg.network.build import TextPromptedNetwork, build_network
from textseg.plan import Plan

NETWORK_FILE = "network.safetensors"


def save_network(network: TextPromptedNetwork, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights into a model's folder; floats become float16 where they fit, whole numbers stay."""
    weights = {name: _small(tensor) for name, tensor in network.state_dict().items()}
    write_bytes(folder / NETWORK_FILE, save(weights, dict(metadata)))


def load_network(folder: Path, plan: Plan) -> TextPromptedNetwork:
    """The plan's network with the weights of a model's folder, in float32, in evaluation mode.

    Raises:
        ModelError: the file is missing or damaged, its tensors do not fit the plan, or hold NaN or infinity.
    """
    path = folder / NETWORK_FILE
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(
            f"A model's folder holds {NETWORK_FILE}, but {folder} does not. Is it complete?"
        ) from error
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"A model's weights must be a whole safetensors file, but {path} can't be read ({error}). "
            "Fetch it again."
        ) from error
    network = build_network(plan)
    _check(network.state_dict(), weights, path)
    network.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    )
    return network.eval()


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _small(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    # A norm's running variance may pass 65504, float16's largest number.
    fits = tensor.is_floating_point() and bool(tensor.half().isfinite().all())
    return tensor.half() if fits else tensor


def _check(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    wrong += [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if found[name].shape != expected[name].shape
    ]
    wrong += [f"{name} holds NaN or infinity" for name in shared if not torch.isfinite(found[name]).all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(f"A model's weights must fit its plan, but in {path} {'; '.join(wrong[:3])}{more}.")
