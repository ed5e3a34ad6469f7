"""Grids and phantoms that tests of the core share: tilted, of three different sides, off-centre."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from textseg.geometry import Geometry
from textseg.plan import Plan, read_plan

PLANS = Path(__file__).resolve().parents[2] / "plans"

Ball = Callable[[Geometry, tuple[float, float, float], float], NDArray[np.bool_]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tilted() -> NDArray[np.float64]:
    """A right-angled affine, oblique to all axes, of three different spacings."""
    return tilted_affine()


@pytest.fixture(scope="session")
def sheared() -> NDArray[np.float64]:
    """The tilted affine with its slices shifted against each other, as a tilted gantry leaves them."""
    affine = tilted_affine()
    affine[:3, 2] += 0.3 * np.linalg.norm(affine[:3, 2]) * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    return affine


@pytest.fixture(scope="session")
def ball() -> Ball:
    """A function that fills a ball, centre and radius in world mm, on a grid: (x, y, z) bool."""
    return ball_on


@pytest.fixture(scope="session")
def default_plan() -> Plan:
    return read_plan(PLANS / "default")


def ball_on(geometry: Geometry, centre_mm: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    world = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    return np.asarray(np.linalg.norm(world - centre_mm, axis=-1) <= radius_mm)


def tilted_affine() -> NDArray[np.float64]:
    a, b, c = np.radians((11, -17, 23))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag([0.8, 1.1, 2.5])
    affine[:3, 3] = (-31.25, 17.5, 402.125)
    return affine
