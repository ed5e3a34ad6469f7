"""Workers beyond this machine, through dask.distributed: a local cluster, Slurm, or a scheduler's address.

dask carries tasks to workers and gives those of lost workers to others. Each dask worker keeps one worker
process of ours, so timeouts, crashes and models that stay loaded are the same as on one machine. Scans and
the output folder must be reachable under the same paths from everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from textseg.cohort.jobs import CohortError
from textseg.cohort.remote import close_process, do_remotely
from textseg.cohort.task import Outcome, Task
from textseg.cohort.worker import THREADS
from textseg.cohort.workers import Place, places_for
from textseg.embeddings.extras import import_extra

if TYPE_CHECKING:
    from textseg.device import DeviceChoice

PURPOSE = "A cohort on a cluster"
# A task takes a third of a GPU, so that three share it as three threads share a worker process.
GPU_SHARE = 1 / THREADS
SECONDS_TO_ANSWER = 20.0
SLURM_OPTIONS = (
    "queue",
    "account",
    "cores",
    "memory",
    "walltime",
    "gpus",
    "interface",
    "directive",
    "prologue",
)
# Those of the options that are numbers, and what holds where they are not given.
SLURM_NUMBERS = {"cores": "4", "gpus": "0"}


class DaskWorkers:
    """Tasks to the workers of a dask cluster.

    Args:
        client: of a scheduler, from `dask.distributed`.
        cluster: that was started for this run and ends with it; None for one that others own.
        places: what each local worker may use, by its number; none where the cluster sees to that.
        timeout_s: the longest that one scan may take.
        on_gpu: whether tasks go to workers with the resource "GPU" only; None for those if there are any.
    """

    def __init__(
        self,
        client: Any,
        cluster: Any = None,
        places: Sequence[Place] = (),
        timeout_s: float | None = None,
        on_gpu: bool | None = None,
    ) -> None:
        self.client, self._cluster = client, cluster
        self._environments = [place.environment for place in places]
        self._timeout_s, self._on_gpu = timeout_s, on_gpu
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._remote: dict[str, tuple[Any, Future[Outcome]]] = {}
        self._is_winding_down = False

    @property
    def capacity(self) -> int:
        """Grows and shrinks with the cluster; at least what one worker takes, so that a run waits for it."""
        threads: dict[str, int] = self.client.nthreads()
        return max(THREADS, sum(threads.values()))

    def submit(self, task: Task) -> Future[Outcome]:
        outcome: Future[Outcome] = Future()
        if self._is_winding_down:
            outcome.set_result(Outcome(task.id, "released"))
            return outcome
        if self.client.status != "running":
            raise CohortError(
                "The dask scheduler must stay reachable, but it is gone. Run the same command again to go on."
            )
        resources = {"GPU": GPU_SHARE} if self._wants_gpu(task) else None
        remote = self.client.submit(
            do_remotely,
            task.to_line(),
            self._environments,
            self._timeout_s,
            # The scheduler's logs show keys: a job's name is fit for them, its paths are not.
            key=f"{task.id}-{next(self._numbers)}",
            pure=False,
            resources=resources,
        )
        with self._lock:
            self._remote[task.id] = (remote, outcome)
        remote.add_done_callback(lambda done: self._settle(task, done))
        return outcome

    def wind_down(self) -> None:
        """Nothing new; what dask has not given to a worker yet is released."""
        self._is_winding_down = True
        begun = {key for keys in self.client.processing().values() for key in keys}
        with self._lock:
            remotes = [(job, remote) for job, (remote, _) in self._remote.items()]
        waiting = [(job, remote) for job, remote in remotes if remote.key not in begun]
        self._release(waiting)

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        """Take all tasks back, and end the cluster if it was started for this run."""
        with self._lock:
            waiting = [(job, remote) for job, (remote, _) in self._remote.items()]
        self._release(waiting)
        client, cluster = self.client, self._cluster
        self.client = self._cluster = None
        if cluster is not None:
            # Ends our processes too: they see that nobody talks to them any more.
            cluster.close()
        if client is not None:
            with contextlib.suppress(Exception):
                client.run(close_process)
            client.close()

    def _wants_gpu(self, task: Task) -> bool:
        if task.device == "cpu":
            return False
        if self._on_gpu is not None:
            return self._on_gpu
        workers = self.client.scheduler_info()["workers"].values()
        return any(worker.get("resources", {}).get("GPU") for worker in workers)

    def _release(self, remotes: Sequence[tuple[str, Any]]) -> None:
        for job, remote in remotes:
            with contextlib.suppress(Exception):
                remote.cancel()
            self._answer(Outcome(job, "released"))

    def _settle(self, task: Task, remote: Any) -> None:
        """Take what a remote task gave; its worker may have died under it more often than dask bears."""
        if remote.status == "finished":
            self._answer(Outcome.from_json(remote.result()))
        elif remote.status == "cancelled":
            self._answer(Outcome(task.id, "released"))
        else:
            self._answer(
                Outcome(task.id, "lost", "Its worker was lost, and so were those that it went to next.")
            )

    def _answer(self, outcome: Outcome) -> None:
        with self._lock:
            _, future = self._remote.pop(outcome.id, (None, None))
        if future is not None:
            future.set_result(outcome)


def places_on(
    where: str,
    device: DeviceChoice,
    jobs: int | None,
    threads: int | None,
    options: Mapping[str, Sequence[str]],
) -> list[Place]:
    """A place for each worker of a cluster; none where others have started the workers.

    This machine is shared out for "local" alone. That from which Slurm is asked is another one than those
    that compute: there is one worker a Slurm job, with all of its cores, and one job unless more are asked
    for.

    Args:
        where, options: as for `open_cluster`.
        jobs, threads: as they were asked for, if they were.

    Raises:
        CohortError: a number among the options is none.
    """
    if where == "slurm":
        return [Place(threads or _slurm_number(options, "cores"))] * (jobs or 1)
    return places_for(device, jobs, threads) if where == "local" else []


def open_cluster(
    where: str,
    places: Sequence[Place],
    options: Mapping[str, Sequence[str]],
    timeout_s: float | None = None,
    on_gpu: bool | None = None,
) -> DaskWorkers:
    """Workers of a cluster.

    Args:
        where: "local", "slurm", or the address of a scheduler such as "tcp://10.0.0.1:8786".
        places: from `places_on`.
        options: of Slurm, by names in SLURM_OPTIONS.
        on_gpu: whether tasks may go to workers with a GPU only; None for those if there are any.

    Raises:
        CohortError: an unknown kind or option, no scheduler answers, or no worker has a GPU where it must.
        ModelError: the libraries of the extra "cluster" are not installed.
    """
    distributed = import_extra("distributed", "cluster", PURPOSE)
    if where == "local":
        _need_gpu(on_gpu, any(place.gpu for place in places), "this machine shows none")
        cluster = local_cluster(places)
        return DaskWorkers(distributed.Client(cluster), cluster, places, timeout_s, on_gpu)
    if where == "slurm":
        has_gpu = _slurm_number(options, "gpus") > 0
        _need_gpu(on_gpu, has_gpu, "Slurm is asked for none; give the option gpus=1")
        cluster = slurm_cluster(options)
        cluster.scale(jobs=len(places))
        gpu = on_gpu if on_gpu is not None else has_gpu
        return DaskWorkers(distributed.Client(cluster), cluster, (), timeout_s, gpu)
    if "://" not in where:
        raise CohortError(f"A cluster is local, slurm or an address such as tcp://host:8786, got {where}.")
    try:
        client = distributed.Client(where, timeout=SECONDS_TO_ANSWER)
    except (OSError, ValueError) as error:
        raise CohortError(
            f"A dask scheduler must answer at {where}, but none does. Start one with `dask scheduler`."
        ) from error
    workers = client.scheduler_info()["workers"].values()
    # Those that are still to come may have one.
    has_gpu = not workers or any(worker.get("resources", {}).get("GPU") for worker in workers)
    _need_gpu(on_gpu, has_gpu, "its workers offer none; start them with --resources GPU=1")
    return DaskWorkers(client, None, (), timeout_s, on_gpu)


def _need_gpu(is_needed: bool | None, is_there: bool, why: str) -> None:
    """dask would wait for a worker with a GPU for ever."""
    if is_needed and not is_there:
        raise CohortError(f"--device cuda needs a GPU for every worker of the cluster, but {why}.")


def local_cluster(places: Sequence[Place]) -> Any:
    """A cluster of processes on this machine, one a place, which dask starts anew when they are killed."""
    distributed = import_extra("distributed", "cluster", PURPOSE)
    resources = {"GPU": 1} if any(place.gpu for place in places) else None
    return distributed.LocalCluster(
        n_workers=len(places),
        threads_per_worker=THREADS,
        # The network runs in a process of ours, of which dask knows nothing.
        memory_limit=0,
        resources=resources,
        dashboard_address=None,
        local_directory=tempfile.gettempdir(),
        silence_logs="CRITICAL",
    )


def slurm_cluster(options: Mapping[str, Sequence[str]]) -> Any:
    """A cluster whose workers are Slurm jobs; its `job_script()` is what sbatch gets.

    Args:
        options: queue, account, cores, memory, walltime, gpus, interface, and any number of directive
            ("--exclusive") and prologue (a line of shell, such as the activation of an environment).

    Raises:
        CohortError: an option is unknown, or a number is none.
    """
    unknown = [name for name in options if name not in SLURM_OPTIONS]
    if unknown:
        raise CohortError(f"An option for Slurm is one of {', '.join(SLURM_OPTIONS)}, got {unknown[0]}.")
    jobqueue = import_extra("dask_jobqueue", "cluster", PURPOSE)
    single = {name: values[-1] for name, values in options.items()}
    gpus = _slurm_number(options, "gpus")
    directives = [*options.get("directive", ()), *([f"--gres=gpu:{gpus}"] if gpus else [])]
    resources = ["--resources", f"GPU={gpus}"] if gpus else []
    return jobqueue.SLURMCluster(
        queue=single.get("queue"),
        account=single.get("account"),
        cores=_slurm_number(options, "cores"),
        memory=single.get("memory", "16GB"),
        walltime=single.get("walltime", "12:00:00"),
        interface=single.get("interface"),
        processes=1,
        job_extra_directives=directives,
        job_script_prologue=list(options.get("prologue", ())),
        worker_extra_args=["--nthreads", str(THREADS), *resources],
        scheduler_options={"dashboard_address": None},
    )


def read_options(texts: Sequence[str]) -> dict[str, list[str]]:
    """Options as they are typed, NAME=VALUE, each as often as it was given.

    Raises:
        CohortError: one has no "=".
    """
    options: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise CohortError(f"An option of a cluster is NAME=VALUE, such as queue=gpu, got {text}.")
        options.setdefault(name.strip(), []).append(value.strip())
    return options


def _slurm_number(options: Mapping[str, Sequence[str]], name: str) -> int:
    text = options[name][-1] if name in options else SLURM_NUMBERS[name]
    if not text.isdigit():
        raise CohortError(f"{name} must be a whole number, got {text}.")
    return int(text)
