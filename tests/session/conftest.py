"""A tiny model whose network is a painter, and scans with three different sides and a tilted affine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.session.painting import Painter
from tests.tiny_model import write_tiny_model
from textseg.geometry import Geometry
from textseg.inference import Segmenter
from textseg.volume import Volume

SHAPE = (50, 38, 44)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", presence=0.3)


@pytest.fixture(scope="session")
def loaded(tiny_folder):
    return Segmenter(tiny_folder, device="cpu", exit_below=-math.inf)


@pytest.fixture
def segmenter(loaded):
    """The tiny model at 1 mm with windows of 32 × 24 × 16 and a painter in place of its network."""
    plan = loaded.plan
    windows = plan.windows.model_copy(update={"size_voxels": (32, 24, 16)})
    training = plan.training.model_copy(update={"patch_voxels": (16, 16, 16)})
    groups = {
        name: group.model_copy(update={"spacing_mm": (1.0, 1.0, 1.0)}) for name, group in plan.groups.items()
    }
    changed = plan.model_copy(update={"windows": windows, "training": training, "groups": groups})
    copy = Segmenter.__new__(Segmenter)
    vars(copy).update(vars(loaded), plan=changed, network=Painter())
    return copy


def at_millimetres(segmenter, **groups):
    """Give groups of the plan other spacings."""
    plan = segmenter.plan
    changed = {
        name: group.model_copy(update={"spacing_mm": (groups[name],) * 3} if name in groups else {})
        for name, group in plan.groups.items()
    }
    segmenter.plan = plan.model_copy(update={"groups": changed})


def tilted(shape=SHAPE, spacing_mm=1.0, degrees=12.0):
    """An oblique grid away from the origin."""
    a, b = np.radians([degrees, 0.6 * degrees])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing_mm
    affine[:3, 3] = (-31.5, 17.25, 8.0)
    return Geometry(shape, affine)


def body(geometry, inside=None):
    """A CT of water everywhere, brighter in a box off the centre; no air, so nothing is cropped."""
    voxels = np.full(geometry.shape, 0.0, np.float32)
    x, y, z = geometry.shape
    voxels[inside or (slice(3, x // 2), slice(y // 3, y - 4), slice(5, z // 2))] = 300
    voxels -= 10
    return Volume(voxels, geometry, modality="ct")


@pytest.fixture
def scan():
    return body(tilted())
