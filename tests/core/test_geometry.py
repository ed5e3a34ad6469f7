"""Grids in the patient: there and back, canonical axes, and grids that are none."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes, apply_orientation, io_orientation
from scipy.spatial.transform import Rotation

from textseg.errors import GeometryError, TextsegError
from textseg.geometry import AxisOrder, Box, Geometry, bounding_box

ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]
SHAPE = (7, 9, 5)

shapes = st.tuples(*[st.integers(1, 40)] * 3)
spacings = st.tuples(*[st.floats(0.2, 8)] * 3)
orders = st.sampled_from(ORDERS)


@st.composite
def grids(draw, most_shear=0.0):
    """Any grid: a random rotation, three spacings, an origin far off, and some shear if asked for."""
    rotation = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True)
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = draw(st.tuples(*[st.floats(-most_shear, most_shear)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation.as_matrix() @ shear @ np.diag(draw(spacings))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return draw(orders), Geometry(draw(shapes), affine)


# ---- voxels and world ----


@given(grids(most_shear=0.5), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_world_and_voxels_are_inverse(drawn, seed):
    _, grid = drawn
    voxels = np.random.default_rng(seed).uniform(-5, 45, (4, 6, 3))
    assert np.allclose(grid.to_voxels(grid.to_world(voxels)), voxels, atol=1e-8)


def test_to_world_is_the_affine_and_accepts_a_single_point(sheared):
    grid = Geometry(SHAPE, sheared)
    assert np.allclose(grid.to_world((1, 2, 3)), (sheared @ (1, 2, 3, 1))[:3], atol=1e-12)
    assert np.array_equal(grid.to_world((0, 0, 0)), sheared[:3, 3])
    assert np.allclose(grid.to_voxels(sheared[:3, 3]), 0, atol=1e-12)


def test_spacing_volume_and_directions_of_a_tilted_grid(tilted):
    grid = Geometry(SHAPE, tilted)
    assert grid.spacing_mm == pytest.approx((0.8, 1.1, 2.5))
    assert grid.voxel_volume_mm3 == pytest.approx(0.8 * 1.1 * 2.5)
    assert np.allclose(grid.directions.T @ grid.directions, np.eye(3))
    assert grid.shear == pytest.approx(0, abs=1e-12)


def test_shear_is_the_cosine_between_two_axes(sheared):
    grid = Geometry(SHAPE, sheared)
    assert grid.shear == pytest.approx(0.3 / np.hypot(1, 0.3))
    assert grid.voxel_volume_mm3 == pytest.approx(0.8 * 1.1 * 2.5)
    assert grid.spacing_mm == pytest.approx((0.8, 1.1, 2.5 * np.hypot(1, 0.3)))


def test_corners_are_half_a_voxel_outside(tilted):
    grid = Geometry(SHAPE, tilted)
    ends = np.array([[-0.5, n - 0.5] for n in SHAPE])
    expected = grid.to_world(list(product(*ends)))
    assert np.allclose(sorted(grid.corners_mm().tolist()), sorted(expected.tolist()))


def test_a_grid_is_frozen_compares_by_value_and_prints(tilted):
    grid = Geometry(SHAPE, tilted)
    assert grid == Geometry(list(SHAPE), tilted.copy())
    assert grid != Geometry((7, 9, 6), tilted)
    assert grid != "a grid"
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5
    assert str(grid) == "Geometry(7 × 9 × 5 voxels of 0.8 × 1.1 × 2.5 mm, RAS)"


def test_equal_grids_have_equal_hashes():
    minus_zero = np.diag([2.0, 3.0, 4.0, 1.0])
    minus_zero[0, 1] = -0.0
    one, other = Geometry(SHAPE, np.diag([2.0, 3.0, 4.0, 1.0])), Geometry(SHAPE, minus_zero)
    assert one == other
    assert hash(one) == hash(other)


def test_a_grid_keeps_its_own_copy_of_the_affine(tilted):
    affine = tilted.copy()
    grid = Geometry(SHAPE, affine)
    affine[0, 3] += 1
    assert grid == Geometry(SHAPE, tilted)


def test_is_close_forgives_a_hundredth_of_a_millimetre(tilted):
    grid = Geometry(SHAPE, tilted)
    nudged, moved = tilted.copy(), tilted.copy()
    nudged[0, 3] += 0.009
    moved[0, 3] += 0.02
    assert grid.is_close(Geometry(SHAPE, nudged))
    assert not grid.is_close(Geometry(SHAPE, moved))
    assert not grid.is_close(Geometry((7, 9, 4), tilted))


# ---- axis orders ----


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
def test_every_axis_order_keeps_voxels_where_they_are(order, sheared):
    grid = Geometry(SHAPE, sheared)
    marks = np.random.default_rng(0).permutation(7 * 9 * 5).reshape(SHAPE)
    turned, turned_grid = order.apply(marks), grid.reordered(order)
    assert turned.shape == turned_grid.shape
    for value in (0, 17, 314):
        here = grid.to_world(np.argwhere(marks == value)[0])
        there = turned_grid.to_world(np.argwhere(turned == value)[0])
        assert np.allclose(here, there, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
def test_every_axis_order_has_an_exact_inverse(order, sheared):
    grid = Geometry(SHAPE, sheared)
    marks = np.arange(2 * 7 * 9 * 5).reshape(2, *SHAPE)
    back = order.inverse()
    assert np.array_equal(back.apply(order.apply(marks)), marks)
    assert grid.reordered(order).reordered(back).is_close(grid, 1e-9)
    assert back.inverse() == order


def test_applying_an_order_moves_no_memory():
    marks = np.zeros(SHAPE, np.int16)
    assert all(np.shares_memory(order.apply(marks), marks) for order in ORDERS)


# ---- canonical axes ----


@given(grids())
@settings(deadline=None, max_examples=60)
def test_canonical_axes_agree_with_nibabel_where_there_is_no_tie(drawn):
    order, grid = drawn
    # One world axis dominates each array axis: nobody could disagree about what runs where.
    assume(np.abs(grid.directions).max(axis=0).min() > 0.75)
    grid = grid.reordered(order)
    assert grid.orientation == "".join(aff2axcodes(grid.affine))
    marks = np.arange(np.prod(grid.shape), dtype=np.int32).reshape(grid.shape)
    theirs = nib.as_closest_canonical(nib.Nifti1Image(marks, grid.affine))
    canonical = grid.canonical()
    assert canonical.shape == theirs.shape
    assert np.allclose(canonical.affine, theirs.affine, atol=1e-3)
    assert np.array_equal(grid.canonical_order().apply(marks), np.asarray(theirs.dataobj))
    assert np.array_equal(apply_orientation(marks, io_orientation(grid.affine)), np.asarray(theirs.dataobj))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
@pytest.mark.parametrize(
    "angles", [(0, 0, 45), (45, 0, 0), (0, 45, 0), (45, 35.264389682754654, 0), (0, 0, -135)], ids=str
)
def test_every_copy_of_a_scan_at_45_degrees_ends_on_one_grid(order, angles):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([0.8, 1.1, 2.5])
    affine[:3, 3] = (-31.25, 17.5, 402.125)
    grid = Geometry(SHAPE, affine)
    copy = grid.reordered(order)
    assert copy.canonical().is_close(grid.canonical(), 1e-9)
    marks = np.arange(7 * 9 * 5).reshape(SHAPE)
    canonical = copy.canonical_order().apply(order.apply(marks))
    assert np.array_equal(canonical, grid.canonical_order().apply(marks))


@given(grids(most_shear=0.3))
@settings(deadline=None, max_examples=60)
def test_every_copy_of_any_scan_ends_on_one_grid(drawn):
    order, grid = drawn
    assert grid.reordered(order).canonical().is_close(grid.canonical(), 1e-6)


def test_the_canonical_grid_of_a_canonical_grid_is_itself(tilted):
    canonical = Geometry(SHAPE, tilted).canonical()
    assert canonical.canonical() == canonical
    assert canonical.canonical_order() == AxisOrder((0, 1, 2), (False, False, False))


def test_orientation_names_the_end_to_which_each_axis_runs():
    affine = np.array([[0, -1.0, 0, 0], [0, 0, 2.0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
    assert Geometry(SHAPE, affine).orientation == "ILA"


# ---- crop, pad ----


def test_crop_and_pad_leave_voxels_where_they_are(sheared):
    grid = Geometry(SHAPE, sheared)
    box = Box((2, -3, 1), (6, 4, 9))
    cropped = grid.cropped(box)
    assert cropped.shape == (4, 7, 8)
    assert np.allclose(cropped.to_world((0, 0, 0)), grid.to_world((2, -3, 1)))
    assert np.allclose(cropped.to_world((3, 6, 7)), grid.to_world((5, 3, 8)))
    assert cropped.cropped(Box((-2, 3, -1), (5, 12, 4))).is_close(grid, 1e-9)


def test_an_empty_crop_is_no_grid(tilted):
    with pytest.raises(GeometryError, match="at least one voxel"):
        Geometry(SHAPE, tilted).cropped(Box((2, 2, 2), (2, 4, 4)))


def test_boxes_grow_and_are_cut_to_a_grid():
    box = Box((1, 2, 3), (4, 4, 4))
    assert box.shape == (3, 2, 1)
    assert box.grown((2, 0, 5)) == Box((-1, 2, -2), (6, 4, 9))
    assert box.grown((2, 0, 5)).within(SHAPE) == Box((0, 2, 0), (6, 4, 5))
    assert Box((9, -5, 2), (12, -1, 3)).within(SHAPE).shape == (0, 0, 1)
    marks = np.zeros(SHAPE, bool)
    marks[box.slices] = True
    assert marks.sum() == 6


def test_the_bounding_box_holds_every_true_voxel_and_no_empty_border():
    marks = np.zeros(SHAPE, bool)
    marks[5, 1, 2] = marks[2, 7, 4] = True
    assert bounding_box(marks) == Box((2, 1, 2), (6, 8, 5))
    assert bounding_box(np.ones(SHAPE, bool)) == Box((0, 0, 0), SHAPE)
    assert bounding_box(np.zeros(SHAPE, bool)) is None


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_the_bounding_box_of_a_view_is_that_of_its_copy(axes: tuple[int, int, int]) -> None:
    marks = np.zeros((7, 9, 5), bool)
    marks[1, 7, 2] = marks[3, 2, 4] = True
    for flips in product((1, -1), repeat=3):
        view = marks.transpose(axes)[tuple(slice(None, None, step) for step in flips)]
        where = np.argwhere(view)
        expected = Box(tuple(where.min(axis=0).tolist()), tuple((where.max(axis=0) + 1).tolist()))
        assert bounding_box(view) == expected


# ---- spacing ----


@given(grids(most_shear=0.3), spacings)
@settings(deadline=None, max_examples=60)
def test_new_spacing_keeps_the_field_of_view_and_going_back_restores_the_grid(drawn, spacing_mm):
    _, grid = drawn
    regridded = grid.with_spacing(spacing_mm)
    assert np.allclose(regridded.corners_mm(), grid.corners_mm(), atol=1e-6)
    back = regridded.with_spacing(grid.spacing_mm)
    assert back.shape == grid.shape
    assert np.allclose(back.affine, grid.affine, atol=1e-6)


@given(grids(), spacings)
@settings(deadline=None, max_examples=60)
def test_new_spacing_is_as_near_to_the_wanted_one_as_whole_voxels_allow(drawn, spacing_mm):
    _, grid = drawn
    regridded = grid.with_spacing(spacing_mm)
    for n, got, wanted in zip(regridded.shape, regridded.spacing_mm, spacing_mm, strict=True):
        voxels_wanted = n * got / wanted
        assert voxels_wanted <= n + 0.5 + 1e-9
        assert n == 1 or voxels_wanted >= n - 0.5 - 1e-9


@pytest.mark.parametrize(
    "spacing_mm", [(1, 0, 1), (1, -2, 1), (1, float("nan"), 1), (1, float("inf"), 1), (1, 1)]
)
def test_a_spacing_that_is_none_is_refused(spacing_mm, tilted):
    with pytest.raises(GeometryError, match="three positive numbers in mm"):
        Geometry(SHAPE, tilted).with_spacing(spacing_mm)


# ---- straightening ----


@given(grids(most_shear=0.4))
@settings(deadline=None, max_examples=60)
def test_the_straightened_grid_covers_every_corner_and_no_more_than_it_must(drawn):
    _, grid = drawn
    straight = grid.right_angled()
    assert straight.shear < 1e-9
    assert straight.spacing_mm == pytest.approx(grid.spacing_mm)
    corners = straight.to_voxels(grid.corners_mm())
    assert (corners >= -0.5 - 1e-4).all()
    assert (corners <= np.array(straight.shape) - 0.5 + 1e-4).all()
    assert (np.ptp(corners, axis=0) > np.array(straight.shape) - 1 - 1e-4).all()


def test_straightening_a_straight_grid_changes_nothing(tilted):
    grid = Geometry(SHAPE, tilted)
    assert grid.right_angled().is_close(grid, 1e-9)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
def test_straightening_does_not_depend_on_the_order_of_the_axes(order, sheared):
    grid = Geometry(SHAPE, sheared)
    turned = grid.reordered(order).right_angled()
    assert turned.is_close(grid.right_angled().reordered(order), 1e-9)


# ---- grids that are none ----


def changed(row, column, value):
    affine = np.diag([0.8, 1.1, 2.5, 1.0])
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (changed(2, 2, 0), "Spacing must be three positive numbers in mm, got \\(0.8, 1.1, 0.0\\)"),
        (changed(1, 1, np.nan), "must be finite"),
        (changed(0, 3, np.inf), "must be finite"),
        (changed(3, 0, 0.1), "last row of an affine is 0 0 0 1"),
        (changed(3, 3, 2), "last row of an affine is 0 0 0 1"),
        (np.diag([1.0, 1.0, 1.0]), "4 × 4"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "singular"),
    ],
)
def test_an_affine_that_is_none_is_refused(affine, message):
    with pytest.raises(GeometryError, match=message):
        Geometry(SHAPE, affine)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 5, 1), (7, 0, 5), (7, 9, -5), ()])
def test_a_shape_that_is_no_3d_grid_is_refused(shape):
    with pytest.raises(GeometryError, match="three sizes"):
        Geometry(shape, np.eye(4))


def test_geometry_errors_are_value_errors_and_ours():
    assert issubclass(GeometryError, TextsegError)
    assert issubclass(GeometryError, ValueError)


def test_a_tiny_voxel_is_no_singular_grid():
    grid = Geometry(SHAPE, np.diag([1e-4, 2e-4, 1e-4, 1.0]))
    assert grid.voxel_volume_mm3 == pytest.approx(2e-12)
