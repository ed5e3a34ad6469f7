"""NRRD and MetaImage: read with SimpleITK, written here, so that headers go back word by word."""

# SimpleITK has types for hardly anything.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813  # its own documentation calls it so
from numpy.typing import NDArray

from textseg.errors import ScanError
from textseg.geometry import Floats, Geometry
from textseg.scan.formats import (
    Names,
    choose_volume,
    colours_error,
    complex_error,
    format_of,
    not_3d_error,
    scan_geometry,
)
from textseg.scan.nifti import label_colour
from textseg.scan.values import scaled
from textseg.volume import ScanFile, Volume

# ITK's and DICOM's world (LPS) has left and back as its first two axes; ours (RAS) right and front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MM_PER_UNIT = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 0.001, "µm": 0.001}

# The fields that say where voxels lie; a mask on the same grid carries them over word by word.
NRRD_PLACE = (
    "space",
    "space dimension",
    "space directions",
    "space origin",
    "space units",
    "spacings",
    "axis mins",
    "centers",
    "centerings",
)
META_PLACE = (
    "TransformMatrix",
    "Rotation",
    "Orientation",
    "Offset",
    "Origin",
    "Position",
    "CenterOfRotation",
    "AnatomicalOrientation",
    "ElementSpacing",
    "ElementSize",
)
NRRD_TYPES = {"uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int"}
META_TYPES = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT", "uint32": "MET_UINT"}
COMPRESSION = 4


@dataclass(frozen=True)
class TextHeader:
    """The header of a NRRD or MetaImage file as it stands there, and the grid that it was read as."""

    fields: Mapping[str, str]
    geometry: Geometry


def read_itk(path: Path, volume: int | None = None) -> Volume:
    """The scan of a NRRD or MetaImage file: voxels (1, x, y, z), world in mm RAS+."""
    kind = format_of(path)
    is_nrrd = kind in ("nrrd", "nhdr")
    fields = _nrrd_fields(path) if is_nrrd else _meta_fields(path)
    _check_spacing(path, fields)
    image = _read_image(path)
    _check_voxel_type(path, image, fields)
    stored, number = _chosen_volume(path, image, volume)
    affine = _affine_ras(image)
    affine[:3] *= _mm_per_unit(fields)
    geometry = scan_geometry(path.name, stored.shape, affine)
    details: dict[str, Any] = {} if number is None else {"volume": number}
    details |= {"stored_type": str(stored.dtype), "warnings": _warnings(fields) if is_nrrd else []}
    return Volume(scaled(stored), geometry, ScanFile((path,), kind, TextHeader(fields, geometry), details))


def write_nrrd(
    path: Path, labels: NDArray[Any], geometry: Geometry, file: ScanFile | None, names: Names
) -> None:
    """Labels (x, y, z), unsigned, as .nrrd, or as .nhdr with its .raw.gz; names as 3D Slicer keeps them."""
    detached = path.suffix.lower() == ".nhdr"
    data_file = path.with_suffix(".raw.gz")
    stored_type = NRRD_TYPES[labels.dtype.name]
    lines = ["NRRD0005", f"type: {stored_type}", "dimension: 3", f"sizes: {_words(labels.shape)}"]
    lines += [f"{name}: {value}" for name, value in _nrrd_place(geometry, file).items()]
    lines += ["kinds: domain domain domain", "endian: little", "encoding: gzip"]
    lines += [f"data file: {data_file.name}"] if detached else []
    lines += [f"{key}:={value}" for key, value in _segments(names or {}).items()]
    header = ("\n".join(lines) + "\n\n").encode()
    voxels = gzip.compress(_bytes_x_fastest(labels), COMPRESSION, mtime=0)
    if detached:
        data_file.write_bytes(voxels)
    path.write_bytes(header if detached else header + voxels)


def write_metaimage(
    path: Path, labels: NDArray[Any], geometry: Geometry, file: ScanFile | None, names: Names
) -> None:
    """Labels (x, y, z), unsigned, as .mha, or as .mhd with its .zraw; names in fields like those of NRRD."""
    detached = path.suffix.lower() == ".mhd"
    data_file = path.with_suffix(".zraw")
    voxels = zlib.compress(_bytes_x_fastest(labels), COMPRESSION)
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(voxels)),
        **_meta_place(geometry, file),
        "DimSize": _words(labels.shape),
        "ElementType": META_TYPES[labels.dtype.name],
        **_segments(names or {}),
        # The last field: after it a reader expects voxels.
        "ElementDataFile": data_file.name if detached else "LOCAL",
    }
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    if detached:
        data_file.write_bytes(voxels)
    path.write_bytes(header if detached else header + voxels)


def read_itk_legend(header: TextHeader) -> dict[int, str]:
    """The names of labels that a NRRD or MetaImage header holds as segments (3D Slicer's fields), if any."""
    legend = {}
    for field, name in header.fields.items():
        segment = re.fullmatch(r"Segment(\d+)_Name", field)
        if segment:
            label = header.fields.get(f"Segment{segment[1]}_LabelValue", str(int(segment[1]) + 1))
            legend[int(label)] = name
    return legend


# ---- reading ----


def _nrrd_fields(path: Path) -> dict[str, str]:
    """A NRRD header's fields in lower case, and its free key := value pairs, up to the empty line."""
    fields = {}
    with path.open("rb") as stream:
        for line in iter(lambda: stream.readline(1 << 16).decode("utf-8", "replace").rstrip("\r\n"), ""):
            key, mark, value = line.partition(":=")
            if mark:
                fields[key] = value
            elif ": " in line and not line.startswith("#"):
                name, value = line.split(": ", 1)
                fields[name.strip().lower()] = value.strip()
    return fields


def _meta_fields(path: Path) -> dict[str, str]:
    """A MetaImage header's fields up to ElementDataFile, which is its last."""
    fields = {}
    with path.open("rb") as stream:
        for line in iter(lambda: stream.readline(1 << 16).decode("utf-8", "replace"), ""):
            name, _, value = line.partition("=")
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                break
    return fields


def _check_spacing(path: Path, fields: Mapping[str, str]) -> None:
    """ITK turns a spacing of NaN into 1 in silence, and a zero into an error of many lines."""
    words = fields.get("spacings", fields.get("ElementSpacing", "1")).split()
    # A NRRD axis that is not of space, such as a list, has NaN there by the standard.
    kinds = fields.get("kinds", "").split() or ["domain"] * len(words)
    spatial = [word for word, kind in zip(words, kinds, strict=False) if kind in ("domain", "space", "???")]
    numbers = [_number(word) for word in spatial]
    if not all(np.isfinite(number) and number != 0 for number in numbers):
        raise ScanError(
            f"Spacing must be three positive numbers in mm, but {path.name} says {' '.join(words)}. "
            "Write the true spacing into its header."
        )


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")


def _read_image(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise ScanError(
            f"{path.name} must be a complete image, but it can't be read: {_reason(error)}. "
            "Download or export it again."
        ) from error


def _reason(error: RuntimeError) -> str:
    """The words of ITK's error that say what is wrong, without its file names and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("determinant" in line for line in lines):
        return "its axes do not point in three different directions"
    if any("spacing" in line for line in lines):
        return "its spacing is not three positive numbers"
    return "its header and its content do not fit, or the content is damaged"


def _check_voxel_type(path: Path, image: Any, fields: Mapping[str, str]) -> None:
    components = image.GetNumberOfComponentsPerPixel()
    is_bytes = image.GetPixelIDValue() == sitk.sitkVectorUInt8
    looks_like_colour = components in (3, 4) and is_bytes and "list" not in fields.get("kinds", "")
    if "color" in fields.get("kinds", "").lower() or looks_like_colour:
        raise colours_error(path.name)
    if "complex" in image.GetPixelIDTypeAsString():
        raise complex_error(path.name)
    if image.GetDimension() < 3:
        raise not_3d_error(path.name, image.GetSize())
    if image.GetDimension() > 4:
        raise not_3d_error(path.name, image.GetSize())


def _chosen_volume(path: Path, image: Any, volume: int | None) -> tuple[NDArray[Any], int | None]:
    """Stored numbers (x, y, z) of one volume, and which; several numbers a voxel are volumes too."""
    array = sitk.GetArrayViewFromImage(image)
    if image.GetDimension() == 3:
        array = array[..., None] if image.GetNumberOfComponentsPerPixel() == 1 else array
        volumes = np.moveaxis(array, -1, 0)
    else:
        volumes = array
    number = choose_volume(path.name, len(volumes), volume)
    # ITK's arrays are (z, y, x); the view dies with the image, hence the copy.
    return np.array(volumes[number]).T, number if len(volumes) > 1 else None


def _affine_ras(image: Any) -> Floats:
    dimension = image.GetDimension()
    directions = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return np.asarray(LPS_TO_RAS @ affine)


def _mm_per_unit(fields: Mapping[str, str]) -> float:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    return MM_PER_UNIT.get(units[0].strip().lower(), 1.0) if units else 1.0


def _warnings(fields: Mapping[str, str]) -> list[str]:
    space = fields.get("space", "").lower()
    anatomical = space in ("ras", "las", "lps") or space.endswith("superior")
    if anatomical:
        return []
    return [
        "The header names no anatomical space, so the orientation is unknown: axes are taken as running to "
        "the left, back and head (LPS), and left and right are not certain."
    ]


# ---- writing ----


def _nrrd_place(geometry: Geometry, file: ScanFile | None) -> dict[str, str]:
    kept = _source_fields(file, geometry)
    if kept is not None and kept.get("dimension") == "3":
        return {name: kept[name] for name in NRRD_PLACE if name in kept}
    lps = LPS_TO_RAS @ geometry.affine
    return {
        "space": "left-posterior-superior",
        "space directions": " ".join(_vector(column) for column in lps[:3, :3].T),
        "space origin": _vector(lps[:3, 3]),
    }


def _meta_place(geometry: Geometry, file: ScanFile | None) -> dict[str, str]:
    kept = _source_fields(file, geometry)
    if kept is not None and kept.get("NDims") == "3":
        return {name: kept[name] for name in META_PLACE if name in kept}
    lps = LPS_TO_RAS @ geometry.affine
    return {
        # The directions of the axes, one after the other.
        "TransformMatrix": _words(np.ravel((lps[:3, :3] / geometry.spacing_mm).T)),
        "Offset": _words(lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _words(geometry.spacing_mm),
    }


def _source_fields(file: ScanFile | None, geometry: Geometry) -> Mapping[str, str] | None:
    """The source's own fields, if it is of this kind and the mask lies on its very grid."""
    if file is None or not isinstance(file.header, TextHeader) or file.header.geometry != geometry:
        return None
    return file.header.fields


def _segments(names: Mapping[int, str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for number, (label, name) in enumerate(names.items()):
        segment = f"Segment{number}"
        fields[f"{segment}_ID"] = f"Segment_{label}"
        fields[f"{segment}_Name"] = " ".join(name.split())
        fields[f"{segment}_LabelValue"] = str(label)
        fields[f"{segment}_Layer"] = "0"
        fields[f"{segment}_Color"] = " ".join(f"{part:.3f}" for part in label_colour(label))
    return fields


def _bytes_x_fastest(labels: NDArray[Any]) -> bytes:
    return labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes(order="F")


def _words(numbers: Iterable[Any]) -> str:
    """Numbers with as many digits as they need to come back to the last bit."""
    # Adding zero turns -0.0 into 0.0.
    return " ".join(str(number) if isinstance(number, int) else repr(float(number) + 0) for number in numbers)


def _vector(numbers: Iterable[Any]) -> str:
    return f"({_words(numbers).replace(' ', ',')})"
