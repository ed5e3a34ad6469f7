"""The folder of one finished scan, there as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textseg.atomic import write_bytes
from textseg.cohort.task import Task

# The place was taken, or given back, between a look at it and a renaming.
CROSSED, ATTEMPTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT), 5
RESULT_FILE, MEASURES_FILE, PREVIEW_FILE = "result.json", "measures.json", "preview.png"


def is_finished(folder: Path, key: str) -> bool:
    """Whether a folder holds, whole, the outputs of the job with this key."""
    try:
        facts = read_record(folder)["cohort"]
        return facts["key"] == key and all((folder / name).is_file() for name in facts["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def take_over(finished: Path, task: Task) -> None:
    """Give a task the outputs of another job with the same key, such as that of a file that was renamed.

    Raises:
        OSError: they can't be copied.
    """
    with whole_folder(task) as folder:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        record = read_record(folder)
        record["scan"]["files"] = shown_files(task)
        write_json(folder / RESULT_FILE, record)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished job."""
    record: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return record


def read_measures(folder: Path) -> list[dict[str, Any]]:
    """The measures of a finished job, one dictionary a mask; none where the file is missing."""
    try:
        measures: list[dict[str, Any]] = json.loads((folder / MEASURES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return measures


def shown_files(task: Task) -> list[str]:
    """The files of a scan, for its record."""
    return [] if must_hide(task) else list(task.slices or task.scan)


def must_hide(task: Task) -> bool:
    """Whether names and headers of the scan may not reach the outputs."""
    return task.is_dicom and task.settings.ids != "keep"


def write_json(path: Path, document: Any) -> None:
    """A document as a JSON file, there whole or not at all."""
    write_bytes(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def whole_folder(task: Task) -> Iterator[Path]:
    """A folder to fill, which takes the place of the job's once it is whole and safe on the disk."""
    staging = Path(task.staging)
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging) as hidden:
        folder = Path(hidden) / task.id
        folder.mkdir()
        yield folder
        _move_into_place(folder, task.folder, Path(hidden) / "older")


def _move_into_place(folder: Path, place: Path, older: Path) -> None:
    """Rename a folder to its place; what was there goes only when the new one is ready to come."""
    for path in (*folder.iterdir(), folder):
        _sync(path)
    for attempt in range(ATTEMPTS):
        try:
            if place.exists():
                os.replace(place, older.with_name(f"{older.name}{attempt}"))
            os.replace(folder, place)
            break
        except OSError as error:
            # A worker that was taken for lost may do the same job, and come or go in between.
            if error.errno not in CROSSED or attempt + 1 == ATTEMPTS or not folder.exists():
                raise
    _sync(place.parent)


def _sync(path: Path) -> None:
    """To the disk itself: after a power cut a renamed folder must not hold empty files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
