"""What a worker writes of a scan: masks, measures, preview and record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from textseg.cohort.folders import (
    MEASURES_FILE,
    PREVIEW_FILE,
    RESULT_FILE,
    must_hide,
    shown_files,
    whole_folder,
    write_json,
)
from textseg.cohort.privacy import hide
from textseg.cohort.task import Task
from textseg.destination import file_stems
from textseg.dicom_output import DICOM_KINDS, DicomKind, write_dicom_masks
from textseg.measure import measure_segmentation
from textseg.result import Segmentation
from textseg.scan import mask_ending, write_mask

COHORT_FORMAT = "textseg-cohort-result-1"
# Of a DICOM scan only these facts can't tell whose it is.
HARMLESS = ("dicom_modality", "slices", "volume", "warnings")
# These differ from run to run; the journal keeps them, so that the same job always leaves the same bytes.
OF_THE_MOMENT = ("time", "seconds", "memory")


def write_outputs(segmentation: Segmentation, task: Task) -> None:
    """Write all files of a job beside their place, then move the folder there.

    Raises:
        OSError: they can't be written; nothing of them is left.
    """
    with whole_folder(task) as folder:
        files = _write_masks(segmentation, task, folder)
        _write_dicom(segmentation, task, folder)
        record = _record(segmentation, task, files)
        if task.settings.preview:
            _nameless(segmentation).save_preview(folder / PREVIEW_FILE)
        write_json(folder / MEASURES_FILE, measure_segmentation(segmentation))
        record["cohort"]["files"] = sorted(path.name for path in folder.iterdir())
        write_json(folder / RESULT_FILE, record)


def _write_masks(segmentation: Segmentation, task: Task, folder: Path) -> dict[int, list[str]]:
    """The names of the files of every prompt that has some."""
    endings = [ending for ending in task.settings.formats if ending not in DICOM_KINDS]
    if not endings and not _dicom_kinds(segmentation, task):
        endings = [mask_ending(segmentation.volume.file)]
    stems = file_stems("mask", [found.prompt.text for found in segmentation.found])
    files: dict[int, list[str]] = {}
    for index, found in enumerate(segmentation.found):
        if not (found.is_there or task.settings.write_empty):
            continue
        files[index] = [f"{stems[index]}.{ending.lstrip('.')}" for ending in endings]
        for name in files[index]:
            write_mask(folder / name, segmentation.masks[index], segmentation.volume)
    return files


def _dicom_kinds(segmentation: Segmentation, task: Task) -> list[DicomKind]:
    """The DICOM objects to write; there are none of a scan that is no DICOM."""
    file = segmentation.volume.file
    if file is None or file.format != "dicom":
        return []
    return [DICOM_KINDS[ending] for ending in task.settings.formats if ending in DICOM_KINDS]


def _write_dicom(segmentation: Segmentation, task: Task, folder: Path) -> None:
    """One object of each kind with the masks of all prompts that were found."""
    shown = [i for i, found in enumerate(segmentation.found) if found.is_there]
    for kind in _dicom_kinds(segmentation, task) if shown else ():
        write_dicom_masks(
            folder / f"masks_{kind}.dcm",
            kind,
            segmentation.masks[shown],
            [segmentation.found[i].prompt for i in shown],
            segmentation.volume,
            model=segmentation.model.name,
            written_at=datetime.fromisoformat(task.begun),
        )


def _nameless(segmentation: Segmentation) -> Segmentation:
    """As if the scan came from a file called "scan": a picture must not tell a name on a path."""
    volume = segmentation.volume
    if volume.file is None:
        return segmentation
    return replace(segmentation, volume=replace(volume, file=replace(volume.file, paths=(Path("scan"),))))


def _record(segmentation: Segmentation, task: Task, files: Mapping[int, list[str]]) -> dict[str, Any]:
    record = segmentation.record({index: names[0] for index, names in files.items() if names})
    for name in OF_THE_MOMENT:
        record.pop(name, None)
    record["scan"]["files"] = shown_files(task)
    if must_hide(task):
        for channel in record["scan"].get("channels", ()):
            channel["files"] = []
        details = {name: value for name, value in record["scan"]["details"].items() if name in HARMLESS}
        record["scan"]["details"] = _hidden(details, task)
    record["cohort"] = {
        "format": COHORT_FORMAT,
        "key": task.key,
        "prompts_at_once": task.prompts_at_once,
        "settings": task.settings.as_json(),
    }
    return record


def _hidden(value: Any, task: Task) -> Any:
    if isinstance(value, str):
        return hide(value, task.hidden)
    if isinstance(value, list):
        return [_hidden(one, task) for one in value]
    return value
