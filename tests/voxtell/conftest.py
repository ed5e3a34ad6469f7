"""Folders in VoxTell's format: small ones made here, and the fixture beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.voxtell.tiny_folder import Tiny, write_folder
from textseg.device import Compute
from textseg.network.voxtell.folder import load_voxtell
from textseg.network.voxtell.network import VoxTellNetwork

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies on this machine."""
    monkeypatch.setattr("textseg.network.voxtell.text.find_local", lambda source: None)


@pytest.fixture(scope="session")
def cpu() -> Compute:
    return Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def shared_folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    return write_folder(tmp_path_factory.mktemp("voxtell"), tiny)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """One's own, to be spoilt."""
    return write_folder(tmp_path / "voxtell", tiny)


@pytest.fixture(scope="session")
def network(shared_folder: Path) -> VoxTellNetwork:
    return load_voxtell(shared_folder)


@pytest.fixture(scope="session")
def original() -> Path:
    """A folder with random weights and the outputs that VoxTell's own code gives for it."""
    folder = REPOSITORY.parent / "shared" / "fixtures" / "voxtell-tiny"
    if not folder.is_dir():
        pytest.skip(f"Needs the outputs of VoxTell's own code in {folder}, not part of the repository.")
    return folder
