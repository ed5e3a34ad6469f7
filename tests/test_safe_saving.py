"""Weights on disk: read back as they were, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from textseg.safe_saving import save_tensors

METADATA = {"steps": "3", "plan": 'of "Zürich"\n', "seed": "7", "license": "CC BY-SA 4.0"}


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a.b": torch.arange(7.0), "half": torch.randn(2, 3, 5).half(), "count": torch.tensor([4])}
    path = tmp_path / "new" / "weights.safetensors"
    save_tensors(tensors, METADATA, path)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.full((3,), float(number)) for number, name in enumerate("abcdefgh")}
    path = tmp_path / "weights.safetensors"
    save_tensors(tensors, METADATA, path)
    first = path.read_bytes()
    for _ in range(20):
        save_tensors(tensors, dict(reversed(METADATA.items())), path)
        assert path.read_bytes() == first
