"""Synthesised images: densities that physics fixes in CT, any contrast in MR, decided by the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.train.phantom import LEGEND, VALUES
from textseg.train.synth import smooth_noise, synthesise

SEEDS = range(12)


@pytest.fixture(scope="module")
def labels(phantom_cases):
    return torch.from_numpy(phantom_cases[0].labels.astype(np.int64))


@pytest.fixture(scope="module")
def medians(labels):
    """Median value of every tissue, an image a row: medians["ct"]["liver"]."""
    found = {}
    for modality in ("ct", "mr", "pet"):
        images = [synthesise(labels, LEGEND, modality, np.random.default_rng(seed)) for seed in SEEDS]
        found[modality] = {
            name: np.array([float(image[labels == value].median()) for image in images])
            for name, value in VALUES.items()
        }
    return found


def test_ct_has_the_densities_of_a_body(medians):
    ct = medians["ct"]
    assert (ct["left lung"] < -500).all()
    assert ((ct["liver"] > 0) & (ct["liver"] < 250)).all()
    assert (ct["vertebral column"] > ct["subcutaneous fat"] + 100).all()
    assert ((ct["urinary bladder"] > -60) & (ct["urinary bladder"] < 80)).all()


def test_left_and_right_of_an_organ_are_nearly_equal_in_ct(medians):
    ct = medians["ct"]
    between_patients = ct["left kidney"].std()
    between_sides = np.sqrt(np.mean((ct["left kidney"] - ct["right kidney"]) ** 2))
    assert 0 < between_sides < 25 < between_patients


def test_mr_has_another_contrast_each_time(medians):
    mr = medians["mr"]
    brighter = mr["liver"] > mr["spleen"]
    assert brighter.any()
    assert not brighter.all()
    assert mr["liver"].std() > 0.1


def test_air_is_dark_in_mr_but_for_a_drowned_lung(labels):
    images = [synthesise(labels, LEGEND, "mr", np.random.default_rng(seed)) for seed in range(30)]
    lung, liver = (
        np.array([float(image[labels == VALUES[name]].median()) for image in images])
        for name in ("left lung", "liver")
    )
    dark = lung < 0.25
    assert 0.8 < dark.mean() < 1
    assert (liver < 0.25).mean() < 0.5


def test_pet_takes_up_more_here_and_more_there(medians):
    pet = medians["pet"]
    brighter = pet["liver"] > pet["spleen"]
    assert brighter.any()
    assert not brighter.all()
    uptakes = np.stack(list(pet.values()))
    # Standardised uptake values: most tissues near 1, hardly any above 10, none below 0.
    assert 0.3 < np.median(uptakes) < 3
    assert uptakes.min() >= 0
    assert np.mean(uptakes > 10) < 0.02
    ratio = np.log(pet["left kidney"] / pet["right kidney"])
    assert 0 < np.abs(ratio).mean() < 0.3


def test_pet_has_no_sharp_edges():
    labels = torch.zeros(24, 24, 24, dtype=torch.int64)
    labels[6:18, 6:18, 6:18] = 1
    for seed in SEEDS:
        image = synthesise(labels, {}, "pet", np.random.default_rng(seed))
        assert torch.isfinite(image).all()
        profile = image[:, 8:16, 8:16].mean(dim=(1, 2))
        step = profile.diff().abs().max() / (profile.max() - profile.min())
        assert float(step) < 0.45


def test_air_stays_air():
    labels = torch.zeros(32, 32, 32, dtype=torch.int64)
    labels[13:19, 13:19, 13:19] = 1
    far = torch.ones_like(labels, dtype=torch.bool)
    # Away from the cube by more than a thick slice, and from the border, where the blur pads with 0 HU.
    far[9:23, 9:23, 9:23] = False
    far[:6], far[-6:], far[:, :6], far[:, -6:], far[..., :6], far[..., -6:] = (False,) * 6
    for seed in SEEDS:
        image = synthesise(labels, {1: "liver"}, "ct", np.random.default_rng(seed))
        assert image[far].max() < -800
        assert abs(image[far].mean() + 1000) < 15


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_seed_decides_the_image_and_there_is_no_nan(labels, modality):
    first, again, other = (
        synthesise(labels, LEGEND, modality, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first.shape == labels.shape
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_patch_of_air_and_a_value_without_a_name_can_be_drawn(modality):
    labels = torch.zeros(8, 9, 10, dtype=torch.int64)
    assert torch.isfinite(synthesise(labels, {}, modality, np.random.default_rng(0))).all()
    labels[2:6] = 517
    image = synthesise(labels, {}, modality, np.random.default_rng(0))
    assert image[3:5].mean() > image[7:].mean()


def test_some_t1_like_brains_have_bright_white_matter():
    labels = torch.zeros(24, 24, 24, dtype=torch.int64)
    names = {1: "left cerebral white matter", 2: "left cerebral cortex", 3: "left lateral ventricle"}
    for value in names:
        labels[4:20, 4:20, 8 * value - 8 : 8 * value] = value
    orders = set()
    for seed in range(30):
        image = synthesise(labels, names, "mr", np.random.default_rng(seed))
        means = [float(image[labels == value].mean()) for value in names]
        orders.add(tuple(np.argsort(means)))
    assert (2, 1, 0) in orders  # T1: ventricle, cortex, white matter
    assert len(orders) > 3


def test_smooth_noise_has_about_unit_spread_and_neighbours_agree():
    noise = smooth_noise((40, 30, 50), 10, np.random.default_rng(0))
    assert noise.shape == (40, 30, 50)
    assert 0.6 < float(noise.std()) < 1.5
    assert float((noise[1:] - noise[:-1]).std()) < 0.3 * float(noise.std())
