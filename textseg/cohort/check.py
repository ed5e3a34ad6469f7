"""Looking at every scan before a cohort is run: what is wrong, and how long and how much it will take."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from textseg.cohort.content import scan_content
from textseg.cohort.jobs import Backend, Job, Problem, Settings
from textseg.cohort.privacy import hide_in, sentence_of
from textseg.cohort.reading import channels_of
from textseg.dicom_output import DICOM_KINDS
from textseg.errors import TextsegError
from textseg.models import ModelFolder, find_model
from textseg.volume import guess_modality

if TYPE_CHECKING:
    from textseg.device import DeviceChoice

Progress = Callable[[str, int, int], None]
# A mask as gzipped NIfTI, and a preview: what scans of the usual sizes gave.
MASK_BYTES_PER_VOXEL, PREVIEW_BYTES, RECORD_BYTES = 0.004, 250_000, 12_000


@dataclass(frozen=True)
class Look:
    """What reading one scan told.

    Args:
        voxels: of all channels; 0 where it can't be read.
        seconds: that it took.
        content: its hash, to find scans that are there twice.
    """

    job: str
    problems: tuple[Problem, ...]
    voxels: int = 0
    seconds: float = 0.0
    content: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a run will take: seconds in all, bytes of output, and bytes that are free where it goes."""

    seconds: float | None
    disk_bytes: int
    free_bytes: int


def check_jobs(
    jobs: Sequence[Job],
    settings: Settings,
    workers: int = 1,
    progress: Progress = lambda stage, done, of: None,
) -> list[Look]:
    """Read every scan, model and prompt of a cohort as a run would; one look a job, in their order.

    Args:
        workers: scans that are read at once.
        progress: called with the stage in words, the scans read and all scans.
    """
    looks = {}
    if workers == 1 or len(jobs) == 1:
        for done, job in enumerate(jobs):
            progress("reading every scan", done, len(jobs))
            looks[job.id] = look_at(job, settings)
    else:
        looks = _looks_of_several(jobs, settings, workers, progress)
    return _with_copies_named([looks[job.id] for job in jobs])


def look_at(job: Job, settings: Settings) -> Look:
    """Read one scan, and its prompts as its model reads them; never raises for what is wrong with them."""
    began = time.monotonic()
    problems: list[Problem] = []
    voxels, content = 0, ""
    try:
        model = _model(job.model)
        model.read_prompts(job.prompts)
    except TextsegError as error:
        problems.append(Problem(job.id, str(error)))
    else:
        try:
            content = scan_content(job, _Forgetful())
            voxels, found = _read(job, model, settings)
            problems += found
        except TextsegError as error:
            problems.append(Problem(job.id, sentence_of(error, job, settings.ids)))
        except Exception as error:
            words = f"Reading failed ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
            problems.append(Problem(job.id, hide_in(job, settings.ids, words)))
    shown = tuple(replace(one, what=hide_in(job, settings.ids, one.what)) for one in problems)
    return Look(job.id, shown, voxels, time.monotonic() - began, content)


def estimate(
    looks: Sequence[Look],
    jobs: Sequence[Job],
    settings: Settings,
    out: Path,
    workers: int,
    seconds_per_voxel: float | None,
) -> Estimate:
    """How long a run will take and how much it will write, by the sizes of the scans that can be read.

    Args:
        seconds_per_voxel: that one worker needs, from `measure_speed` or an earlier run; None if unknown.
    """
    masks = {job.id: len(job.prompts) * max(1, len(settings.formats)) for job in jobs}
    good = [look for look in looks if look.voxels]
    voxels = sum(look.voxels for look in good)
    each = RECORD_BYTES + (PREVIEW_BYTES if settings.preview else 0)
    disk = sum(each + masks[look.job] * look.voxels * MASK_BYTES_PER_VOXEL for look in good)
    seconds = None if seconds_per_voxel is None else voxels * seconds_per_voxel / workers
    nearest = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    return Estimate(seconds, int(disk), shutil.disk_usage(nearest).free)


def measure_speed(
    looks: Sequence[Look],
    jobs: Sequence[Job],
    device: DeviceChoice,
    threads: int,
    backend: Backend = "torch",
) -> float | None:
    """Seconds a voxel of one worker, from segmenting the scan of median size; None where that fails."""
    good = sorted((look for look in looks if look.voxels), key=lambda look: look.voxels)
    if not good:
        return None
    middle = good[len(good) // 2]
    job = next(job for job in jobs if job.id == middle.job)
    from textseg.inference import Segmenter

    try:
        segmenter = Segmenter(job.model, device=device, threads=threads, backend=backend)
        began = time.monotonic()
        with channels_of(job, "hash") as channels:
            segmenter(channels, job.prompts, modality=job.modality)
        return (time.monotonic() - began) / middle.voxels
    except (TextsegError, MemoryError, RuntimeError):
        # What goes wrong with this scan will show in the run; here it only costs the estimate.
        return None


@cache
def _model(name: str) -> ModelFolder:
    return find_model(name)


def _read(job: Job, model: ModelFolder, settings: Settings) -> tuple[int, list[Problem]]:
    """The voxels of a scan, and what its reader and its model say about it."""
    with channels_of(job, settings.ids) as channels:
        count = sum(one.channels for one in channels)
        voxels = sum(int(one.voxels.size) for one in channels)
        modality = job.modality or channels[0].modality or guess_modality(channels[0].voxels)
        lines = [line for one in channels if one.file for line in one.file.details["warnings"]]
        is_dicom = channels[0].file is not None and channels[0].file.format == "dicom"
    found = [Problem(job.id, line, "warning") for line in lines]
    not_written = [] if is_dicom else [kind for kind in settings.formats if kind in DICOM_KINDS]
    if not_written:
        found.append(
            Problem(job.id, f"It is no DICOM, so there will be no {' and no '.join(not_written)}.", "note")
        )
    try:
        model.check_channels(count)
    except TextsegError as error:
        found.append(Problem(job.id, str(error)))
    if model.kind == "textseg" and modality not in model.plan.intensity:
        known = ", ".join(model.plan.intensity)
        found.append(Problem(job.id, f"The model knows {known}, but this is {modality}."))
    return voxels, found


class _Forgetful:
    """Remembers no hashes: nothing is kept of a check."""

    def recall(self, signature: str) -> str | None:
        return None

    def remember(self, signature: str, content: str) -> None: ...


def _looks_of_several(
    jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress
) -> dict[str, Look]:
    looks: dict[str, Look] = {}
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        futures = {pool.submit(look_at, job, settings): job for job in jobs}
        for future in as_completed(futures):
            progress("reading every scan", len(looks), len(jobs))
            try:
                look = future.result()
            except BrokenProcessPool:
                break
            looks[look.job] = look
    for job in jobs:
        # A scan that crashes its reader takes the pool with it; nobody knows which one it was.
        lost = Problem(job.id, "It was not read, since a scan made its reader crash; try --jobs 1.")
        looks.setdefault(job.id, Look(job.id, (lost,)))
    return looks


def _with_copies_named(looks: Sequence[Look]) -> list[Look]:
    """The looks, with a note where the same scan is there under another name."""
    first: dict[str, str] = {}
    copies: dict[str, list[Problem]] = defaultdict(list)
    for look in looks:
        if look.content:
            original = first.setdefault(look.content, look.job)
            if original != look.job:
                copies[look.job].append(Problem(look.job, f"The same scan as {original}.", "note"))
    return [replace(look, problems=(*look.problems, *copies[look.job])) for look in looks]
