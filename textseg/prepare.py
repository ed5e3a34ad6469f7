"""From the scan's grid to the network's and back: canonical axes, working spacing, crop, normalise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.errors import PlanError, ScanError
from textseg.geometry import Box, Geometry, bounding_box
from textseg.normalise import Scale, body_mask, scale_of
from textseg.plan import IntensityPlan, Millimetres, Plan
from textseg.resample import resample
from textseg.volume import Modality, Volume

CPU = torch.device("cpu")
# Below any threshold: the logit of voxels that the working grid does not cover.
OUTSIDE_LOGIT = -30.0
# A sheared grid (gantry tilt) is straightened above this |cosine| between axes, about half a degree.
STRAIGHTEN_ABOVE = 0.01


@dataclass(frozen=True)
class ChannelSource:
    """Where one channel of a scan came from.

    files are those it was read from, none for a volume in memory; geometry is its own grid, and regridded
    tells whether it was brought from there to the first channel's, of which it covers a part from 0 to 1.
    """

    files: tuple[Path, ...]
    geometry: Geometry
    regridded: bool = False
    covered: float = 1.0


def join_channels(scans: Sequence[Volume]) -> tuple[Volume, tuple[ChannelSource, ...]]:
    """Several scans as the channels of one, on the first one's grid, and where each channel came from.

    A scan on another grid is brought there by world position: linearly, averaged where the first grid is
    coarser, and with its lowest value where it does not reach. The file is the first one's, with the paths of
    all; the modality is the first one's.

    Raises:
        ScanError: a scan does not overlap with the first.
    """
    first = scans[0]
    if len(scans) == 1:
        files = first.file.paths if first.file else ()
        return first, (ChannelSource(files, first.geometry),) * first.channels
    joined, sources = [], []
    for scan in scans:
        voxels, source = _on_grid_of(first, scan)
        joined.append(voxels)
        sources += [source] * scan.channels
    file = first.file
    if file is not None:
        paths = tuple(path for scan in scans if scan.file for path in scan.file.paths)
        warnings = [line for scan in scans if scan.file for line in scan.file.details.get("warnings", ())]
        file = replace(file, paths=paths, details=file.details | {"warnings": warnings})
    return Volume(np.concatenate(joined), first.geometry, file, first.modality), tuple(sources)


def _on_grid_of(first: Volume, scan: Volume) -> tuple[NDArray[Any], ChannelSource]:
    """A scan's voxels (channels, x, y, z) on the grid of the first."""
    files = scan.file.paths if scan.file else ()
    if scan.geometry.is_close(first.geometry):
        return scan.voxels, ChannelSource(files, scan.geometry)
    inside = torch.ones(scan.geometry.shape, dtype=torch.uint8)
    covered = float(resample(inside, scan.geometry, first.geometry, "nearest").float().mean())
    if covered == 0:
        raise ScanError(
            f"The channels of a scan must show the same place, but {_name(scan)} and {_name(first)} do not "
            "overlap in the world. Are they of one patient and one session?"
        )
    channels = []
    for voxels in scan.voxels:
        tensor = torch.from_numpy(np.require(voxels, np.float32, ["C", "W"]))
        brought = resample(tensor, scan.geometry, first.geometry, fill=float(tensor.min()))
        channels.append(brought.numpy())
    return np.stack(channels), ChannelSource(files, scan.geometry, True, covered)


def _name(scan: Volume) -> str:
    return scan.file.paths[0].name if scan.file else "another one"


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the network sees, and enough to bring its answer back.

    image: (channels, x, y, z) float32, normalised, on `geometry`, the working grid, canonical axes.
    scan: the scan's own grid, to which masks return.
    air: values of the first channel up to this are not the body's; None where nothing of it is air.
    scales: by which each channel was normalised; beyond: each one's normalised value outside of the scan.
    """

    image: Tensor
    geometry: Geometry
    scan: Geometry
    air: float | None = None
    scales: tuple[Scale, ...] = ()
    beyond: tuple[float, ...] = ()


def prepare(
    volume: Volume,
    plan: Plan,
    modality: Modality,
    spacing_mm: Millimetres,
    device: torch.device = CPU,
) -> Prepared:
    """The volume as the plan's network wants it, at this working spacing.

    Args:
        modality: of the volume; the plan may know better what each channel is. The first channel's body
            decides the crop.
        device: what resamples and normalises, and where the image then is.

    Raises:
        PlanError: the volume has another number of channels than the plan, or the plan does not know the
            modality.
    """
    plan.check_channels(volume.channels)
    rules = _rules(plan, modality)
    working = working_grid(volume.geometry, spacing_mm)
    image, darkest = _brought(volume, working, device)
    box = content_box(image[0], rules[0], working, plan.margin_mm)
    image = image[(slice(None), *box.slices)]
    scales = tuple(scale_of(channel, rule) for channel, rule in zip(image, rules, strict=True))
    normalised = torch.stack([scale(channel) for scale, channel in zip(scales, image, strict=True)])
    beyond = tuple(float(scale(torch.tensor(low))) for scale, low in zip(scales, darkest, strict=True))
    # Normalising keeps the order of values, so that one number tells air from body afterwards too.
    air = normalised[0][~body_mask(image[0], rules[0])]
    brightest_air = float(air.max()) if air.numel() else None
    return Prepared(normalised, working.cropped(box), volume.geometry, brightest_air, scales, beyond)


def _rules(plan: Plan, modality: Modality) -> list[IntensityPlan]:
    """How each channel is normalised."""
    unknown = [each for each in plan.modalities(modality) if each not in plan.intensity]
    if unknown:
        raise PlanError(
            f"The model {plan.name!r} knows {' and '.join(plan.intensity)}, got {unknown[0]}. "
            "Choose another model or modality."
        )
    return [plan.intensity[each] for each in plan.modalities(modality)]


def working_grid(scan: Geometry, spacing_mm: Millimetres) -> Geometry:
    """Canonical axes at about this spacing over the scan's whole field of view; straightened if sheared."""
    straight = scan.right_angled() if scan.shear > STRAIGHTEN_ABOVE else scan
    return straight.canonical().with_spacing(spacing_mm)


def content_box(image: Tensor, intensity: IntensityPlan, geometry: Geometry, margin_mm: float) -> Box:
    """The box of the body in an image (x, y, z) with a margin; the whole grid where nothing stands out."""
    box = bounding_box(body_mask(image, intensity).cpu().numpy())
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


def _brought(volume: Volume, grid: Geometry, device: torch.device) -> tuple[Tensor, list[float]]:
    """The channels (channels, x, y, z) on another grid, float32, and what each is beyond the scan.

    One at a time for a low peak of memory.
    """
    canonical = volume.canonical()
    channels, darkest = [], []
    for voxels in canonical.voxels:
        tensor = torch.from_numpy(np.require(voxels, np.float32, ["C", "W"])).to(device)
        darkest.append(float(tensor.min()))
        channels.append(resample(tensor, canonical.geometry, grid, fill=darkest[-1]))
    return torch.stack(channels), darkest
