"""Voxels from one grid to another: exact where grids coincide, faithful where they don't."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from textseg.geometry import AxisOrder, Box, Geometry
from textseg.resample import parallel_axes, resample

ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]
SHAPE = (7, 9, 5)
TYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64,
]  # fmt: skip


def noise(shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 200).to(dtype)


def smooth(grid, wavelength_mm=40.0):
    """A wave in the world that a grid of a few millimetres can show."""
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    turn = 2 * np.pi / wavelength_mm
    return torch.from_numpy(np.sin(turn * x) * np.cos(turn * y) + np.sin(turn * z + 1)).float()


def rotated(grid, degrees, about_voxel):
    """The grid turned in the world about one of its own voxels."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    pivot = grid.to_world(about_voxel)
    turn[:3, 3] = pivot - turn[:3, :3] @ pivot
    return Geometry(grid.shape, turn @ grid.affine)


def centred(shape, spacing):
    """A grid with its world origin at its middle."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return Geometry(shape, affine)


# ---- copies, to the last bit ----


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_the_same_grid_gives_the_same_voxels(dtype, interpolation, sheared):
    grid, voxels = Geometry(SHAPE, sheared), noise(SHAPE, dtype=dtype)
    same = resample(voxels, grid, grid, interpolation)
    assert same.dtype == dtype
    assert torch.equal(same, voxels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.uint16], ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
def test_a_permuted_and_flipped_grid_gives_the_very_same_values(order, dtype, sheared):
    grid, voxels = Geometry(SHAPE, sheared), noise((2, *SHAPE), dtype=dtype)
    turned = resample(voxels, grid, grid.reordered(order))
    assert turned.dtype == dtype
    assert np.array_equal(turned.numpy(), order.apply(voxels.numpy()))
    back = resample(turned, grid.reordered(order), grid)
    assert torch.equal(back, voxels)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_crop_and_pad_copy_what_is_there_and_fill_what_is_not(dtype, interpolation, sheared):
    grid, voxels = Geometry(SHAPE, sheared), noise(SHAPE, dtype=dtype)
    moved = resample(voxels, grid, grid.cropped(Box((2, -2, 0), (6, 6, 8))), interpolation, fill=1)
    assert moved.dtype == dtype
    assert torch.equal(moved[:, 2:, :5], voxels[2:6, :6])
    assert (moved[:, :2] == 1).all()
    assert (moved[..., 5:] == 1).all()


@given(
    st.sampled_from(ORDERS),
    st.tuples(*[st.integers(-9, 5)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_any_grid_on_the_same_voxels_takes_them_bit_by_bit(order, start, size, seed):
    grid = rotated(Geometry(SHAPE, np.diag([0.8, 1.1, 2.5, 1])), (10, 20, 30), (1, 2, 3))
    stop = tuple(a + n for a, n in zip(start, size, strict=True))
    target = grid.cropped(Box(start, stop)).reordered(order)
    voxels = noise(SHAPE, seed)
    moved = resample(voxels, grid, target, fill=-1.0)
    places = np.rint(grid.to_voxels(target.to_world(np.argwhere(np.ones(target.shape))))).astype(int)
    inside = ((places >= 0) & (places < SHAPE)).all(axis=1)
    expected = np.full(len(places), -1.0, np.float32)
    expected[inside] = voxels.numpy()[tuple(places[inside].T)]
    assert np.array_equal(moved.numpy().ravel(), expected)


def test_leading_axes_are_resampled_alike(tilted):
    grid = Geometry(SHAPE, tilted)
    voxels = noise((2, 3, *SHAPE))
    for target in (grid.with_spacing((1.3, 0.7, 4)), rotated(grid, (10, -5, 20), (3, 4, 2))):
        together = resample(voxels, grid, target)
        assert together.shape == (2, 3, *target.shape)
        assert torch.allclose(together[1, 2], resample(voxels[1, 2], grid, target), atol=1e-4)


# ---- what a linear interpolation promises ----


@given(
    st.sampled_from(ORDERS),
    st.tuples(*[st.sampled_from([0.31, 0.5, 0.77, 1.0, 2.0, 3.0])] * 3),
    st.tuples(*[st.floats(-3, 3)] * 3),
)
@settings(deadline=None, max_examples=60)
def test_a_ramp_stays_the_same_ramp_on_every_parallel_grid(order, steps, slope):
    source = rotated(centred((13, 17, 11), (0.8, 1.1, 2.5)), (10, 20, 30), (1, 2, 3))
    scale = np.diag([*steps, 1.0])
    scale[:3, 3] = (np.array(steps) - 1) / 2
    target = Geometry((9, 8, 7), source.affine @ scale).reordered(order)
    check_ramp(source, target, slope, reach=np.maximum(1, steps), tolerance=1e-3)


@given(st.tuples(*[st.floats(1.01, 3.5)] * 3), st.tuples(*[st.floats(-1, 1)] * 3))
@settings(deadline=None, max_examples=40)
def test_a_ramp_hardly_moves_at_fractional_steps(steps, slope):
    # A sampled triangle has its centre of mass up to 0.086 of a voxel beside its middle, in Pillow as here.
    source = centred((25, 27, 21), (1, 1, 1))
    target = source.with_spacing(steps)
    reach = np.array(source.shape) / np.array(target.shape)
    check_ramp(source, target, slope, reach, tolerance=0.087 * np.abs(slope).sum() + 1e-3)


@given(st.tuples(*[st.floats(-180, 180)] * 3), st.tuples(*[st.floats(-3, 3)] * 3))
@settings(deadline=None, max_examples=30)
def test_a_ramp_stays_the_same_ramp_on_every_rotated_grid(degrees, slope):
    source = centred((13, 17, 11), (1.5, 1.1, 2.5))
    target = rotated(centred((9, 10, 11), (1.1, 1.1, 1.1)), degrees, (4, 6, 5))
    check_ramp(source, target, slope, reach=np.ones(3), tolerance=2e-3)


def check_ramp(source, target, slope, reach, tolerance):
    def ramp(grid):
        return grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) @ slope

    moved = resample(torch.from_numpy(ramp(source)).float(), source, target, fill=1e6).numpy()
    places = source.to_voxels(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    inner = ((places >= reach - 1) & (places <= source.shape - reach)).all(axis=-1)
    assert inner.any()
    assert np.abs(moved - ramp(target))[inner].max() <= tolerance


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
@pytest.mark.parametrize("factor", [2, 2.4, 3, 4.5])
def test_a_checkerboard_becomes_grey_rather_than_another_pattern(factor, degrees):
    source = centred((48, 40, 44), (1, 1, 1))
    board = (np.indices(source.shape).sum(axis=0) % 2).astype(np.float32)
    target = rotated(centred((9, 7, 8), (factor,) * 3), degrees, (4, 3, 3.5))
    grey = resample(torch.from_numpy(board), source, target, fill=0.5)
    assert (grey - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("spacing", [(0.5, 0.6, 1.1), (2.2, 2.7, 3.1), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
def test_mass_is_kept(spacing, degrees, ball):
    source = centred((40, 44, 36), (1, 1, 1))
    blob = torch.from_numpy(ball(source, (3, -4, 2), 9).astype(np.float32))
    shape = tuple(int(40 / mm) for mm in spacing)
    target = rotated(centred(shape, spacing), degrees, (np.array(shape) - 1) / 2)
    moved = resample(blob, source, target)
    mass = float(moved.sum()) * target.voxel_volume_mm3
    assert mass == pytest.approx(float(blob.sum()), rel=0.02)


def test_values_stay_within_those_that_were_there(tilted):
    grid, voxels = Geometry(SHAPE, tilted), noise(SHAPE)
    for target in (
        grid.with_spacing((0.3, 2.7, 1.9)),
        rotated(grid, (30, 0, 10), (3, 4, 2)).with_spacing((2, 1, 1)),
    ):
        moved = resample(voxels, grid, target, fill=float(voxels[0, 0, 0]))
        assert voxels.min() - 1e-3 <= moved.min()
        assert moved.max() <= voxels.max() + 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.bool], ids=str)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
def test_whole_numbers_are_averaged_as_fractions(degrees, dtype, tilted):
    grid, voxels = Geometry(SHAPE, tilted), noise(SHAPE, dtype=dtype)
    target = rotated(grid, degrees, (3, 4, 2)).with_spacing((1.7, 1.1, 1.3))
    moved = resample(voxels, grid, target)
    assert moved.dtype == torch.float32
    assert torch.equal(moved, resample(voxels.float(), grid, target))


# ---- nearest ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32], ids=str)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
def test_nearest_gives_no_label_that_was_not_there(degrees, dtype, tilted):
    grid = Geometry((14, 18, 10), tilted)
    labels = (torch.randint(1, 5, grid.shape, generator=torch.Generator().manual_seed(1)) * 63).to(dtype)
    target = rotated(grid, degrees, (7, 9, 5)).with_spacing((1.3, 0.6, 1.9))
    moved = resample(labels, grid, target, "nearest")
    assert moved.dtype == dtype
    found = {63, 126, 189, 252} | ({0} if any(degrees) else set())
    assert set(np.unique(moved.numpy()).tolist()) == found


def test_nearest_takes_the_voxel_that_holds_the_place(sheared, tilted):
    source, target = Geometry((12, 14, 9), sheared), Geometry((11, 13, 9), tilted)
    labels = torch.arange(12 * 14 * 9, dtype=torch.int32).reshape(12, 14, 9)
    moved = resample(labels, source, target, "nearest", fill=-1).numpy()
    places = source.to_voxels(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    # Places on the wall between two voxels may go either way.
    clear = (np.abs(places - np.floor(places) - 0.5) > 1e-3).all(axis=-1)
    nearest = np.rint(places).astype(int)
    inside = ((nearest >= 0) & (nearest < source.shape)).all(axis=-1)
    x, y, z = np.moveaxis(np.where(inside[..., None], nearest, 0), -1, 0)
    expected = np.where(inside, labels.numpy()[x, y, z], -1)
    assert np.array_equal(moved[clear], expected[clear])
    assert inside.any()
    assert not inside.all()


def test_splitting_voxels_and_going_back_is_exact(tilted):
    grid, labels = Geometry(SHAPE, tilted), noise(SHAPE, dtype=torch.int16)
    fine = grid.with_shape((14, 27, 20))
    split = resample(labels, grid, fine, "nearest")
    repeated = labels.repeat_interleave(2, 0).repeat_interleave(3, 1).repeat_interleave(4, 2)
    assert torch.equal(split, repeated)
    assert torch.equal(resample(split, fine, grid, "nearest"), labels)


# ---- beyond the field of view ----


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_voxels_outside_of_the_field_of_view_are_filled_and_no_others(interpolation, degrees, tilted):
    source = Geometry(SHAPE, tilted)
    target = rotated(source.cropped(Box((-3, -2, -4), (9, 12, 8))), degrees, (5, 5, 5))
    target = target.with_spacing((0.9, 0.9, 0.9))
    moved = resample(torch.ones(SHAPE), source, target, interpolation, fill=-7.0).numpy()
    places = source.to_voxels(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    inside = ((places > -0.5) & (places < np.array(SHAPE) - 0.5)).all(axis=-1)
    assert np.allclose(moved, np.where(inside, 1, -7), atol=1e-5)
    assert inside.any()
    assert not inside.all()


def test_a_grid_elsewhere_gets_nothing_but_the_fill(tilted):
    source = Geometry(SHAPE, tilted)
    far = source.cropped(Box((70, 0, 0), (73, 4, 5)))
    assert (resample(noise(SHAPE), source, far, fill=-3) == -3).all()
    assert (resample(noise(SHAPE), source, rotated(far, (5, 6, 7), (0, 0, 0)), fill=-3) == -3).all()


# ---- against others ----


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
def test_linear_agrees_with_scipy_where_nothing_is_averaged(degrees, tilted):
    source = Geometry(SHAPE, tilted)
    target = rotated(source, degrees, (3, 4, 2)).with_spacing((0.5, 0.7, 0.6))
    voxels = noise(SHAPE)
    places = source.to_voxels(target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)))
    theirs = ndimage.map_coordinates(voxels.numpy(), np.moveaxis(places, -1, 0), order=1, mode="nearest")
    inside = ((places > -0.5) & (places < np.array(SHAPE) - 0.5)).all(axis=-1)
    ours = resample(voxels, source, target).numpy()
    assert np.abs(ours - theirs)[inside].max() < 0.02


def test_linear_agrees_with_torch_on_the_same_field_of_view(tilted):
    source, voxels = Geometry(SHAPE, tilted), noise(SHAPE)
    larger = source.with_shape((16, 9, 23))
    theirs = torch.nn.functional.interpolate(voxels[None, None], larger.shape, mode="trilinear")[0, 0]
    assert torch.allclose(resample(voxels, source, larger), theirs, atol=2e-3)


@pytest.mark.parametrize("sides", [(3, 4), (5, 2), (6, 7)], ids=str)
def test_averaging_agrees_with_the_antialiased_one_of_torch(sides, tilted):
    source, voxels = Geometry(SHAPE, tilted), noise(SHAPE)
    planes = voxels.permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(planes, sides, mode="bilinear", antialias=True)[0].permute(
        1, 2, 0
    )
    assert torch.allclose(resample(voxels, source, source.with_shape((*sides, 5))), theirs, atol=2e-3)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 31)], ids=["parallel", "rotated"])
def test_there_on_a_finer_grid_and_back_gives_a_smooth_image_again(degrees):
    source = centred((20, 24, 18), (2, 2.2, 2.5))
    image = smooth(source)
    finer = rotated(centred((90, 90, 90), (0.8, 0.8, 0.8)), degrees, (44, 45, 46))
    back = resample(resample(image, source, finer), finer, source)
    inner = (slice(3, -3),) * 3
    assert (back - image)[inner].abs().max() < 0.05 * (image.max() - image.min())


# ---- noise in the affine ----


@pytest.mark.parametrize("sides", [(32, 64, 96), (11, 14, 3), (128, 5, 37)], ids=str)
def test_rounding_in_the_affine_changes_no_bit(sides):
    # 25 voxels on 32 meet at 64ths of a voxel: no rounding of positions may have its border there.
    source = rotated(Geometry((25, 9, 21), np.diag([0.8, 1.1, 2.5, 1])), (10, 20, 30), (1, 2, 3))
    target = source.with_shape(sides)
    voxels = noise(source.shape)
    expected = resample(voxels, source, target)
    random = np.random.default_rng(0)
    for _ in range(5):
        jitter = np.ones((4, 4))
        jitter[:3] += random.normal(0, 1e-14, (3, 4))
        shaken = Geometry(target.shape, target.affine * jitter)
        assert torch.equal(resample(voxels, source, shaken), expected)


def test_grids_are_parallel_up_to_rounding_only(tilted):
    grid = Geometry(SHAPE, tilted)
    assert parallel_axes(grid, grid.reordered(ORDERS[17]).with_spacing((1, 2, 3))) is not None
    assert parallel_axes(grid, Geometry(SHAPE, grid.affine.astype(np.float32))) is not None
    assert parallel_axes(grid, rotated(grid, (0, 0, 1), (0, 0, 0))) is None
    # At 45° two axes of the one run most nearly along the same axis of the other.
    square = Geometry(SHAPE, np.eye(4))
    assert parallel_axes(square, rotated(square, (0, 45, 0), (0, 0, 0))) is None
