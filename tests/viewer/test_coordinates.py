"""Left is left: what napari shows, and where it is in the patient."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from tests.session.conftest import tilted
from textseg.errors import ScanError
from textseg.geometry import AxisOrder, Geometry
from textseg.viewer.coordinates import (
    WORLDS,
    ends_on_screen,
    layer_geometry,
    layer_matrix,
    plane_position,
    shown_index,
    spatial_part,
    straightened,
    tilt_degrees,
    to_ras,
    to_scan,
    vertical_direction,
)

ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]
LPS = Geometry((7, 6, 5), np.array([[-2.0, 0, 0, 9], [0, -3, 0, 8], [0, 0, 4, -7], [0, 0, 0, 1]]))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("order", ORDERS[::5], ids=str)
def test_a_grid_goes_to_a_layer_and_back(order, world):
    geometry = tilted((9, 6, 4), 1.7).reordered(order)
    matrix = layer_matrix(geometry, world)
    assert layer_geometry((*geometry.shape[::-1],), matrix, world).is_close(geometry, 1e-9)


def test_the_default_view_is_what_radiologists_look_at():
    matrix = layer_matrix(LPS)
    right, front = np.array([-1e3, 0, 0]), np.array([0, 1e3, 0])
    for towards, axis, sign in ((right, 2, -1), (front, 1, -1)):
        # RAS+ has the patient's right as its negative end's opposite: "R" is where x grows.
        towards = -towards if axis == 2 else towards
        place = LPS.to_voxels(LPS.to_world((3, 3, 2)) + towards)
        moved = matrix[:3, :3] @ (to_scan(place) - to_scan((3, 3, 2)))
        assert np.sign(moved[axis]) == sign
    assert ends_on_screen((1, 2), vertical_direction((1, 2))) == ("R", "L", "A", "P")
    assert ends_on_screen((0, 2), vertical_direction((0, 2))) == ("R", "L", "S", "I")
    assert ends_on_screen((0, 1), vertical_direction((0, 1))) == ("A", "P", "S", "I")
    assert ends_on_screen((1, 2), vertical_direction((1, 2), "SAR"), "SAR") == ("L", "R", "A", "P")


def test_3d_shows_no_mirror_image():
    # Screen axes right, down, away form a right-handed frame, and so do napari's last three axes backwards.
    shown = to_ras("SPL")[:, ::-1]
    assert np.linalg.det(shown) == 1


def test_worlds_that_are_none_are_refused():
    for world in ("SPP", "SP", "XYZ", "SPLA", ""):
        with pytest.raises(ScanError, match="three different ends"):
            to_ras(world)


def test_units_make_a_larger_grid():
    matrix = layer_matrix(LPS)
    assert layer_geometry((5, 6, 7), matrix, "SPL", 0.001).spacing_mm == pytest.approx((0.002, 0.003, 0.004))


def test_a_straight_layer_is_inverted_as_usual():
    matrix = layer_matrix(LPS)
    index = np.array([3.0, 2.25, 4.5])
    world = matrix[:3, :3] @ index + matrix[:3, 3]
    np.testing.assert_allclose(shown_index(world, matrix, (1, 2)), index)
    np.testing.assert_allclose(plane_position(index, matrix, (1, 2)), world)


@pytest.mark.parametrize("displayed", [(1, 2), (0, 2), (0, 1), (2, 1)])
def test_a_place_that_is_shown_is_found_again_on_an_oblique_layer(displayed):
    matrix = layer_matrix(tilted(degrees=25))
    index = np.array([11.0, 8.0, 17.0])
    position = plane_position(index, matrix, displayed)
    np.testing.assert_allclose(shown_index(position, matrix, displayed), index, atol=1e-9)


def test_frames_are_taken_off_and_must_not_mix_with_space():
    matrix = np.eye(5)
    matrix[1:, 1:] = layer_matrix(LPS)
    matrix[0, 0], matrix[0, 4] = 5.0, 2.0
    np.testing.assert_array_equal(spatial_part(matrix), layer_matrix(LPS))
    matrix[0, 2] = 0.5
    with pytest.raises(ScanError, match="mixes them"):
        spatial_part(matrix)


@pytest.mark.parametrize("order", ORDERS[::7], ids=str)
def test_a_tilted_grid_is_straightened_about_its_centre(order):
    geometry = tilted((9, 6, 4), 1.7, degrees=12).reordered(order)
    straight = straightened(geometry)
    middle = (np.array(geometry.shape) - 1) / 2
    np.testing.assert_allclose(straight.to_world(middle), geometry.to_world(middle))
    assert straight.orientation == geometry.orientation
    assert straight.spacing_mm == pytest.approx(geometry.spacing_mm)
    assert tilt_degrees(straight) == pytest.approx(0, abs=1e-5)
    assert 10 < tilt_degrees(geometry) < 20
