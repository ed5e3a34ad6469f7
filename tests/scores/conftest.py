"""Masks whose scores are known, on grids with three different sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.core.conftest import tilted_affine
from textseg.geometry import Geometry

Bools = NDArray[np.bool_]
Write = Callable[..., Path]


@pytest.fixture
def grid() -> Geometry:
    """An oblique grid of 0.8 × 1.1 × 2.5 mm."""
    return Geometry((30, 26, 18), tilted_affine())


@pytest.fixture
def write(tmp_path: Path, grid: Geometry) -> Write:
    """Writes labels on the oblique grid under the tests' folder: write("ref/case.nii.gz", labels)."""

    def run(name: str, labels: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(labels.astype(np.uint8), grid.affine if affine is None else affine)
        nib.save(image, path)
        return path

    return run


def block(shape: tuple[int, int, int], start: tuple[int, int, int], stop: tuple[int, int, int]) -> Bools:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask
