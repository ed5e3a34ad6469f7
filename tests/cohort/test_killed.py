"""Runs that are really killed, with SIGKILL at random moments, and go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textseg.cohort.jobs import JOURNAL_FILE, LOCK_FILE, SECRET_FILE
from textseg.cohort.run import entries_of
from textseg.cohort.worker import THREADS as WORKER_THREADS

DRIVER = Path(__file__).with_name("driver.py")
SCANS, ROUNDS = 16, 8
Tree = Callable[[Path], dict[str, bytes]]


def start(source: Path, out: Path, model: Path, nap_s: float = 0.02) -> subprocess.Popen[str]:
    command = [sys.executable, str(DRIVER), str(source), str(out), str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STUB_NAP_S": str(nap_s)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def end_of(run: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = run.communicate(timeout=300)
    end: dict[str, Any] = json.loads(output.splitlines()[-1])
    return end


def wait_for(run: subprocess.Popen[str], word: str) -> None:
    """Read what a run shows until this is in it."""
    assert run.stdout is not None
    assert any(word in line for line in run.stdout)


def wait_until_done(run: subprocess.Popen[str], count: int) -> None:
    """Read what a run shows until so many jobs are settled; it may count several at once."""
    assert run.stdout is not None
    shown = (re.search(r": (\d+) of", line) for line in run.stdout)
    assert any(found and int(found[1]) >= count for found in shown)


def wait_for_slow(run: subprocess.Popen[str], out: Path) -> None:
    """Read what a run shows until the scan that never ends is at work and few others are left."""
    wait_until_done(run, SCANS - WORKER_THREADS)
    deadline = time.monotonic() + 60
    while not (out.parent / "slow.began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def many_scans(tmp_path: Path, write_scan: Callable[[Path, int], Path]) -> Path:
    for number in range(SCANS):
        write_scan(tmp_path / "many" / f"scan{number:02d}.nii.gz", number)
    return tmp_path / "many"


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    many_scans: Path, tmp_path: Path, tiny_model: Path, tree_of: Tree
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert end_of(start(many_scans, undisturbed, tiny_model))["done"] == SCANS
    moments = random.Random(4)
    was_between = 0
    for round_number in range(ROUNDS):
        run = start(many_scans, killed, tiny_model, nap_s=0.1)
        if round_number == 0:  # one kill between the first job and the last, however fast the machine is
            wait_until_done(run, 1)
        else:
            wait_for(run, "segmenting")
            time.sleep(moments.uniform(0, 1.2))
        run.kill()
        run.wait()
        if run.stdout is not None:
            run.stdout.close()
        was_between += 0 < len(tree_of(killed)) < len(tree_of(undisturbed))
    assert was_between
    end = end_of(start(many_scans, killed, tiny_model))
    assert (end["done"], end["failed"], end["pending"], end["stopped"]) == (SCANS, 0, 0, None)
    assert tree_of(killed) == tree_of(undisturbed)
    # Nothing unfinished is left either.
    kept = {JOURNAL_FILE, LOCK_FILE, SECRET_FILE}
    assert {path.name for path in killed.iterdir()} - kept == {f"scan{n:02d}" for n in range(SCANS)}


def test_workers_of_a_killed_run_end_with_it(many_scans: Path, out: Path, tiny_model: Path) -> None:
    # A scan that would keep its worker for ten minutes.
    (many_scans / "scan00.nii.gz").rename(many_scans / "slow.nii.gz")
    run = start(many_scans, out, tiny_model)
    wait_for_slow(run, out)
    workers = children_of(run.pid)
    assert len(workers) == 2
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(worker) for worker in workers)


def test_the_first_interrupt_finishes_what_is_running(many_scans: Path, out: Path, tiny_model: Path) -> None:
    # Slow enough that the signal comes in the middle, also on a busy machine.
    run = start(many_scans, out, tiny_model, nap_s=0.4)
    wait_until_done(run, 2)
    run.send_signal(signal.SIGINT)
    end = end_of(run)
    assert end["stopped"] == "asked"
    assert 2 <= end["done"] < SCANS
    assert end["done"] + end["pending"] == SCANS
    assert {entry.state for entry in entries_of(out)} == {"done", "pending"}
    assert end_of(start(many_scans, out, tiny_model))["done"] == SCANS


def test_the_second_interrupt_stops_at_once(many_scans: Path, out: Path, tiny_model: Path) -> None:
    (many_scans / "scan00.nii.gz").rename(many_scans / "slow.nii.gz")
    run = start(many_scans, out, tiny_model)
    wait_for_slow(run, out)
    run.send_signal(signal.SIGINT)
    wait_for(run, "finishing")
    run.send_signal(signal.SIGINT)
    end = end_of(run)
    assert (end["done"] + end["pending"], end["stopped"]) == (SCANS, "asked")
    assert 1 <= end["pending"] <= WORKER_THREADS


def test_only_one_run_works_in_a_folder(many_scans: Path, out: Path, tiny_model: Path) -> None:
    (many_scans / "scan00.nii.gz").rename(many_scans / "slow.nii.gz")
    run = start(many_scans, out, tiny_model)
    try:
        wait_for(run, "segmenting")
        second = subprocess.run(
            [sys.executable, str(DRIVER), str(many_scans), str(out), str(tiny_model)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode != 0
        assert "Only one run works on a cohort at a time" in second.stderr
    finally:
        run.kill()
        run.communicate()


def children_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    if not children.exists():
        pytest.skip("Needs a system that lists the children of a process.")
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text(encoding="utf-8").split()]


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    # A zombie is dead; nobody has looked yet.
    return status.rpartition(")")[2].split()[0] != "Z"
