"""Cohorts on dask: a real local cluster whose workers are killed, and Slurm's job script as text."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cohort.conftest import record_of
from textseg.cohort.jobs import CohortError, Job, Settings
from textseg.cohort.run import entries_of, run_cohort
from textseg.cohort.task import Task
from textseg.cohort.workers import Place

distributed = pytest.importorskip("distributed", reason="Needs dask.distributed, of the extra cluster.")
pytest.importorskip("dask_jobqueue", reason="Needs dask-jobqueue, of the extra cluster.")

from textseg.cohort.cluster import (  # noqa: E402
    DaskWorkers,
    local_cluster,
    open_cluster,
    places_on,
    read_options,
    slurm_cluster,
)

Find = Callable[..., tuple[Job, ...]]
STUB = Path(__file__).with_name("stub_worker.py")


@pytest.fixture
def stub_client() -> Iterator[Any]:
    """A local cluster of two workers that run the stub of a network, also when dask starts them anew."""
    cluster = local_cluster([Place(1), Place(1)])
    client = distributed.Client(cluster)
    client.register_plugin(stub_plugin(str(STUB)))
    client.own_cluster = cluster
    yield client
    client.close()
    cluster.close()


def stub_plugin(path: str) -> Any:
    # Defined here, so that it is sent as it is: workers can't import tests.
    class UseStub(distributed.WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            from textseg.cohort import process

            process.PROGRAM = (path,)

    return UseStub()


def test_jobs_of_killed_workers_are_done_by_others(
    tmp_path: Path,
    out: Path,
    jobs_of: Find,
    plain: Settings,
    write_scan: Callable[[Path, int], Path],
    stub_client: Any,
    tree_of: Callable[[Path], dict[str, bytes]],
) -> None:
    for number in range(24):
        write_scan(tmp_path / "many" / f"scan{number:02d}.nii.gz", number)
    jobs = jobs_of(tmp_path / "many", prompts=("liver", "spleen"))
    killed: list[int] = []

    def kill_now_and_then(stage: str, done: int, of: int) -> None:
        if len(killed) < 2 and done >= 4 * (len(killed) + 1):
            pids = list(stub_client.run(os.getpid).values())
            if pids and pids[0] not in killed:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

    workers = DaskWorkers(stub_client, stub_client.own_cluster)
    end = run_cohort(jobs, out, plain, workers, progress=kill_now_and_then)
    assert len(killed) == 2
    assert (end.done, end.failed, end.pending) == (24, 0, 0)
    assert {entry.state for entry in entries_of(out)} == {"done"}
    assert len(tree_of(out)) == 24 * 4


def test_stopping_hands_back_what_dask_has_not_begun(
    tmp_path: Path,
    out: Path,
    jobs_of: Find,
    plain: Settings,
    write_scan: Callable[[Path, int], Path],
    stub_client: Any,
) -> None:
    from textseg.cohort.run import Stop

    for number in range(20):
        write_scan(tmp_path / "many" / f"scan{number:02d}.nii.gz", number)
    write_scan(tmp_path / "many" / "zz_slow.nii.gz", 20)
    stop = Stop()

    def stop_soon(stage: str, done: int, of: int) -> None:
        if done >= 3 and not stop.requests:
            stop.ask()
            threading.Thread(target=lambda: (time.sleep(2), stop.ask())).start()

    end = run_cohort(
        jobs_of(tmp_path / "many"), out, plain, DaskWorkers(stub_client), stop=stop, progress=stop_soon
    )
    assert end.stopped == "asked"
    assert 3 <= end.done < 21
    assert end.done + end.pending == 21


@pytest.mark.slow
def test_a_local_cluster_segments_with_a_model(
    scans: Path, out: Path, jobs_of: Find, plain: Settings
) -> None:
    workers = open_cluster("local", [Place(1)], {})
    end = run_cohort(jobs_of(scans), out, plain, workers)
    assert end.done == 3
    assert record_of(out, "a")["model"]["name"] == "tiny"


def test_gpu_jobs_go_to_gpu_workers_only(out: Path, scans: Path, jobs_of: Find, plain: Settings) -> None:
    asked: list[dict[str, Any]] = []

    class Unfinished:
        def add_done_callback(self, call: Any) -> None: ...

    class Client:
        status = "running"

        def __init__(self, resources: dict[str, float]) -> None:
            self.resources = resources

        def scheduler_info(self) -> dict[str, Any]:
            return {"workers": {"one": {"resources": {}}, "two": {"resources": self.resources}}}

        def submit(self, function: Any, line: str, *rest: Any, **options: Any) -> Any:
            asked.append(options)
            return Unfinished()

    def resources_for(device: str, resources: dict[str, float], on_gpu: bool | None = None) -> Any:
        task = Task(
            "job", (), (), None, None, ("liver",), "m", None, False, (), "key", plain, "", "", "", device
        )  # type: ignore[arg-type]
        DaskWorkers(Client(resources), on_gpu=on_gpu).submit(task)
        return asked[-1]["resources"]

    gpu = {"GPU": pytest.approx(1 / 3)}
    assert resources_for("auto", {"GPU": 1.0}) == gpu
    assert resources_for("auto", {}) is None
    assert resources_for("cpu", {"GPU": 1.0}) is None
    assert resources_for("cuda", {}, on_gpu=True) == gpu


def test_slurm_is_asked_for_what_was_said() -> None:
    options = read_options(
        [
            *("queue=gpu", "account=radiology", "cores=8", "memory=32GB", "walltime=02:30:00", "gpus=1"),
            *(
                "directive=--exclusive",
                "directive=--constraint=a100",
                "prologue=source /opt/env/bin/activate",
            ),
        ]
    )
    cluster = slurm_cluster(options)
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    lines = script.splitlines()
    assert lines[0].startswith("#!")
    for directive in (
        *("-p gpu", "-A radiology", "--cpus-per-task=8", "--mem=30G", "-t 02:30:00"),
        *("--gres=gpu:1", "--exclusive", "--constraint=a100"),
    ):
        assert f"#SBATCH {directive}" in lines
    assert "source /opt/env/bin/activate" in lines
    worker = next(line for line in lines if "distributed" in line and "worker" in line)
    assert "--resources GPU=1" in worker
    assert "--nthreads 3" in worker
    assert lines.index("source /opt/env/bin/activate") < lines.index(worker)


def test_a_slurm_job_is_one_worker_with_all_of_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine on which a run is started has other cores than those that compute."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    options = read_options(["cores=12"])
    assert places_on("slurm", "auto", None, None, options) == [Place(12)]
    assert places_on("slurm", "auto", 5, None, {}) == [Place(4)] * 5
    assert places_on("slurm", "auto", 2, 3, options) == [Place(3)] * 2
    assert places_on("tcp://host:8786", "auto", None, None, {}) == []
    assert places_on("local", "cpu", None, None, {}) == [Place(2)] * 32


@pytest.mark.parametrize(
    ("where", "options", "words"),
    [
        ("local", [], "this machine shows none"),
        ("slurm", ["gpus=0"], "give the option gpus=1"),
        ("tcp://host:8786", [], "--resources GPU=1"),
    ],
)
def test_a_gpu_that_nobody_offers_is_not_waited_for(
    where: str, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def __init__(self, address: str, timeout: float) -> None: ...

        def scheduler_info(self) -> dict[str, Any]:
            return {"workers": {"one": {"resources": {}}}}

    monkeypatch.setattr(distributed, "Client", Client)
    with pytest.raises(CohortError, match=f"--device cuda needs a GPU .* {words}"):
        open_cluster(where, [Place(1)], read_options(options), on_gpu=True)


@pytest.mark.parametrize(
    ("where", "options", "words"),
    [
        ("kubernetes", [], "local, slurm or an address"),
        ("slurm", ["partition=gpu"], "one of queue"),
        ("slurm", ["gpus=many"], "whole number"),
        ("tcp://127.0.0.1:1", [], "none does"),
    ],
)
def test_a_wrong_cluster_is_said(
    where: str, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textseg.cohort.cluster.SECONDS_TO_ANSWER", 0.3)
    with pytest.raises(CohortError, match=words):
        open_cluster(where, [Place(1)], read_options(options))


def test_an_option_has_a_name_and_a_value() -> None:
    with pytest.raises(CohortError, match="NAME=VALUE"):
        read_options(["gpu"])
