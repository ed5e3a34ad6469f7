"""From the scan's grid to the network's and back: canonical axes, working spacing, crop, normalise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.errors import PlanError
from textseg.geometry import Box, Geometry, bounding_box
from textseg.normalise import body_mask, normalise
from textseg.plan import IntensityPlan, Millimetres, Plan
from textseg.resample import resample
from textseg.volume import Modality, Volume

# Below any threshold: the logit of voxels that the working grid does not cover.
OUTSIDE_LOGIT = -30.0
# A sheared grid (gantry tilt) is straightened above this |cosine| between axes, about half a degree.
STRAIGHTEN_ABOVE = 0.01


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the network sees, and enough to bring its answer back.

    image: (channels, x, y, z) float32, normalised, on `geometry`, the working grid, canonical axes.
    scan: the scan's own grid, to which masks return.
    """

    image: Tensor
    geometry: Geometry
    scan: Geometry


def prepare(volume: Volume, plan: Plan, modality: Modality, spacing_mm: Millimetres) -> Prepared:
    """The volume as the plan's network wants it, at this working spacing.

    Raises:
        PlanError: the volume has another number of channels than the plan, or the plan does not know the
            modality.
    """
    if volume.channels != len(plan.channels):
        raise PlanError(
            f"The model {plan.name!r} takes {len(plan.channels)} channel(s) ({', '.join(plan.channels)}), "
            f"got {volume.channels}. Give one file a channel."
        )
    if modality not in plan.intensity:
        raise PlanError(
            f"The model {plan.name!r} knows {' and '.join(plan.intensity)}, got {modality}. "
            "Choose another model or modality."
        )
    intensity = plan.intensity[modality]
    working = working_grid(volume.geometry, spacing_mm)
    image = _brought(volume, working)
    box = content_box(image[0], intensity, working, plan.margin_mm)
    image = image[(slice(None), *box.slices)]
    normalised = torch.stack([normalise(channel, intensity) for channel in image])
    return Prepared(normalised, working.cropped(box), volume.geometry)


def working_grid(scan: Geometry, spacing_mm: Millimetres) -> Geometry:
    """Canonical axes at about this spacing over the scan's whole field of view; straightened if sheared."""
    straight = scan.right_angled() if scan.shear > STRAIGHTEN_ABOVE else scan
    return straight.canonical().with_spacing(spacing_mm)


def content_box(image: Tensor, intensity: IntensityPlan, geometry: Geometry, margin_mm: float) -> Box:
    """The box of the body in an image (x, y, z) with a margin; the whole grid where nothing stands out."""
    box = bounding_box(body_mask(image, intensity).numpy())
    if box is None:
        return geometry.whole
    # Less a hair, so that rounding in the spacing never adds a voxel.
    margin = [int(np.ceil(margin_mm / spacing - 1e-6)) for spacing in geometry.spacing_mm]
    return box.grown(margin).within(geometry.shape)


def restore_mask(
    logits: Tensor, prepared: Prepared, is_inside: Callable[[Tensor], Tensor]
) -> NDArray[np.bool_]:
    """One prompt's logits (x, y, z) on the working grid → its mask (x, y, z) on the scan's own grid.

    Logits are interpolated and only then thresholded by `is_inside`: borders are smooth between voxels.
    """
    # By way of canonical axes: sums in another order of the axes would differ in the last bit, and so would
    # the masks of a scan's permuted copies.
    order = prepared.scan.canonical_order()
    canonical = resample(logits, prepared.geometry, prepared.scan.reordered(order), fill=OUTSIDE_LOGIT)
    mask = is_inside(canonical).cpu().numpy()
    return np.ascontiguousarray(order.inverse().apply(mask))


def _brought(volume: Volume, grid: Geometry) -> Tensor:
    """The channels (channels, x, y, z) on another grid, float32; one at a time for a low peak of memory."""
    canonical = volume.canonical()
    channels = []
    for voxels in canonical.voxels:
        tensor = torch.from_numpy(np.require(voxels, np.float32, ["C", "W"]))
        fill = float(tensor.min())
        channels.append(resample(tensor, canonical.geometry, grid, fill=fill))
    return torch.stack(channels)
