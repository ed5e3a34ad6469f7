"""Intensities as the network wants them: one rule a modality, with numbers that the plan owns."""

from __future__ import annotations

import torch
from torch import Tensor

from textseg.plan import IntensityPlan


def body_mask(image: Tensor, plan: IntensityPlan) -> Tensor:
    """Voxels that belong to the patient rather than to the air around, (x, y, z) bool, from one channel."""
    border = plan.body_above
    if plan.limits_are == "percentiles":
        low, high = torch.quantile(_thinned(image), torch.tensor([0.01, 0.995], dtype=image.dtype)).tolist()
        border = low + plan.body_above * (high - low)
    inside: Tensor = image > border
    return inside


def normalise(image: Tensor, plan: IntensityPlan) -> Tensor:
    """(x, y, z) float in the scan's own values → the same, clipped and scaled to about mean 0, spread 1.

    CT: clipped to a window in HU, then the plan's mean and standard deviation. MR: clipped to percentiles of
    the body and z-scored over it, since its values have no unit. PET: SUV clipped and scaled by the plan.
    """
    body = image[body_mask(image, plan)]
    if body.numel() == 0:
        body = image.flatten()
    low, high = _limits(body, plan)
    clipped = image.clamp(low, high)
    inside = body.clamp(low, high)
    mean = inside.mean().item() if plan.mean is None else plan.mean
    sd = inside.std(correction=0).item() if plan.sd is None else plan.sd
    return (clipped - mean) / max(sd, 1e-6)


def _limits(body: Tensor, plan: IntensityPlan) -> tuple[float, float]:
    if plan.limits_are == "values":
        return plan.limits
    fractions = torch.tensor([limit / 100 for limit in plan.limits], dtype=body.dtype)
    low, high = torch.quantile(_thinned(body), fractions).tolist()
    return low, high


def _thinned(values: Tensor, most: int = 4_000_000) -> Tensor:
    """At most so many of the values, evenly spaced: torch.quantile refuses more than 16 million."""
    flat = values.flatten()
    return flat[:: -(-flat.numel() // most)]
