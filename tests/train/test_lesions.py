"""Lesions: in an organ that can bear one, the image changed there and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.train.lesions import FEWEST_ORGAN_VOXELS, LESION_WORDS, add_lesion, paint_ball

ORGAN_HU = 100.0
SEEDS = range(40)


@pytest.fixture(scope="module")
def labels():
    """A body (1), a large liver (2) off the centre, and a gland (3) that is too small for a lesion."""
    labels = torch.ones(36, 32, 28, dtype=torch.int64)
    labels[4:22, 6:26, 5:20] = 2
    labels[28:31, 4:8, 4:8] = 3
    assert int((labels == 3).sum()) < FEWEST_ORGAN_VOXELS
    return labels


@pytest.fixture(scope="module")
def image(labels):
    return torch.where(labels == 2, ORGAN_HU, 40.0) + torch.randn(
        labels.shape, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module")
def drawn(image, labels):
    """An image with its lesion for every seed that gave one."""
    organs = {"left_adrenal_gland": (3,), "liver": (2,)}
    tries = [add_lesion(image, labels, organs, "ct", 1.0, np.random.default_rng(seed)) for seed in SEEDS]
    found = [(changed, lesion) for changed, lesion in tries if lesion is not None]
    assert len(found) > 30
    return found


def test_a_lesion_lies_mostly_in_its_organ(drawn, labels):
    inside = [float((lesion.mask * (labels == 2)).sum() / lesion.mask.sum()) for _, lesion in drawn]
    assert np.mean(inside) > 0.9
    assert np.mean(np.array(inside) > 0.5) > 0.9
    # Some bulge out of it, at a corner by more than half.
    assert 0.1 < min(inside) < 1


def test_the_image_changes_only_in_the_lesion(drawn, image):
    for changed, lesion in drawn:
        assert set(torch.unique(lesion.mask).tolist()) == {0.0, 1.0}
        outside = lesion.mask == 0
        assert torch.equal(changed[outside], image[outside])
        assert (changed[~outside] != image[~outside]).float().mean() > 0.99


def test_only_an_organ_that_is_large_enough_bears_one(drawn):
    assert {lesion.organ for _, lesion in drawn} == {"liver"}
    assert {lesion.finding for _, lesion in drawn} == set(LESION_WORDS)


def test_without_a_large_organ_the_image_stays_as_it_is(image, labels):
    for organs in ({"left_adrenal_gland": (3,)}, {"spleen": (9,)}, {}):
        changed, lesion = add_lesion(image, labels, organs, "ct", 1.0, np.random.default_rng(0))
        assert lesion is None
        assert changed is image


def test_a_lesion_of_a_few_voxels_is_none():
    sheet = torch.zeros(20, 20, 9, dtype=torch.int64)
    sheet[:, :, 4] = 1
    image = torch.full(sheet.shape, ORGAN_HU)
    small = 0
    for seed in range(20):
        changed, lesion = add_lesion(image, sheet, {"liver": (1,)}, "ct", 1.0, np.random.default_rng(seed))
        if lesion is None:
            assert changed is image
            small += 1
        else:
            assert lesion.mask.sum() >= 20
    assert small > 0


def test_a_cyst_is_water_and_a_solid_lesion_is_not_its_organ(drawn, labels):
    for changed, lesion in drawn:
        seen = (lesion.mask > 0) & (labels == 2)
        mean = float(changed[seen].mean())
        if lesion.finding == "cyst":
            assert -5 < mean < 25
        else:
            assert abs(mean - ORGAN_HU) > 15


def test_a_nodule_in_a_lung_is_solid_tissue():
    labels = torch.ones(24, 24, 24, dtype=torch.int64)
    image = torch.full(labels.shape, -850.0)
    for seed in range(10):
        changed, lesion = add_lesion(
            image, labels, {"left_lung": (1,)}, "ct", 1.0, np.random.default_rng(seed)
        )
        if lesion is not None and lesion.finding != "cyst":
            # A quarter of the step as texture stays in the mean of a small ball.
            assert changed[lesion.mask > 0].mean() > -400


def test_a_normalised_ct_gets_the_same_lesion(image, labels):
    for seed in range(10):
        in_hu, lesion = add_lesion(image, labels, {"liver": (2,)}, "ct", 1.0, np.random.default_rng(seed))
        scaled, same = add_lesion(
            image / 250, labels, {"liver": (2,)}, "ct", 1 / 250, np.random.default_rng(seed)
        )
        torch.testing.assert_close(scaled * 250, in_hu, atol=1e-3, rtol=1e-4)
        assert (lesion is None) == (same is None)


def test_a_lesion_in_mr_stands_out_of_its_organ(image, labels):
    for seed in range(10):
        changed, lesion = add_lesion(image, labels, {"liver": (2,)}, "mr", 1.0, np.random.default_rng(seed))
        if lesion is not None:
            seen = (lesion.mask > 0) & (labels == 2)
            assert abs(float(changed[seen].mean() - image[labels == 2].mean())) > 1.0


def test_an_organ_of_several_labels_counts_as_one(image, labels):
    halves = labels.clone()
    halves[13:, 6:26, 5:20][halves[13:, 6:26, 5:20] == 2] = 4
    _, lesion = add_lesion(image, halves, {"liver": (2, 4)}, "ct", 1.0, np.random.default_rng(1))
    _, whole = add_lesion(image, labels, {"liver": (2,)}, "ct", 1.0, np.random.default_rng(1))
    assert torch.equal(lesion.mask, whole.mask)


def test_a_painted_ball_is_a_ball():
    painted = paint_ball(torch.zeros(20, 22, 24), (8, 12, 10), radius_voxels=5.0, shift=-60.0)
    where = torch.nonzero(painted)
    assert set(torch.unique(painted).tolist()) == {-60.0, 0.0}
    assert where.float().mean(dim=0).tolist() == pytest.approx([8, 12, 10])
    assert len(where) == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.1)
