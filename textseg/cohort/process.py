"""The other end of a worker process: tasks go in, outcomes come out, and a clock runs for each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from textseg.cohort.task import AT_WORK, Outcome, Task
from textseg.cohort.worker import CLOSE, WIND_DOWN

PROGRAM = ("-m", "textseg.cohort.worker")
LOOKS_PER_SECOND = 4
SECONDS_TO_CLOSE = 30.0


@dataclass
class _Running:
    """A task in the process, and the seconds that it has been at work."""

    task: Task
    outcome: Future[Outcome]
    seconds: float = 0.0
    since: float | None = None
    began: float = field(default_factory=time.monotonic)

    def enter(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds += now - self.since if self.since is not None else 0.0
        self.since = now if stage in AT_WORK else None

    def at_work(self) -> float:
        return self.seconds + (time.monotonic() - self.since if self.since is not None else 0.0)


class WorkerProcess:
    """One worker process, started when a task comes and replaced when it dies or takes too long.

    Args:
        environment: variables of its own, such as the GPU that it may see.
        timeout_s: the longest that one scan may take; None for as long as it wants.
    """

    def __init__(self, environment: Mapping[str, str], timeout_s: float | None = None) -> None:
        self._environment = dict(environment)
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._running: dict[str, _Running] = {}
        self._process: subprocess.Popen[str] | None = None
        self._late: str | None = None

    @property
    def tasks(self) -> int:
        """How many tasks are in it."""
        with self._lock:
            return len(self._running)

    def submit(self, task: Task) -> Future[Outcome]:
        """Do a task; the future never raises."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._give_up(self._process)
                self._process = None
            if self._process is None:
                self._start()
            running = _Running(task, Future())
            self._running[task.id] = running
            self._tell(task.to_line())
            return running.outcome

    def wind_down(self) -> None:
        """Finish what is in the network or later; release what has only been read."""
        self._tell(json.dumps(WIND_DOWN))

    def close(self) -> None:
        """Wait for the process to finish its tasks and end."""
        self._tell(json.dumps(CLOSE))
        process = self._process
        if process is not None:
            try:
                process.wait(SECONDS_TO_CLOSE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End the process now; its tasks are released."""
        with self._lock:
            process, self._process = self._process, None
            self._give_up(process)

    def _start(self) -> None:
        # In a session of its own, so that Ctrl+C reaches the run alone.
        self._process = subprocess.Popen(
            [sys.executable, *PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("TEXTSEG_DEBUG") else subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, **self._environment},
            start_new_session=True,
        )
        for follow in (self._listen, self._watch):
            threading.Thread(target=follow, args=(self._process,), daemon=True).start()

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None or self._process.stdin is None:
                return
            try:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            except OSError:
                # It has died; whoever listens to it will say so.
                return

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Hear what one process says until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            self._hear(json.loads(line))
        process.wait()
        with self._lock:
            if self._process is process:
                self._process = None
                self._give_up(process)

    def _hear(self, message: dict[str, Any]) -> None:
        with self._lock:
            if "stage" in message:
                running = self._running.get(message["id"])
                if running is not None:
                    running.enter(message["stage"])
                return
            outcome = Outcome.from_json(message["outcome"])
            finished = self._running.pop(outcome.id, None)
        if finished is not None:
            finished.outcome.set_result(outcome)

    def _watch(self, process: subprocess.Popen[str]) -> None:
        """Kill the process when one of its tasks is late."""
        while self._timeout_s is not None and process.poll() is None:
            with self._lock:
                late = [job for job, running in self._running.items() if running.at_work() > self._timeout_s]
                if late and self._process is process:
                    self._late = late[0]
                    process.kill()
                    return
            time.sleep(1 / LOOKS_PER_SECOND)

    def _give_up(self, process: subprocess.Popen[str] | None) -> None:
        """Answer for the tasks of a process that is no more."""
        if process is None:
            return
        was_asked = process.poll() is None
        if was_asked:
            process.kill()
            process.wait()
        late, self._late = self._late, None
        given_up, self._running = self._running, {}
        for job, running in given_up.items():
            if job == late:
                outcome = Outcome(
                    job, "timeout", f"It took longer than {self._timeout_s:g} s.", running.at_work()
                )
            elif was_asked or late is not None:
                outcome = Outcome(job, "released")
            else:
                outcome = Outcome(job, "lost", _how_it_ended(process.returncode), running.at_work())
            running.outcome.set_result(outcome)


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "Its worker was killed, perhaps because the machine's memory was full."
    if code < 0:
        return f"Its worker crashed ({signal.Signals(-code).name})."
    return f"Its worker ended unasked (exit code {code})."
