"""What a cohort is made of: one job a scan, the settings all jobs share, and names that fit a folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from textseg.errors import TextsegError
from textseg.volume import Modality

Ids = Literal["keep", "hash", "drop"]
Level = Literal["error", "warning", "note"]
# No "auto", which chooses by a trial on the first large scan: masks would depend on the order of the scans.
Backend = Literal["torch", "openvino"]
Extra = Mapping[str, str | int | float | bool | None]
LONGEST_ID = 100
# What the folder of a cohort holds beside the folders of its jobs.
JOURNAL_FILE, LOCK_FILE, SECRET_FILE, STAGING = "cohort.sqlite", ".cohort.lock", ".private.json", ".staging"
TABLES, REPORT = "summary", "report"
RESERVED = {
    *(JOURNAL_FILE, f"{JOURNAL_FILE}-journal", REPORT, f"{REPORT}.html", "scans", "pages"),
    *(TABLES, *(f"{TABLES}.{ending}" for ending in ("csv", "json", "parquet"))),
}


class CohortError(TextsegError, ValueError):
    """A cohort that can't be run as it was asked for: no scans, a bad manifest, a folder in use."""


@dataclass(frozen=True)
class Problem:
    """Something about one scan, or about one row of a manifest, that a person should know before a run."""

    where: str
    what: str
    level: Level = "error"


@dataclass(frozen=True)
class Job:
    """One scan and what is asked of it.

    Args:
        id: the name of its folder in the output, unique in a cohort.
        scan: what `read_scan` takes: a file, a DICOM folder, or the files of several channels.
        prompts: at least one.
        slices: the files of a DICOM series that was found by its headers; `scan` is then the folder above.
        series, volume: as for `read_scan`.
        extra: columns of a manifest that are carried through to the tables.
        is_dicom: whether the files may hold identifiers of a patient.
        hidden: identifiers in its headers and names on its path, which must not reach any output.
    """

    id: str
    scan: tuple[Path, ...]
    prompts: tuple[str, ...]
    model: str = "default"
    modality: Modality | None = None
    series: str | None = None
    volume: int | None = None
    slices: tuple[Path, ...] = ()
    extra: Extra = field(default_factory=dict)
    is_dicom: bool = False
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What is written of every scan; a change of any of it makes a job be done again.

    Args:
        formats: endings of masks, such as "nrrd", and "dicom-seg" or "rtstruct"; none for the scan's own.
        clean_up: keep only the largest connected part of each mask and fill its holes; None for what the
            model's plan does with stray parts, False to leave masks as they are.
        write_empty: write masks also for prompts that were not found.
        preview: a picture with three planes.
        ids: what becomes of DICOM identifiers.
        backend: what runs the image encoder; masks differ by rounding.
    """

    formats: tuple[str, ...] = ()
    clean_up: bool | None = None
    write_empty: bool = False
    preview: bool = True
    ids: Ids = "hash"
    backend: Backend = "torch"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        return cls(**{**document, "formats": tuple(document["formats"])})


def safe_id(text: str) -> str:
    """A name that every file system takes: ASCII letters, digits, dots, dashes and underscores."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")[:LONGEST_ID] or "scan"


def with_unique_ids(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, those that would share a folder told apart by a hash of what they are asked and of where.

    Upper and lower case count as the same, as they do on many disks. The hash of a job does not depend on
    the others, so a job keeps its name when scans are added.
    """
    counts = Counter(job.id.casefold() for job in jobs)
    renamed = [
        replace(job, id=f"{job.id}_{_digest_of(job)}")
        if counts[job.id.casefold()] > 1 or job.id.casefold() in RESERVED
        else job
        for job in jobs
    ]
    again = Counter(job.id.casefold() for job in renamed)
    doubled = next((job for job in renamed if again[job.id.casefold()] > 1), None)
    if doubled is not None:
        raise CohortError(
            f"Every scan is asked the same prompts once, but {doubled.id} is there twice. "
            "Take one of the two away."
        )
    return renamed


def _digest_of(job: Job) -> str:
    words = [*map(str, job.scan), *map(str, job.slices), str(job.series), str(job.volume)]
    return hashlib.sha256("\0".join([*words, *job.prompts, job.model]).encode()).hexdigest()[:6]
