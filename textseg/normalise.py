"""Intensities as the network wants them: one rule a modality, with numbers that the plan owns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from textseg.plan import IntensityPlan


@dataclass(frozen=True)
class Scale:
    """How one image's values become the network's: clipped to low and high, then (value - mean) / sd."""

    low: float
    high: float
    mean: float
    sd: float

    def __call__(self, image: Tensor) -> Tensor:
        return (image.clamp(self.low, self.high) - self.mean) / self.sd


def body_mask(image: Tensor, plan: IntensityPlan) -> Tensor:
    """Voxels that belong to the patient rather than to the air around, (x, y, z) bool, from one channel."""
    border = plan.body_above
    if plan.limits_are == "percentiles":
        low, high = _quantiles(image, 0.01, 0.995)
        border = low + plan.body_above * (high - low)
    inside: Tensor = image > border
    return inside


def normalise(image: Tensor, plan: IntensityPlan) -> Tensor:
    """(x, y, z) float in the scan's own values → the same, clipped and scaled to about mean 0, spread 1.

    CT: clipped to a window in HU, then the plan's mean and standard deviation. MR: clipped to percentiles of
    the body and z-scored over it, since its values have no unit. PET: SUV clipped and scaled by the plan.
    """
    return scale_of(image, plan)(image)


def scale_of(image: Tensor, plan: IntensityPlan) -> Scale:
    """By which numbers an image (x, y, z) is normalised."""
    body = image[body_mask(image, plan)]
    if body.numel() == 0:
        body = image.flatten()
    low, high = _limits(body, plan)
    inside = body.clamp(low, high)
    mean = inside.mean().item() if plan.mean is None else plan.mean
    sd = inside.std(correction=0).item() if plan.sd is None else plan.sd
    return Scale(low, high, mean, max(sd, 1e-6))


def _limits(body: Tensor, plan: IntensityPlan) -> tuple[float, float]:
    if plan.limits_are == "values":
        return plan.limits
    lowest, highest = plan.limits
    return _quantiles(body, lowest / 100, highest / 100)


def _quantiles(values: Tensor, lower: float, upper: float) -> tuple[float, float]:
    fractions = torch.tensor([lower, upper], dtype=values.dtype, device=values.device)
    low, high = torch.quantile(_thinned(values), fractions).tolist()
    return low, high


def _thinned(values: Tensor, most: int = 4_000_000) -> Tensor:
    """At most so many of the values, evenly spaced: torch.quantile refuses more than 16 million."""
    flat = values.flatten()
    return flat[:: -(-flat.numel() // most)]
