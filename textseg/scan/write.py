"""Masks and label maps to files, on the scan's own grid: all of a file or nothing of it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.errors import OutputError
from textseg.geometry import Geometry, bounding_box
from textseg.scan.formats import Names, ending_of
from textseg.scan.itk import write_metaimage, write_nrrd
from textseg.scan.nifti import write_mgh, write_nifti
from textseg.volume import ScanFile, Volume

Writer = Callable[[Path, NDArray[Any], Geometry, ScanFile | None, Names], None]

WRITERS: dict[str, Writer] = {
    ".nii.gz": write_nifti,
    ".nii": write_nifti,
    ".mgz": write_mgh,
    ".mgh": write_mgh,
    ".nrrd": write_nrrd,
    ".nhdr": write_nrrd,
    ".mha": write_metaimage,
    ".mhd": write_metaimage,
}


def mask_ending(file: ScanFile | None) -> str:
    """The ending for a mask in the scan's own format, ".nii.gz" where it came as DICOM or from no file."""
    return ".nii.gz" if file is None or file.format == "dicom" else f".{file.format}"


def write_mask(
    path: str | Path,
    mask: NDArray[Any],
    like: Volume | Geometry,
    file: ScanFile | None = None,
) -> None:
    """Write a mask in the format that the path's ending names.

    A scan of the same format on the very same grid lends its header, so that affine, codes and units come
    back to the last bit; see `mask_ending` for the ending of the scan's own format.

    Args:
        path: the file to write, in a folder that exists. An older file is replaced once the new one is whole.
        mask: (x, y, z) bool, or whole numbers 0 and 1, on the grid of `like`.
        like: the scan, or the grid alone.
        file: the scan's file where `like` is a grid.

    Raises:
        OutputError: it can't be written, or the mask is not on the grid; nothing half written is left.
    """
    values = np.asarray(mask)
    if not _is_binary(values):
        raise OutputError(
            f"A mask must be True and False or 0 and 1, got {values.dtype} with other values. "
            "Threshold it, or write a label map."
        )
    plain = values.view(np.uint8) if values.dtype == np.bool_ else values.astype(np.uint8, copy=False)
    _write(Path(path), plain, like, file, names=None)


def write_label_map(
    path: str | Path,
    labels: NDArray[Any],
    names: Mapping[int, str],
    like: Volume | Geometry,
    file: ScanFile | None = None,
) -> None:
    """Write a label map in the format that the path's ending names, with names where the format has room.

    NIfTI holds the names as a Caret extension, NRRD and MetaImage as 3D Slicer's segments; .mgz does not.

    Args:
        path: as in `write_mask`.
        labels: (x, y, z) whole numbers, 0 for background, on the grid of `like`.
        names: what each label means.
        like: the scan, or the grid alone.
        file: the scan's file where `like` is a grid.

    Raises:
        OutputError: as in `write_mask`.
    """
    values = np.asarray(labels)
    if values.dtype.kind not in "iub" or values.min(initial=0) < 0:
        raise OutputError(f"Labels must be whole numbers from 0, got {values.dtype} or negative ones.")
    _write(Path(path), values.astype(_smallest_unsigned(values), copy=False), like, file, names)


def _is_binary(values: NDArray[Any]) -> bool:
    if values.dtype == np.bool_ or values.size == 0:
        return True
    return values.dtype.kind in "iu" and int(values.min()) >= 0 and int(values.max()) <= 1


def _smallest_unsigned(values: NDArray[Any]) -> type[np.unsignedinteger[Any]]:
    highest = int(values.max(initial=0))
    return next((kind for kind in (np.uint8, np.uint16) if highest <= np.iinfo(kind).max), np.uint32)


def _write(
    path: Path,
    values: NDArray[Any],
    like: Volume | Geometry,
    file: ScanFile | None,
    names: Names,
) -> None:
    geometry, file = (like.geometry, like.file) if isinstance(like, Volume) else (like, file)
    if values.shape != geometry.shape:
        raise OutputError(f"A mask must lie on the grid of {geometry.shape}, got shape {values.shape}.")
    writer = WRITERS.get(ending_of(path.name) or "")
    if writer is None:
        raise OutputError(f"A mask's name must end in one of {', '.join(WRITERS)}, got {path.name}.")
    turned = _x_fastest(values)
    _write_whole(path, lambda target: writer(target, turned, geometry, file, names))


def _x_fastest(values: NDArray[Any]) -> NDArray[Any]:
    """The same values (x, y, z) in the order that all formats keep them, x fastest.

    Plane by plane, which a processor's cache holds, and only where something is: turning all of
    512 × 512 × 400 labels takes a second.
    """
    if values.flags.f_contiguous:
        return values
    turned = np.zeros(values.shape, values.dtype, order="F")
    box = bounding_box(values != 0)
    if box is not None:
        x, rows, z = box.slices
        for y in range(rows.start, rows.stop):
            turned[x, y, z] = values[x, y, z]
    return turned


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a hidden folder beside the path, then move what it made into place.

    A folder rather than a temporary name, because .mhd and .nhdr name their second file inside.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".textseg-", dir=path.parent) as folder:
            write(Path(folder) / path.name)
            # The file that was asked for comes last: once it is there, what it refers to is there too.
            for made in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                os.replace(made, path.parent / made.name)
    except OSError as error:
        raise OutputError(_why_not_written(path, error)) from error


def _why_not_written(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} can't be written because the disk is full. Make room or choose another folder."
    if error.errno == errno.ENOENT:
        return f"{path} can't be written because there is no folder {path.parent}. Create it first."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} can't be written because its folder may not be written to. Choose another folder."
    return f"{path} can't be written: {error.strerror or error}. Choose another name or folder."
