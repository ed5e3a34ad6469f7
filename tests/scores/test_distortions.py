"""Changed scans, and masks that follow them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.core.conftest import tilted_affine
from tests.scores.conftest import block
from textseg.geometry import Box, Geometry
from textseg.scores.distortions import (
    at_spacings,
    cropped,
    crops,
    in_all_orders,
    mirrored,
    part_around,
    with_noise_or_contrast,
)
from textseg.volume import Volume

SHAPE = (16, 12, 8)


@pytest.fixture
def mask() -> np.ndarray:
    return block(SHAPE, (2, 4, 2), (8, 10, 6))


@pytest.fixture
def scan(mask: np.ndarray) -> Volume:
    """A block of 100 in zeros, a CT on an oblique grid."""
    grid = Geometry(SHAPE, tilted_affine())
    return Volume(np.where(mask, 100, 0).astype(np.int16), grid, modality="ct")


def test_masks_follow_the_scan_into_the_mirror_and_every_order(scan: Volume, mask: np.ndarray) -> None:
    turned = list(in_all_orders(scan))
    assert len(turned) == 47
    assert len({distortion.test for distortion in turned}) == 47
    for distortion in [mirrored(scan), *turned]:
        assert (distortion.carry(mask) == (distortion.volume.voxels[0] == 100)).all()
    centre = scan.geometry.to_world(np.argwhere(mask)).mean(axis=0)
    for distortion in turned:
        where = np.argwhere(distortion.carry(mask))
        assert distortion.volume.geometry.to_world(where).mean(axis=0) == pytest.approx(centre)
        assert distortion.volume.canonical().geometry.is_close(scan.geometry)


def test_the_mirror_exchanges_the_ends_of_the_first_axis(scan: Volume, mask: np.ndarray) -> None:
    assert mirrored(scan).volume.geometry == scan.geometry
    assert np.flatnonzero(mirrored(scan).carry(mask).any(axis=(1, 2))).tolist() == list(range(8, 14))


def test_a_coarser_grid_has_the_voxels_that_the_mask_fills(mask: np.ndarray) -> None:
    grid = Geometry(SHAPE, np.diag([1.0, 1, 1, 1]))
    scan = Volume(np.where(mask, 100, 0).astype(np.float32), grid, modality="mr")
    changed = {distortion.test: distortion for distortion in at_spacings(scan)}
    assert list(changed) == ["1 mm", "2 mm", "3 mm", "4 mm", "5 mm", "6 mm"]
    two = changed["2 mm"]
    assert two.volume.geometry.shape == (8, 6, 4)
    assert (two.carry(mask) == block((8, 6, 4), (1, 2, 1), (4, 5, 3))).all()
    assert (two.carry(mask) == (two.volume.voxels[0] >= 50)).all()


def test_no_spacing_is_finer_than_the_scan() -> None:
    grid = Geometry((6, 5, 4), np.diag([3.3, 3.2, 8.0, 1]))
    names = [distortion.test for distortion in at_spacings(Volume(np.zeros((6, 5, 4)), grid))]
    assert names == ["4 mm", "5 mm", "6 mm"]


def test_noise_is_as_strong_as_it_says_and_the_same_for_a_seed(scan: Volume) -> None:
    def changed(volume: Volume) -> dict[str, np.ndarray]:
        random = np.random.default_rng(4)
        return {each.test: each.volume.voxels for each in with_noise_or_contrast(volume, random)}

    found = changed(scan)
    for test, hu in (("slight noise", 20), ("noise", 50), ("strong noise", 100)):
        assert float((found[test] - scan.voxels).std()) == pytest.approx(hu, rel=0.1)
    assert all((found[test] == again).all() for test, again in changed(scan).items())


def test_contrast_of_a_ct_leaves_water_and_air_alone() -> None:
    voxels = np.array([-1000, -100, 0, 100, 1000], np.int16).reshape(5, 1, 1)
    volume = Volume(voxels, Geometry((5, 1, 1), np.eye(4)), modality="ct")
    found = {
        each.test: each.volume.voxels.ravel()
        for each in with_noise_or_contrast(volume, np.random.default_rng(0))
    }
    assert found["low contrast"].tolist() == pytest.approx([-1000, -100, 0, 80, 800])
    assert found["high contrast"].tolist() == pytest.approx([-1000, -100, 0, 125, 1250])


def test_contrast_elsewhere_bends_what_lies_between_the_extremes() -> None:
    voxels = np.linspace(0, 100, 1001).reshape(1001, 1, 1)
    volume = Volume(voxels, Geometry((1001, 1, 1), np.eye(4)), modality="mr")
    found = {
        each.test: each.volume.voxels.ravel()
        for each in with_noise_or_contrast(volume, np.random.default_rng(0))
    }
    assert found["low contrast"][500] == pytest.approx(1 + 98 * 0.5**0.7, rel=1e-4)
    assert found["high contrast"][500] == pytest.approx(1 + 98 * 0.5**1.5, rel=1e-4)
    assert found["high contrast"][[0, 1000]].tolist() == [0, 100]


def test_crops_keep_every_voxel_where_it_was(scan: Volume, mask: np.ndarray) -> None:
    found = {each.test: each for each in crops(scan, Box((4, 5, 3), (6, 7, 5)))}
    assert found["head half"].volume.geometry.shape == (16, 12, 4)
    assert found["foot half"].carry(mask).sum() == 6 * 6 * 2
    for each in found.values():
        marked = np.argwhere(each.volume.voxels[0] == 100)
        world = each.volume.geometry.to_world(marked)
        assert mask[tuple(np.rint(scan.geometry.to_voxels(world)).astype(int).T)].all()


def test_a_part_stays_in_the_grid() -> None:
    grid = Geometry((100, 40, 10), np.diag([2.0, 1, 5, 1]))
    assert part_around(grid, (50, 20, 5), side_mm=40) == Box((40, 0, 1), (60, 40, 9))
    assert part_around(grid, (1, 39, 9), side_mm=20) == Box((0, 20, 6), (10, 40, 10))


def test_a_crop_of_the_scan_carries_its_mask(scan: Volume, mask: np.ndarray) -> None:
    box = Box((3, 2, 1), (9, 11, 7))
    part = cropped(scan, box, "part")
    assert (part.carry(mask) == (part.volume.voxels[0] == 100)).all()
    assert part.volume.geometry == scan.geometry.cropped(box)
