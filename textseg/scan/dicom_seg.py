"""DICOM segmentations (SEG): masks with codes and references to their source images, and back to masks."""

# pydicom's datasets answer with whatever the file holds.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DSfloat

from textseg.errors import OutputError, ScanError
from textseg.geometry import Floats, Geometry
from textseg.scan.dicom_derived import (
    LONG_STRING,
    OUR_SCHEME,
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
from textseg.scan.dicom_frames import Frame, frames_of, read_header
from textseg.scan.dicom_stack import SAME_POSITION_MM
from textseg.scan.formats import scan_geometry
from textseg.scan.itk import LPS_TO_RAS
from textseg.version import __version__
from textseg.volume import Volume

# How far from the centre of a voxel that of another grid may lie to be the same one, in voxels.
OFF_GRID = 0.1
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


def write_dicom_seg(
    path: Path,
    masks: Bools,
    segments: Sequence[Segment],
    scan: Volume,
    model: str = "textseg",
    written_at: datetime | None = None,
) -> None:
    """Write masks as one binary DICOM SEG that refers to the images of its scan.

    Empty frames are left out, as is usual; the grid then follows from the scan, see `read_dicom_seg`.
    The patient and the study are those of the source, whose identifiers it carries.

    Args:
        path: the file, in a folder that exists.
        masks: (segments, x, y, z) bool, on the scan's own grid; they may overlap.
        segments: what each mask shows.
        scan: as read from a DICOM series or multi-frame file.
        model: that made the masks, as the name of the algorithm.
        written_at: the moment that the file says it was made, now by default.

    Raises:
        OutputError: highdicom is not installed, the scan is not DICOM or can't be referred to.
        OSError: it can't be written.
    """
    check_masks(masks, segments, scan)
    seg = _highdicom()
    images = list(source_images(scan).values())
    enhanced = "PerFrameFunctionalGroupsSequence" in images[0]
    if enhanced:
        if len(images) > 1:
            raise OutputError(
                f"A DICOM SEG refers to one multi-frame file, but the scan lies in {len(images)}. "
                "Write NIfTI or NRRD instead."
            )
        _share_place(images[0])
    _say_spacing(images, scan.geometry)
    kept = np.flatnonzero(masks.any(axis=(0, 1, 2)))
    # A file must have a frame; that of nothing at all has an empty one.
    planes = range(int(kept[0]), int(kept[-1]) + 1) if kept.size else range(1)
    with warnings.catch_warnings():
        # highdicom warns of every value that bends the standard, which most scanners do somewhere.
        warnings.simplefilter("ignore")
        dataset = seg.seg.Segmentation(
            source_images=images,
            pixel_array=np.ascontiguousarray(masks[..., planes.start : planes.stop].T).view(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[
                _description(seg, number, segment, model) for number, segment in enumerate(segments, start=1)
            ],
            series_instance_uid=new_uid("SEG series", scan, masks, segments),
            series_number=_series_number(images[0]),
            sop_instance_uid=new_uid("SEG", scan, masks, segments),
            instance_number=1,
            manufacturer="textseg",
            manufacturer_model_name=dicom_text(model, LONG_STRING),
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=_names(segments),
            series_description=_names(segments),
            specific_character_set=UTF_8,
            pixel_measures=seg.PixelMeasuresSequence(
                scan.geometry.spacing_mm[1::-1], _between_slices_mm(scan.geometry)
            ),
            plane_orientation=seg.PlaneOrientationSequence("PATIENT", _orientation(scan.geometry)),
            plane_positions=[
                seg.PlanePositionSequence("PATIENT", to_lps(scan.geometry.to_world((0, 0, z))))
                for z in planes
            ],
        )
        if enhanced:
            _refer_to_frames(dataset, scan)
        _name_scheme(dataset)
        _date(dataset, written_at or datetime.now())
        dataset.save_as(path, enforce_file_format=True)


def read_dicom_seg(path: Path, grid: Geometry | None = None) -> NamedMasks:
    """The segments of a DICOM SEG as masks: binary ones, fractional ones from a half on, or a label map.

    Args:
        grid: of the scan that it belongs to, in any order of axes: masks are given on it. Without it they
            are given on the smallest grid that holds the file's frames, which leaves out empty slices.

    Raises:
        ScanError: it is damaged, or its frames do not lie in the slices of the grid.
    """
    header = read_header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            frames = frames_of(path, header)
            pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
            segments = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
            numbers = _segment_numbers(dataset, len(pixels))
    # Decoders raise whatever they like on damaged data.
    except Exception as error:
        raise ScanError(
            f"A DICOM SEG must be whole and have segments, but {path} can't be read: {str(error)[:100]}."
        ) from error
    if not frames or len(frames) != len(pixels):
        raise ScanError(f"Every frame of a DICOM SEG must have a place in the patient, but not in {path}.")
    background = {0} if dataset.SOPClassUID == LABEL_MAP_STORAGE else set()
    order = sorted(set(segments) - background)
    geometry = grid or _smallest_grid(path, frames, dataset)
    masks = np.zeros((len(order), *geometry.shape), dtype=bool)
    for frame, image, number in zip(frames, pixels, numbers, strict=True):
        place = _place(path, frame, geometry)
        for index, segment in enumerate(order):
            if number is None:
                masks[index][place.voxels] |= place.turned(image == segment)
            elif number == segment:
                masks[index][place.voxels] |= place.turned(_is_inside(image, dataset))
    names = tuple(_name(segments[number]) for number in order)
    return NamedMasks(masks, names, geometry)


# ---- writing ----


def _highdicom() -> Any:
    try:
        import highdicom
    except ModuleNotFoundError as error:
        raise OutputError(
            'DICOM SEG needs highdicom, which is not installed: pip install "textseg[dicom]"; '
            "or write NIfTI or RTSTRUCT."
        ) from error
    return highdicom


def _description(seg: Any, number: int, segment: Segment, model: str) -> Any:
    category, kind = (
        seg.sr.CodedConcept(code.value, code.scheme, dicom_text(code.meaning, LONG_STRING))
        for code in category_and_type(segment)
    )
    family = seg.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    item = seg.seg.SegmentDescription(
        segment_number=number,
        segment_label=dicom_text(segment.name, LONG_STRING),
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=seg.AlgorithmIdentificationSequence(
            dicom_text(model, LONG_STRING), family, __version__
        ),
    )
    item.SegmentDescription = dicom_text(segment.name, SHORT_TEXT)
    if segment.finding is not None and segment.structure is not None:
        region = code_item(segment.structure, "AnatomicRegionModifierSequence", segment.side)
        item.AnatomicRegionSequence = [region]
    elif segment.side is not None:
        _, code = category_and_type(segment)
        item.SegmentedPropertyTypeCodeSequence = [
            code_item(code, "SegmentedPropertyTypeModifierCodeSequence", segment.side)
        ]
    return item


def _names(segments: Sequence[Segment]) -> str:
    return dicom_text(f"textseg: {', '.join(segment.name for segment in segments)}", LONG_STRING)


def _series_number(image: Dataset) -> int:
    """Behind the scanner's own series, and beside the one it belongs to."""
    return 9000 + int(image.get("SeriesNumber") or 0) % 900


def _between_slices_mm(geometry: Geometry) -> float:
    """At right angles to the slices, as DICOM has it, also where a tilted gantry sheared them."""
    normal = np.cross(geometry.directions[:, 0], geometry.directions[:, 1])
    return float(abs(normal @ geometry.affine[:3, 2]) / np.linalg.norm(normal))


def _orientation(geometry: Geometry) -> list[float]:
    return [float(cosine) for cosine in to_lps(geometry.directions[:, :2].T).ravel()]


def _share_place(image: Dataset) -> None:
    """highdicom wants orientation and spacing of a multi-frame image once for all of its frames."""
    shared, first = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in shared and name in first:
            setattr(shared, name, first[name].value)


def _say_spacing(images: Sequence[Dataset], geometry: Geometry) -> None:
    """highdicom copies it from the source, where it may be missing; readers need it to find empty slices."""
    for image in images:
        shared = image.get("SharedFunctionalGroupsSequence")
        measures = shared[0].PixelMeasuresSequence[0] if shared else image
        measures.SpacingBetweenSlices = DSfloat(_between_slices_mm(geometry), auto_format=True)
        if not measures.get("SliceThickness"):
            measures.SliceThickness = measures.SpacingBetweenSlices


def _refer_to_frames(dataset: Dataset, scan: Volume) -> None:
    """Of several volumes in one file, highdicom can't know which one was segmented."""
    assert scan.file is not None
    slices = scan.file.header.slices
    if not slices:
        return
    for item in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        z = round(float(scan.geometry.to_voxels(to_lps(position))[2]))
        for derivation in item.get("DerivationImageSequence", ()):
            derivation.SourceImageSequence[0].ReferencedFrameNumber = slices[z].frame + 1


def _name_scheme(dataset: Dataset) -> None:
    item = Dataset()
    item.CodingSchemeDesignator = OUR_SCHEME
    item.CodingSchemeName = "Names of structures and findings in textseg"
    dataset.CodingSchemeIdentificationSequence = [item]


def _date(dataset: Dataset, moment: datetime) -> None:
    """In place of the moment and the UID of dimensions that highdicom makes anew for each file."""
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    for name in ("InstanceCreation", "Content", "Series"):
        if f"{name}Date" in dataset:
            setattr(dataset, f"{name}Date", date)
            setattr(dataset, f"{name}Time", time)
    for equipment in dataset.get("ContributingEquipmentSequence", ())[-1:]:
        # The last is highdicom itself.
        equipment.ContributionDateTime = date + time
    dimensions = generate_uid(entropy_srcs=["dimensions", dataset.SOPInstanceUID])
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions


# ---- reading ----


@dataclass(frozen=True)
class _Place:
    """Where a frame lies in a grid: the voxels that it covers, and whether rows come after columns there."""

    voxels: tuple[slice | int, ...]
    rows_after: bool

    def turned(self, image: Bools) -> Bools:
        """The frame (rows, columns) in the order of the grid's axes."""
        return image.T if self.rows_after else image


def _segment_numbers(dataset: Dataset, count: int) -> list[int | None]:
    """The segment of each frame; None in a label map, whose values are the numbers."""
    if dataset.SOPClassUID == LABEL_MAP_STORAGE:
        return [None] * count
    shared = dataset.SharedFunctionalGroupsSequence[0].get("SegmentIdentificationSequence")
    return [
        int((item.get("SegmentIdentificationSequence") or shared)[0].ReferencedSegmentNumber)
        for item in dataset.PerFrameFunctionalGroupsSequence
    ]


def _is_inside(image: Any, dataset: Dataset) -> Bools:
    if dataset.get("SegmentationType") == "FRACTIONAL":
        return np.asarray(image >= float(dataset.get("MaximumFractionalValue") or 255) / 2)
    return np.asarray(image > 0)


def _name(segment: Dataset) -> str:
    """What was asked for, where a label had no room for it."""
    label, description = str(segment.get("SegmentLabel") or ""), str(segment.get("SegmentDescription") or "")
    return (
        description
        if label and description.startswith(label)
        else label or f"segment {segment.SegmentNumber}"
    )


def _smallest_grid(path: Path, frames: Sequence[Frame], dataset: Dataset) -> Geometry:
    """The regular grid that holds all frames."""
    by_distance = sorted(frames, key=lambda frame: frame.distance_mm)
    first, last = by_distance[0], by_distance[-1]
    distances = np.array([frame.distance_mm for frame in by_distance])
    between_mm = _spacing_between(dataset, np.diff(distances))
    steps = round((last.distance_mm - first.distance_mm) / between_mm)
    step = first.normal_lps * between_mm
    if steps:
        step = (last.position_lps - first.position_lps) / steps
    affine = np.eye(4)
    affine[:3, :2] = (first.axes_lps * np.array(first.spacing_mm)[:, None]).T
    affine[:3, 2], affine[:3, 3] = step, first.position_lps
    return scan_geometry(path.name, (*first.size, steps + 1), LPS_TO_RAS @ affine)


def _spacing_between(dataset: Dataset, gaps_mm: Floats) -> float:
    shared = dataset.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence") or [Dataset()]
    gaps_mm = gaps_mm[gaps_mm > SAME_POSITION_MM]
    stated = float(shared[0].get("SpacingBetweenSlices") or 0)
    if stated > 0:
        return stated
    return float(gaps_mm.min()) if gaps_mm.size else float(shared[0].get("SliceThickness") or 1)


def _place(path: Path, frame: Frame, geometry: Geometry) -> _Place:
    """Raises ScanError where the frame's pixels are no voxels of the grid."""
    corner = to_lps(frame.position_lps)
    steps_mm = to_lps(frame.axes_lps * np.array(frame.spacing_mm)[:, None])
    counts = np.array(frame.size)[:, None] - 1
    exact = geometry.to_voxels(np.concatenate([[corner], corner + steps_mm * counts]))
    start, *ends = np.round(exact).astype(int)
    steps = geometry.to_voxels(corner + steps_mm) - exact[0]
    axes = np.abs(steps).argmax(axis=1)
    straight = np.sign(steps[(0, 1), axes])[:, None] * np.eye(3)[axes] * counts
    shape = np.array(geometry.shape)
    if (
        axes[0] == axes[1]
        or np.abs(exact - np.round(exact)).max() > OFF_GRID
        or not np.array_equal(ends - start, straight)
        or any((end < 0).any() or (end >= shape).any() for end in (start, *ends))
    ):
        raise ScanError(
            f"The frames of a DICOM SEG must lie in slices of the scan, but those of {path.name} do not fit "
            f"{geometry}. Was it made on another scan?"
        )
    voxels: list[slice | int] = [int(index) for index in start]
    for axis, end in zip(axes, ends, strict=True):
        voxels[axis] = _run(int(start[axis]), int(end[axis]))
    return _Place(tuple(voxels), rows_after=bool(axes[1] > axes[0]))


def _run(first: int, last: int) -> slice:
    if last >= first:
        return slice(first, last + 1)
    return slice(first, last - 1 if last else None, -1)
