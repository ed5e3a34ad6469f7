"""The bundled scan is what its program draws, and its tumour grows in the left kidney."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from textseg.train.phantom import VALUES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("make_torso_phantom", EXAMPLES / "make_torso_phantom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed():
    scan = nib.load(EXAMPLES / "torso_phantom.nii.gz")
    return np.asanyarray(scan.dataobj), scan.affine


def test_the_program_draws_the_committed_scan(program, committed, tmp_path):
    program.main(tmp_path / "drawn.nii.gz")
    drawn = nib.load(tmp_path / "drawn.nii.gz")
    voxels, affine = committed
    np.testing.assert_array_equal(drawn.affine, affine)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    assert drawn.shape == voxels.shape
    assert drawn.get_data_dtype() == voxels.dtype == np.int16
    # Another version of torch may round a voxel the other way.
    difference = np.abs(np.asanyarray(drawn.dataobj).astype(int) - voxels)
    assert (difference <= 1).mean() > 0.999


def test_the_tumour_lies_in_the_left_kidney(program, committed, monkeypatch):
    voxels, affine = committed
    monkeypatch.setattr(program, "paint_ball", lambda image, *place, **size: image)
    healthy, labels, geometry = program.draw_scan()
    np.testing.assert_array_equal(geometry.affine, affine)
    tumour = voxels.astype(int) - healthy < -30
    kidney = labels == VALUES["left kidney"]
    assert tumour.sum() > 200
    assert (tumour & kidney).sum() > 0.5 * tumour.sum()
    middle = world_x(labels == VALUES["vertebral column"], affine)
    for mask in (tumour, kidney):
        # The world's x grows to the right, wherever its origin lies.
        assert world_x(mask, affine) < middle - 30
    assert world_x(labels == VALUES["right kidney"], affine) > middle + 30


def world_x(mask, affine):
    """Where the middle of a mask lies from left to right, in mm."""
    return nib.affines.apply_affine(affine, np.argwhere(mask))[:, 0].mean()
