"""Where tasks are done: the interface of workers, and those of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from textseg.cohort.process import WorkerProcess
from textseg.cohort.task import Outcome, Task
from textseg.cohort.worker import THREADS

if TYPE_CHECKING:
    from textseg.device import DeviceChoice

# Up to so many cores, one worker a core is fastest: half of the work around a network runs on one core.
CORES_FOR_ONE_EACH = 4


class Workers(Protocol):
    """Whoever does tasks; the futures that they give never raise."""

    @property
    def capacity(self) -> int:
        """How many tasks keep all of them busy, the next ones being read included."""
        ...

    def submit(self, task: Task) -> Future[Outcome]: ...

    def wind_down(self) -> None:
        """Finish what is running and release what has not begun."""
        ...

    def close(self) -> None:
        """End, once everything is done."""
        ...

    def kill(self) -> None:
        """End now."""
        ...


@dataclass(frozen=True)
class Place:
    """A part of the machine for one worker: some threads, and a GPU or none."""

    threads: int
    gpu: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        # Torch, NumPy and SimpleITK all ask for these before they start threads of their own.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        threads = {name: str(self.threads) for name in names}
        return threads if self.gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": self.gpu}


class LocalWorkers:
    """Worker processes on this machine, each with a model that stays loaded.

    Args:
        places: what each process may use, from `places_for`.
        timeout_s: the longest that one scan may take; None for as long as it wants.
    """

    def __init__(self, places: Sequence[Place], timeout_s: float | None = None) -> None:
        self._processes = [WorkerProcess(place.environment, timeout_s) for place in places]

    @property
    def capacity(self) -> int:
        return THREADS * len(self._processes)

    def submit(self, task: Task) -> Future[Outcome]:
        return min(self._processes, key=lambda process: process.tasks).submit(task)

    def wind_down(self) -> None:
        for process in self._processes:
            process.wind_down()

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()


def places_for(device: DeviceChoice, jobs: int | None = None, threads: int | None = None) -> list[Place]:
    """A place for each worker: one a GPU where there are some, else the cores shared out among processes.

    Args:
        jobs: how many workers; None for as many as suit the machine.
        threads: of each; None for an even share of the cores.
    """
    cores = len(os.sched_getaffinity(0))
    gpus = visible_gpus() if device != "cpu" else []
    count = jobs or len(gpus) or (cores if cores <= CORES_FOR_ONE_EACH else cores // 2)
    share = threads or max(1, cores // count)
    return [Place(share, gpus[i % len(gpus)] if gpus else None) for i in range(count)]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asks the driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()
