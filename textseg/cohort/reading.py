"""Reading the scan of a job, the same in a check and in a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from textseg.cohort.jobs import Ids
from textseg.cohort.links import as_folder
from textseg.errors import SeriesChoiceError
from textseg.scan import list_series, read_scan
from textseg.volume import Volume


class Source(Protocol):
    """Where the scan of a job, or of a task, lies; see `Job`."""

    @property
    def scan(self) -> Sequence[str | Path]: ...

    @property
    def slices(self) -> Sequence[str | Path]: ...

    @property
    def series(self) -> str | None: ...

    @property
    def volume(self) -> int | None: ...

    @property
    def is_dicom(self) -> bool: ...


@contextmanager
def channels_of(source: Source, ids: Ids) -> Iterator[list[Volume]]:
    """What a job's files hold, one volume a channel.

    Args:
        ids: unless it is "keep", readers see no names of DICOM files, and so can't tell them.

    Raises:
        ScanError: see `read_scan`.
    """
    with ExitStack() as stack:
        if source.slices:
            folder = stack.enter_context(as_folder([Path(path) for path in source.slices]))
            yield [_read_series(folder, source.volume)]
            return
        hides = source.is_dicom and ids != "keep"
        first, *others = (_nameless(Path(path), stack) if hides else Path(path) for path in source.scan)
        yield [read_scan(first, series=source.series, volume=source.volume), *map(read_scan, others)]


def _read_series(folder: Path, volume: int | None) -> Volume:
    """The scan of one series; where its images lie in several ways, the way that most of them do."""
    try:
        return read_scan(folder, volume=volume)
    except SeriesChoiceError:
        stacks = list_series(folder)
        most = max(stacks, key=lambda stack: stack.images)
        scan = read_scan(folder, series=most.uid, volume=volume)
        assert scan.file is not None
        left_out = sum(stack.images for stack in stacks) - most.images
        word = f"The images of the series lie in {len(stacks)} ways; {left_out} of them were left out."
        details = scan.file.details | {"warnings": [word, *scan.file.details["warnings"]]}
        return replace(scan, file=replace(scan.file, details=details))


def _nameless(path: Path, stack: ExitStack) -> Path:
    """A DICOM folder as one of links; a file of another format stays what it is."""
    if not path.is_dir():
        return path
    files = sorted(Path(parent) / name for parent, _, names in os.walk(path) for name in names)
    return stack.enter_context(as_folder(files))
