"""From the scan to the network's grid and back: the crop, the values, one mask for every copy of a scan."""

from __future__ import annotations

import warnings
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from textseg.errors import PlanError, ScanError
from textseg.geometry import AxisOrder, Box, Geometry
from textseg.masks import above_threshold
from textseg.models import plans_folder
from textseg.plan import read_plan
from textseg.prepare import (
    OUTSIDE_LOGIT,
    Prepared,
    content_box,
    join_channels,
    prepare,
    restore_mask,
    working_grid,
)
from textseg.volume import ScanFile, Volume

ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]
PLAN = read_plan(plans_folder() / "default")


def is_inside(logits):
    return above_threshold(logits, 0.5)


def segmented(volume, spacing_mm, modality="ct"):
    """The mask of a stub network: what is brighter than 100 HU after a little blur."""
    prepared = prepare(volume, PLAN, modality, spacing_mm)
    # The blur makes a voxel's answer depend on its neighbours, as a network's does.
    blurred = ndimage.gaussian_filter(prepared.image[0].numpy(), 0.6, mode="nearest")
    mask = restore_mask(torch.from_numpy((blurred - 0.4) * 10), prepared, is_inside)
    assert mask.shape == volume.geometry.shape
    assert mask.dtype == bool
    return mask


def oblique(shape, spacing, degrees=(8, -12, 15), shear=0.0):
    """A grid about the world's origin, tilted; with shear its slices are shifted against each other."""
    affine = np.eye(4)
    skew = np.eye(3)
    skew[1, 2] = shear
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ skew @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Geometry(shape, affine)


def body_ct(grid, seed=0):
    """Air, an ellipsoid of noisy tissue off the centre, and two brighter things in it, as HU (x, y, z)."""
    world = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    noise = np.random.default_rng(seed).normal(0, 8, grid.shape)
    hu = np.full(grid.shape, -1000.0)
    hu[np.linalg.norm((world - (3, -2, 1)) / (26, 20, 22), axis=-1) < 1] = 30
    hu[np.linalg.norm(world - (10, 3, -4), axis=-1) < 8] = 220
    hu[np.linalg.norm(world - (-9, -7, 6), axis=-1) < 5] = 300
    return (hu + noise).astype(np.float32)


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


# ---- what the network sees ----


def test_the_working_grid_is_canonical_and_of_the_working_spacing(sheared):
    scan = Geometry((40, 36, 30), sheared).reordered(ORDERS[29])
    grid = working_grid(scan, (3, 2, 1.5))
    assert grid.orientation == "RAS"
    assert grid.shear < 1e-9
    assert grid.spacing_mm == pytest.approx((3, 2, 1.5), rel=0.05)
    corners = grid.to_voxels(scan.corners_mm())
    assert (corners >= -0.5 - 1e-6).all()
    assert (corners <= np.array(grid.shape) - 0.5 + 1e-6).all()


def test_a_right_angled_scan_keeps_its_field_of_view(tilted):
    scan = Geometry((40, 36, 30), tilted)
    grid = working_grid(scan, (3, 3, 3))
    assert np.allclose(grid.corners_mm(), scan.corners_mm())


def test_what_straightening_adds_around_a_sheared_scan_is_air():
    grid = oblique((30, 36, 28), (2, 2, 2.5), shear=0.4)
    hu = np.full(grid.shape, -1000, np.int16)
    hu[8:17, 12:25, 9:20] = 40
    prepared = prepare(Volume(hu, grid), PLAN, "ct", (2, 2, 2))
    body_mm3 = int((prepared.image > -2).sum()) * prepared.geometry.voxel_volume_mm3
    assert body_mm3 == pytest.approx(9 * 13 * 11 * 10, rel=0.1)
    assert np.prod(prepared.geometry.shape) < 0.5 * np.prod(working_grid(grid, (2, 2, 2)).shape)
    assert float(prepared.image.min()) == -4


@pytest.mark.parametrize("margin", [0, 6.0, 7.0])
def test_the_crop_is_the_body_and_its_margin(margin):
    grid = oblique((50, 60, 40), (1, 1.5, 2))
    hu = np.full(grid.shape, -1000, np.int16)
    hu[12:30, 20:45, 10:33] = 40
    plan = PLAN.model_copy(update={"margin_mm": margin})
    prepared = prepare(Volume(hu, grid), plan, "ct", (1, 1.5, 2))
    x, y, z = (int(np.ceil(margin / mm)) for mm in (1, 1.5, 2))
    start, stop = (12 - x, 20 - y, 10 - z), (30 + x, 45 + y, 33 + z)
    expected = grid.cropped(Box(start, stop))
    assert prepared.geometry.is_close(expected)
    assert prepared.scan == grid
    assert prepared.image.shape == (1, *expected.shape)
    inner = prepared.image[0][x : x + 18, y : y + 25, z : z + 23]
    assert torch.allclose(inner, torch.tensor(0.16))
    assert (prepared.image == 0.16).sum() == 18 * 25 * 23


def test_the_crop_ends_at_the_scan():
    grid = oblique((20, 24, 18), (2, 2, 2))
    hu = np.full(grid.shape, -1000, np.int16)
    hu[1:15, :, 16:] = 40
    prepared = prepare(Volume(hu, grid), PLAN, "ct", (2, 2, 2))
    assert prepared.geometry.is_close(grid.cropped(Box((0, 0, 13), (18, 24, 18))))


def test_the_margin_is_whole_voxels_whatever_the_rounding():
    grid = Geometry((30, 20, 10), np.diag([3 - 1e-15, 3 + 1e-15, 3, 1]))
    image = torch.full(grid.shape, -1000.0)
    image[10:20, 8:12, 4:6] = 0
    assert content_box(image, PLAN.intensity["ct"], grid, 6.0) == Box((8, 6, 2), (22, 14, 8))


def test_where_nothing_stands_out_the_whole_grid_is_kept(tilted):
    grid = Geometry((7, 9, 5), tilted)
    prepared = prepare(Volume(np.full((7, 9, 5), -1000, np.int16), grid), PLAN, "ct", grid.spacing_mm)
    assert prepared.geometry.is_close(grid)


def test_ct_values_arrive_in_hounsfield_steps(tilted):
    grid = Geometry((7, 9, 5), tilted)
    hu = np.random.default_rng(0).integers(-400, 1500, (7, 9, 5)).astype(np.int16)
    prepared = prepare(Volume(hu, grid), PLAN, "ct", grid.spacing_mm)
    assert np.allclose(prepared.image[0].numpy(), np.clip(hu, -1000, 1000) / 250)


def test_mr_and_pet_values_arrive_by_their_own_rules(tilted):
    grid = Geometry((17, 19, 15), tilted)
    values = np.random.default_rng(0).gamma(2, 2, grid.shape).astype(np.float32)
    pet = prepare(Volume(values, grid), PLAN, "pet", grid.spacing_mm)
    assert np.allclose(pet.image[0].numpy(), (np.clip(values, 0, 20) - 1) / 2, atol=1e-5)
    mr = prepare(Volume(values * 50, grid), PLAN, "mr", grid.spacing_mm)
    assert mr.image.std() == pytest.approx(1, abs=0.1)
    assert mr.image.max() < 5


@pytest.mark.parametrize("dtype", [">i2", "<i2", ">f4", "<f4", ">f8", "<f8", "u1", ">u2", "<u2", "<i4"])
def test_every_type_and_byte_order_gives_the_same_image(dtype, tilted):
    grid = Geometry((7, 9, 5), tilted)
    values = np.random.default_rng(0).integers(0, 250, grid.shape)
    expected = prepare(Volume(values.astype(np.float32), grid), PLAN, "ct", (1, 2, 3))
    prepared = prepare(Volume(values.astype(dtype), grid), PLAN, "ct", (1, 2, 3))
    assert prepared.image.dtype == torch.float32
    assert torch.equal(prepared.image, expected.image)


def test_preparing_changes_no_voxel_and_warns_of_nothing(tilted):
    grid = Geometry((7, 9, 5), tilted)
    values = body_ct(grid)
    values.setflags(write=False)
    before = values.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare(Volume(values, grid), PLAN, "ct", grid.spacing_mm)
    prepared.image.zero_()
    assert np.array_equal(values, before)


def test_another_number_of_channels_is_refused(tilted):
    volume = Volume(np.zeros((2, 7, 9, 5)), Geometry((7, 9, 5), tilted))
    with pytest.raises(PlanError, match=r"'default' takes 1 channel\(s\) \(image\), got 2"):
        prepare(volume, PLAN, "ct", (1, 1, 1))


def test_a_modality_that_the_plan_does_not_know_is_refused(tilted):
    plan = PLAN.model_copy(update={"intensity": {"ct": PLAN.intensity["ct"]}})
    volume = Volume(np.zeros((7, 9, 5)), Geometry((7, 9, 5), tilted))
    with pytest.raises(PlanError, match=r"'default' knows ct, got pet\."):
        prepare(volume, plan, "pet", (1, 1, 1))


def test_channels_share_the_crop_and_are_normalised_one_by_one(tilted):
    plan = PLAN.model_copy(update={"channels": ("t1", "t2")})
    grid = oblique((30, 32, 28), (2, 2, 2))
    one, other = body_ct(grid) + 1000, 5 * (body_ct(grid, seed=4) + 1000)
    both = prepare(Volume(np.stack([one, other]), grid), plan, "mr", (2, 2, 2))
    first = prepare(Volume(one, grid), PLAN, "mr", (2, 2, 2))
    assert both.geometry == first.geometry
    assert torch.equal(both.image[0], first.image[0])
    assert both.image[1].std() == pytest.approx(float(both.image[0].std()), rel=0.05)


def test_each_channel_is_normalised_by_the_rule_of_its_own_modality(tilted):
    changes = {"channels": ("ct", "pet"), "channel_modalities": ("ct", "pet")}
    plan = PLAN.model_copy(update=changes)
    grid = Geometry((17, 19, 15), tilted)
    ct, pet = body_ct(grid), np.random.default_rng(0).gamma(2, 2, grid.shape).astype(np.float32)
    both = prepare(Volume(np.stack([ct, pet]), grid), plan, "ct", grid.spacing_mm)
    alone = prepare(Volume(ct, grid), PLAN, "ct", grid.spacing_mm)
    assert torch.equal(both.image[0], alone.image[0])
    box = content_box(torch.from_numpy(ct), PLAN.intensity["ct"], grid, PLAN.margin_mm)
    assert np.allclose(both.image[1].numpy(), (np.clip(pet, 0, 20)[box.slices] - 1) / 2, atol=1e-5)


def test_a_channel_whose_modality_has_no_rule_is_refused(tilted):
    changes = {"channels": ("ct", "pet"), "channel_modalities": ("ct", "pet")}
    intensity = {name: rule for name, rule in PLAN.intensity.items() if name != "pet"}
    plan = PLAN.model_copy(update=changes | {"intensity": intensity})
    volume = Volume(np.zeros((2, 7, 9, 5)), Geometry((7, 9, 5), tilted))
    with pytest.raises(PlanError, match="knows ct and mr, got pet"):
        prepare(volume, plan, "ct", (1, 1, 1))


# ---- channels of their own grids ----


def two_files(grid, other):
    """Two scans of one body, from files, each on a grid of its own."""
    one, two = (
        Volume(body_ct(each, seed), each, ScanFile((Path(f"{name}.nii"),), "nii", None, {"warnings": [name]}))
        for each, seed, name in ((grid, 0, "first"), (other, 3, "second"))
    )
    return one, two


def test_channels_on_one_grid_are_joined_as_they_are():
    grid = oblique((20, 24, 18), (2, 2, 2))
    # As much as rounding in a header moves a grid.
    near = Geometry(grid.shape, np.diag([1 + 1e-6, 1, 1, 1]) @ grid.affine)
    assert near != grid
    first, second = two_files(grid, near)
    joined, sources = join_channels([first, second])
    assert np.array_equal(joined.voxels, np.stack([first.voxels[0], second.voxels[0]]))
    assert joined.geometry == grid
    assert [path.name for path in joined.file.paths] == ["first.nii", "second.nii"]
    assert joined.file.details["warnings"] == ["first", "second"]
    assert [source.regridded for source in sources] == [False, False]


@pytest.mark.parametrize("order", [ORDERS[0], ORDERS[29]])
def test_a_channel_on_another_grid_is_brought_to_the_same_place_in_the_world(order):
    grid = oblique((40, 44, 30), (2, 1.5, 2.5))
    # Shifted, turned the other way, coarser, and stored in another order of its axes.
    other = oblique((36, 36, 40), (2.2, 2.2, 2), degrees=(-5, 4, -9)).reordered(order)
    first, second = two_files(grid, other)
    joined, sources = join_channels([first, second])
    assert joined.voxels.shape == (2, *grid.shape)
    bright = joined.voxels > 130
    assert dice(bright[0], bright[1]) > 0.85
    assert [source.regridded for source in sources] == [False, True]
    assert sources[1].geometry == other
    assert 0.7 < sources[1].covered < 1
    assert np.array_equal(first.voxels, joined.voxels[:1])


def test_where_a_channel_does_not_reach_it_has_its_lowest_value():
    grid = oblique((40, 44, 30), (2, 2, 2))
    upper = grid.cropped(Box((0, 0, 15), (40, 44, 30)))
    joined, (_, source) = join_channels(two_files(grid, upper))
    assert source.covered == pytest.approx(0.5)
    assert (joined.voxels[1, :, :, :15] == joined.voxels[1].min()).all()
    assert np.array_equal(joined.voxels[1, :, :, 15:], body_ct(upper, 3))


def test_channels_that_do_not_overlap_are_refused():
    grid = oblique((20, 24, 18), (2, 2, 2))
    far = Geometry(
        grid.shape, np.array([[1, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ grid.affine
    )
    with pytest.raises(ScanError, match=r"second\.nii and first\.nii do not overlap"):
        join_channels(two_files(grid, far))


def test_one_scan_stays_what_it_is():
    grid = oblique((20, 24, 18), (2, 2, 2))
    volume = Volume(body_ct(grid), grid)
    joined, sources = join_channels([volume])
    assert joined is volume
    assert [source.files for source in sources] == [()]


# ---- and back ----


def test_beyond_the_crop_there_is_no_mask(tilted):
    scan = Geometry((20, 24, 18), tilted)
    prepared = Prepared(torch.empty(0), scan.cropped(Box((4, 5, 6), (14, 17, 11))), scan)
    mask = restore_mask(torch.full((10, 12, 5), 50.0), prepared, is_inside)
    expected = np.zeros(scan.shape, bool)
    expected[4:14, 5:17, 6:11] = True
    assert np.array_equal(mask, expected)
    assert torch.sigmoid(torch.tensor(OUTSIDE_LOGIT)) < 1e-12


def test_logits_are_interpolated_before_the_threshold(tilted):
    scan = Geometry((8, 9, 7), tilted)
    coarse = Prepared(torch.empty(0), scan.with_shape((2, 9, 7)), scan)
    logits = torch.tensor([9.0, -3.0]).reshape(2, 1, 1).expand(2, 9, 7)
    # The logit falls from 9 at voxel 1.5 to -3 at voxel 5.5, so it is 1.5 at voxel 4 and -1.5 at voxel 5;
    # nearest neighbours, or masks that are interpolated, would stop after voxel 3.
    mask = restore_mask(logits, coarse, is_inside)
    assert np.array_equal(mask.any(axis=(1, 2)), mask.all(axis=(1, 2)))
    assert mask.any(axis=(1, 2)).tolist() == [True] * 5 + [False] * 3


# ---- copies of one scan ----


@pytest.mark.parametrize("spacing", [(1.6, 1.2, 2.0), (3, 3, 3), (1.1, 2.3, 1.7)], ids=str)
@pytest.mark.parametrize("shear", [0.0, 0.25], ids=["straight", "sheared"])
def test_every_permuted_and_flipped_copy_gets_the_same_mask_bit_by_bit(spacing, shear):
    grid = oblique((41, 47, 33), (1.6, 1.2, 2.0), shear=shear)
    hu = body_ct(grid)
    expected = segmented(Volume(hu, grid), spacing)
    assert 500 < expected.sum() < 5000
    for order in ORDERS[:: 1 if shear == 0 else 7]:
        copy = Volume(order.apply(hu), grid.reordered(order))
        assert np.array_equal(order.inverse().apply(segmented(copy, spacing)), expected), order


@pytest.mark.parametrize(
    ("shape", "spacing", "working"),
    [
        ((30, 30, 30), (2, 2, 2), (3, 3, 3)),
        ((40, 40, 22), (1, 1, 2.5), (1.5, 1.5, 1.5)),
        ((14, 14, 14), (3, 3, 3), (1.5, 1.5, 1.5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("shear", [0.0, 0.25], ids=["straight", "sheared"])
def test_logits_are_the_same_to_the_last_bit_where_axes_are_alike(shape, spacing, working, shear):
    def last_bit(logits):
        return (logits.view(torch.int32) & 1).bool()

    grid = oblique(shape, spacing, shear=shear)
    working_geometry = working_grid(grid, working)
    logits = torch.randn(working_geometry.shape, generator=torch.Generator().manual_seed(2))
    expected = restore_mask(logits, Prepared(torch.empty(0), working_geometry, grid), last_bit)
    for order in ORDERS[::5]:
        copy = grid.reordered(order)
        mask = restore_mask(logits, Prepared(torch.empty(0), working_grid(copy, working), copy), last_bit)
        assert np.array_equal(order.inverse().apply(mask), expected), order


@given(
    st.sampled_from(ORDERS),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.tuples(*[st.integers(20, 34)] * 3),
    st.tuples(*[st.floats(1.5, 2.5)] * 3),
    st.tuples(*[st.floats(1.4, 4)] * 3),
)
@settings(deadline=None, max_examples=25)
def test_any_permuted_and_flipped_scan_gets_the_same_mask_bit_by_bit(order, degrees, shape, spacing, working):
    grid = oblique(shape, spacing, degrees)
    hu = body_ct(grid)
    expected = segmented(Volume(hu, grid), working)
    copy = segmented(Volume(order.apply(hu), grid.reordered(order)), working)
    assert np.array_equal(order.inverse().apply(copy), expected)


@given(st.tuples(*[st.integers(-2, 9)] * 3), st.tuples(*[st.integers(-2, 9)] * 3), st.sampled_from(ORDERS))
@settings(deadline=None, max_examples=25)
def test_a_scan_cropped_or_padded_with_air_gets_the_same_mask(before, after, order):
    grid = oblique((38, 34, 30), (2, 2, 2.5))
    hu = body_ct(grid)
    box = Box(tuple(-n for n in before), tuple(n + m for n, m in zip(grid.shape, after, strict=True)))
    changed = Volume(np.full(box.shape, -1000, np.float32), grid.cropped(box))
    inside = box.within(grid.shape)
    there = Box(inside.start, inside.stop).grown(before).slices
    there = tuple(slice(a + n, b + n) for a, b, n in zip(inside.start, inside.stop, before, strict=True))
    changed.voxels[(0, *there)] = hu[inside.slices]
    expected = segmented(Volume(hu, grid), grid.spacing_mm)
    turned = Volume(order.apply(changed.voxels[0]), changed.geometry.reordered(order))
    mask = order.inverse().apply(segmented(turned, grid.spacing_mm))
    assert np.array_equal(mask[there], expected[inside.slices])
    assert mask.sum() == expected.sum()


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("working", [(3, 3, 3), (2, 2, 2.5)], ids=str)
def test_a_scan_with_split_voxels_gets_the_same_mask(working, factor):
    grid = oblique((38, 34, 30), (2, 2, 2.5))
    hu = body_ct(grid)
    split = hu
    for axis, count in enumerate(factor):
        split = np.repeat(split, count, axis=axis)
    fine = grid.with_shape(split.shape)
    expected = segmented(Volume(hu, grid), working)
    for axis, count in enumerate(factor):
        expected = np.repeat(expected, count, axis=axis)
    mask = segmented(Volume(split, fine), working)
    assert dice(mask, expected) > 0.9
    shift = ndimage.center_of_mass(mask) - np.array(ndimage.center_of_mass(expected))
    assert np.abs(shift * fine.spacing_mm).max() < 0.5


# ---- balls in the world ----


@pytest.mark.parametrize("order", [ORDERS[0], ORDERS[13], ORDERS[46]], ids=lambda order: str(order.axes))
@pytest.mark.parametrize("shear", [0.0, np.tan(np.radians(15)), -0.4], ids=["straight", "15°", "22°"])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -31, 17), (45, 0, 0)], ids=str)
@pytest.mark.parametrize("working", [(1.5, 1.5, 1.5), (2.5, 2.5, 2.5)], ids=str)
def test_a_ball_comes_back_in_its_place_and_size(order, shear, degrees, working, ball):
    grid = oblique((50, 48, 26), (1.3, 1.4, 2.5), degrees, shear).reordered(order)
    centre, radius = (4.3, -3.1, 2.2), 12.0
    truth = ball(grid, centre, radius)
    world = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    # Over its surface the ball fades within 2 mm, as a scanner shows it, rather than in steps of a voxel.
    hu = np.clip((radius - np.linalg.norm(world - centre, axis=-1)) / 2, -0.5, 0.5) * 600 + 100
    prepared = prepare(Volume(hu.astype(np.float32), grid), PLAN, "ct", working)
    mask = restore_mask(prepared.image[0] - 0.4, prepared, is_inside)
    assert mask.shape == grid.shape
    assert dice(mask, truth) >= 0.95
    middle = grid.to_world(np.argwhere(mask)).mean(axis=0)
    assert np.abs(grid.to_voxels(middle) - grid.to_voxels(centre)).max() < 0.5
    assert mask.sum() * grid.voxel_volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.08)


@pytest.mark.parametrize("shape", [(1, 30, 28), (30, 1, 28), (31, 27, 1), (2, 1, 1), (1, 1, 1)], ids=str)
def test_a_scan_of_a_single_slice_or_voxel_comes_back(shape):
    grid = oblique(shape, (2, 2.2, 5))
    hu = np.full(shape, 400.0, np.float32)
    hu[:1] = 300
    assert segmented(Volume(hu, grid), (3, 3, 3)).all()
