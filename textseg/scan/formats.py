"""Which file formats there are, told by a file's first bytes and by its ending."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from textseg.errors import GeometryError, ScanError
from textseg.geometry import Geometry, Shape
from textseg.volume import FileFormat

# What labels mean; None for a mask, which has no legend.
Names = Mapping[int, str] | None

ENDINGS: dict[str, FileFormat] = {
    ".nii.gz": "nii.gz",
    ".nii": "nii",
    ".mgz": "mgz",
    ".mgh": "mgz",
    ".nrrd": "nrrd",
    ".nhdr": "nhdr",
    ".mha": "mha",
    ".mhd": "mhd",
    ".dcm": "dicom",
}
READABLE = (
    "NIfTI (.nii.gz, .nii), FreeSurfer (.mgz, .mgh), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) "
    "or DICOM (a folder, or a multi-frame .dcm file)"
)
GZIP_MAGIC = b"\x1f\x8b"
FIRST = 2000
# The tags that a DICOM file without preamble can begin with: character set, image type, SOP class.
BARE_DICOM = (b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00")
# What reading a damaged gzip stream can raise; EOFError is a stream that stops early.
DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def ending_of(name: str) -> str | None:
    """The known ending of a file name, in lower case, ".nii.gz" before ".nii"; None for an unknown one."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)


def format_of(path: Path) -> FileFormat:
    """The format of a file: what its first bytes say, and the ending where two formats begin alike.

    Raises:
        ScanError: missing, empty or unreadable, or neither content nor ending is one that can be read.
    """
    first = _first_bytes_unzipped(path)
    ending = ending_of(path.name)
    found = _format_of_content(first, zipped=is_gzip(path), ending=ending)
    if found is not None:
        return found
    if ending is None:
        raise ScanError(f"A scan must be {READABLE}; got {path.name}. Convert it to one of these first.")
    raise ScanError(
        f"A {ending} file must hold an image of that format, but {path.name} begins with {_shown(first)}. "
        "Was it renamed, or is it a web page saved in place of the download?"
    )


def choose_volume(name: str, count: int, volume: int | None) -> int:
    """Which of a file's volumes is meant: the one asked for, or the only one.

    Raises:
        ScanError: there are several and none was chosen, or there is no such volume.
    """
    if volume is None and count > 1:
        raise ScanError(f"{name} holds {count} volumes; choose one with --volume N (0 to {count - 1}).")
    if volume is not None and not 0 <= volume < count:
        raise ScanError(
            f"--volume must be a number from 0 to {count - 1} for {name}, which holds {_volumes(count)}, "
            f"got {volume}."
        )
    return volume or 0


def scan_geometry(name: str, shape: Shape, affine: ArrayLike) -> Geometry:
    """The grid of a scan that was just read, with the file named in the error if its header is no grid."""
    try:
        return Geometry(shape, affine)  # type: ignore[arg-type]  # Geometry makes an array of it
    except GeometryError as error:
        raise ScanError(f"{name}: {error}") from error


def first_bytes(path: Path, count: int) -> bytes:
    """So many bytes of a file from its start, or all there are.

    Raises:
        ScanError: it is missing or can't be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except FileNotFoundError as error:
        raise ScanError(
            f"A scan must exist, but there is no file or folder {path}. Is the path right?"
        ) from error
    except PermissionError as error:
        raise ScanError(f"A scan must be readable, but you may not read {path}. Ask its owner.") from error
    except OSError as error:
        raise ScanError(f"A scan must be readable, but {path} can't be read: {error.strerror}.") from error


def _first_bytes_unzipped(path: Path) -> bytes:
    """Enough bytes for every format's magic number, also after the comments of a MetaImage header."""
    first = first_bytes(path, FIRST)
    if not first:
        raise ScanError(f"A scan must hold an image, but {path.name} is empty. Is the download complete?")
    if not first.startswith(GZIP_MAGIC):
        return first
    try:
        with gzip.open(path) as stream:
            return stream.read(FIRST)
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path) from error


def colours_error(name: str) -> ScanError:
    return ScanError(
        f"A scan must have one number a voxel, but {name} holds colours (RGB). Give the original."
    )


def complex_error(name: str) -> ScanError:
    return ScanError(f"Voxels must be real numbers, but {name} holds complex ones. Save their magnitude.")


def not_3d_error(name: str, size: Sequence[int]) -> ScanError:
    return ScanError(
        f"A scan must be 3D, but {name} has size {tuple(size)}. Give the whole series or volume."
    )


def damaged_gzip(path: Path) -> ScanError:
    return ScanError(
        f"{path.name} must be a complete gzip file, but it stops early or is damaged. "
        "Download or copy it again."
    )


def is_gzip(path: Path) -> bool:
    return first_bytes(path, 2) == GZIP_MAGIC


def _format_of_content(first: bytes, *, zipped: bool, ending: str | None) -> FileFormat | None:
    if _is_nifti(first):
        return "nii.gz" if zipped else "nii"
    if ENDINGS.get(ending or "") == "mgz" and first[:4] == struct.pack(">i", 1):
        return "mgz"
    if zipped:
        return None
    if first.startswith(b"NRRD"):
        return "nhdr" if ending == ".nhdr" else "nrrd"
    if b"NDims" in first and first.lstrip()[:1].isalpha():
        return "mhd" if ending == ".mhd" else "mha"
    if is_dicom(first):
        return "dicom"
    return None


def _is_nifti(first: bytes) -> bool:
    return first[344:348] == b"n+1\0" or first[4:8] == b"n+2\0"


def is_dicom(first: bytes) -> bool:
    """Whether the first bytes are those of DICOM, also of old files that lack the preamble and "DICM"."""
    return first[128:132] == b"DICM" or first[:4] in BARE_DICOM


def _shown(first: bytes) -> str:
    words = first[:24].decode("latin-1")
    return repr(words) if words.isprintable() else "other bytes"


def _volumes(count: int) -> str:
    return "one volume" if count == 1 else f"{count} volumes"
