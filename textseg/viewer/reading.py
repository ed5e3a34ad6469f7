"""napari's reader: a DICOM folder, NIfTI, FreeSurfer, NRRD and MetaImage files as layers."""

# SimpleITK has types for hardly anything.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  # its own documentation calls it so

from textseg.errors import ScanError, SeriesChoiceError
from textseg.scan import list_series, read_scan
from textseg.scan.formats import ENDINGS, ending_of, format_of
from textseg.viewer.scans import LayerData, image_layer
from textseg.volume import Volume

Reader = Callable[[str | Sequence[str]], list[LayerData]]

# The reader's own, for the manifest and for dialogs.
PATTERNS = tuple(f"*{ending}" for ending in ENDINGS)


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """napari's hook: what reads this path, None where it is none of ours."""
    paths = [path] if isinstance(path, str) else list(path)
    return read_paths if all(Path(one).is_dir() or ending_of(one) for one in paths) else None


def read_paths(path: str | Sequence[str]) -> list[LayerData]:
    """The layers of one path or several, one after the other."""
    paths = [path] if isinstance(path, str) else list(path)
    return [layer for one in paths for layer in read_layers(one)]


def read_layers(path: str | Path, *, series: str | None = None) -> list[LayerData]:
    """A scan as a layer, a 4D one with its frames; a DICOM folder of several series gives a layer each.

    Args:
        series: which one of a DICOM folder; None for all of them that are scans.

    Raises:
        ScanError: it can't be read.
    """
    path = Path(path)
    try:
        frames = read_frames(path, series)
        return [image_layer(_name(path, frames[0]), frames)]
    except SeriesChoiceError:
        if series is not None:
            raise
    return _all_series(path)


def read_frames(path: Path, series: str | None = None) -> list[Volume]:
    """The volumes of a file or series: one, or all those of a 4D scan in order.

    Raises:
        ScanError: one of them can't be read.
    """
    count = 1 if path.is_dir() else count_frames(path)
    if count > 1:
        return [read_scan(path, series=series, volume=number) for number in range(count)]
    try:
        return [read_scan(path, series=series)]
    except SeriesChoiceError:
        raise
    except ScanError:
        count = _dicom_volumes(path, series)
        if count < 2:
            raise
    return [read_scan(path, series=series, volume=number) for number in range(count)]


def count_frames(path: Path) -> int:
    """How many volumes a file holds by its header; 1 also where it can't be read or is DICOM."""
    kind = format_of(path)
    try:
        if kind in ("nii", "nii.gz", "mgz"):
            return int(np.prod(nib.load(path).shape[3:], dtype=np.int64))  # type: ignore[attr-defined]
        if kind != "dicom":
            header = sitk.ImageFileReader()
            header.SetFileName(str(path))
            header.ReadImageInformation()
            return int(np.prod(header.GetSize()[3:])) * int(header.GetNumberOfComponents())
    except Exception:  # a damaged file: its own reader says what is wrong with it
        return 1
    return 1


def _all_series(path: Path) -> list[LayerData]:
    """Each series of a folder that is a scan; what is none (a localiser, a report) is left out."""
    layers: list[LayerData] = []
    error: ScanError | None = None
    for info in list_series(path):
        try:
            frames = read_frames(path, info.uid)
        except ScanError as found:
            error = error or found
            continue
        name = info.description or (f"series {info.number}" if info.number is not None else info.uid)
        layers.append(image_layer(name, frames))
    if not layers and error is not None:
        raise error
    return layers


def _dicom_volumes(path: Path, series: str | None) -> int:
    """How often each place of a DICOM series was imaged; 0 where there is no such series."""
    try:
        found = list_series(path)
    except ScanError:
        return 0
    chosen = [info for info in found if series in (None, info.uid)]
    return chosen[0].images // chosen[0].shape[2] if len(chosen) == 1 else 0


def _name(path: Path, volume: Volume) -> str:
    described = volume.file.details.get("series_description") if volume.file else None
    return str(described or (volume.file.stem if volume.file else path.name) or path.resolve().name)
