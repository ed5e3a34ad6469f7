"""Each change of an image does what its name says, to patches with three different sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.train import augment
from textseg.train.synth import smooth_noise

SHAPE = (30, 22, 16)
CHANGES = (
    augment.with_low_resolution,
    augment.blurred,
    augment.noisy,
    augment.with_contrast,
    augment.with_gamma,
    augment.biased,
    augment.ghosted,
    augment.moved,
    augment.spiked,
    augment.ringed,
    augment.streaked,
    augment.with_few_counts,
)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def patch() -> Tensor:
    """A body with texture in air, something bright off the centre."""
    image = torch.full(SHAPE, -2.0)
    image[4:26, 3:20, 2:15] = 0.5 * smooth_noise((22, 17, 13), 3, random(9))
    image[6:11, 5:9, 4:10] += 1.5
    return image


def roughness(image: Tensor, axis: int) -> float:
    return float(image.diff(dim=axis).abs().mean())


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_keeps_shape_and_type_and_changes_something_but_not_its_input(change, patch) -> None:
    before = patch.clone()
    for seed in range(6):
        changed = change(patch, random(seed))
        assert changed.shape == SHAPE
        assert changed.dtype == torch.float32
        assert torch.isfinite(changed).all()
        assert not changed.equal(before)
    assert patch.equal(before)
    assert change(patch, random(3)).equal(change(patch, random(3)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_leaves_the_picture_recognisable(change, patch) -> None:
    for seed in range(12):
        changed = change(patch, random(seed))
        together = np.corrcoef(patch.flatten().numpy(), changed.flatten().numpy())[0, 1]
        assert together > 0.75


@pytest.mark.parametrize("change", CHANGES)
def test_a_patch_of_air_stays_finite(change) -> None:
    assert torch.isfinite(change(torch.full(SHAPE, -4.0), random())).all()


def test_low_resolution_spreads_a_point_along_one_axis_or_all() -> None:
    point = torch.zeros(SHAPE)
    point[15, 11, 8] = 1.0
    spread = set()
    for seed in range(30):
        reached = augment.with_low_resolution(point, random(seed)).nonzero()
        spread.add(int((reached.amax(dim=0) > reached.amin(dim=0)).sum()))
    assert spread == {1, 3}


def test_blur_smooths_every_axis_and_keeps_an_even_image(patch) -> None:
    changed = augment.blurred(patch, random())
    assert all(roughness(changed, axis) < 0.95 * roughness(patch, axis) for axis in range(3))
    even = torch.full(SHAPE, -4.0)
    torch.testing.assert_close(augment.blurred(even, random()), even)


def test_contrast_stays_in_the_range(patch) -> None:
    spreads = []
    for seed in range(20):
        changed = augment.with_contrast(patch, random(seed))
        assert patch.min() <= changed.min()
        assert changed.max() <= patch.max()
        spreads.append(float(changed.std() / patch.std()))
    assert min(spreads) < 0.9
    assert max(spreads) > 1.02


def test_gamma_keeps_mean_spread_and_order(patch) -> None:
    changed = augment.with_gamma(patch, random(2))
    assert float(changed.mean()) == pytest.approx(float(patch.mean()), abs=1e-4)
    assert float(changed.std()) == pytest.approx(float(patch.std()), rel=1e-3)
    order = patch.flatten().argsort()
    assert (changed.flatten()[order].diff() >= -1e-5).all()


def test_bias_leaves_air_dark(patch) -> None:
    changed = augment.biased(patch, random())
    air = patch == patch.min()
    torch.testing.assert_close(changed[air], patch[air])
    assert not torch.allclose(changed[~air], patch[~air], atol=0.02)


def test_ghosts_keep_the_brightness_of_all_and_lie_along_one_axis() -> None:
    image = torch.zeros(SHAPE)
    image[14:16, 10:12, 7:9] = 1.0
    for seed in range(8):
        changed = augment.ghosted(image, random(seed))
        assert float(changed.sum()) == pytest.approx(float(image.sum()), rel=1e-3)
        reached = [
            bool((changed[where].abs() > 0.01).any())
            for where in (
                (slice(0, 8), slice(8, 13), slice(6, 10)),
                (slice(12, 18), slice(0, 5), slice(6, 10)),
                (slice(12, 18), slice(8, 13), slice(0, 3)),
            )
        ]
        assert sum(reached) == 1


def test_rings_are_the_same_in_every_axial_slice_and_streaks_are_not(patch) -> None:
    rings = augment.ringed(patch, random()) - patch
    torch.testing.assert_close(rings, rings[:, :, :1].expand_as(rings), atol=1e-5, rtol=0)
    assert float(rings.std()) > 0
    streaks = (augment.streaked(patch, random()) - patch).abs().amax(dim=(0, 1))
    assert float(streaks.max()) > 3 * float(streaks.min())


def test_few_counts_are_noisier_where_more_is_counted(patch) -> None:
    noise = torch.stack([augment.with_few_counts(patch, random(seed)) - patch for seed in range(10)])
    assert float(noise[:, patch > 1].std()) > 1.2 * float(noise[:, patch.abs() < 0.5].std())
    assert not noise[:, patch == patch.min()].any()


@pytest.mark.parametrize("modality", ["ct", "mr", "pet"])
def test_every_modality_has_artefacts_of_its_own(modality, patch) -> None:
    different = {augment.with_artefact(patch, modality, random(seed)).std().item() for seed in range(6)}
    assert len(different) == 6


def test_what_never_happens_draws_nothing(with_training, patch) -> None:
    recipe = with_training().training
    source = random(5)
    assert augment.augmented(patch, "mr", recipe, source) is patch
    assert source.random() == random(5).random()


def test_every_fraction_makes_its_own_change(with_training, patch) -> None:
    for name in augment.USUAL_FRACTIONS.keys() - {"mirror_fraction", "neighbour_fraction"}:
        changed = augment.augmented(patch, "mr", with_training(**{name: 1.0}).training, random(1))
        assert not changed.equal(patch), name
