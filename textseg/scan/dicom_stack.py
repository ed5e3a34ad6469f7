"""From frames in any order to volumes on a grid: sorted by where they lie, gaps and copies found out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from textseg.errors import ScanError
from textseg.geometry import Floats, Geometry
from textseg.scan.dicom_frames import MARKS, Frame
from textseg.scan.formats import scan_geometry
from textseg.scan.itk import LPS_TO_RAS

SAME_POSITION_MM = 0.001
OFF_LINE_MM = 0.1
TILT_DEGREES = 0.1
# A gap this close to a whole multiple of the usual one is taken for missing slices.
MULTIPLE = 0.1

# Something equal for frames of equal values, to tell copies from other volumes; it decodes pixels.
Digest = Callable[[Frame], Hashable]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the slices of one volume lie.

    Args:
        geometry: the regular grid; its z runs along the normal of the slices.
        indices: (slices,) z of each slice on that grid: 0, 1, 2, … or fractions where spacing varies.
        warnings: what is unusual about it, in words.
    """

    geometry: Geometry
    indices: Floats
    warnings: tuple[str, ...]

    @property
    def is_regular(self) -> bool:
        return bool(np.array_equal(self.indices, np.arange(len(self.indices))))


def split_volumes(name: str, frames: Sequence[Frame], digest: Digest) -> tuple[list[list[Frame]], list[str]]:
    """The volumes of a stack, each sorted along the normal and with one frame a position; and warnings.

    Raises:
        ScanError: different images lie at one position and nothing in the headers tells volumes apart.
    """
    volumes = _volumes_by_header(frames)
    if volumes is not None:
        return volumes, []
    kept = _without_copies(frames, digest)
    copies = len(frames) - len(kept)
    warnings = [f"{copies} slices of {name} were there twice with the same values and were left out."]
    volumes = _volumes_by_header(kept) or _volumes_by_number(kept)
    if volumes is None:
        raise ScanError(
            f"A series must have one image a position, but {name} has different ones at "
            f"{_crowded_position(kept):.2f} mm along its normal. Remove the one that does not belong to it."
        )
    return volumes, warnings if copies else []


def lay_out(name: str, frames: Sequence[Frame]) -> Layout:
    """The regular grid of slices that are sorted along their normal.

    Slices may lie off an even spacing by 0.1 mm (10 % of the spacing where that is less) or by 1 % of it.
    Beyond that the grid gets the usual (median) spacing between the first and the last slice.

    Raises:
        ScanError: there is one slice only, slices are missing, or they do not lie on one line.
    """
    if len(frames) < 2:
        raise ScanError(
            f"A scan must be 3D, but {name} has one slice only. Give the folder of the whole series."
        )
    distances = np.array([frame.distance_mm for frame in frames])
    positions = np.array([frame.position_lps for frame in frames])
    gaps = np.diff(distances)
    # The lower median, so that of the gaps 2 mm and 4 mm the first is the usual one.
    usual = float(np.quantile(gaps, 0.5, method="lower"))
    _check_line(name, positions, distances)
    _check_missing(name, distances, gaps, usual)
    warnings = _tilt_warning(frames[0], positions)
    count = len(frames)
    indices = np.arange(count, dtype=np.float64)
    if not _is_even(distances, usual):
        count = round((distances[-1] - distances[0]) / usual) + 1
        indices = (distances - distances[0]) / (distances[-1] - distances[0]) * (count - 1)
        warnings.append(
            f"The spacing of slices varies from {gaps.min():.3g} to {gaps.max():.3g} mm; they were "
            f"interpolated linearly to {count} slices of even spacing."
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    return Layout(_geometry(name, frames[0], step, count), indices, tuple(warnings))


# ---- volumes ----


def _volumes_by_header(frames: Sequence[Frame]) -> list[list[Frame]] | None:
    """The frames as one volume, or as several by one or two marks that tell them apart; None if none do."""
    positions = _by_position(frames)
    if len(positions) == len(frames):
        return [[frame for group in positions for frame in group]]
    present = [mark for mark in MARKS if len({frame.marks.get(mark) for frame in frames}) > 1]
    for marks in [*combinations(present, 1), *combinations(present, 2)]:
        volumes = defaultdict(list)
        for group in positions:
            for frame in group:
                volumes[tuple(frame.marks.get(mark, "") for mark in marks)].append(frame)
        if _are_complete(list(volumes.values()), len(positions)):
            return [volumes[key] for key in sorted(volumes, key=_natural_order)]
    return None


def _volumes_by_number(frames: Sequence[Frame]) -> list[list[Frame]] | None:
    """Volumes by the scanner's numbering, where every position has the same number of images."""
    positions = _by_position(frames)
    counts = {len(group) for group in positions}
    numbers = {frame.order for frame in frames}
    if len(counts) > 1 or len(positions) < 2 or len(numbers) < len(frames):
        return None
    ordered = [sorted(group, key=lambda frame: frame.order) for group in positions]
    return [list(volume) for volume in zip(*ordered, strict=True)]


def _by_position(frames: Sequence[Frame]) -> list[list[Frame]]:
    groups: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda frame: (frame.distance_mm, frame.order)):
        if groups and frame.distance_mm - groups[-1][0].distance_mm <= SAME_POSITION_MM:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups


def _are_complete(volumes: Sequence[Sequence[Frame]], count: int) -> bool:
    return all(len(_by_position(volume)) == len(volume) == count for volume in volumes)


def _natural_order(key: tuple[str, ...]) -> tuple[tuple[int, float, str], ...]:
    """Numbers by size, before words."""

    def part(word: str) -> tuple[int, float, str]:
        try:
            return 0, float(word), word
        except ValueError:
            return 1, 0.0, word

    return tuple(part(word) for word in key)


def _without_copies(frames: Sequence[Frame], digest: Digest) -> list[Frame]:
    kept: list[Frame] = []
    for group in _by_position(frames):
        kept += {digest(frame): frame for frame in reversed(group)}.values()
    return kept


def _crowded_position(frames: Sequence[Frame]) -> float:
    return next(group[0].distance_mm for group in _by_position(frames) if len(group) > 1)


# ---- the grid ----


def _check_line(name: str, positions: Floats, distances: Floats) -> None:
    along = (distances - distances[0]) / (distances[-1] - distances[0])
    line = positions[0] + along[:, None] * (positions[-1] - positions[0])
    off = float(np.linalg.norm(positions - line, axis=1).max())
    if off > OFF_LINE_MM:
        raise ScanError(
            f"The slices of a series must lie on a straight line, but those of {name} are up to {off:.2f} mm "
            "off. Are several scans mixed in it?"
        )


def _check_missing(name: str, distances: Floats, gaps: Floats, usual: float) -> None:
    """A few gaps of twice the usual one or more are missing slices; many are a protocol that varies."""
    multiples = gaps / usual
    wide = np.flatnonzero((multiples > 1.5) & (np.abs(multiples - np.round(multiples)) <= MULTIPLE))
    others_even = np.abs(np.delete(multiples, wide) - 1).max(initial=0) <= MULTIPLE
    if wide.size == 0 or not others_even or wide.size > max(2, 0.1 * gaps.size):
        return
    missing = [
        distances[gap] + usual * number for gap in wide for number in range(1, round(float(multiples[gap])))
    ]
    more = " and more" if len(missing) > 10 else ""
    shown = ", ".join(f"{distance:.2f}" for distance in missing[:10]) + more
    raise ScanError(
        f"A series must be complete, but {name} has no slice at {shown} mm along its normal, where the "
        f"spacing is {usual:.4g} mm ({len(missing)} missing). Export or download the series again."
    )


def _is_even(distances: Floats, usual: float) -> bool:
    even = np.linspace(distances[0], distances[-1], len(distances))
    allowed = max(min(0.1, 0.1 * usual), 0.01 * usual)
    return bool(np.abs(distances - even).max() <= allowed)


def _tilt_warning(frame: Frame, positions: Floats) -> list[str]:
    step = positions[-1] - positions[0]
    cosine = float(step @ frame.normal_lps / np.linalg.norm(step))
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if degrees <= TILT_DEGREES:
        return []
    return [
        f"The gantry was tilted by {degrees:.1f}°; the slices are sheared against each other accordingly."
    ]


def _geometry(name: str, frame: Frame, step: Floats, count: int) -> Geometry:
    affine = np.eye(4)
    affine[:3, 0] = frame.axes_lps[0] * frame.spacing_mm[0]
    affine[:3, 1] = frame.axes_lps[1] * frame.spacing_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = frame.position_lps
    return scan_geometry(name, (*frame.size, count), LPS_TO_RAS @ affine)
