"""`textseg doctor`: what it looks at, also where something is wrong."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
import torch

from tests.cli.conftest import Run
from textseg.version import __version__


def test_doctor_tells_versions_device_memory_and_extras(textseg: Run) -> None:
    result = textseg("doctor")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert f"textseg {__version__} Python 3." in words
    assert f"torch {metadata.version('torch')}" in words
    assert f"nibabel {metadata.version('nibabel')}" in words
    assert "computes on c" in words
    assert "GiB" in words
    assert " napari " in words


def test_a_missing_extra_comes_with_its_remedy(textseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    words = " ".join(textseg("doctor").stdout.split())
    assert re.search(r"dicom missing highdicom[^:]*: pip install 'textseg\[dicom\]'", words)
    assert "nibabel missing: install textseg again" in words


def test_doctor_survives_a_broken_driver(textseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("driver too old\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    result = textseg("doctor")
    assert result.exit_code == 0
    assert "nothing: RuntimeError: driver too old" in " ".join(result.stdout.split())
