"""Intensities: Hounsfield units, percentiles of a body, SUV, and images in which nothing stands out."""

from __future__ import annotations

import pytest
import torch

from textseg.normalise import body_mask, normalise

SHAPE = (17, 21, 13)


def mr_phantom(scale=1.0, offset=0.0):
    """Air with a little noise and an off-centre body of values around 400: (image, body)."""
    generator = torch.Generator().manual_seed(5)
    body = torch.zeros(SHAPE, dtype=torch.bool)
    body[3:12, 6:20, 1:10] = True
    air = torch.rand(SHAPE, generator=generator) * 5
    tissue = 400 + 100 * torch.randn(SHAPE, generator=generator)
    return torch.where(body, tissue, air) * scale + offset, body


def test_ct_keeps_hounsfield_units_apart_from_clipping(default_plan):
    image = torch.tensor([-3024.0, -1000, -80, 0, 40, 1000, 3071]).reshape(7, 1, 1)
    expected = torch.tensor([-4.0, -4, -0.32, 0, 0.16, 4, 4]).reshape(7, 1, 1)
    assert torch.allclose(normalise(image, default_plan.intensity["ct"]), expected)


def test_ct_does_not_depend_on_what_else_is_in_the_image(default_plan):
    image = torch.full(SHAPE, -1000.0)
    image[2, 3, 4] = 60
    with_metal = image.clone()
    with_metal[5:9] = 3000
    plan = default_plan.intensity["ct"]
    assert normalise(image, plan)[2, 3, 4] == normalise(with_metal, plan)[2, 3, 4] == 0.24


def test_pet_is_scaled_in_suv(default_plan):
    image = torch.tensor([-1.0, 0, 1, 5, 20, 90]).reshape(6, 1, 1)
    expected = torch.tensor([-0.5, -0.5, 0, 2, 9.5, 9.5]).reshape(6, 1, 1)
    assert torch.allclose(normalise(image, default_plan.intensity["pet"]), expected)


def test_mr_has_mean_0_and_spread_1_over_the_body(default_plan):
    image, body = mr_phantom()
    scaled = normalise(image, default_plan.intensity["mr"])
    assert scaled.shape == SHAPE
    assert scaled.dtype == torch.float32
    assert abs(scaled[body].mean()) < 0.02
    assert scaled[body].std() == pytest.approx(1, abs=0.03)
    assert scaled[~body].max() < scaled[body].mean() - 1


@pytest.mark.parametrize(("scale", "offset"), [(0.001, 0), (37, 0), (1, 1000), (2, -300)])
def test_mr_does_not_depend_on_gain_and_offset(scale, offset, default_plan):
    plan = default_plan.intensity["mr"]
    expected = normalise(mr_phantom()[0], plan)
    assert torch.allclose(normalise(mr_phantom(scale, offset)[0], plan), expected, atol=2e-3)


def test_mr_clips_at_the_percentiles_of_the_body(default_plan):
    image, body = mr_phantom()
    bright = image.clone()
    bright[4, 7, 2] = 1e5
    scaled = normalise(bright, default_plan.intensity["mr"])
    assert scaled.max() < 4
    low, high = torch.quantile(image[body], torch.tensor([0.005, 0.995])).tolist()
    inside = image[body].clamp(low, high)
    expected = (inside - inside.mean()) / inside.std(correction=0)
    assert torch.allclose(normalise(image, default_plan.intensity["mr"])[body], expected, atol=1e-3)


@pytest.mark.parametrize("modality", ["ct", "mr", "pet"])
@pytest.mark.parametrize("value", [0.0, -1000.0, 1234.567, 1e-3])
def test_a_constant_image_gives_a_finite_constant(modality, value, default_plan):
    plan = default_plan.intensity[modality]
    flat = normalise(torch.full(SHAPE, value), plan)
    assert torch.isfinite(flat).all()
    assert flat.min() == flat.max()
    assert flat.abs().max() < 10


def test_an_image_of_two_values_survives_percentiles(default_plan):
    image = torch.zeros(SHAPE)
    image[2, 3, 4] = 900
    assert torch.isfinite(normalise(image, default_plan.intensity["mr"])).all()


def test_the_body_is_what_lies_above_air(default_plan):
    image, body = mr_phantom()
    assert torch.equal(body_mask(image, default_plan.intensity["mr"]), body)
    assert torch.equal(body_mask(image + 700, default_plan.intensity["mr"]), body)
    hounsfield = torch.where(body, 40.0, -1000.0)
    assert torch.equal(body_mask(hounsfield, default_plan.intensity["ct"]), body)
    suv = torch.where(body, 0.7, 0.01)
    assert torch.equal(body_mask(suv, default_plan.intensity["pet"]), body)


def test_more_voxels_than_a_quantile_may_have_are_thinned(default_plan, monkeypatch):
    image, body = mr_phantom()
    whole = normalise(image, default_plan.intensity["mr"])
    monkeypatch.setattr("textseg.normalise._thinned.__defaults__", (400,))
    thinned = normalise(image, default_plan.intensity["mr"])
    assert not torch.equal(thinned, whole)
    assert (thinned - whole)[body].abs().mean() < 0.1
