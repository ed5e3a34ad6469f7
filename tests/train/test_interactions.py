"""Simulated users: what they draw lies where a person would draw it."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.network.spatial_prompts import (
    NOT_REGION,
    POINT,
    PREVIOUS,
    REGION,
    SCRIBBLE,
    Interaction,
    Lasso,
    Point,
    Region,
    Scribble,
    draw_maps,
)
from textseg.train.interactions import KINDS, Kind, corrected, drawn_on, largest_part, scribble

SHAPE = (31, 22, 17)


def bean() -> np.ndarray:
    """An ellipsoid with a bite taken out of it, off the centre of a grid with three different sides."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    whole = (((grid - (12, 9, 7)) / (10, 6, 5)) ** 2).sum(axis=-1) < 1
    return whole & ~((((grid - (9, 14, 7)) / (7, 6, 6)) ** 2).sum(axis=-1) < 1)


def voxels_of(one: Interaction) -> np.ndarray:
    return np.argwhere(draw_maps([one], SHAPE).amax(dim=0).numpy() > 0.9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["point", "scribble"])
def test_clicks_and_scribbles_lie_inside_of_what_they_mean(kind: Kind, seed: int) -> None:
    marked = voxels_of(drawn_on(bean(), kind, np.random.default_rng(seed)))
    assert len(marked)
    assert bean()[tuple(marked.T)].all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["slice_box", "scribble", "lasso"])
def test_what_is_drawn_on_a_slice_lies_in_one_slice(kind: Kind, seed: int) -> None:
    marked = voxels_of(drawn_on(bean(), kind, np.random.default_rng(seed)))
    assert min(len(set(axis)) for axis in marked.T.tolist()) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_box_is_off_by_no_more_than_a_hand_is(seed: int) -> None:
    one = drawn_on(bean(), "box", np.random.default_rng(seed))
    assert isinstance(one, Region)
    places = np.argwhere(bean())
    start, stop = places.min(axis=0), places.max(axis=0) + 1
    assert np.all(np.abs(np.array(one.start) - start) <= 0.15 * (stop - start) + 0.5)
    assert np.all(np.abs(np.array(one.stop) - stop) <= 0.15 * (stop - start) + 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_structure_of_one_voxel_can_be_meant(kind: Kind) -> None:
    single = np.zeros(SHAPE, bool)
    single[30, 0, 16] = True
    one = drawn_on(single, kind, np.random.default_rng(3))
    assert [30, 0, 16] in voxels_of(one).tolist()


def test_the_same_generator_draws_the_same() -> None:
    first, second = (drawn_on(bean(), "scribble", np.random.default_rng(5)) for _ in range(2))
    assert isinstance(first, Scribble)
    assert isinstance(second, Scribble)
    assert np.array_equal(first.voxels, second.voxels)


def test_a_correction_adds_what_is_missing() -> None:
    mask = bean()
    mask[14:] = False
    one = corrected(bean(), mask, np.random.default_rng(1))
    assert one is not None
    assert one.positive
    assert (bean() & ~mask)[tuple(voxels_of(one).T)].mean() > 0.7


def test_a_correction_takes_away_what_is_too_much() -> None:
    mask = bean()
    mask[25:30, 15:20, 10:15] = True
    one = corrected(bean(), mask, np.random.default_rng(1), kinds=("point",))
    assert isinstance(one, Point)
    assert not one.positive
    assert all(low <= p < high for p, low, high in zip(one.position, (25, 15, 10), (30, 20, 15), strict=True))


def test_a_correction_goes_into_the_larger_error() -> None:
    mask = bean()
    mask[:5] = False
    mask[22:, 15:, 8:] = True
    one = corrected(bean(), mask, np.random.default_rng(1))
    assert one is not None
    assert not one.positive


def test_a_right_mask_needs_no_correction() -> None:
    assert corrected(bean(), bean(), np.random.default_rng(1)) is None


def test_the_largest_part_is_joined_by_faces() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2:6, 2:6, 2:6] = True
    mask[6:8, 6:8, 6:8] = True
    assert largest_part(mask).sum() == 64


@pytest.mark.parametrize("seed", range(12))
def test_a_scribble_is_thin(seed: int) -> None:
    flat = bean()[:, :, 7]
    drawn = scribble(flat, np.random.default_rng(seed))
    assert drawn.any()
    assert not (drawn & ~flat).any()
    assert drawn.sum() < 0.6 * flat.sum()


def test_maps_hold_each_kind_in_its_channel() -> None:
    drawn = [
        Point((4.2, 5.0, 6.0)),
        Region((1, 2, 3), (4, 5, 6), positive=False),
        Scribble(np.array([[7, 8, 9], [40, 0, 0]])),
        Lasso(np.array([[10, 11, 12]])),
    ]
    maps = draw_maps(drawn, SHAPE, previous=draw_maps([], SHAPE)[0] + 0.25)
    assert maps[POINT, 4, 5, 6] == 1
    assert 0 < maps[POINT, 5, 5, 6] < 1
    assert maps[POINT, 8, 5, 6] == 0
    assert maps[NOT_REGION].sum() == 27
    assert maps[NOT_REGION, 1:4, 2:5, 3:6].all()
    assert np.argwhere(maps[SCRIBBLE].numpy()).tolist() == [[7, 8, 9]]
    assert np.argwhere(maps[REGION].numpy()).tolist() == [[10, 11, 12]]
    assert (maps[PREVIOUS] == 0.25).all()


def test_a_click_outside_of_the_grid_draws_nothing_in_it() -> None:
    assert draw_maps([Point((-9.0, 5.0, 5.0)), Point((5.0, 60.0, 5.0))], SHAPE).sum() == 0
