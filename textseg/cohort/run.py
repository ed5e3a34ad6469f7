"""Running a cohort: jobs go to workers, what becomes of them goes to the journal, whatever happens."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textseg.cohort.content import job_key, scan_content
from textseg.cohort.folders import is_finished, take_over
from textseg.cohort.jobs import JOURNAL_FILE, LOCK_FILE, STAGING, CohortError, Job, Settings
from textseg.cohort.journal import Entry, Journal, disk_in_words, is_full
from textseg.cohort.privacy import sentence_of
from textseg.cohort.task import Outcome, Task, is_disk_full, task_of
from textseg.cohort.workers import Workers
from textseg.errors import TextsegError
from textseg.models import ModelFolder, find_model

if TYPE_CHECKING:
    from textseg.device import DeviceChoice

Progress = Callable[[str, int, int], None]
Said = Callable[[str], None]
SECONDS_BETWEEN_LOOKS = 0.2


class Stop:
    """How a run is asked to stop: once to finish what is running, twice to end now."""

    def __init__(self) -> None:
        self.requests = 0

    def ask(self) -> None:
        self.requests += 1


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Args:
        done, failed, pending: how many jobs of this cohort are so now.
        found_done: how many of those were done before.
        stopped: why it stopped before its end; None where it did not.
    """

    done: int
    failed: int
    pending: int
    found_done: int
    stopped: Literal["asked", "disk"] | None = None


@dataclass(frozen=True)
class Compute:
    """What tasks are computed with; no part of what a job is."""

    device: DeviceChoice = "auto"
    threads: int | None = None


def run_cohort(
    jobs: Sequence[Job],
    out: Path,
    settings: Settings,
    workers: Workers,
    *,
    compute: Compute | None = None,
    only: Iterable[str] | None = None,
    retry_failed: bool = False,
    stop: Stop | None = None,
    progress: Progress = lambda stage, done, of: None,
    failed: Said = lambda sentence: None,
) -> RunEnd:
    """Do all jobs that are not done yet; a job that fails is written down and the others go on.

    Args:
        jobs: the cohort, from `find_jobs`.
        out: the cohort's folder; each job's outputs lie in a folder of it, named after the job.
        workers: who does the work; they are closed in the end.
        only: the jobs to do in this run, by their ids; None for all.
        retry_failed: also jobs that failed before and are the same still.
        stop: to be asked from a signal handler or another thread.
        progress: called with the state in words, the jobs settled and all jobs.
        failed: called with a sentence for each job that fails.

    Raises:
        CohortError: another run is at work in the folder, or no model can be found.
        OutputError: the folder can't be written to.
    """
    try:
        with disk_in_words(out):
            out.mkdir(parents=True, exist_ok=True)
            with only_one_run(out), closing(Journal(out / JOURNAL_FILE, make=True)) as journal:
                run = _Run(jobs, out, settings, workers, compute or Compute(), journal, progress, failed)
                return run.to_the_end(set(only) if only is not None else None, retry_failed, stop or Stop())
    finally:
        workers.kill()


@contextmanager
def only_one_run(out: Path) -> Iterator[None]:
    """Keeps other runs out of a cohort's folder; the system lets go of the lock when the process ends.

    Raises:
        CohortError: another run is at work there.
    """
    with (out / LOCK_FILE).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CohortError(
                f"Only one run works on a cohort at a time, but another one is at work in {out}. "
                "Wait for its end, or stop it."
            ) from error
        yield


class _Run:
    """One run: the jobs still to be handed out, those with workers, and those to be tried again alone."""

    def __init__(
        self,
        jobs: Sequence[Job],
        out: Path,
        settings: Settings,
        workers: Workers,
        compute: Compute,
        journal: Journal,
        progress: Progress,
        failed: Said,
    ) -> None:
        self.jobs, self.out, self.settings = {job.id: job for job in jobs}, out, settings
        self.workers, self.compute, self.journal = workers, compute, journal
        self.progress, self.failed = progress, failed
        self.staging = out / STAGING
        self.models: dict[str, ModelFolder | TextsegError] = {}
        self.with_workers: dict[Future[Outcome], Task] = {}
        self.alone: deque[Task] = deque()
        self.lost: Counter[str] = Counter()
        self.settled = 0
        self.found_done = 0
        self.stopped: Literal["asked", "disk"] | None = None

    def to_the_end(self, only: set[str] | None, retry_failed: bool, stop: Stop) -> RunEnd:
        try:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.journal.register(_entry_of(job, self.settings) for job in self.jobs.values())
            before = {entry.id: entry for entry in self.journal.entries()}
            tasks = self._tasks(before, only, retry_failed)
            if any(map(self._reads_slowly, {job.model for job in self.jobs.values()})):
                # One worker alone loads the language model; the others find its vectors on disk.
                self._work(islice(tasks, 1), stop, most=1)
            self._work(tasks, stop)
            # What found no memory, or took its worker with it, is tried with the machine to itself.
            while self.alone and self.stopped is None:
                self._work(iter([self.alone.popleft()]), stop, most=1)
            if self.stopped is None:
                self.workers.close()
        except (sqlite3.Error, OSError) as error:
            if not (is_disk_full(error) or is_full(error)):
                raise
            self.stopped = "disk"
        finally:
            self.workers.kill()
        shutil.rmtree(self.staging, ignore_errors=True)
        counts = self.journal.counts()
        pending = counts["pending"] + counts["running"]
        return RunEnd(counts["done"], counts["failed"], pending, self.found_done, self.stopped)

    # ---- handing out ----

    def _tasks(
        self, before: Mapping[str, Entry], only: set[str] | None, retry_failed: bool
    ) -> Iterator[Task]:
        """The tasks of jobs that are not done, one after the other as they are asked for."""
        for job in self.jobs.values():
            if only is not None and job.id not in only:
                self._pass(is_done=before[job.id].state == "done")
                continue
            try:
                model = self._model(job.model)
                model.read_prompts(job.prompts)
                key = job_key(job, scan_content(job, self.journal), model.sha256, self.settings)
            except TextsegError as error:
                self._fail(job.id, sentence_of(error, job, self.settings.ids))
                continue
            task = task_of(job, key, self.settings, model.path, self.out, self.journal.begun)
            if self._is_done(task):
                self.journal.finish(job.id, key)
                self._pass(is_done=True)
                continue
            if before[job.id].state == "failed" and before[job.id].key == key and not retry_failed:
                # Nothing has changed since, so it would fail again.
                self._pass(is_done=False)
                continue
            yield replace(task, device=self.compute.device, threads=self.compute.threads)

    def _pass(self, is_done: bool) -> None:
        """Nothing is to be done for a job in this run."""
        self.settled += 1
        self.found_done += is_done

    def _model(self, name: str) -> ModelFolder:
        if name not in self.models:
            try:
                self.models[name] = find_model(name)
            except TextsegError as error:
                self.models[name] = error
        model = self.models[name]
        if isinstance(model, TextsegError):
            raise model
        return model

    def _reads_slowly(self, name: str) -> bool:
        """Whether a model's texts go through a language model of gigabytes."""
        try:
            model = self._model(name)
            return model.kind == "voxtell" or (
                model.kind == "textseg" and model.plan.text.encoder is not None
            )
        except TextsegError:
            # Each of its scans will say so.
            return False

    def _is_done(self, task: Task) -> bool:
        """Whether the outputs are there, also under the name that the scan had before."""
        if is_finished(task.folder, task.key):
            return True
        for other in self.journal.done_under(task.key):
            if other != task.id and is_finished(self.out / other, task.key):
                take_over(self.out / other, task)
                if other not in self.jobs:
                    # The scan has another name now, under which its outputs are.
                    self.journal.forget(other)
                    shutil.rmtree(self.out / other, ignore_errors=True)
                return True
        return False

    # ---- the loop ----

    def _work(self, tasks: Iterator[Task], stop: Stop, most: int | None = None) -> None:
        """Keep the workers busy until there are no more tasks, or the run is to stop."""
        has_more = True
        while has_more or self.with_workers:
            if stop.requests and self.stopped is None:
                self._wind_down("asked")
            if stop.requests > 1:
                self.workers.kill()
            while (
                has_more and self.stopped is None and len(self.with_workers) < (most or self.workers.capacity)
            ):
                task = next(tasks, None)
                has_more = task is not None
                if task is not None:
                    self._start(task)
                if stop.requests:
                    break
            if self.stopped is not None:
                has_more = False
            self._show()
            finished, _ = wait(self.with_workers, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            for future in finished:
                self._take(self.with_workers.pop(future), future.result())

    def _start(self, task: Task) -> None:
        self.journal.start(task.id, task.key)
        self.with_workers[self.workers.submit(task)] = task

    def _wind_down(self, why: Literal["asked", "disk"]) -> None:
        self.stopped = why
        self.workers.wind_down()

    def _take(self, task: Task, outcome: Outcome) -> None:
        """Write down how a task ended, or keep it for another attempt."""
        if outcome.status == "done":
            self.journal.finish(task.id, task.key, outcome.seconds)
            self.settled += 1
        elif outcome.status in ("failed", "timeout"):
            self._fail(task.id, outcome.reason, outcome.seconds)
        elif outcome.status == "disk":
            self.journal.release(task.id)
            if self.stopped is None:
                self._wind_down("disk")
        elif outcome.status == "released":
            self.journal.release(task.id)
            if self.stopped is None:
                self._start(task)
        else:
            self._try_alone(task, outcome)

    def _try_alone(self, task: Task, outcome: Outcome) -> None:
        """After too little memory, or a worker that died: once more, when nothing else runs.

        A worker that dies takes its other scans with it. Alone, each shows whether it was the one; that one
        gets a last try with less memory, since that is what systems kill processes for.
        """
        next_try: Task | None = task.with_less_memory()
        if outcome.status == "lost":
            self.lost[task.id] += 1
            next_try = {1: task, 2: next_try}.get(self.lost[task.id])
        if next_try is None:
            self._fail(task.id, outcome.reason, outcome.seconds)
            return
        self.journal.release(task.id)
        self.alone.append(next_try)

    def _fail(self, job: str, reason: str, seconds: float | None = None) -> None:
        self.journal.fail(job, reason, seconds)
        self.settled += 1
        self.failed(f"{job}: {reason}")

    def _show(self) -> None:
        words = {None: "segmenting", "asked": "finishing what is running", "disk": "the disk is full"}
        self.progress(words[self.stopped], self.settled, len(self.jobs))


def _entry_of(job: Job, settings: Settings) -> Entry:
    is_hidden = job.is_dicom and settings.ids != "keep"
    scan = "" if is_hidden else ";".join(map(str, job.scan))
    return Entry(job.id, "pending", "", "", scan, job.model, job.prompts, job.extra)


def entries_of(out: Path) -> list[Entry]:
    """The journal of a cohort as it is now, also while a run is at work.

    Raises:
        CohortError: the folder holds no cohort.
    """
    with closing(Journal(out / JOURNAL_FILE)) as journal:
        return journal.entries()
