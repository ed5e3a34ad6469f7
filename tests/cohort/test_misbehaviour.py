"""Scans that take too long, too much memory, or their worker with them; disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cohort.conftest import Here, record_of
from textseg.cohort import process
from textseg.cohort.jobs import STAGING, Job, Settings
from textseg.cohort.journal import Journal
from textseg.cohort.run import Stop, entries_of, run_cohort
from textseg.cohort.task import Outcome, Task
from textseg.cohort.workers import LocalWorkers, Place

Find = Callable[..., tuple[Job, ...]]
Tree = Callable[[Path], dict[str, bytes]]
Named = Callable[..., Path]


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LocalWorkers]:
    """Real worker processes that run the stub of a network."""
    monkeypatch.setattr(process, "PROGRAM", (str(Path(__file__).with_name("stub_worker.py")),))

    def make(count: int = 1, timeout_s: float | None = None) -> LocalWorkers:
        return LocalWorkers([Place(1)] * count, timeout_s)

    return make


@pytest.fixture
def named(tmp_path: Path, write_scan: Callable[[Path, int], Path]) -> Named:
    """A folder with scans of these names."""

    def write(*names: str) -> Path:
        for number, name in enumerate(names):
            write_scan(tmp_path / "named" / f"{name}.nii.gz", number)
        return tmp_path / "named"

    return write


def states(out: Path) -> dict[str, str]:
    return {entry.id: entry.state for entry in entries_of(out)}


def reasons(out: Path) -> dict[str, str]:
    return {entry.id: entry.reason for entry in entries_of(out) if entry.reason}


def test_a_scan_that_takes_too_long_is_killed_and_the_others_go_on(
    named: Named, out: Path, jobs_of: Find, stubs: Callable[..., LocalWorkers], plain: Settings
) -> None:
    jobs = jobs_of(named("a", "b_slow", "c", "d", "e"))
    end = run_cohort(jobs, out, plain, stubs(timeout_s=4.0))
    assert (end.done, end.failed) == (4, 1)
    assert reasons(out) == {"b_slow": "It took longer than 4 s."}


def test_a_crash_fails_only_the_scan_that_crashes_alone_too(
    named: Named, out: Path, jobs_of: Find, stubs: Callable[..., LocalWorkers], plain: Settings
) -> None:
    jobs = jobs_of(named("a", "b_crash", "c", "d"), prompts=("liver", "spleen"))
    end = run_cohort(jobs, out, plain, stubs())
    assert (end.done, end.failed) == (3, 1)
    assert reasons(out) == {"b_crash": "Its worker crashed (SIGSEGV)."}
    # Those that were in the worker with it are done as if nothing had happened.
    assert [record_of(out, job)["cohort"]["prompts_at_once"] for job in "acd"] == [None] * 3


def test_a_scan_that_finds_no_memory_is_done_prompt_by_prompt(
    named: Named, out: Path, jobs_of: Find, stubs: Callable[..., LocalWorkers], plain: Settings
) -> None:
    jobs = jobs_of(named("a", "b_heavy", "c_hopeless"), prompts=("liver", "spleen"))
    end = run_cohort(jobs, out, plain, stubs())
    assert (end.done, end.failed) == (2, 1)
    assert record_of(out, "a")["cohort"]["prompts_at_once"] is None
    assert record_of(out, "b_heavy")["cohort"]["prompts_at_once"] == 1
    assert "memory" in reasons(out)["c_hopeless"]


def test_prompt_by_prompt_gives_the_same_masks(
    scans: Path, tmp_path: Path, jobs_of: Find, here: Here, plain: Settings, tree_of: Tree
) -> None:
    jobs = jobs_of(scans, prompts=("liver", "left kidney", "spleen"))
    run_cohort(jobs, tmp_path / "at_once", plain, here)

    def no_memory(task: Task) -> Outcome | None:
        return Outcome(task.id, "memory", "no memory") if task.prompts_at_once is None else None

    run_cohort(jobs, tmp_path / "one_by_one", plain, Here(no_memory))
    at_once, one_by_one = tree_of(tmp_path / "at_once"), tree_of(tmp_path / "one_by_one")
    masks = [name for name in at_once if "mask" in name]
    assert len(masks) == 9
    assert all(at_once[name] == one_by_one[name] for name in masks)


def test_on_a_gpu_the_processor_is_the_last_resort(
    scans: Path, out: Path, jobs_of: Find, plain: Settings
) -> None:
    here = Here(lambda task: Outcome(task.id, "memory") if task.device != "cpu" else None)
    end = run_cohort(jobs_of(scans), out, plain, here)
    assert end.done == 3
    first = here.tasks[0].id
    tried = [(task.prompts_at_once, task.device) for task in here.tasks if task.id == first]
    assert tried == [(None, "auto"), (1, "auto"), (1, "cpu")]


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    named: Named, out: Path, jobs_of: Find, stubs: Callable[..., LocalWorkers], plain: Settings, tree_of: Tree
) -> None:
    jobs = jobs_of(named("a", "b_full", "c", "d", "e", "f", "g", "h"))
    flag = out.parent / "full.flag"
    flag.touch()
    end = run_cohort(jobs, out, plain, stubs())
    assert (end.stopped, end.failed) == ("disk", 0)
    assert states(out)["b_full"] == "pending"
    assert end.done + end.pending == 8
    assert not (out / "b_full").exists()
    assert not (out / STAGING).exists()
    flag.unlink()
    assert run_cohort(jobs, out, plain, stubs()).done == 8


def test_writing_finds_the_disk_full_at_any_file(
    scans: Path, out: Path, jobs_of: Find, here: Here, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, writes = os.replace, iter(range(1000))

    def replace(source: Path, target: Path) -> None:
        if next(writes) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    assert run_cohort(jobs_of(scans), out, plain, here).stopped == "disk"
    assert not (out / "a").exists()


def test_a_journal_without_room_stops_the_run(
    scans: Path, out: Path, jobs_of: Find, here: Here, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", finish)
        assert run_cohort(jobs_of(scans), out, plain, here).stopped == "disk"
    # What was written before the journal could say so is found by its content.
    written = len(list(out.glob("*/result.json")))
    assert written
    end = run_cohort(jobs_of(scans), out, plain, Here())
    assert (end.done, end.found_done) == (3, written)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("Needs the right to mount a small disk.")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(
    named: Named, small_disk: Path, jobs_of: Find, stubs: Callable[..., LocalWorkers], plain: Settings
) -> None:
    jobs = jobs_of(named(*"abcdef"))
    out = small_disk / "out"
    out.mkdir()
    run_cohort(jobs[:1], out, plain, stubs())
    blocks = small_disk / "blocks"
    blocks.write_bytes(b"\0" * shutil.disk_usage(small_disk).free)
    end = run_cohort(jobs, out, plain, stubs())
    assert (end.stopped, end.failed) == ("disk", 0)
    blocks.unlink()
    assert run_cohort(jobs, out, plain, stubs()).done == 6


def test_stopping_releases_what_has_not_begun(scans: Path, out: Path, jobs_of: Find, plain: Settings) -> None:
    stop = Stop()

    def stop_at_first(task: Task) -> None:
        stop.ask()

    end = run_cohort(jobs_of(scans), out, plain, Here(stop_at_first), stop=stop)
    assert (end.stopped, end.done, end.pending) == ("asked", 1, 2)
