"""Left is left: what napari shows, and where it is in the patient."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from tests.session.conftest import tilted
from textseg.errors import ScanError
from textseg.geometry import AxisOrder, Geometry
from textseg.viewer.coordinates import (
    OURS,
    WORLDS,
    ends_on_screen,
    layer_geometry,
    layer_matrix,
    orientation,
    plane_position,
    shown_index,
    spatial_part,
    straightened,
    tilt_degrees,
    to_ras,
    to_scan,
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


def test_a_scan_is_laid_out_as_radiologists_look_at_it():
    # The patient's right, front and head are where RAS+ grows; napari's axes run down and to the right.
    matrix = layer_matrix(LPS)
    ends = {"R": ((1, 0, 0), 2, -1), "A": ((0, 1, 0), 1, -1), "S": ((0, 0, 1), 0, -1)}
    for step, axis, sign in ends.values():
        place = LPS.to_voxels(LPS.to_world((3, 3, 2)) + step)
        moved = matrix[:3, :3] @ (to_scan(place) - to_scan((3, 3, 2)))
        expected = np.zeros(3)
        expected[axis] = sign
        np.testing.assert_allclose(moved, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("world", "displayed", "vertical", "ends"),
    [
        (OURS, (1, 2), "down", "RLAP"),
        (OURS, (0, 2), "down", "RLSI"),
        (OURS, (0, 1), "down", "APSI"),
        ("SPL", (0, 2), "up", "RLSI"),
        ("SAR", (1, 2), "up", "LRAP"),
        ("RAS", (1, 2), "up", "ISAP"),
    ],
)
def test_head_or_front_are_on_top_and_the_sides_have_letters(world, displayed, vertical, ends):
    assert orientation(displayed, world)[1:] == (vertical, "right")
    assert ends_on_screen(displayed, vertical, world) == tuple(ends)


@pytest.mark.parametrize("world", WORLDS)
def test_3d_shows_no_mirror_image(world):
    # On the screen, x to the right, y up and z towards us are a right-handed frame.
    screen = {
        "towards": (0, 0, 1),
        "away": (0, 0, -1),
        "down": (0, -1, 0),
        "up": (0, 1, 0),
        "right": (1, 0, 0),
    }
    axes = np.transpose([screen[direction] for direction in orientation((0, 1, 2), world)])
    assert np.linalg.det(axes @ np.linalg.inv(to_ras(world))) == pytest.approx(1)
    assert orientation((0, 1, 2), OURS) == ("towards", "down", "right")


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
