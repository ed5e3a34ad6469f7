"""DICOM series, classic and enhanced, from a folder or a multi-frame file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from textseg.errors import ScanError, SeriesChoiceError
from textseg.geometry import Floats, Shape, Spacing
from textseg.scan.dicom_frames import Frame, dicom_headers, frames_of
from textseg.scan.dicom_pixels import stored_frames, stored_type
from textseg.scan.dicom_stack import Digest, lay_out, split_volumes
from textseg.scan.formats import choose_volume, colours_error
from textseg.scan.suv import suv_factor
from textseg.scan.values import scaled
from textseg.volume import Modality, ScanFile, Volume

MODALITIES: dict[str, Modality] = {"CT": "ct", "MR": "mr", "PT": "pet"}
# Objects about images, or grids that are no scan.
NOT_SCANS = {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "RWV"}
# Directions and spacings as close as this belong to one stack; headers round them to three or four decimals.
SAME_STACK = 1e-3


@dataclass(frozen=True)
class SeriesInfo:
    """One series, or one stack of a series whose images lie in several ways (uid then ends in /1, /2, …).

    Args:
        uid: what `read_scan(series=…)` takes.
        number: the scanner's number of the series, if it has one.
        description: the scanner's name of it.
        modality: DICOM's code, such as "CT", "MR" or "PT".
        images: how many 2D images there are; more than `shape[2]` where there are several volumes.
        shape: columns, rows, slices.
        spacing_mm: along columns, rows and slices; 0 for the slices where there is only one.
        date: ISO date of the series, empty where unknown.
    """

    uid: str
    number: int | None
    description: str
    modality: str
    images: int
    shape: Shape
    spacing_mm: Spacing
    date: str


@dataclass(frozen=True)
class SliceSource:
    """Where one slice of a DICOM scan came from: its file, its frame there (from 0), its SOP instance."""

    path: Path
    frame: int
    sop_instance_uid: str


@dataclass(frozen=True, eq=False)
class DicomSource:
    """What a DICOM scan was read from, for objects that refer to it.

    Args:
        header: of the first slice, without pixels and with the commonest tags only.
        slices: in the order of the volume's z axis; none where slices were interpolated.
    """

    header: Dataset
    slices: tuple[SliceSource, ...]


@dataclass(frozen=True, eq=False)
class _Stack:
    """Frames of one series with one direction, size and spacing."""

    uid: str
    frames: tuple[Frame, ...]

    @property
    def header(self) -> Dataset:
        return self.frames[0].header

    @property
    def is_localiser(self) -> bool:
        return self.frames[0].is_localiser

    @property
    def series_uid(self) -> str:
        return self.uid.partition("/")[0]


def list_series(folder: str | Path) -> list[SeriesInfo]:
    """The image series in a folder and its folders, in the order of their numbers.

    Raises:
        ScanError: there is none.
    """
    return [_series_info(stack) for stack in _stacks(Path(folder))]


def read_dicom(path: Path, series: str | None = None, volume: int | None = None) -> Volume:
    """The scan of a DICOM series: voxels (1, columns, rows, slices) rescaled, world in mm RAS+.

    Slices are sorted along their normal. CT is in Hounsfield units; PET becomes SUV where the header allows.

    Raises:
        SeriesChoiceError: several series, and none or an unknown one chosen.
        ScanError: no images, missing slices, different images at one position, colours, several volumes.
    """
    stack, warnings = _chosen_stack(path, _stacks(path), series)
    name = _name(stack)
    _check_grey(name, stack)
    volumes, about_copies = split_volumes(name, stack.frames, _digest())
    frames = volumes[choose_volume(name, len(volumes), volume)]
    layout = lay_out(name, frames)
    voxels = _voxels(frames)
    if not layout.is_regular:
        voxels = _evenly_spaced(voxels, layout.indices, layout.geometry.shape[2])
    warnings += [*about_copies, *layout.warnings]
    modality = MODALITIES.get(str(stack.header.get("Modality")))
    if modality == "pet":
        voxels, about_suv = _as_suv(voxels, frames)
        warnings += about_suv
    details = _details(stack, len(frames), warnings)
    if len(volumes) > 1:
        details["volume"] = volume
    source = DicomSource(frames[0].header, _slice_sources(frames) if layout.is_regular else ())
    return Volume(voxels, layout.geometry, ScanFile((path,), "dicom", source, details), modality)


# ---- which series ----


def _stacks(path: Path) -> list[_Stack]:
    """All stacks of images with a place in the patient, by series number and then by UID."""
    stacks: list[_Stack] = []
    unnamed = 0
    for frames in sorted(_frames_by_series(path), key=_series_order):
        uid = _uid(frames)
        if not uid:
            # Anonymised files may have none.
            unnamed += 1
            uid = f"unnamed-{unnamed}"
        parts = _by_direction(frames)
        for number, part in enumerate(parts, start=1):
            stacks.append(_Stack(uid if len(parts) == 1 else f"{uid}/{number}", tuple(part)))
    return stacks


def _frames_by_series(path: Path) -> list[list[Frame]]:
    series: dict[tuple[str, ...], list[Frame]] = defaultdict(list)
    passed_over: set[str] = set()
    for file, header in dicom_headers(path):
        frames = [] if header.get("Modality") in NOT_SCANS else frames_of(file, header)
        if frames:
            series[_series_key(header)] += frames
        else:
            passed_over.add(str(header.get("Modality") or "other"))
    if not series:
        raise _no_images(path, passed_over)
    return list(series.values())


def _series_order(frames: Sequence[Frame]) -> tuple[int, str]:
    return _series_number(frames[0].header) or 0, _uid(frames)


def _series_key(header: Dataset) -> tuple[str, ...]:
    uid = str(header.get("SeriesInstanceUID") or "")
    names = ("StudyInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesTime", "Modality")
    return (uid,) if uid else ("", *(str(header.get(name) or "") for name in names))


def _uid(frames: Sequence[Frame]) -> str:
    return str(frames[0].header.get("SeriesInstanceUID") or "")


def _by_direction(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames in groups of one direction, size and pixel spacing, the largest group first."""
    groups: list[list[Frame]] = []
    for frame in frames:
        fitting = next((group for group in groups if _is_same_stack(group[0], frame)), None)
        if fitting is None:
            groups.append([frame])
        else:
            fitting.append(frame)
    return sorted(groups, key=len, reverse=True)


def _is_same_stack(one: Frame, other: Frame) -> bool:
    return (
        one.size == other.size
        and np.allclose(one.axes_lps, other.axes_lps, rtol=0, atol=SAME_STACK)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=SAME_STACK, atol=0)
        and one.is_localiser == other.is_localiser
    )


def _no_images(path: Path, passed_over: set[str]) -> ScanError:
    if passed_over:
        kinds = ", ".join(sorted(passed_over))
        return ScanError(
            f"A DICOM scan must have images with a position in the patient, but {path} holds "
            f"others only ({kinds})."
        )
    return ScanError(
        f"A scan given as a folder must hold DICOM files, but there is none in {path}. "
        "For other formats give the file."
    )


def _chosen_stack(path: Path, stacks: list[_Stack], series: str | None) -> tuple[_Stack, list[str]]:
    matching = stacks if series is None else _matching(stacks, series)
    if len(matching) == 1:
        return matching[0], []
    if len({stack.series_uid for stack in matching}) == 1:
        images = [stack for stack in matching if not stack.is_localiser]
        if len(images) == 1:
            left_out = sum(len(stack.frames) for stack in matching) - len(images[0].frames)
            return images[0], [f"{left_out} localiser images of the series were left out."]
    listed = "; ".join(_listed(stack) for stack in matching or stacks)
    if series is not None and not matching:
        raise SeriesChoiceError(
            f"--series must be the UID, its beginning or end, or the number of a series, got {series}. "
            f"In {path} there are: {listed}."
        )
    meant = "" if series is None else f" that {series} could mean"
    raise SeriesChoiceError(
        f"{path} holds {len(matching)} series{meant}; choose one with --series UID: {listed}."
    )


def _matching(stacks: list[_Stack], series: str) -> list[_Stack]:
    """The stacks that a whole UID, else a series number, else a beginning or end of a UID could mean."""
    exact = [stack for stack in stacks if series in (stack.uid, stack.series_uid)]
    numbered = [stack for stack in stacks if str(_series_number(stack.header)) == series]
    partial = [stack for stack in stacks if stack.uid.startswith(series) or stack.uid.endswith(series)]
    return exact or numbered or (partial if series else [])


def _listed(stack: _Stack) -> str:
    description = str(stack.header.get("SeriesDescription") or "no description")
    return f"{stack.uid} ({description}, {stack.header.get('Modality')}, {len(stack.frames)} slices)"


def _series_info(stack: _Stack) -> SeriesInfo:
    distances = np.unique(np.round([frame.distance_mm for frame in stack.frames], 3))
    between = float(np.median(np.diff(distances))) if distances.size > 1 else 0.0
    return SeriesInfo(
        uid=stack.uid,
        number=_series_number(stack.header),
        description=str(stack.header.get("SeriesDescription") or ""),
        modality=str(stack.header.get("Modality") or ""),
        images=len(stack.frames),
        shape=(*stack.frames[0].size, distances.size),
        spacing_mm=(*stack.frames[0].spacing_mm, between),
        date=_date(stack.header),
    )


def _series_number(header: Dataset) -> int | None:
    number = header.get("SeriesNumber")
    return None if number is None else int(number)


def _date(header: Dataset) -> str:
    found = (str(header.get(name) or "") for name in ("SeriesDate", "AcquisitionDate", "StudyDate"))
    date = next((one for one in found if len(one) == 8), "")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else ""


def _name(stack: _Stack) -> str:
    description = str(stack.header.get("SeriesDescription") or "").strip()
    return f"series {description!r}" if description else f"series {stack.uid}"


def _check_grey(name: str, stack: _Stack) -> None:
    palette = stack.header.get("PhotometricInterpretation") == "PALETTE COLOR"
    if int(stack.header.get("SamplesPerPixel") or 1) > 1 or palette:
        raise colours_error(name)


def _details(stack: _Stack, slices: int, warnings: list[str]) -> dict[str, Any]:
    info = _series_info(stack)
    return {
        "series_uid": info.uid,
        "series_number": info.number,
        "series_description": info.description,
        "dicom_modality": info.modality,
        "series_date": info.date,
        "slices": slices,
        "warnings": warnings,
    }


def _slice_sources(frames: Sequence[Frame]) -> tuple[SliceSource, ...]:
    return tuple(
        SliceSource(frame.path, frame.number, str(frame.header.get("SOPInstanceUID") or ""))
        for frame in frames
    )


# ---- voxels ----


def _voxels(frames: Sequence[Frame]) -> NDArray[Any]:
    """(columns, rows, slices), rescaled; slope and intercept may differ from slice to slice."""
    kind = np.result_type(*{stored_type(frame.header) for frame in frames})
    stored = np.empty((*frames[0].size, len(frames)), dtype=kind, order="F")
    slices_of_file: dict[Path, list[int]] = defaultdict(list)
    for z, frame in enumerate(frames):
        slices_of_file[frame.path].append(z)
    for path, slices in slices_of_file.items():
        images = stored_frames(path)
        for z in slices:
            stored[..., z] = images[frames[z].number].T
    rescalings = {(frame.slope, frame.intercept) for frame in frames}
    if len(rescalings) == 1:
        return scaled(stored, *rescalings.pop())
    values = np.empty(stored.shape, dtype=np.float32, order="F")
    for z, frame in enumerate(frames):
        values[..., z] = stored[..., z].astype(np.float64) * frame.slope + frame.intercept
    return values


def _evenly_spaced(voxels: NDArray[Any], indices: Floats, count: int) -> NDArray[Any]:
    """Slices that lie at rising indices (fractions) interpolated linearly to 0, 1, …, count - 1: float32."""
    even = np.empty((*voxels.shape[:2], count), dtype=np.float32, order="F")
    for z in range(count):
        # The last slice may lie a rounding error short of the last index.
        after = min(max(int(np.searchsorted(indices, z)), 1), len(indices) - 1)
        weight = np.clip((z - indices[after - 1]) / (indices[after] - indices[after - 1]), 0, 1)
        even[..., z] = (1 - weight) * voxels[..., after - 1] + weight * voxels[..., after]
    return even


def _as_suv(voxels: NDArray[Any], frames: Sequence[Frame]) -> tuple[NDArray[Any], list[str]]:
    factor, why_not = suv_factor([frame.header for frame in frames])
    if factor is None:
        return voxels, [why_not or ""]
    return voxels if factor == 1 else (voxels * np.float32(factor)).astype(np.float32), []


def _digest() -> Digest:
    # The frames of one multi-frame file must not be decoded anew each time.
    recent = lru_cache(maxsize=4)(stored_frames)

    def digest(frame: Frame) -> Hashable:
        pixels = recent(frame.path)[frame.number]
        return frame.slope, frame.intercept, hashlib.sha256(pixels.tobytes()).digest()

    return digest
