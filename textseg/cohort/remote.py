"""What runs inside of a dask worker: one worker process of ours, which outlives the tasks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from textseg.cohort.process import WorkerProcess
from textseg.cohort.task import Task

_lock = threading.Lock()
_process: WorkerProcess | None = None


def do_remotely(line: str, environments: Sequence[dict[str, str]], timeout_s: float | None) -> dict[str, Any]:
    """Do a task; gives its outcome as a dictionary and never raises, since dask logs what it can't do.

    Args:
        line: the task.
        environments: variables for the worker process, by the number of the dask worker; may be empty.
        timeout_s: the longest that one scan may take.
    """
    task = Task.from_line(line)
    return asdict(_own_process(environments, timeout_s).submit(task).result())


def close_process() -> None:
    """End the worker process of this dask worker."""
    global _process
    with _lock:
        process, _process = _process, None
    if process is not None:
        process.kill()


def _own_process(environments: Sequence[dict[str, str]], timeout_s: float | None) -> WorkerProcess:
    global _process
    with _lock:
        if _process is None:
            environment = environments[_number() % len(environments)] if environments else {}
            _process = WorkerProcess(environment, timeout_s)
        return _process


def _number() -> int:
    """Which worker of a local cluster this is; they are numbered from 0."""
    from distributed import get_worker

    name = str(get_worker().name)
    return int(name) if name.isdigit() else 0
