"""A scan or a label map from whatever files it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.errors import ScanError
from textseg.geometry import Geometry
from textseg.scan.check import check_voxels
from textseg.scan.dicom import read_dicom
from textseg.scan.dicom_derived import NamedMasks
from textseg.scan.dicom_frames import read_header
from textseg.scan.dicom_seg import read_dicom_seg
from textseg.scan.formats import format_of
from textseg.scan.itk import TextHeader, read_itk, read_itk_legend
from textseg.scan.nifti import read_mgh, read_nifti, read_nifti_legend
from textseg.scan.rtstruct import read_rtstruct
from textseg.volume import ScanFile, Volume


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Labels (x, y, z), whole numbers from 0, on the file's own grid, and the names that it gives them."""

    labels: NDArray[Any]
    geometry: Geometry
    names: Mapping[int, str]
    file: ScanFile


def read_scan(
    path: str | Path | Sequence[str | Path],
    *,
    series: str | None = None,
    volume: int | None = None,
) -> Volume:
    """Read a scan: voxels (channels, x, y, z) in the file's axis order, scaling applied, world in mm RAS+.

    Args:
        path: a file, a folder with a DICOM series, or several of them that are channels of one scan.
        series: which series of a DICOM folder: its UID, the beginning or end of it, or its number.
        volume: which volume of a 4D file, from 0.

    Raises:
        SeriesChoiceError: the folder holds several series and none, or an unknown one, was chosen.
        ScanError: a file is missing, damaged, not a 3D scan, empty, or the channels lie on different grids.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if not paths:
        raise ScanError("A scan needs at least one file, got none.")
    scan = _joined([_read_one(one, series, volume) for one in paths])
    check_voxels(scan)
    return scan


def read_label_map(path: str | Path, *, volume: int | None = None, grid: Geometry | None = None) -> LabelMap:
    """Read a mask or label map: labels (x, y, z) as the smallest whole numbers that hold them.

    Args:
        path: a file of any format that `read_scan` reads, or a DICOM SEG or RTSTRUCT. Where segments of these
            overlap, the smaller one wins.
        volume: which volume of a 4D file, from 0.
        grid: of the scan that a DICOM SEG or RTSTRUCT belongs to, on which its labels are then given.

    Raises:
        ScanError: as in `read_scan`, a voxel is not a whole number from 0, contours came without a grid, or
            they do not lie in its slices.
    """
    kind = derived_kind(Path(path))
    if kind is not None:
        return _painted(Path(path), _read_derived(Path(path), kind, grid))
    scan = _read_one(Path(path), None, volume)
    assert scan.file is not None
    return LabelMap(_whole_numbers(scan), scan.geometry, _legend(scan.file), scan.file)


def derived_kind(path: Path) -> str | None:
    """ "SEG" or "RTSTRUCT" where a file is one: labels that belong to the grid of a scan.

    Raises:
        ScanError: the file is missing, or nothing that can be read.
    """
    if path.is_dir() or format_of(path) != "dicom":
        return None
    modality = str(read_header(path).get("Modality"))
    return modality if modality in ("SEG", "RTSTRUCT") else None


def _read_derived(path: Path, kind: str, grid: Geometry | None) -> NamedMasks:
    if kind == "SEG":
        return read_dicom_seg(path, grid)
    if grid is None:
        raise ScanError(
            f"Contours have no voxels of their own, so {path.name} (RTSTRUCT) can only be read together with "
            "its scan. Give the scan's grid, or export it as DICOM SEG or NIfTI."
        )
    return read_rtstruct(path, grid)


def _painted(path: Path, named: NamedMasks) -> LabelMap:
    labels = np.zeros(named.geometry.shape, np.uint16)
    sizes = [np.count_nonzero(mask) for mask in named.masks]
    for index in np.argsort(sizes)[::-1]:
        labels[named.masks[index]] = index + 1
    names = dict(enumerate(named.names, start=1))
    kept = np.uint8 if len(names) <= np.iinfo(np.uint8).max else np.uint16
    file = ScanFile((path,), "dicom", details={"warnings": []})
    return LabelMap(labels.astype(kept), named.geometry, names, file)


def _read_one(path: Path, series: str | None, volume: int | None) -> Volume:
    if path.is_dir():
        return read_dicom(path, series, volume)
    kind = format_of(path)
    if kind == "dicom":
        return read_dicom(path, series, volume)
    if kind in ("nii", "nii.gz"):
        return read_nifti(path, volume)
    if kind == "mgz":
        return read_mgh(path, volume)
    return read_itk(path, volume)


def _joined(channels: list[Volume]) -> Volume:
    """One scan of several channels: the first one's file, header and grid."""
    first = channels[0]
    if len(channels) == 1:
        return first
    for channel in channels[1:]:
        if not first.geometry.is_close(channel.geometry):
            raise ScanError(
                f"The channels of a scan must lie on one grid, but {_name(first)} is {first.geometry} and "
                f"{_name(channel)} is {channel.geometry}. Resample one onto the other first."
            )
    files = [channel.file for channel in channels if channel.file is not None]
    warnings = [warning for file in files for warning in file.details["warnings"]]
    file = replace(
        files[0],
        paths=tuple(path for one in files for path in one.paths),
        details=files[0].details | {"warnings": warnings},
    )
    modalities = {channel.modality for channel in channels}
    return Volume(
        np.concatenate([channel.voxels for channel in channels]),
        first.geometry,
        file,
        first.modality if len(modalities) == 1 else None,
    )


def _name(channel: Volume) -> str:
    return channel.file.paths[0].name if channel.file else "one of them"


def _whole_numbers(scan: Volume) -> NDArray[Any]:
    values = scan.voxels[0]
    if values.dtype.kind == "f":
        # NaN fails the first comparison.
        if not (values == np.round(values)).all():
            raise ScanError(f"Labels must be whole numbers, but {_name(scan)} holds others. Is it a scan?")
        values = values.astype(np.int64)
    if values.min() < 0:
        raise ScanError(f"Labels must be 0 or more, but {_name(scan)} holds {values.min()}. Is it a scan?")
    highest = int(values.max())
    kept = next((kind for kind in (np.uint8, np.uint16) if highest <= np.iinfo(kind).max), np.uint32)
    return np.asarray(values.astype(kept, copy=False))


def _legend(file: ScanFile) -> dict[int, str]:
    if isinstance(file.header, TextHeader):
        return read_itk_legend(file.header)
    return read_nifti_legend(file.header) if hasattr(file.header, "extensions") else {}
