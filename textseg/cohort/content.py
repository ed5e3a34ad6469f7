"""What a scan holds, and what a job is: hashes that do not depend on the names of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from textseg.cohort.jobs import Job, Settings
from textseg.errors import ScanError

CHUNK = 1 << 20
# The line of a detached header that names the file with the voxels.
DATA_FILE = re.compile(rb"(?im)^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(\S[^\r\n]*?)\s*$")
HEADER_BYTES = 1 << 16


class Memory(Protocol):
    """Where hashes of files that have not changed since are remembered."""

    def recall(self, signature: str) -> str | None: ...

    def remember(self, signature: str, content: str) -> None: ...


def job_key(job: Job, content: str, model: Mapping[str, str], settings: Settings) -> str:
    """The hash of scan, model, prompts and settings: jobs with the same key give the same outputs.

    Args:
        content: of the scan, from `scan_content`.
        model: SHA-256 of the model's files by their names.
    """
    kept = settings.as_json()
    if not job.is_dicom:
        # Nothing of these scans is hidden, whatever the choice.
        del kept["ids"]
    if settings.backend == "torch":
        # As before there was another one: what is done stays done.
        del kept["backend"]
    asked = [content, dict(sorted(model.items())), job.prompts, job.modality, job.series, job.volume, kept]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def scan_content(job: Job, memory: Memory) -> str:
    """The hash of a scan's bytes; those of a DICOM series count in any order and under any names.

    Raises:
        ScanError: a file is missing or can't be read.
    """
    try:
        channels = files_of(job)
        signature = _signature([path for files in channels for path in files])
        known = memory.recall(signature)
        if known is None:
            known = hashlib.sha256("".join(map(_content_of, channels)).encode()).hexdigest()
            memory.remember(signature, known)
    except FileNotFoundError as error:
        raise ScanError(
            f"A scan must exist, but there is no {_shown(job, error)}. Is the path right?"
        ) from error
    except OSError as error:
        raise ScanError(
            f"A scan must be readable, but {_shown(job, error)} is not: {error.strerror}."
        ) from error
    return known


def files_of(job: Job) -> list[list[Path]]:
    """All files of each channel of a job's scan, those with the voxels of a detached header included."""
    if job.slices:
        return [list(job.slices)]
    return [_files_at(path) for path in job.scan]


def _files_at(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(Path(parent) / name for parent, _, names in os.walk(path) for name in names)
    return [path, *_detached(path)]


def _content_of(files: Sequence[Path]) -> str:
    """A hash of what files hold, in any order: an image and its header are never mistaken for one another."""
    hashes = sorted(map(file_digest, files))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _signature(files: Sequence[Path]) -> str:
    """A hash of where files are, how large, and when they changed last; shows nothing of their names."""
    facts = [(str(path.absolute()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _shown(job: Job, error: OSError) -> str:
    # The names of DICOM files may be those of patients.
    return "such DICOM file or folder" if job.is_dicom else f"file or folder {error.filename}"


def _detached(path: Path) -> list[Path]:
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return []
    with path.open("rb") as stream:
        named = DATA_FILE.search(stream.read(HEADER_BYTES))
    if named is None:
        return []
    other = path.parent / os.fsdecode(named[1])
    return [other] if other.is_file() else []
