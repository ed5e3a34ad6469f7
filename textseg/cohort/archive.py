"""DICOM archives: which series lie in a heap of files, told by their headers and never by their names."""

# pydicom's datasets answer with whatever the file holds.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from textseg.cohort.privacy import descriptions_in, identifiers_in
from textseg.scan.dicom import MODALITIES
from textseg.scan.formats import is_dicom

TAGS = [
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesTime"),
    *("PatientID", "Modality", "ImageType", "NumberOfFrames", "SOPClassUID"),
]
# Fewer images are a scout view or a picture of a report, and no scan to segment in 3D.
FEWEST_IMAGES = 3


@dataclass(frozen=True)
class Series:
    """The files of one series of images, and what names it.

    Args:
        uid: empty where the files have none.
        patient: the patient's number, empty where there is none.
        images: how many there are, the frames of multi-frame files counted one by one.
        identifiers: what its header tells of the patient.
        descriptions: of study and series, in which people write names too.
    """

    uid: str
    patient: str
    number: str
    description: str
    modality: str
    images: int
    files: tuple[Path, ...]
    identifiers: frozenset[str]
    descriptions: frozenset[str]

    @property
    def handle(self) -> str:
        """What tells the series from all others, also where it has no UID."""
        return self.uid or "\0".join(
            [self.patient, self.number, self.description, *sorted(map(str, self.files))]
        )


def series_called(series: Sequence[Series], name: str) -> list[Series]:
    """Those that a whole UID, else a series' number, else a beginning or end of a UID could mean."""
    exact = [one for one in series if one.uid == name]
    numbered = [one for one in series if one.number == name]
    return exact or numbered or [one for one in series if one.uid.startswith(name) or one.uid.endswith(name)]


@dataclass(frozen=True)
class Archive:
    """The series that are scans, and what was passed over: how many files or series, by their kind."""

    series: tuple[Series, ...]
    passed_over: Counter[str]


def looks_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_dicom(stream.read(132))
    except OSError:
        return False


def find_series(files: Iterable[Path]) -> Archive:
    """The image series among DICOM files, in the order of their UIDs.

    Damaged files and series that are no CT, MR or PET scan in 3D are counted as passed over.
    """
    passed_over: Counter[str] = Counter()
    groups: dict[tuple[str, ...], list[tuple[Path, Dataset]]] = defaultdict(list)
    for path in files:
        header = _header(path, TAGS)
        if header is None:
            passed_over["damaged DICOM file"] += 1
        else:
            groups[_series_key(header)].append((path, header))
    kept = []
    for _, members in sorted(groups.items()):
        why_not = _why_no_scan([header for _, header in members])
        if why_not:
            passed_over[why_not] += 1
        else:
            kept.append(_series(members))
    return Archive(tuple(kept), passed_over)


def _header(path: Path, tags: list[str] | None) -> Dataset | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            # Values are only read when they are asked for; a damaged one shows here.
            _series_key(header), _images(header)
            return header if len(header) else None
    except Exception:
        # Damaged headers make pydicom raise almost anything.
        return None


def _series_key(header: Dataset) -> tuple[str, ...]:
    uid = str(header.get("SeriesInstanceUID") or "")
    names = ("PatientID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesTime", "Modality")
    return (uid,) if uid else ("", *(str(header.get(name) or "") for name in names))


def _images(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _why_no_scan(headers: Sequence[Dataset]) -> str:
    modality = str(headers[0].get("Modality") or "other")
    if modality not in MODALITIES:
        return f"series of {modality}"
    if all("LOCALIZER" in str(header.get("ImageType") or "").upper() for header in headers):
        return "scout view"
    if sum(map(_images, headers)) < FEWEST_IMAGES:
        return f"series of fewer than {FEWEST_IMAGES} images"
    return ""


def _series(members: Sequence[tuple[Path, Dataset]]) -> Series:
    path, header = members[0]
    whole = _header(path, None)
    uids = {str(one.get("SeriesInstanceUID") or "") for _, one in members}
    return Series(
        uid=uids.pop(),
        patient=str(header.get("PatientID") or ""),
        number=str(header.get("SeriesNumber") or ""),
        description=str(header.get("SeriesDescription") or ""),
        modality=str(header.get("Modality")),
        images=sum(_images(one) for _, one in members),
        files=tuple(sorted(Path(os.path.abspath(file)) for file, _ in members)),
        identifiers=frozenset(identifiers_in(whole) if whole is not None else ()),
        descriptions=frozenset(descriptions_in(whole) if whole is not None else ()),
    )
