"""Scans as napari's layers, and layers as scans, of any reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.errors import ScanError
from textseg.geometry import Floats, Geometry
from textseg.report.preview import CT_WINDOW
from textseg.viewer.coordinates import (
    COMMONEST,
    OURS,
    layer_geometry,
    layer_matrix,
    spatial_part,
    straightened,
)
from textseg.volume import Modality, ScanFile, Volume, guess_modality

# Under this name in a layer's metadata.
ORIGIN = "textseg"
# A range that a few bright voxels do not stretch.
PERCENTILES = (0.5, 99.5)
SAMPLES = 200_000

# napari's: the array, its options, the kind of layer.
LayerData = tuple[NDArray[Any], dict[str, Any], str]


@dataclass(frozen=True, eq=False)
class Origin:
    """What one of our layers was read from.

    files: one a frame, None for a scan in memory; matrix: (4, 4), the layer's own as we gave it.
    """

    geometry: Geometry
    files: tuple[ScanFile | None, ...]
    modality: Modality | None
    matrix: Floats


def image_layer(name: str, frames: Sequence[Volume]) -> LayerData:
    """A layer (z, y, x), or (frame, z, y, x) of several frames on one grid, laid out for radiologists.

    A tilted scan is shown along its own axes; its true geometry goes with the layer, and is what counts.

    Raises:
        ScanError: the frames differ in their grids, or have several channels.
    """
    first = frames[0]
    if any(not frame.geometry.is_close(first.geometry) or frame.channels != 1 for frame in frames):
        raise ScanError(
            f"The frames of a scan lie on one grid and have one channel, but not those of {name}."
        )
    arrays = [frame.voxels[0].T for frame in frames]
    matrix = layer_matrix(straightened(first.geometry))
    affine = np.eye(3 + len(frames[:2]))
    affine[-4:, -4:] = matrix
    origin = Origin(first.geometry, tuple(frame.file for frame in frames), first.modality, matrix)
    options = {
        "name": name,
        "affine": affine,
        "colormap": "gray",
        "contrast_limits": window(arrays[0], first.modality),
        "metadata": {ORIGIN: origin},
    }
    return arrays[0] if len(arrays) == 1 else np.stack(arrays), options, "image"


def window(voxels: NDArray[Any], modality: Modality | None) -> tuple[float, float]:
    """The values that are drawn black and white: soft tissue in CT, else what most voxels have."""
    if (modality or guess_modality(voxels)) == "ct":
        return CT_WINDOW
    step = max(1, round((voxels.size / SAMPLES) ** (1 / 3)))
    low, high = np.percentile(voxels[(slice(None, None, step),) * 3], PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def origin_of(layer: Any) -> Origin | None:
    """What a layer was read from; None for layers of others, and for ours once they were moved or changed."""
    origin = layer.metadata.get(ORIGIN)
    if not isinstance(origin, Origin) or layer.data.shape[-3:] != origin.geometry.shape[::-1]:
        return None
    frames = layer.data.shape[0] if layer.ndim == 4 else 1
    same = len(origin.files) == frames and np.allclose(matrix_of(layer), origin.matrix, atol=1e-6)
    return origin if same else None


def world_of(layer: Any, world: str) -> str:
    """The ends to which napari's axes run for a layer: ours for those we made, moved or not, else as said."""
    return OURS if isinstance(layer.metadata.get(ORIGIN), Origin) else world


def matrix_of(layer: Any) -> Floats:
    """The (4, 4) matrix from a layer's last three indices to napari's world: scale, affine and all the rest.

    Raises:
        ScanError: the layer has no three axes of space.
    """
    _check(layer)
    corner = np.array(layer.data_to_world(np.zeros(layer.ndim)))
    steps = [np.array(layer.data_to_world(unit)) - corner for unit in np.eye(layer.ndim)]
    matrix = np.eye(layer.ndim + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = np.transpose(steps), corner
    return spatial_part(matrix)


def grid_of(layer: Any, world: str = COMMONEST) -> Geometry:
    """The grid of a layer's array read backwards.

    Args:
        world: the ends of the patient to which napari's axes run; what we read ourselves needs no such word.

    Raises:
        ScanError: the layer has colours, or not three axes of space.
        GeometryError: its matrix is singular.
    """
    origin = origin_of(layer)
    if origin is not None:
        return origin.geometry
    return layer_geometry(
        layer.data.shape[-3:], matrix_of(layer), world_of(layer, world), _mm_per_unit(layer)
    )


def volume_of(layer: Any, frame: int = 0, world: str = COMMONEST) -> Volume:
    """The scan that a layer shows, of a 4D layer one frame; reads a lazy array, so it may take a while.

    Raises:
        ScanError, GeometryError: as in `grid_of`.
    """
    geometry, origin = grid_of(layer, world), origin_of(layer)
    array = layer.data[frame] if layer.ndim == 4 else layer.data
    voxels = np.asarray(array).T
    if voxels.dtype == np.bool_:
        raise ScanError(f"A scan has grey values, but the layer {layer.name!r} is a mask. Choose its scan.")
    file = origin.files[frame if layer.ndim == 4 else 0] if origin else None
    return Volume(voxels, geometry, file, origin.modality if origin else None)


def _check(layer: Any) -> None:
    if getattr(layer, "rgb", False):
        raise ScanError(
            f"A scan has one number a voxel, but the layer {layer.name!r} has colours. Choose another layer."
        )
    if getattr(layer, "multiscale", False):
        raise ScanError(
            f"A scan has one array, but the layer {layer.name!r} is a pyramid of several. Open the scan."
        )
    if layer.ndim not in (3, 4):
        raise ScanError(
            f"A scan has three axes, and frames before them if it is 4D, but the layer {layer.name!r} has "
            f"{layer.ndim}. Open the whole scan rather than a slice."
        )


def _mm_per_unit(layer: Any) -> float:
    """Of the layer's last axis; pixels, napari's word for no unit, count as millimetres."""
    unit = (getattr(layer, "units", None) or (None,))[-1]
    if unit is None or not getattr(unit, "is_compatible_with", lambda other: False)("mm"):
        return 1.0
    return float((1 * unit).to("mm").magnitude)
