"""What a mask measures: volume, surface, diameters, place, parts and intensities, with units in the names.

Volume, surface, largest 3D diameter and intensities are those of the Image Biomarker Standardisation
Initiative (IBSI; Zwanenburg et al., Radiology 2020, reference manual arXiv:1612.07003) and agree with the
values that it publishes for its digital phantom. Diameters in a slice follow RECIST 1.1 (Eisenhauer et al.,
Eur J Cancer 2009): the longest in any axial slice, and the longest across it in that slice.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist, pdist, squareform

from textseg.atomic import write_bytes
from textseg.errors import GeometryError, OutputError
from textseg.geometry import WORLD_ENDS, Box, Floats, Geometry, Shape, bounding_box
from textseg.scores.surface import area_table, neighbour_codes, steps_mm
from textseg.volume import Volume

if TYPE_CHECKING:
    from textseg.result import Segmentation

Bools = NDArray[np.bool_]
Value = str | bool | int | float | None
Unit = Literal["hu", "suv", "bqml", "au"]

UNITS: dict[str, str] = {"hu": "HU", "suv": "SUV", "bqml": "Bq/ml", "au": "a.u."}
PERCENTILES = {"p10": 10, "median": 50, "p90": 90}
# Fat is the lightest tissue at about -100 HU; lungs do not matter for where the middle of the body is.
BODY_HU = -300.0
BODY_SAMPLES = 200_000
# Volume of the part of a cell that flat pieces of surface cut off with one to four of its corners, for
# corners that hang together along the cell's edges, as a share of the cell.
CAP_VOLUMES = {1: 1 / 48, 2: 1 / 8, 3: 17 / 48, 4: 1 / 2}
BLOCK = 500
ENDINGS = (".csv", ".parquet", ".json")


def measure_segmentation(segmentation: Segmentation) -> list[dict[str, Value]]:
    """One row a prompt: what was asked and understood, and what its mask measures on the scan's own grid."""
    volume = segmentation.volume
    unit = intensity_unit(volume, segmentation.modality)
    rows = []
    for found, mask in zip(segmentation.found, segmentation.masks, strict=True):
        words: dict[str, Value] = {
            "prompt": found.prompt.text,
            "understood_as": found.prompt.canonical,
            "side": found.prompt.side,
            "presence": round(found.presence, 4),
        }
        rows.append(words | measure_mask(mask, volume.geometry, volume.voxels[0], unit))
    return rows


def measure_mask(
    mask: Bools, geometry: Geometry, image: NDArray[Any] | None = None, unit: Unit = "au"
) -> dict[str, Value]:
    """What a mask measures, as one flat row; None where an empty mask has no such measure.

    - present, voxels; volume_ml of the voxels; mesh_volume_ml and surface_mm2 of the surface halfway between
      voxels inside and outside (what lies beyond the scan is outside);
    - longest_axial_mm and short_axis_mm across it, in the axial slice at longest_axial_z_mm (world);
      longest_3d_mm. They run between points of that surface, so one voxel is as long as itself;
    - centroid_… and box_low_…, box_high_… in world mm, RAS+; the box is that of the voxels' centres;
    - components: parts that do not touch, not even at a corner; largest_component_ml;
    - touches_border, and border_sides: the ends of the scan it reaches, of L, R, P, A, I, S;
    - midline_offset_mm: how far to the patient's right of the body's middle its centroid lies;
    - mean, sd, min, p10, median, p90, max of the intensities, each with the unit in its name.

    Args:
        mask: (x, y, z) bool, on the grid of `geometry`, of any orientation.
        geometry: the grid; axial slices are those across the axis that runs closest to the patient's length.
        image: (x, y, z) intensities on that grid; without it their measures and the midline are left out.
        unit: of the intensities, see `intensity_unit`.

    Raises:
        GeometryError: mask, image and grid do not have one shape.
    """
    _check(mask, geometry, image)
    order = geometry.canonical_order()
    mask, geometry = order.apply(mask), geometry.reordered(order)
    if image is not None:
        image = order.apply(image)
    box = bounding_box(mask)
    if box is None:
        row = _nothing()
    else:
        inside = mask[box.slices]
        place = geometry.cropped(box)
        row = _size(inside, place) | _place(inside, place) | _border(box, geometry.shape)
    if image is not None:
        centroid_x_mm = row["centroid_x_mm"]
        row["midline_offset_mm"] = None
        if box is not None and isinstance(centroid_x_mm, float):
            row["midline_offset_mm"] = _midline_offset(centroid_x_mm, box, geometry, image, unit)
        values = image[box.slices][mask[box.slices]] if box else None
        row |= {f"{name}_{unit}": value for name, value in _intensities(values).items()}
    return row


def intensity_unit(volume: Volume, modality: str | None) -> Unit:
    """Hounsfield units for CT; SUV or Bq/ml for PET from DICOM, as its reader left it; else arbitrary."""
    if modality == "ct":
        return "hu"
    if modality != "pet" or volume.file is None or volume.file.format != "dicom":
        return "au"
    warnings = [one for one in volume.file.details.get("warnings", ()) if one.startswith("PET values")]
    if not warnings:
        return "suv"
    return "bqml" if "Bq/ml" in warnings[0] else "au"


# ---- tables ----


def write_measures(path: str | Path, rows: Sequence[Mapping[str, Value]]) -> None:
    """Write rows as .csv, .parquet or .json, whole or not at all; a column that a row lacks is empty there.

    Raises:
        OutputError: another ending, the file can't be written, or Parquet is asked for without pyarrow.
    """
    path = Path(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise OutputError(f"A table's name must end in one of {', '.join(ENDINGS)}, got {path.name}.")
    table = [{name: row.get(name) for name in columns} for row in rows]
    if ending == ".csv":
        content = _as_csv(table, columns)
    elif ending == ".json":
        content = (json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    else:
        content = _as_parquet(table, columns)
    try:
        write_bytes(path, content)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error


def _as_csv(table: Sequence[Mapping[str, Value]], columns: Sequence[str]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue().encode()


def _as_parquet(table: Sequence[Mapping[str, Value]], columns: Sequence[str]) -> bytes:
    try:
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise OutputError(
            'A Parquet table needs pyarrow, which is not installed: pip install "textseg[cohort]"; '
            "or write .csv."
        ) from error
    arrays = [_arrow_array(pa, [row[name] for row in table]) for name in columns]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, names=list(columns)), sink)
    return bytes(sink.getvalue())


def _arrow_array(pa: Any, values: list[Value]) -> Any:
    """One type a column: numbers with a fraction as float64; words for mixed kinds and for huge numbers."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds != {int}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) > 1 or any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)


# ---- size ----


def _check(mask: Bools, geometry: Geometry, image: NDArray[Any] | None) -> None:
    shapes = {mask.shape, geometry.shape} | ({image.shape} if image is not None else set())
    if len(shapes) > 1 or mask.dtype != np.bool_:
        raise GeometryError(
            f"A mask to measure must be bool on the grid of {geometry.shape}, as its image, got "
            f"{mask.dtype} {mask.shape}" + (f" and an image {image.shape}." if image is not None else ".")
        )


def _nothing() -> dict[str, Value]:
    """The row of an empty mask, with the columns of any other."""
    one_voxel = np.ones((1, 1, 1), dtype=bool)
    geometry = Geometry((1, 1, 1), np.eye(4))
    columns = _size(one_voxel, geometry) | _place(one_voxel, geometry)
    known: dict[str, Value] = {"present": False, "voxels": 0, "volume_ml": 0.0, "mesh_volume_ml": 0.0}
    known |= {"surface_mm2": 0.0, "components": 0, "touches_border": False, "border_sides": ""}
    return dict.fromkeys(columns) | known


def _size(inside: Bools, geometry: Geometry) -> dict[str, Value]:
    voxels = int(np.count_nonzero(inside))
    voxel_ml = geometry.voxel_volume_mm3 / 1000
    cells = np.bincount(neighbour_codes(inside).ravel(), minlength=256)
    longest_mm, short_mm, z = _axial_diameters(inside, geometry)
    x, y, _ = _centre(inside[..., z : z + 1])
    parts, count = ndimage.label(inside, np.ones((3, 3, 3)))
    return {
        "present": True,
        "voxels": voxels,
        "volume_ml": voxels * voxel_ml,
        "mesh_volume_ml": float(cells @ _volume_table()) * voxel_ml,
        "surface_mm2": float(cells @ area_table(steps_mm(geometry))),
        "longest_axial_mm": longest_mm,
        "short_axis_mm": short_mm,
        "longest_axial_z_mm": float(geometry.to_world((x, y, z))[2]),
        "longest_3d_mm": _longest(_edge_points(inside) @ geometry.affine[:3, :3].T),
        "components": int(count),
        "largest_component_ml": int(np.bincount(parts.ravel())[1:].max()) * voxel_ml,
    }


@cache
def _volume_table() -> Floats:
    """(256,): the share of a cell that lies within the surface, for each of `neighbour_codes`."""
    shares = np.zeros(256)
    for code in range(256):
        corners = np.array([code >> bit & 1 for bit in range(8)], dtype=bool).reshape(2, 2, 2)
        few = corners if corners.sum() <= 4 else ~corners
        parts, count = ndimage.label(few)
        cut_off = sum(CAP_VOLUMES[int((parts == part).sum())] for part in range(1, count + 1))
        shares[code] = cut_off if corners.sum() <= 4 else 1 - cut_off
    return shares


def _axial_diameters(inside: Bools, geometry: Geometry) -> tuple[float, float, int]:
    """The longest diameter in a slice, the longest across it in that slice, and the slice's index."""
    # In the slice's own right-angled millimetres, though its two axes may be sheared.
    in_plane_mm = np.linalg.qr(geometry.affine[:3, :2])[1]
    best = (0.0, 0.0, 0)
    for z in np.flatnonzero(inside.any(axis=(0, 1))):
        longest, short = _diameters(_edge_points(inside[..., z]) @ in_plane_mm.T)
        if longest > best[0]:
            best = (longest, short, int(z))
    return best


def _edge_points(mask: Bools) -> Floats:
    """Indices (points, axes) halfway out of the first and last voxel of each line along each axis.

    All corners of the convex hull of the mask's surface are among them.
    """
    points = []
    for axis in range(mask.ndim):
        half = np.eye(mask.ndim)[axis] / 2
        first, last = _line_ends(mask, axis)
        points += [first - half, last + half]
    return np.concatenate(points)


def _line_ends(mask: Bools, axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (lines, axes) of the first and of the last voxel of every line along an axis that has any."""
    hit = mask.any(axis=axis)
    line = np.argwhere(hit)
    first = mask.argmax(axis=axis)[hit]
    last = mask.shape[axis] - 1 - np.flip(mask, axis).argmax(axis=axis)[hit]
    return np.insert(line, axis, first, axis=1), np.insert(line, axis, last, axis=1)


def _longest(points_mm: Floats) -> float:
    """The largest distance between any two of points (n, 3) that do not lie in one plane."""
    corners = points_mm[ConvexHull(points_mm).vertices]
    from_middle = np.linalg.norm(corners - corners.mean(axis=0), axis=1)
    at_least = np.linalg.norm(corners - corners[from_middle.argmax()], axis=1).max()
    # Two points at least so far apart are no nearer to the middle than this.
    corners = corners[from_middle >= at_least - from_middle.max()]
    # A block at a time: a whole body's hull has ten thousand corners.
    blocks = range(0, len(corners), BLOCK)
    return float(max(cdist(corners[start : start + BLOCK], corners).max() for start in blocks))


def _diameters(points_mm: Floats) -> tuple[float, float]:
    """The longest diameter of points (n, 2), and the longest chord of their hull at right angles to it."""
    corners = points_mm[ConvexHull(points_mm).vertices]
    apart = squareform(pdist(corners))
    one, other = np.unravel_index(apart.argmax(), apart.shape)
    longest = float(apart[one, other])
    along = (corners[other] - corners[one]) / longest
    # Hull corners run around: from one end of the diameter to the other, and back on the other side.
    corners = np.roll(corners, -one, axis=0)
    ahead, across = corners @ along, corners @ (-along[1], along[0])
    end = int(other - one) % len(corners)
    there = np.interp(ahead, ahead[: end + 1], across[: end + 1])
    back = np.interp(ahead, np.append(ahead[end:], ahead[0])[::-1], np.append(across[end:], across[0])[::-1])
    # A hull's width changes linearly from corner to corner.
    return longest, float(np.abs(there - back).max())


# ---- place ----


def _place(inside: Bools, geometry: Geometry) -> dict[str, Value]:
    # A world axis is linear along a line of voxels, so its extremes are at the lines' ends.
    ends = geometry.to_world(np.concatenate(_line_ends(inside, 0)))
    points = (geometry.to_world(_centre(inside)), ends.min(axis=0), ends.max(axis=0))
    return {
        f"{name}_{axis}_mm": round(float(mm), 3)
        for name, point in zip(("centroid", "box_low", "box_high"), points, strict=True)
        for axis, mm in zip("xyz", point, strict=True)
    }


def _centre(inside: Bools) -> Floats:
    """The mean index of the mask's voxels; from counts a plane, as a list of voxels may be gigabytes."""
    means = []
    for axis in range(3):
        counts = inside.sum(axis=tuple(other for other in range(3) if other != axis))
        means.append(float(np.average(np.arange(len(counts)), weights=counts)))
    return np.array(means)


def _border(box: Box, shape: Shape) -> dict[str, Value]:
    sides = ""
    for (low, high), start, stop, count in zip(WORLD_ENDS, box.start, box.stop, shape, strict=True):
        sides += (low if start == 0 else "") + (high if stop == count else "")
    return {"touches_border": bool(sides), "border_sides": sides}


def _midline_offset(
    centroid_x_mm: float, box: Box, geometry: Geometry, image: NDArray[Any], unit: Unit
) -> float | None:
    """From the middle of the body in the mask's slices, which is the median of what is no air."""
    step = max(1, round((np.prod(geometry.shape[:2]) * box.shape[2] / BODY_SAMPLES) ** (1 / 3)))
    sample = image[::step, ::step, box.start[2] : box.stop[2] : step]
    body = np.argwhere(sample > (BODY_HU if unit == "hu" else sample.mean(dtype=np.float64)))
    if body.size == 0:
        return None
    middle = np.median(geometry.to_world(body * step + (0, 0, box.start[2]))[:, 0])
    return round(centroid_x_mm - float(middle), 3)


# ---- intensities ----


def _intensities(values: NDArray[Any] | None) -> dict[str, Value]:
    names = ("mean", "sd", "min", *PERCENTILES, "max")
    if values is None:
        return dict.fromkeys(names)
    percentiles = np.percentile(values, list(PERCENTILES.values()))
    numbers = (
        values.mean(dtype=np.float64),
        values.std(dtype=np.float64),
        values.min(),
        *percentiles,
        values.max(),
    )
    return {name: float(number) for name, number in zip(names, numbers, strict=True)}
