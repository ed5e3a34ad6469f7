"""DICOM headers to frames: one 2D image each, with its place in the patient, from any kind of file."""

# pydicom's datasets answer with whatever the file holds.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from textseg.errors import ScanError
from textseg.geometry import Floats
from textseg.scan.formats import first_bytes, is_dicom

# What can tell the volumes of one series apart, the most telling first.
MARKS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TemporalPositionTimeOffset",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "FrameReferenceTime",
    "DiffusionBValue",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "FlipAngle",
    "ImageType",
    "FrameType",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "StackID",
    "DiffusionGradientOrientation",
    "AcquisitionTime",
    "ContentTime",
)
# GE keeps the time to which a post-processed PET series was corrected for decay in a private tag.
GE_SCAN_TIME = Tag(0x0009, 0x100D)
HEADER_TAGS: list[Any] = [
    GE_SCAN_TIME,
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "StudyDate"),
    *("InstanceNumber", "AcquisitionDate", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("Units", "SUVType", "DecayCorrection", "PatientWeight", "RadiopharmaceuticalInformationSequence"),
    *("ActualFrameDuration", "CorrectedImage"),
    *MARKS,
]
# The sequences of an enhanced file that hold what a classic one has at its top.
PLACE_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
VALUE_GROUPS = ("PixelValueTransformationSequence",)
MARK_GROUPS = (
    "FrameContentSequence",
    "TemporalPositionSequence",
    "CardiacSynchronizationSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One 2D image of a series.

    Args:
        path: its file.
        number: which frame of the file, from 0.
        header: of its file, without pixels and with the tags above only.
        size: columns and rows.
        position_lps: (3,) mm, centre of its first pixel in the patient, LPS+ as DICOM has it.
        axes_lps: (2, 3) unit vectors along which the column's and the row's index grow.
        spacing_mm: between columns and between rows.
        slope: of the file's rescaling.
        intercept: of the file's rescaling.
        marks: what may tell its volume from others of the series, by the names in MARKS.
    """

    path: Path
    number: int
    header: Dataset
    size: tuple[int, int]
    position_lps: Floats
    axes_lps: Floats
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    marks: Mapping[str, str]

    @cached_property
    def normal_lps(self) -> Floats:
        return np.cross(self.axes_lps[0], self.axes_lps[1])

    @cached_property
    def distance_mm(self) -> float:
        """Along the normal of the image, from the world's origin."""
        return float(self.position_lps @ self.normal_lps)

    @property
    def is_localiser(self) -> bool:
        kinds = f"{self.header.get('ImageType')} {self.marks.get('FrameType')}"
        return "LOCALIZER" in kinds.upper()

    @property
    def order(self) -> tuple[int, int]:
        """The order in which the scanner numbered the images; only to tell equal positions apart."""
        number = self.header.get("InstanceNumber")
        return (0 if number is None else int(number)), self.number


def dicom_headers(path: Path) -> Iterator[tuple[Path, Dataset]]:
    """The headers of a DICOM file, or of all in a folder and its folders; other files are passed over."""
    files = sorted(_files_below(path)) if path.is_dir() else [path]
    for file in files:
        if is_dicom(first_bytes(file, 132)):
            yield file, read_header(file)


def read_header(path: Path) -> Dataset:
    try:
        # pydicom warns of every value that bends the standard, which most scanners do somewhere.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    except (InvalidDicomError, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise _damaged(path, error) from error


def frames_of(path: Path, header: Dataset) -> list[Frame]:
    """The frames of a file; none where the header gives no place in the patient (a screenshot, a report)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "PerFrameFunctionalGroupsSequence" in header:
                return list(_enhanced_frames(path, header))
            frame = _frame(path, 0, header, header, [header])
            return [] if frame is None else [frame]
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, error) from error


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)


def _enhanced_frames(path: Path, header: Dataset) -> Iterator[Frame]:
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for number, own in enumerate(header.PerFrameFunctionalGroupsSequence):
        place, marks = Dataset(), []
        for name in (*PLACE_GROUPS, *VALUE_GROUPS):
            place.update(_group(own, shared[0], name))
        for name in MARK_GROUPS:
            marks.append(_group(own, shared[0], name))
        frame = _frame(path, number, header, place, marks)
        if frame is not None:
            yield frame


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """The one item of a functional group, the frame's own before that of all frames."""
    sequence = own.get(name) or shared.get(name)
    return sequence[0] if sequence else Dataset()


def _frame(path: Path, number: int, header: Dataset, place: Dataset, marks: list[Dataset]) -> Frame | None:
    position, orientation = place.get("ImagePositionPatient"), place.get("ImageOrientationPatient")
    spacing = place.get("PixelSpacing")
    if not position or not orientation or not spacing or not header.get("Rows"):
        return None
    axes = np.array(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    if not np.allclose(lengths, 1, atol=0.01):
        raise ValueError(f"ImageOrientationPatient must be two unit vectors, got {axes.ravel().tolist()}")
    return Frame(
        path=path,
        number=number,
        header=header,
        size=(int(header.Columns), int(header.Rows)),
        position_lps=np.array(position, dtype=np.float64).reshape(3),
        # Written with few decimals they may be a little shorter or longer than one.
        axes_lps=axes / lengths,
        # PixelSpacing is between rows first.
        spacing_mm=(float(spacing[1]), float(spacing[0])),
        slope=_number(place.get("RescaleSlope"), 1.0),
        intercept=_number(place.get("RescaleIntercept"), 0.0),
        marks={name: str(one[name].value) for one in marks for name in MARKS if one.get(name) is not None},
    )


def _number(value: Any, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def _damaged(path: Path, error: Exception) -> ScanError:
    return ScanError(f"A DICOM file must have a sound header, but that of {path} is damaged: {error}.")
