"""What workers do side by side, what they share of a machine, and how they tell what went wrong."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from textseg.cohort.folders import whole_folder
from textseg.cohort.jobs import Job, Settings
from textseg.cohort.task import Task, task_of
from textseg.cohort.worker import THREADS, Worker
from textseg.cohort.workers import Place, places_for
from textseg.device import NotEnoughMemoryError
from textseg.errors import ScanError

Find = Callable[..., tuple[Job, ...]]
SECONDS = 20.0


@pytest.fixture
def tasks(scans: Path, out: Path, jobs_of: Find, plain: Settings, tiny_model: Path) -> list[Task]:
    return [task_of(job, f"key of {job.id}", plain, tiny_model, out, "") for job in jobs_of(scans)]


def test_one_scan_is_read_and_one_written_while_one_is_in_the_network(tasks: list[Task]) -> None:
    """Each waits for the others to be where they should, and would wait in vain were they done one by one."""
    entered: list[str] = []
    is_second_there, is_first_writing = threading.Event(), threading.Event()
    were_read = {task.id: threading.Event() for task in tasks}
    side_by_side: list[bool] = []

    def segment(channels: list[Any], task: Task, say: Any) -> str:
        entered.append(task.id)
        if len(entered) == 2:
            is_second_there.set()
            (third,) = set(were_read) - set(entered)
            side_by_side.append(is_first_writing.wait(SECONDS) and were_read[third].wait(SECONDS))
        return task.id

    def write(answer: str, task: Task) -> None:
        if answer == entered[0]:
            is_first_writing.set()
            side_by_side.append(is_second_there.wait(SECONDS))

    worker = Worker(segment, write)
    with ThreadPoolExecutor(THREADS) as threads:
        ends = [
            threads.submit(
                worker.run, task, lambda stage, name=task.id: stage == "waiting" and were_read[name].set()
            )
            for task in tasks
        ]
        assert [end.result().status for end in ends] == ["done"] * 3
    assert side_by_side == [True, True]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), "memory", "The memory is not enough for this scan"),
        (RuntimeError("CUDA error: out of memory"), "memory", "not enough"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory", "not enough"),
        (RuntimeError("std::bad_alloc"), "memory", "not enough"),
        (NotEnoughMemoryError("One window must fit."), "memory", "One window must fit."),
        (RuntimeError("shapes do not match\nat all"), "failed", r"RuntimeError: shapes do not match\)"),
        (ScanError("It is flat."), "failed", "It is flat."),
    ],
)
def test_what_goes_wrong_is_told_apart(tasks: list[Task], error: Exception, status: str, words: str) -> None:
    def segment(*_: Any) -> None:
        raise error

    outcome = Worker(segment).run(tasks[0], lambda stage: None)
    assert outcome.status == status
    assert re.search(words, outcome.reason), outcome.reason


def test_masks_of_prompts_that_were_asked_one_by_one_stay_packed(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred unpacked masks of a large scan are the gigabytes that were missing."""
    from textseg.packed import PackedMasks

    whole: list[Any] = []
    monkeypatch.setattr(PackedMasks, "__array__", lambda masks, *_, **__: whole.append(masks))
    task = replace(
        tasks[0],
        prompts=("liver", "spleen", "left kidney"),
        prompts_at_once=1,
        settings=Settings(formats=("nrrd",)),
    )
    outcome = Worker().run(task, lambda stage: None)
    assert (outcome.status, outcome.reason) == ("done", "")
    assert len(list(task.folder.glob("*.nrrd"))) == 3
    assert whole == []


@pytest.mark.parametrize("appears_at", [0, 1])
def test_another_worker_may_write_the_same_job_at_the_same_moment(
    tasks: list[Task], appears_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dask worker does that was taken for lost; the outputs are the same, and one of them stays."""
    task, real, calls = tasks[0], os.replace, iter(range(100))

    def replace_late(source: Path, target: Path) -> None:
        if next(calls) == appears_at:
            if task.folder.exists():
                (task.folder / "older.txt").unlink()
                task.folder.rmdir()
            else:
                task.folder.mkdir()
                (task.folder / "other.txt").write_text("of the other worker")
        real(source, target)

    if appears_at == 1:
        task.folder.mkdir(parents=True)
        (task.folder / "older.txt").write_text("of an earlier run")
    monkeypatch.setattr("os.replace", replace_late)
    with whole_folder(task) as folder:
        (folder / "own.txt").write_text("of this one")
    assert [path.name for path in task.folder.iterdir()] == ["own.txt"]


def cores(monkeypatch: pytest.MonkeyPatch, count: int, gpus: str = "") -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(count)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)


@pytest.mark.parametrize(
    ("count", "jobs", "threads", "places"),
    [
        (2, None, None, [Place(1)] * 2),
        (4, None, None, [Place(1)] * 4),
        (16, None, None, [Place(2)] * 8),
        (16, 3, None, [Place(5)] * 3),
        (2, 4, None, [Place(1)] * 4),
        (16, None, 4, [Place(4)] * 8),
    ],
)
def test_cores_are_shared_out_among_workers(
    count: int,
    jobs: int | None,
    threads: int | None,
    places: list[Place],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores(monkeypatch, count)
    assert places_for("auto", jobs, threads) == places
    assert places[0].environment["OMP_NUM_THREADS"] == str(places[0].threads)


def test_each_gpu_has_one_worker_that_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 16, gpus="2, 5")
    assert places_for("auto") == [Place(8, "2"), Place(8, "5")]
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in places_for("cuda")] == ["2", "5"]
    assert [place.gpu for place in places_for("auto", 3)] == ["2", "5", "2"]
    assert {place.gpu for place in places_for("cpu")} == {None}


def test_the_driver_is_asked_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    answer = subprocess.CompletedProcess([], 0, stdout="0\n1\n2\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: answer)
    assert [place.gpu for place in places_for("auto")] == ["0", "1", "2"]

    def no_driver(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr("subprocess.run", no_driver)
    assert [place.gpu for place in places_for("auto")] == [None] * 4
