"""NIfTI and FreeSurfer's MGH, read and written with nibabel, headers kept to the last bit."""

# nibabel is typed only in part.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import colorsys
import gzip
import io
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any, cast
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from textseg.errors import ScanError
from textseg.geometry import Floats, Geometry
from textseg.scan.formats import (
    DAMAGED_GZIP,
    Names,
    choose_volume,
    colours_error,
    complex_error,
    damaged_gzip,
    format_of,
    is_gzip,
    not_3d_error,
    scan_geometry,
)
from textseg.scan.values import scaled
from textseg.volume import ScanFile, Volume

# xyzt_units & 7: unknown (taken as mm, as everybody does), metre, millimetre, micrometre.
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
FORMS_DIFFER_MM = 1.0
# What gzip can make of a byte, by its format.
MOST_OF_A_GZIP_BYTE = 1032
HEADER_SIZES = (348, 540)
INTENT_LABEL = 1002
CARET_CODE = 30
NO_ORIENTATION = (
    "The header has no orientation: FreeSurfer's coronal one is taken, and left and right are not certain."
)


def read_nifti(path: Path, volume: int | None = None) -> Volume:
    """The scan of a NIfTI-1 or NIfTI-2 file, gzipped or not: voxels (1, x, y, z), world in mm RAS+."""
    with _opened(path) as stream, LoggingOutputSuppressor():
        stored, image, number = _read_stored(path, stream, _nifti_class(stream), volume)
        stream.seek(0)
        raw_header = type(image.header).from_fileobj(stream, check=False)
    _check_pixdim(path, raw_header)
    geometry = scan_geometry(path.name, stored.shape, affine_mm(image.header))
    details = _details(image, number)
    details["warnings"] = [*_warnings_of_size(raw_header), *_warnings_of_forms(image.header, geometry)]
    voxels = scaled(stored, image.dataobj.slope, image.dataobj.inter)
    return Volume(voxels, geometry, ScanFile((path,), format_of(path), image.header, details))


def read_mgh(path: Path, volume: int | None = None) -> Volume:
    """The scan of a FreeSurfer .mgz or .mgh file: voxels (1, x, y, z), world in mm RAS+."""
    with _opened(path) as stream:
        stored, image, number = _read_stored(path, stream, nib.MGHImage, volume)
        # Where the flag is zero nibabel puts the default orientation and a flag of one in its place.
        stream.seek(28)
        has_orientation = stream.read(2) != b"\0\0"
    geometry = scan_geometry(path.name, stored.shape, image.header.get_affine())
    details = _details(image, number)
    details["warnings"] = [] if has_orientation else [NO_ORIENTATION]
    return Volume(scaled(stored), geometry, ScanFile((path,), "mgz", image.header, details))


def affine_mm(header: Any) -> Floats:
    """(4, 4) from voxel to world mm, RAS+, of a NIfTI header: by sform, else qform, else pixdim."""
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def write_nifti(
    path: Path, labels: NDArray[Any], geometry: Geometry, file: ScanFile | None, names: Names
) -> None:
    """Labels (x, y, z), unsigned, as NIfTI, with the source's header where it has this very grid."""
    header = _header_like(file, geometry) or _new_header(geometry)
    pixdim = header["pixdim"].copy()
    header.set_data_shape(labels.shape)
    # nibabel has just put ones in place of the time step and what follows.
    header["pixdim"] = pixdim
    header.set_data_dtype(labels.dtype)
    header["descrip"] = b"textseg"
    header["intent_code"] = 0 if names is None else INTENT_LABEL
    if names is not None:
        header.extensions.append(Nifti1Extension(CARET_CODE, _caret_legend(names)))
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # Without an affine nibabel leaves sform and qform of the header alone.
    image = image_class(labels, None, header)
    image.header.set_slope_inter(1, 0)
    image.to_filename(path)


def read_nifti_legend(header: Any) -> dict[int, str]:
    """The names of labels in a NIfTI header's Caret extension (as TotalSegmentator writes it too), if any."""
    for extension in header.extensions:
        # nibabel before 5.3 has no property for it.
        content = extension.content if hasattr(extension, "content") else extension.get_content()
        text = content.decode("utf-8", "ignore") if isinstance(content, bytes) else str(content)
        if "LabelTable" in text:
            return _legend_of_caret(text.rstrip("\0 "))
    return {}


def write_mgh(
    path: Path, labels: NDArray[Any], geometry: Geometry, file: ScanFile | None, names: Names
) -> None:
    """Labels (x, y, z) as .mgz or .mgh, which has no place that nibabel can write for their names."""
    known = np.uint8 if labels.max(initial=0) < 256 else np.int32
    values = labels.astype(known, copy=False)
    if file is not None and _is_mgh_grid(file.header, geometry):
        header = file.header.copy()
        spacing = header["delta"].copy()
        header.set_data_shape(labels.shape)
        # nibabel has just put ones in its place.
        header["delta"] = spacing
        header.set_data_dtype(known)
        nib.MGHImage(values, None, header).to_filename(path)
    else:
        nib.MGHImage(values, geometry.affine).to_filename(path)


# ---- reading ----


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if is_gzip(path) else path.open("rb")


def _nifti_class(stream: IO[bytes]) -> Any:
    first = stream.read(8)
    stream.seek(0)
    return nib.Nifti2Image if first[4:7] == b"n+2" else nib.Nifti1Image


def _read_stored(
    path: Path, stream: IO[bytes], image_class: Any, volume: int | None
) -> tuple[NDArray[Any], Any, int | None]:
    """The numbers (x, y, z) that the file stores, before scaling; the image without voxels; which volume."""
    try:
        file_map = image_class.make_file_map({"image": stream})
        image = image_class.from_file_map(file_map, mmap=False)
        _check_type(path, image)
        count = _volumes_of(path, image)
        number = choose_volume(path.name, count, volume)
        shape, dtype = image.shape[:3], image.get_data_dtype()
        # NIfTI and MGH both store x fastest and the volumes one after the other.
        count_of_one = prod(shape) * dtype.itemsize
        offset = image.dataobj.offset + number * count_of_one
        _check_size(path, stream, offset + count_of_one)
        stored = array_from_file(shape, dtype, cast(io.IOBase, stream), offset=offset, order="F", mmap=False)
        _read_to_end(stream)
    except ScanError:
        raise
    except DAMAGED_GZIP as error:
        raise damaged_gzip(path) from error
    # nibabel has errors of its own for some faults of a header, and Python's for others.
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, ValueError, OverflowError) as error:
        raise ScanError(
            f"{path.name} must be a complete image, but its header and its content do not fit: "
            f"{_in_one_line(error)}. Download or export it again."
        ) from error
    return stored, image, number if count > 1 else None


def _check_size(path: Path, stream: IO[bytes], needed: int) -> None:
    """Refuse a header that tells of more than the file can hold, before memory is asked for all of it."""
    most = path.stat().st_size * (MOST_OF_A_GZIP_BYTE if isinstance(stream, gzip.GzipFile) else 1)
    if needed > most:
        raise ValueError(f"the header tells of {needed} bytes, and the file holds {most} at most")


def _read_to_end(stream: IO[bytes]) -> None:
    """To the end of a gzip stream, where its checksum is: a flipped bit in the middle shows only there."""
    if isinstance(stream, gzip.GzipFile):
        while stream.read(1 << 20):
            pass


def _in_one_line(error: Exception) -> str:
    """An error's own words, without the second line and the file that nibabel adds."""
    return str(error).partition("\n")[0].partition(" from ")[0].rstrip(".")


def _check_type(path: Path, image: Any) -> None:
    dtype = image.get_data_dtype()
    if dtype.fields is not None:
        raise colours_error(path.name)
    if dtype.kind == "c":
        raise complex_error(path.name)


def _volumes_of(path: Path, image: Any) -> int:
    shape = image.shape
    if len(shape) < 3:
        raise not_3d_error(path.name, shape)
    if min(shape) < 1:
        raise ScanError(f"A scan must have voxels along every axis, but {path.name} has size {shape}.")
    return int(np.prod(shape[3:], dtype=np.int64))


def _check_pixdim(path: Path, raw_header: Any) -> None:
    """nibabel mends a spacing of zero to 1 mm in silence; with a sform the spacing is not from there."""
    pixdim = raw_header["pixdim"][1:4]
    if raw_header["sform_code"] <= 0 and not (np.isfinite(pixdim) & (pixdim != 0)).all():
        raise ScanError(
            f"Spacing must be three positive numbers in mm, but {path.name} says {tuple(pixdim.tolist())}. "
            "Write the true spacing into its header (pixdim)."
        )


def _details(image: Any, number: int | None) -> dict[str, Any]:
    details: dict[str, Any] = {} if number is None else {"volume": number}
    return details | {"stored_type": str(image.get_data_dtype())}


def _warnings_of_size(raw_header: Any) -> list[str]:
    """The size of the header is only a mark of the format, and readers take other numbers in silence.

    No error, since the voxels and their place do not depend on it and ITK, FSL and nibabel read such files;
    what damage does to other fields is found by what the file holds. But a number that no writer writes is
    worth a look.
    """
    size = int(raw_header["sizeof_hdr"])
    if size in HEADER_SIZES:
        return []
    return [f"The header says that it has {size} bytes, which no NIfTI header has; is the file damaged?"]


def _warnings_of_forms(header: Any, geometry: Geometry) -> list[str]:
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        return [
            "The header has neither sform nor qform, so the orientation is unknown: axes are taken as "
            "running to the left, front and head, and left and right are not certain."
        ]
    if sform and qform:
        apart = _distance_of_forms_mm(header, geometry)
        if apart > FORMS_DIFFER_MM:
            return [f"sform and qform of the header differ by {apart:.1f} mm at a corner; sform was used."]
    return []


def _distance_of_forms_mm(header: Any, geometry: Geometry) -> float:
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return float("inf")
    qform[:3] *= MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(geometry.shape) - 1
    return float(np.linalg.norm(corners @ (geometry.affine - qform).T, axis=1).max())


# ---- writing ----


def _header_like(file: ScanFile | None, geometry: Geometry) -> Any:
    """A copy of the source's header for a mask, if the source is NIfTI and the mask lies on its very grid."""
    if file is None or not isinstance(file.header, nib.Nifti1Header):
        return None
    source = file.header
    same_affine = np.array_equal(affine_mm(source), geometry.affine)
    if source.get_data_shape()[:3] != geometry.shape or not same_affine:
        return None
    header = source.copy()
    # The scan's own extensions may name the patient, its window and its colours do not suit a mask.
    header.extensions.clear()
    for field in ("vox_offset", "cal_min", "cal_max", "intent_p1", "intent_p2", "intent_p3"):
        header[field] = 0
    # Some converters write the patient's name into db_name, which NIfTI-2 has not.
    for field in ("aux_file", "intent_name", "db_name"):
        if field in header:
            header[field] = b""
    return header


def _new_header(geometry: Geometry) -> Any:
    # Sizes beyond int16 need NIfTI-2.
    header = nib.Nifti2Header() if max(geometry.shape) > np.iinfo(np.int16).max else nib.Nifti1Header()
    header.set_data_shape(geometry.shape)
    header.set_xyzt_units("mm", "sec")
    header.set_zooms(geometry.spacing_mm)
    right_angled = geometry.shear < 1e-5
    # A qform has no shear, so for a sheared grid it would contradict the sform.
    header.set_qform(geometry.affine if right_angled else None, code="scanner" if right_angled else 0)
    header.set_sform(geometry.affine, code="scanner")
    return header


def _is_mgh_grid(header: Any, geometry: Geometry) -> bool:
    return (
        isinstance(header, nib.freesurfer.mghformat.MGHHeader)
        and tuple(header.get_data_shape()[:3]) == geometry.shape
        and bool(np.array_equal(header.get_affine(), geometry.affine))
    )


def _caret_legend(names: Mapping[int, str]) -> bytes:
    """Connectome Workbench's table of labels, which MITK, Workbench and TotalSegmentator's tools read."""
    extension = ElementTree.Element("CaretExtension")
    information = ElementTree.SubElement(extension, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(information, "LabelTable")
    for label, name in names.items():
        red, green, blue = label_colour(label)
        attributes = {"Red": f"{red:.3f}", "Green": f"{green:.3f}", "Blue": f"{blue:.3f}", "Alpha": "1"}
        ElementTree.SubElement(table, "Label", {"Key": str(label), **attributes}).text = name
    return bytes(ElementTree.tostring(extension, encoding="utf-8", xml_declaration=True))


def _legend_of_caret(text: str) -> dict[int, str]:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return {}
    return {int(label.attrib["Key"]): label.text or "" for label in root.iter("Label")}


def label_colour(label: int) -> tuple[float, float, float]:
    """Red, green and blue from 0 to 1 for a label; neighbours differ, as hues step by the golden ratio."""
    return colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.65, 0.95)
