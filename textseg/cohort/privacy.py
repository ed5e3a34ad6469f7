"""Keeping DICOM identifiers out of everything that a cohort writes: pseudonyms and the hiding of strings.

What counts as an identifier follows the Basic Application Level Confidentiality Profile of DICOM PS3.15,
table E.1-1: names, numbers of persons, visits and devices, institutions, dates, and all UIDs of instances.
"""

# pydicom's datasets answer with whatever the file holds.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from textseg.cohort.jobs import SECRET_FILE, CohortError, Ids
from textseg.cohort.links import without_links
from textseg.errors import SeriesChoiceError, TextsegError

HIDDEN = "[hidden]"
# Value representations whose values always tell of a person, a day, or an instance.
TELLING_TYPES = {"PN", "DA", "DT", "UI"}
TELLING = (
    *("PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientAddress", "PatientTelephoneNumbers"),
    *("AccessionNumber", "StudyID", "AdmissionID", "RequestedProcedureID", "ScheduledProcedureStepID"),
    *("PerformedProcedureStepID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("StationName", "DeviceSerialNumber", "MilitaryRank", "Occupation", "EthnicGroup"),
)
# As a rule these say what was scanned, as names of files and folders may too.
DESCRIPTIONS = (
    *("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "PatientComments"),
    "AdditionalPatientHistory",
)
# UIDs of the standard itself, such as that of CT images, name nobody.
STANDARD_UIDS = "1.2.840.10008."
UID = re.compile(r"(?<![\w.])[012](?:\.\d+){4,}(?![\w])")
SHORTEST, SHORTEST_NAME = 3, 2
# Folders of these names tell of nobody, and without them messages could not be read.
PLAIN_FOLDERS = {
    *("archive", "data", "dicom", "dicoms", "export", "image", "images", "original", "patient", "patients"),
    *("scan", "scans", "series", "slice", "slices", "studies", "study", "volume", "volumes"),
}
# So long a string is none by chance, also within a word: MuellerAnna.
SURELY = 6
HASH_DIGITS = 8


@dataclass(frozen=True)
class Pseudonyms:
    """Names for DICOM scans by the choice of --ids; the salt makes hashes useless to whoever lacks it."""

    ids: Ids
    salt: bytes

    def of(self, kind: str, value: str) -> str:
        """Eight hexadecimal digits for a value; the same for the same kind, value and salt."""
        message = f"{kind}\0{value}".encode()
        return hmac.new(self.salt, message, hashlib.sha256).hexdigest()[:HASH_DIGITS]


def read_or_make_salt(out: Path) -> bytes:
    """The salt of a cohort's folder, made at first and kept in a file that only its owner may read.

    Raises:
        CohortError: the file is damaged.
    """
    path = out / SECRET_FILE
    try:
        # Created for its owner alone from the first byte on, and never written over.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_salt(path)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        salt = secrets.token_bytes(32)
        json.dump({"salt": salt.hex()}, stream)
    return salt


def temporary_salt() -> bytes:
    """For names that are shown once and kept nowhere."""
    return secrets.token_bytes(32)


def _read_salt(path: Path) -> bytes:
    try:
        return bytes.fromhex(json.loads(path.read_text(encoding="utf-8"))["salt"])
    except (ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{path} must hold the salt of this cohort's names, but it is damaged. Put a copy of it back, or "
            "take another output folder."
        ) from error


def identifiers_in(header: Dataset) -> set[str]:
    """The strings of a DICOM header, its sequences included, that could tell who or when it was."""
    return set(_strings_in(header, TELLING_TYPES, TELLING))


def descriptions_in(header: Dataset) -> set[str]:
    """The words of a DICOM header, its sequences included, for study and series and about the patient."""
    return set(_strings_in(header, (), DESCRIPTIONS))


def _strings_in(header: Dataset, types: Collection[str], keywords: Collection[str]) -> Iterator[str]:
    for element in header.iterall():
        if element.VR == "SQ" or element.value is None or isinstance(element.value, bytes):
            continue
        if element.VR in types or element.keyword in keywords:
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                forms = _forms(str(value).strip(), element.VR)
                yield from (one for one in forms if not one.startswith(STANDARD_UIDS))


def _forms(value: str, kind: str) -> Iterator[str]:
    """A value as it stands and as people write it."""
    if len(value) >= SHORTEST:
        yield value
    if kind == "DA" and len(value) == 8:
        yield f"{value[:4]}-{value[4:6]}-{value[6:]}"
    if kind == "PN":
        parts = [part for part in re.split(r"[\^= ,]+", value) if len(part) >= SHORTEST_NAME]
        yield from parts
        yield from (" ".join(parts), " ".join(reversed(parts)), "_".join(parts))


def names_on(paths: Iterable[Path], below: Path) -> set[str]:
    """The names of folders on the way to files, from a folder downwards: archives are sorted by patients."""
    inner = {path.relative_to(below) if path.is_relative_to(below) else path for path in paths}
    return {name for path in inner for name in path.parent.parts if _may_tell(name)}


def _may_tell(folder: str) -> bool:
    return len(folder) >= SHORTEST and folder.lower() not in PLAIN_FOLDERS


def hide(text: str, hidden: Iterable[str]) -> str:
    """A text without these strings, whatever their case, and without anything that looks like a UID."""
    return UID.sub(HIDDEN, _any_of(frozenset(hidden)).sub(HIDDEN, text))


@lru_cache(maxsize=64)
def _any_of(hidden: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((one for one in hidden if one.strip()), key=len, reverse=True)
    words = "|".join(map(_wherever_it_ends, longest_first))
    # Without words, what matches nowhere.
    return re.compile(words or r"(?!)", re.IGNORECASE)


def _wherever_it_ends(one: str) -> str:
    """The pattern of a string as people join it with others: Li_CT, li01, but not the beginning of liver."""
    if len(one) >= SURELY:
        return re.escape(one)
    return _edge(one[0], "?<!") + re.escape(one) + _edge(one[-1], "?!")


def _edge(character: str, look: str) -> str:
    """Where a run of letters, or of digits, begins or ends."""
    if character.isdigit():
        return rf"({look}\d)"
    return rf"({look}[^\W\d_])" if character.isalpha() else ""


class Shown(Protocol):
    """A job or a task, as far as words about it go; see `Job`."""

    @property
    def id(self) -> str: ...

    @property
    def scan(self) -> Sequence[str | Path]: ...

    @property
    def slices(self) -> Sequence[str | Path]: ...

    @property
    def is_dicom(self) -> bool: ...

    @property
    def hidden(self) -> Sequence[str]: ...


def hide_in(one: Shown, ids: Ids, text: str) -> str:
    """A text about a job, fit to be shown: without links, and without names of patients unless to be kept."""
    is_hidden = one.is_dicom and ids != "keep"

    def name_of(number: int | None) -> str:
        if number is None:
            return one.id
        return f"{one.id}/{number:06d}.dcm" if is_hidden or not one.slices else str(one.slices[number])

    text = without_links(text, name_of)
    if not is_hidden:
        return text
    for path in map(Path, one.scan):
        text = text.replace(str(path), one.id)
        text = text.replace(path.name, one.id) if _may_tell(path.name) else text
    return hide(text, one.hidden)


def sentence_of(error: TextsegError, one: Shown, ids: Ids) -> str:
    """What an error says about a job, fit to be shown."""
    if isinstance(error, SeriesChoiceError) and one.is_dicom and ids != "keep":
        # The message lists UIDs and descriptions.
        return "The folder holds several DICOM series, or not the one named; choose one in the column series."
    return hide_in(one, ids, " ".join(str(error).split()))
