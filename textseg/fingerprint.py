"""What a dataset is like: spacings, shapes, intensities, sizes of its structures; all that planning reads.

As nnU-Net's fingerprint (Isensee et al. 2021): shapes after the crop to what is not zero, and intensities of
the voxels inside any label, as many from every case. Axes are canonical here (x, y, z to the right, front and
head), so that scans stored in different orders agree on which axis is coarse.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from textseg.atomic import write_bytes
from textseg.dataset import ANNOTATED_FILE, DATASET_FILE, NAMES_FILE, PROMPTS_FILE, Dataset, DatasetCase
from textseg.dataset_check import Progress, in_processes
from textseg.errors import DatasetError, OutputError
from textseg.geometry import Shape, Spacing, bounding_box
from textseg.scan import LabelMap, read_label_map, read_scan
from textseg.volume import Modality, Volume, guess_modality

FINGERPRINT_FILE = "fingerprint.json"
FORMAT: Literal["textseg-fingerprint-1"] = "textseg-fingerprint-1"

# Foreground voxels that are looked at: in all, and at least and at most in one case.
SAMPLES = 10_000_000
FEWEST_SAMPLES, MOST_SAMPLES = 10_000, 1_000_000


class Part(BaseModel):
    """A frozen part of the fingerprint; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CaseFingerprint(Part):
    """One case on its own grid, axes in canonical order.

    shape_voxels is the whole grid, cropped_voxels what is left without the zeros around; voxels counts those
    of every label that the case names.
    """

    id: str
    shape_voxels: Shape
    cropped_voxels: Shape
    spacing_mm: Spacing
    modalities: tuple[Modality, ...]
    voxels: dict[str, int]


class Intensities(Part):
    """Values inside any label, of a channel in one modality; low and high are percentiles 0.5 and 99.5."""

    channel: str
    modality: Modality
    cases: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


class LabelFingerprint(Part):
    """One label over all cases; median_ml and smallest_ml are of those that show it, null where none does."""

    group: str | None
    cases: int
    median_ml: float | None
    smallest_ml: float | None


class Fingerprint(Part):
    """What planning knows of a dataset. key changes with any file that was read."""

    format: Literal["textseg-fingerprint-1"]
    key: str
    dataset: str
    layout: Literal["nnunet", "labelmaps"]
    channels: tuple[str, ...]
    labels: dict[str, LabelFingerprint]
    intensities: tuple[Intensities, ...]
    cases: tuple[CaseFingerprint, ...]


def take_fingerprint(
    dataset: Dataset,
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, of: None,
) -> Fingerprint:
    """The fingerprint of a dataset, or the one in `folder` if no file has changed since it was taken.

    Args:
        folder: where fingerprint.json is kept; None to keep none.
        workers: processes. More than one need a script to begin with `if __name__ == "__main__":`.
        progress: called with the stage, how many cases are done, and of how many.

    Raises:
        DatasetError: there is no case, or one lacks a file; `check_dataset` tells which.
        ScanError: a file can't be read.
        OutputError: the folder can't be written to.
    """
    lacking = [case.id for case in dataset.cases if not case.whole]
    if lacking or not dataset.cases:
        what = f"{len(lacking)} lack a file, the first is {lacking[0]}" if lacking else "it has none"
        raise DatasetError(f"A fingerprint needs whole cases, but of {dataset.name} {what}. Check it first.")
    kept = kept_fingerprint(dataset, folder) if folder is not None else None
    if kept is not None:
        return kept
    samples = int(np.clip(SAMPLES // len(dataset.cases), FEWEST_SAMPLES, MOST_SAMPLES))
    named = tuple(channel.modality for channel in dataset.channels)
    jobs = [(case, named, dataset.ignore, samples) for case in dataset.cases]
    found = in_processes(examine_case, jobs, workers, "fingerprint", progress)
    cases = tuple(case for case, _ in found)
    fingerprint = Fingerprint(
        format=FORMAT,
        key=files_key(dataset),
        dataset=dataset.name,
        layout=dataset.layout,
        channels=tuple(channel.name for channel in dataset.channels),
        labels={name: _label(name, label.group, cases) for name, label in dataset.labels.items()},
        intensities=_intensities(dataset, found),
        cases=cases,
    )
    if folder is not None:
        _keep(fingerprint, folder)
    return fingerprint


def kept_fingerprint(dataset: Dataset, folder: Path) -> Fingerprint | None:
    """The fingerprint that a folder keeps of this dataset; None if there is none or any file has changed."""
    try:
        fingerprint = read_fingerprint(folder)
    except DatasetError:
        return None  # none yet, or of another version
    return fingerprint if fingerprint.key == files_key(dataset) else None


def read_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint in a file, or in the fingerprint.json of a folder.

    Raises:
        DatasetError: it can't be read or is none.
    """
    path = path if path.suffix == ".json" else path / FINGERPRINT_FILE
    try:
        return Fingerprint.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} must be a fingerprint that can be read, but it is not.") from error


def files_key(dataset: Dataset) -> str:
    """A hash over names, sizes and times of change of all files of a dataset, and over what it names."""
    described = [dataset.folder / name for name in (DATASET_FILE, NAMES_FILE, PROMPTS_FILE, ANNOTATED_FILE)]
    files = [path for path in described if path.is_file()]
    files += [path for case in dataset.cases for path in case.files]
    facts = [
        (os.path.relpath(path, dataset.folder), status.st_size, status.st_mtime_ns)
        for path in files
        for status in (path.stat(),)
    ]
    content = json.dumps([FORMAT, dataset.name, facts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


Samples = Sequence[NDArray[np.float32]]


def examine_case(
    case: DatasetCase, named: tuple[Modality | None, ...], ignore: int | None, samples: int
) -> tuple[CaseFingerprint, Samples]:
    """One case's part of the fingerprint, and for each channel values (samples,) from inside its labels.

    Args:
        named: the modality of each channel where its name tells it; else the case's name does, or its values.
        samples: how many values, drawn with repeats, so that every case counts the same.
    """
    assert case.labels is not None
    labels = read_label_map(case.labels)
    counts = np.bincount(labels.labels.ravel(), minlength=1)
    voxels = {
        name: int(sum(counts[value] for value in values if value < len(counts)))
        for name, values in case.values.items()
    }
    foreground = (labels.labels > 0) & (labels.labels != (-1 if ignore is None else ignore))
    # Each case its own numbers, and the same ones whichever process draws them.
    seed = int.from_bytes(hashlib.sha256(case.id.encode()).digest()[:4], "little")
    random = np.random.default_rng(seed)
    image = read_scan([path for path in case.images if path is not None]) if case.images else None
    modalities = tuple(
        known or case.modality or guess_modality(channel)
        for known, channel in zip(named, image.voxels if image else (), strict=True)
    )
    drawn = [_drawn(channel, foreground, samples, random) for channel in (image.voxels if image else ())]
    facts = _facts(case.id, image, labels, modalities, voxels)
    return facts, drawn


def _facts(
    name: str,
    image: Volume | None,
    labels: LabelMap,
    modalities: tuple[Modality, ...],
    voxels: dict[str, int],
) -> CaseFingerprint:
    grid = labels.geometry if image is None else image.geometry
    content = labels.labels != 0 if image is None else (image.voxels != 0).any(axis=0)
    box = bounding_box(content) or grid.whole
    x, y, z = grid.canonical_order().axes
    # A spacing that comes from a float32 affine is 1.0000000149.
    spacing = [round(mm, 6) for mm in grid.spacing_mm]
    return CaseFingerprint(
        id=name,
        shape_voxels=(grid.shape[x], grid.shape[y], grid.shape[z]),
        cropped_voxels=(box.shape[x], box.shape[y], box.shape[z]),
        spacing_mm=(spacing[x], spacing[y], spacing[z]),
        modalities=modalities,
        voxels=voxels,
    )


def _drawn(
    channel: NDArray[np.generic], foreground: NDArray[np.bool_], samples: int, random: np.random.Generator
) -> NDArray[np.float32]:
    inside = channel[foreground]
    if not inside.size:
        return np.zeros(0, np.float32)
    return inside[random.integers(inside.size, size=samples)].astype(np.float32)


def _intensities(
    dataset: Dataset, found: Sequence[tuple[CaseFingerprint, Samples]]
) -> tuple[Intensities, ...]:
    """One entry a channel and modality: one channel that is a CT here and a PET there has two."""
    pooled: dict[tuple[int, Modality], list[NDArray[np.float32]]] = {}
    for case, samples in found:
        for number, (modality, values) in enumerate(zip(case.modalities, samples, strict=True)):
            if values.size:
                pooled.setdefault((number, modality), []).append(values)
    entries = []
    for (number, modality), parts in sorted(pooled.items()):
        values = np.concatenate(parts)
        low, median, high = np.percentile(values, (0.5, 50, 99.5))
        entries.append(
            Intensities(
                channel=dataset.channels[number].name,
                modality=modality,
                cases=len(parts),
                mean=_rounded(values.mean(dtype=np.float64)),
                sd=_rounded(values.std(dtype=np.float64)),
                median=_rounded(median),
                low=_rounded(low),
                high=_rounded(high),
            )
        )
    return tuple(entries)


def _label(name: str, group: str | None, cases: Sequence[CaseFingerprint]) -> LabelFingerprint:
    sizes = [
        voxels * float(np.prod(case.spacing_mm)) / 1000
        for case in cases
        if (voxels := case.voxels.get(name, 0)) > 0
    ]
    return LabelFingerprint(
        group=group,
        cases=len(sizes),
        median_ml=_rounded(np.median(sizes)) if sizes else None,
        smallest_ml=_rounded(min(sizes)) if sizes else None,
    )


def _rounded(value: float | np.floating) -> float:
    """Six digits: a fingerprint is read by people."""
    return float(f"{float(value):.6g}")


def _keep(fingerprint: Fingerprint, folder: Path) -> None:
    path = folder / FINGERPRINT_FILE
    document = fingerprint.model_dump(mode="json")
    cases = document.pop("cases")
    # One line a case: a thousand cases stay readable.
    head = json.dumps(document, indent=1, ensure_ascii=False)[:-2]
    lines = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in cases)
    try:
        write_bytes(path, f'{head},\n "cases": [\n  {lines}\n ]\n}}\n'.encode())
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}. Choose another folder.") from error
