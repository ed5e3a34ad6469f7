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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydicom.dataset import Dataset

from textseg.cohort.jobs import SECRET_FILE, CohortError, Ids, Job

HIDDEN = "[hidden]"
# Value representations whose values always tell of a person, a day, or an instance.
TELLING_TYPES = {"PN", "DA", "DT", "UI"}
TELLING = (
    *("PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientAddress", "PatientTelephoneNumbers"),
    *("AccessionNumber", "StudyID", "AdmissionID", "RequestedProcedureID", "ScheduledProcedureStepID"),
    *("PerformedProcedureStepID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("StationName", "DeviceSerialNumber", "MilitaryRank", "Occupation", "EthnicGroup", "PatientComments"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "AdditionalPatientHistory"),
)
# UIDs of the standard itself, such as that of CT images, name nobody.
STANDARD_UIDS = "1.2.840.10008."
UID = re.compile(r"(?<![\w.])[012](?:\.\d+){4,}(?![\w])")
SHORTEST, SHORTEST_NAME = 3, 2
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
    found: set[str] = set()
    for element in header.iterall():
        if element.VR == "SQ" or element.value is None or isinstance(element.value, bytes):
            continue
        if element.VR in TELLING_TYPES or element.keyword in TELLING:
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                found |= set(_forms(str(value).strip(), element.VR))
    return {one for one in found if not one.startswith(STANDARD_UIDS)}


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
    return {name for path in inner for name in path.parent.parts if len(name) >= SHORTEST}


def hide(text: str, hidden: Iterable[str]) -> str:
    """A text without these strings, whatever their case, and without anything that looks like a UID."""
    return UID.sub(HIDDEN, _any_of(frozenset(hidden)).sub(HIDDEN, text))


@lru_cache(maxsize=64)
def _any_of(hidden: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((one for one in hidden if one.strip()), key=len, reverse=True)
    words = "|".join(map(re.escape, longest_first))
    # Without words, what matches nowhere.
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)" if words else r"(?!)", re.IGNORECASE)


def hide_in(job: Job, ids: Ids, text: str) -> str:
    """A text about a job, fit to be shown."""
    return hide(text, job.hidden) if job.is_dicom and ids != "keep" else text
