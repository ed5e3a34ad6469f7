"""What DICOM objects made from a scan have in common: their source images, what a mask means, their names."""

# pydicom's datasets answer with whatever the file holds.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from textseg.errors import OutputError
from textseg.geometry import Geometry
from textseg.scan.dicom import DicomSource
from textseg.scan.dicom_frames import dicom_headers
from textseg.version import __version__
from textseg.volume import Volume

Bools = NDArray[np.bool_]
# For words that have no code in SNOMED CT: our lexicon's own names. DICOM asks for 99 before private schemes.
OUR_SCHEME = "99TEXTSEG"
# Longest texts that DICOM allows as a label (LO), a description (ST) and a short label (SH, CS).
LONG_STRING, SHORT_TEXT, SHORT_STRING = 64, 1024, 16
UTF_8 = "ISO_IR 192"
# What a derived object must say of its patient and study, if only that it is unknown.
INHERITED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class Code:
    """A code as DICOM has it: "10200004" of "SCT" means "Liver"."""

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class Segment:
    """What one mask shows.

    Args:
        name: what was asked for.
        structure: where it is, if that is known.
        finding: what is abnormal there, if it is a finding.
        side: of the structure, or of the finding where no structure is known.
    """

    name: str
    structure: Code | None = None
    finding: Code | None = None
    side: Literal["left", "right"] | None = None


@dataclass(frozen=True, eq=False)
class NamedMasks:
    """Masks (segments, x, y, z) bool on a grid, and a name for each."""

    masks: Bools
    names: tuple[str, ...]
    geometry: Geometry


TISSUE = Code("85756007", "Tissue")
ANATOMICAL_STRUCTURE = Code("91723000", "Anatomical Structure")
ABNORMAL_STRUCTURE = Code("49755003", "Morphologically Abnormal Structure")
SIDES = {"left": Code("7771000", "Left"), "right": Code("24028007", "Right")}


def category_and_type(segment: Segment) -> tuple[Code, Code]:
    """The category of a segment (DICOM PS3.16, CID 7150) and what it is."""
    if segment.finding is not None:
        return ABNORMAL_STRUCTURE, segment.finding
    if segment.structure is not None:
        return ANATOMICAL_STRUCTURE, segment.structure
    return TISSUE, Code("prompt", segment.name, OUR_SCHEME)


def code_item(code: Code, modifiers: str = "", side: str | None = None) -> Dataset:
    """A code as an item of a sequence, with the side in the sequence of modifiers that belongs to it."""
    item = Dataset()
    # CodeValue has room for 16 characters.
    setattr(item, "CodeValue" if len(code.value) <= SHORT_STRING else "LongCodeValue", code.value)
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = dicom_text(code.meaning, LONG_STRING)
    if side is not None:
        setattr(item, modifiers, [code_item(SIDES[side])])
    return item


def dicom_text(text: str, longest: int) -> str:
    """Text that DICOM can hold: no backslash, which separates values, no control characters, not too long.

    Lengths are those of the bytes, though DICOM counts letters, as some readers do so too.
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text.replace("\\", "/")).strip()
    return plain.encode()[:longest].decode(errors="ignore").rstrip() or "unnamed"


def new_uid(kind: str, scan: Volume, masks: Bools, segments: Sequence[Segment]) -> str:
    """A UID that follows from source and content: the same masks of the same scan are the same object."""
    digest = hashlib.sha256()
    for mask in masks:
        digest.update(np.packbits(mask).tobytes())
    source = str(scan.file.details.get("series_uid", "")) if scan.file else ""
    words = [kind, __version__, source, digest.hexdigest(), *(str(segment) for segment in segments)]
    return str(generate_uid(entropy_srcs=words))


def check_masks(masks: Bools, segments: Sequence[Segment], scan: Volume) -> None:
    """Raises OutputError unless there are masks on the scan's grid, one a segment, and the scan is DICOM."""
    if scan.file is None or not isinstance(scan.file.header, DicomSource):
        raise not_dicom_error(scan)
    if masks.dtype != np.bool_ or masks.shape != (len(segments), *scan.geometry.shape) or not segments:
        raise OutputError(
            f"There must be one mask (x, y, z) of bool for each segment on the grid {scan.geometry.shape}, "
            f"got {masks.dtype} {masks.shape} for {len(segments)} segments."
        )


def not_dicom_error(scan: Volume) -> OutputError:
    return OutputError(
        "DICOM SEG and RTSTRUCT refer to the images of a DICOM series, but the scan came as "
        f"{scan.file.format if scan.file else 'voxels without a file'}. Write NIfTI or NRRD instead."
    )


def source_images(scan: Volume) -> dict[Path, Dataset]:
    """The whole headers of a DICOM scan's files, without pixels: its slices' in the order of z, or the one of
    a multi-frame scan; of a scan whose slices were interpolated, those of the series.

    They are made fit to be inherited from: what must be there is there, if empty, and all agree on study,
    frame of reference and direction, which scanners round differently from slice to slice.

    Raises:
        OutputError: a file is gone or has no identity that could be referred to.
    """
    assert scan.file is not None
    source: DicomSource = scan.file.header
    paths = [one.path for one in source.slices] or _files_of_series(scan.file.paths[0], source)
    images = {path: _header(path) for path in dict.fromkeys(paths)}
    first = next(iter(images.values()))
    uids = {
        name: _uid(name, first) for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    for image in images.values():
        for name in INHERITED:
            if name not in image:
                setattr(image, name, None if name.endswith(("Date", "Time")) else "")
        for name, uid in uids.items():
            setattr(image, name, uid)
        for name in ("ImageOrientationPatient", "PixelSpacing"):
            if name in first:
                setattr(image, name, first[name].value)
    return images


def _uid(name: str, image: Dataset) -> str:
    """The image's own, or where an anonymised one has none, one that follows from its instance."""
    return str(image.get(name) or generate_uid(entropy_srcs=[name, str(image.SOPInstanceUID)]))


def _files_of_series(folder: Path, source: DicomSource) -> list[Path]:
    """All of them, as interpolated slices come from no one of them."""
    # A scan that was given another name for its outputs still knows its first file.
    folder = folder if folder.exists() else Path(str(getattr(source.header, "filename", folder))).parent
    series = source.header.get("SeriesInstanceUID")
    files = [file for file, header in dicom_headers(folder) if header.get("SeriesInstanceUID") == series]
    if not files:
        raise OutputError(f"The scan's own files can't be found any more in {folder}. Were they moved?")
    return files


def _header(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    except (OSError, ValueError, EOFError, NotImplementedError) as error:
        raise OutputError(f"The scan's own file {path} can't be read any more: {error}.") from error
    for name in ("SOPClassUID", "SOPInstanceUID"):
        # Anonymised files may have it in the file's own header alone.
        if not header.get(name):
            setattr(header, name, header.file_meta.get(f"MediaStorage{name}", ""))
    if not header.SOPInstanceUID or not header.SOPClassUID:
        raise OutputError(
            f"An image must have an SOP class and instance to be referred to, but {path} has none. "
            "Write NIfTI or NRRD instead."
        )
    return header


def to_lps(points_ras: NDArray[Any]) -> NDArray[np.float64]:
    """Points (..., 3) mm in DICOM's frame, which grows to the left and the back; it is its own inverse."""
    return np.asarray(points_ras * (-1.0, -1.0, 1.0))
