"""A tiny model whose network paints what is bright or marked, and a real window where there is one."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import scan_voxels, write_series  # noqa: F401
from tests.session.conftest import body, loaded, segmenter, tilted, tiny_folder  # noqa: F401  # fixtures too
from textseg.viewer.desk import Desk


@dataclass
class FakeLayer:
    """As much of a napari layer as is needed to read a scan from it."""

    data: Any
    matrix: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    name: str = "layer"
    rgb: bool = False
    multiscale: bool = False
    units: Any = None

    @property
    def ndim(self) -> int:
        return self.data.ndim

    def data_to_world(self, index):
        return self.matrix[:-1, :-1] @ index + self.matrix[:-1, -1]


@pytest.fixture
def painter(segmenter):  # noqa: F811
    """The network of the tiny model."""
    return segmenter.network


@pytest.fixture
def desk(segmenter):  # noqa: F811
    return Desk(load_model=lambda model, device: segmenter)


@pytest.fixture
def scan():
    """A bright box off the centre, on an oblique grid with three different sides."""
    return body(tilted())


@pytest.fixture
def flipped_scan():
    """The same kind of scan as scanners store it: axes towards left, back and head, of unequal spacing."""
    from textseg.geometry import Geometry

    affine = np.array([[-1.0, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 2.0, -40], [0, 0, 0, 1]])
    return body(Geometry((50, 38, 44), affine))


@pytest.fixture
def qt(request):
    """pytest-qt's qtbot; the test is skipped where no window can open."""
    for module, name in (("napari", "napari"), ("pytestqt", "pytest-qt")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"Needs {name}, which is not installed.")
    if not request.config.pluginmanager.hasplugin("pytest-qt"):
        pytest.skip("Needs Qt, of which a part or a library of the system is missing.")
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        pytest.skip("Needs a display: run it under xvfb-run.")
    return request.getfixturevalue("qtbot")
