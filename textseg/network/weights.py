"""A network's weights on disk: safetensors in float16, checked against the plan when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from textseg.network.build import TextPromptedNetwork, build_network
from textseg.plan import Plan
from textseg.safe_loading import load_fitting
from textseg.safe_saving import save_tensors

NETWORK_FILE = "network.safetensors"


def save_network(network: TextPromptedNetwork, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the weights into a model's folder; floats become float16 where they fit, whole numbers stay."""
    weights = {name: _small(tensor) for name, tensor in network.state_dict().items()}
    save_tensors(weights, metadata, folder / NETWORK_FILE)


def load_network(folder: Path, plan: Plan) -> TextPromptedNetwork:
    """The plan's network with the weights of a model's folder, in float32, in evaluation mode.

    Raises:
        ModelError: the file is missing or damaged, its tensors do not fit the plan, or hold NaN or infinity.
    """
    network = build_network(plan)
    network.load_state_dict(load_fitting(folder / NETWORK_FILE, network.state_dict()))
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
