"""Contours for radiotherapy (DICOM RTSTRUCT): masks to closed contours on their source images, and back.

A hole is written by the keyhole technique (DICOM PS3.3, C.8.8.6.3): outer and inner outline are one contour,
joined by a channel of no width. It is the same shape to readers that unite the contours of a slice and to
those that take their exclusive or, which CLOSEDPLANAR_XOR and bare inner contours are not.
"""

# pydicom's datasets answer with whatever the file holds.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, ImplicitVRLittleEndian, RTStructureSetStorage

from textseg.errors import ScanError
from textseg.geometry import Floats, Geometry
from textseg.scan.contours import inside_polygons, outlines
from textseg.scan.dicom_derived import (
    INHERITED,
    LONG_STRING,
    OUR_SCHEME,
    SHORT_STRING,
    SHORT_TEXT,
    UTF_8,
    Bools,
    NamedMasks,
    Segment,
    category_and_type,
    check_masks,
    code_item,
    dicom_text,
    new_uid,
    source_images,
    to_lps,
)
from textseg.version import __version__
from textseg.volume import Volume

# Far from the red and green that treatment planning keeps for targets; RGB from 0 to 255.
COLOURS = ((255, 96, 64), (64, 190, 255), (250, 225, 60), (40, 205, 130), (240, 120, 210), (130, 130, 255))
# A tenth of a micrometre: contours of neighbouring voxels stay apart, and files small.
DECIMALS = 4
# How far contours may lie from the middle of a slice, in slices.
OFF_SLICE = 0.45
CONTOUR_DATA = Tag("ContourData")
STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(
    path: Path,
    masks: Bools,
    segments: Sequence[Segment],
    scan: Volume,
    model: str = "textseg",
    written_at: datetime | None = None,
) -> None:
    """Write masks as one RTSTRUCT whose contours lie in the slices of the scan and refer to its images.

    The patient and the study are those of the source, whose identifiers it carries. A mask without voxels
    becomes a structure without contours.

    Args:
        path: the file, in a folder that exists.
        masks: (segments, x, y, z) bool, on the scan's own grid.
        segments: what each mask shows.
        scan: as read from a DICOM series or multi-frame file.
        model: that made the masks.
        written_at: the moment that the file says it was made, now by default.

    Raises:
        OutputError: scikit-image is not installed, the scan is not DICOM or can't be referred to.
        OSError: it can't be written.
    """
    check_masks(masks, segments, scan)
    sources = source_images(scan)
    images = list(sources.values())
    dataset = _structure_set(images, masks, segments, scan, model)
    moment = written_at or datetime.now()
    dataset.StructureSetDate, dataset.StructureSetTime = moment.strftime("%Y%m%d %H%M%S").split()
    frame_uid = images[0].FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [_reference(images)]
    numbered = list(enumerate(segments, start=1))
    dataset.StructureSetROISequence = [_structure(n, segment, frame_uid, model) for n, segment in numbered]
    slices = _image_references(sources, scan)
    dataset.ROIContourSequence = [
        _contours(number, mask, scan.geometry, slices) for number, mask in enumerate(masks, start=1)
    ]
    dataset.RTROIObservationsSequence = [_observation(n, segment) for n, segment in numbered]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)


def read_rtstruct(path: Path, grid: Geometry) -> NamedMasks:
    """The structures of an RTSTRUCT as masks on a scan's grid: voxels whose centres lie within.

    Contours of one structure in one slice are combined by exclusive or, so that inner ones are holes however
    they were written.

    Args:
        grid: of the scan, in any order of axes, in whose slices the contours lie.

    Raises:
        ScanError: it is damaged, or its contours do not lie in slices of the grid.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            names = {
                int(one.ROINumber): str(one.get("ROIName") or "") for one in dataset.StructureSetROISequence
            }
            contours = {
                int(one.ReferencedROINumber): list(_closed_contours(one))
                for one in dataset.get("ROIContourSequence", ())
            }
    except (AttributeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise ScanError(
            f"An RTSTRUCT must be whole and have structures, but {path} can't be read: {str(error)[:100]}."
        ) from error
    masks = np.zeros((len(names), *grid.shape), dtype=bool)
    for mask, number in zip(masks, names, strict=True):
        polygons = [grid.to_voxels(to_lps(points)) for points in contours.get(number, ())]
        if polygons:
            _fill(path, mask, polygons)
    return NamedMasks(masks, tuple(name or f"structure {n}" for n, name in names.items()), grid)


# ---- writing ----


def _structure_set(
    images: Sequence[Dataset], masks: Bools, segments: Sequence[Segment], scan: Volume, model: str
) -> Dataset:
    """The file with all that says whose it is, but without structures."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    # Explicit has no room for a contour of more than 64 KiB.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    dataset.SpecificCharacterSet = UTF_8
    for name in INHERITED:
        setattr(dataset, name, images[0].get(name))
    dataset.StudyInstanceUID = images[0].StudyInstanceUID
    dataset.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    dataset.PositionReferenceIndicator = images[0].get("PositionReferenceIndicator") or ""
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = new_uid("RTSTRUCT", scan, masks, segments)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = new_uid("RTSTRUCT series", scan, masks, segments)
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesNumber = 9000 + int(images[0].get("SeriesNumber") or 0) % 900
    dataset.InstanceNumber = 1
    names = f"textseg: {', '.join(segment.name for segment in segments)}"
    dataset.SeriesDescription = dicom_text(names, LONG_STRING)
    dataset.Manufacturer, dataset.ManufacturerModelName = "textseg", dicom_text(model, LONG_STRING)
    dataset.SoftwareVersions = __version__
    dataset.OperatorsName = ""
    dataset.StructureSetLabel = "textseg"
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _reference(images: Sequence[Dataset]) -> Dataset:
    """The frame of reference, study, series and images that the structures were drawn on."""
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = [_image_item(image) for image in images]
    study.ReferencedSOPClassUID = STUDY_COMPONENT
    study.ReferencedSOPInstanceUID = images[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image_item(image: Dataset, frame: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def _image_references(images: Mapping[Path, Dataset], scan: Volume) -> list[list[Dataset]]:
    """For each slice the image in which it lies; none where slices were interpolated."""
    assert scan.file is not None
    slices = scan.file.header.slices
    if not slices:
        return [[]] * scan.geometry.shape[2]
    return [
        [_image_item(images[one.path], one.frame if "NumberOfFrames" in images[one.path] else None)]
        for one in slices
    ]


def _structure(number: int, segment: Segment, frame_uid: str, model: str) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = frame_uid
    item.ROIName = dicom_text(segment.name, LONG_STRING)
    item.ROIDescription = dicom_text(segment.name, SHORT_TEXT)
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = dicom_text(f"{model}, textseg {__version__}", LONG_STRING)
    return item


def _observation(number: int, segment: Segment) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.ROIObservationLabel = dicom_text(segment.name, SHORT_STRING)
    item.RTROIInterpretedType = "ORGAN" if segment.structure and not segment.finding else ""
    item.ROIInterpreter = ""
    _, code = category_and_type(segment)
    if code.scheme != OUR_SCHEME or segment.structure or segment.finding:
        item.RTROIIdentificationCodeSequence = [code_item(code)]
    return item


def _contours(number: int, mask: Bools, geometry: Geometry, slices: Sequence[Sequence[Dataset]]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = number
    item.ROIDisplayColor = list(COLOURS[(number - 1) % len(COLOURS)])
    contours: list[Dataset] = []
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        for outline in outlines(mask[..., z]):
            world = to_lps(geometry.to_world(np.insert(outline, 2, z, axis=1)))
            contours.append(_contour(len(contours) + 1, world, slices[int(z)]))
    if contours:
        item.ContourSequence = contours
    return item


def _contour(number: int, points_lps: Floats, images: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    if images:
        item.ContourImageSequence = list(images)
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points_lps)
    item.ContourNumber = number
    text = "\\".join(f"{mm:.{DECIMALS}f}" for mm in points_lps.ravel())
    data = text.encode() + b" " * (len(text) % 2)
    # As bytes: pydicom takes longer to check a million numbers than all the rest does.
    item[CONTOUR_DATA] = RawDataElement(CONTOUR_DATA, "DS", len(data), data, 0, True, True)
    return item


# ---- reading ----


def _closed_contours(structure: Dataset) -> Iterator[Floats]:
    """(points, 3) mm, LPS, of the contours that enclose something."""
    for contour in structure.get("ContourSequence", ()):
        data = contour.ContourData
        # A long contour in a file with explicit value representations lost its own (CP-1066).
        numbers = data.decode().split("\\") if isinstance(data, bytes) else data
        points = np.array(numbers, dtype=np.float64).reshape(-1, 3)
        if str(contour.ContourGeometricType).startswith("CLOSED") and len(points) > 2:
            yield points


def _fill(path: Path, mask: Bools, polygons: Sequence[Floats]) -> None:
    """Set the voxels of a mask (x, y, z) within polygons (points, 3) given in voxels."""
    across = int(np.mean([np.ptp(points, axis=0) for points in polygons], axis=0).argmin())
    slices: dict[int, list[Floats]] = {}
    for points in polygons:
        index = round(float(points[:, across].mean()))
        if np.abs(points[:, across] - index).max() > OFF_SLICE:
            raise ScanError(
                f"Contours must lie in slices of the scan, but some of {path.name} lie between "
                "them or across. Was it drawn on another series? Give that one."
            )
        slices.setdefault(index, []).append(np.delete(points, across, axis=1))
    planes = np.moveaxis(mask, across, 0)
    for index, in_slice in slices.items():
        if 0 <= index < len(planes):
            planes[index] |= inside_polygons(in_slice, planes.shape[1:])
