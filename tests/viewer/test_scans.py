"""Layers of our reader and of others as scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.viewer.conftest import FakeLayer
from textseg.errors import ScanError
from textseg.report.preview import CT_WINDOW
from textseg.viewer.coordinates import layer_matrix
from textseg.viewer.scans import grid_of, image_layer, origin_of, volume_of, window
from textseg.volume import Volume


def layer_of(volumes):
    data, options, _ = image_layer("scan", volumes)
    return FakeLayer(data, options["affine"], options["metadata"])


def test_our_layer_gives_the_very_scan_back(scan):
    layer = layer_of([scan])
    assert grid_of(layer) == scan.geometry
    found = volume_of(layer)
    np.testing.assert_array_equal(found.voxels, scan.voxels)
    assert np.shares_memory(layer.data, scan.voxels)


def test_a_layer_that_was_moved_counts_as_it_is_shown(flipped_scan):
    layer = layer_of([flipped_scan])
    layer.matrix = layer.matrix.copy()
    layer.matrix[2, 3] += 25
    assert origin_of(layer) is None
    moved = grid_of(layer).affine[:3, 3] - flipped_scan.geometry.affine[:3, 3]
    # The third axis of the world runs to the patient's left.
    np.testing.assert_allclose(moved, (-25, 0, 0), atol=1e-9)


def test_a_layer_that_was_cut_counts_as_it_is_shown(flipped_scan):
    layer = layer_of([flipped_scan])
    layer.data = layer.data[:-1]
    assert origin_of(layer) is None
    assert grid_of(layer).shape == (50, 38, 43)


@pytest.mark.parametrize("world", ["SPL", "SAR", "IPL"])
def test_layers_of_others_are_read_as_they_are_said_to_be(scan, world):
    layer = FakeLayer(scan.voxels[0].T, layer_matrix(scan.geometry, world))
    assert grid_of(layer, world).is_close(scan.geometry, 1e-9)
    np.testing.assert_array_equal(volume_of(layer, world=world).voxels, scan.voxels)


def test_an_array_that_was_added_as_nibabel_reads_it(scan):
    layer = FakeLayer(scan.voxels[0], scan.geometry.affine)
    found = volume_of(layer, world="RAS")
    there = scan.geometry.to_world((20, 11, 7))
    index = np.rint(found.geometry.to_voxels(there)).astype(int)
    assert found.voxels[0][tuple(index)] == scan.voxels[0][20, 11, 7]
    assert tuple(index) == (7, 11, 20)


def test_scale_turn_place_and_unit_of_a_real_layer_count(scan):
    layers = pytest.importorskip("napari.layers", reason="Needs napari.", exc_type=ImportError)
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    options = {"scale": (3, 1.5, 1), "rotate": turn, "translate": (10, -20, 30), "units": ("cm",) * 3}
    found = grid_of(layers.Image(scan.voxels[0].T, **options), "SPL")
    assert found.shape == scan.geometry.shape
    assert found.spacing_mm == pytest.approx((10, 15, 30))
    # Left, back and head are where the world's last, second and first axis run to.
    np.testing.assert_allclose(found.to_world((0, 0, 0)), (-300, 200, 100))
    along = found.to_world((0, 1, 0)) - found.to_world((0, 0, 0))
    np.testing.assert_allclose(along, (-9, -12, 0), atol=1e-9)


def test_flips_of_a_real_layer_count(flipped_scan):
    layers = pytest.importorskip("napari.layers", reason="Needs napari.", exc_type=ImportError)
    affine = np.diag([-2.0, 1.5, -1, 1])
    found = grid_of(layers.Image(flipped_scan.voxels[0].T, affine=affine), "SPL")
    assert found.orientation == "RPI"
    assert found.spacing_mm == pytest.approx((1, 1.5, 2))


def test_frames_are_scans_of_their_own(flipped_scan):
    later = Volume(flipped_scan.voxels + 5, flipped_scan.geometry, modality="ct")
    layer = layer_of([flipped_scan, later])
    assert layer.data.shape == (2, 44, 38, 50)
    assert grid_of(layer) == flipped_scan.geometry
    np.testing.assert_array_equal(volume_of(layer, 1).voxels, later.voxels)


def test_frames_on_different_grids_are_refused(scan, flipped_scan):
    with pytest.raises(ScanError, match="on one grid"):
        image_layer("scan", [scan, flipped_scan])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rgb": True}, "has colours"),
        ({"multiscale": True}, "a pyramid"),
        ({"data": np.zeros((4, 5)), "matrix": np.eye(3)}, "has 2"),
        ({"data": np.zeros((2, 2, 3, 4, 5)), "matrix": np.eye(6)}, "has 5"),
    ],
)
def test_what_is_no_scan_is_refused_in_words(scan, changes, words):
    layer = FakeLayer(scan.voxels[0].T, layer_matrix(scan.geometry))
    with pytest.raises(ScanError, match=words):
        grid_of(replace(layer, **changes))


def test_masks_are_no_scans(scan):
    with pytest.raises(ScanError, match="is a mask"):
        volume_of(FakeLayer(scan.voxels[0].T > 0, layer_matrix(scan.geometry)))


def test_ct_is_shown_as_soft_tissue_and_the_rest_by_its_values():
    values = np.linspace(0, 1000, 6 * 7 * 8).reshape(6, 7, 8)
    assert window(values, "ct") == window(values - 1000, None) == CT_WINDOW
    low, high = window(values, "mr")
    assert 0 < low < 20
    assert 980 < high < 1000
    assert window(np.zeros((3, 3, 3)), "mr") == (0.0, 1.0)
