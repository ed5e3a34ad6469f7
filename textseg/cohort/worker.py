"""A worker process: `python -m textseg.cohort.worker`, told tasks on stdin, answering on stdout.

It is a program of its own rather than a fork or a pool of Python's: a scan that makes a library crash, or
that takes too long, costs this process and nothing else, and dask's workers may start it too. Two or three
tasks are in it at once, each in a thread: while one is in the network, the next is read and the one before
is written.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from textseg.cohort.folders import is_finished
from textseg.cohort.privacy import hide_in, sentence_of
from textseg.cohort.task import Outcome, Stage, Task, is_disk_full, is_out_of_memory
from textseg.errors import TextsegError

if TYPE_CHECKING:
    from textseg.cohort.segmenters import Segmenters
    from textseg.result import Segmentation
    from textseg.volume import Volume

THREADS = 3
WIND_DOWN, CLOSE = "wind down", "close"
Say = Callable[[Stage], None]
Segment = Callable[[list["Volume"], Task, Say], Any]
Write = Callable[[Any, Task], None]


class Worker:
    """The tasks of one process, which share its models and take turns in the network.

    Args:
        segment: what the network says of a scan; the task's model, loaded once, unless given.
        write: writes that; masks, measures, preview and record unless given.
    """

    def __init__(self, segment: Segment | None = None, write: Write | None = None) -> None:
        self.is_winding_down = threading.Event()
        self._turn = threading.Lock()
        self._segmenters: Segmenters | None = None
        self._segment = segment or self._ask_model
        self._write = write or _write_all

    def run(self, task: Task, say: Say) -> Outcome:
        """Do one task; whatever goes wrong is in the outcome, in words that may be shown."""
        began = time.monotonic()
        try:
            is_done = self._do(task, say)
        except Exception as error:
            if os.environ.get("TEXTSEG_DEBUG"):
                traceback.print_exc()
            outcome = _failure(task, error)
            if outcome.status == "memory":
                self._forget_models()
        else:
            outcome = Outcome(task.id, "done" if is_done else "released")
        return replace(outcome, seconds=round(time.monotonic() - began, 3))

    def _do(self, task: Task, say: Say) -> bool:
        """Whether it was done; False where the run stops before its turn came."""
        from textseg.cohort.reading import channels_of

        # Another worker may have done it, and been lost before it could say so.
        if is_finished(task.folder, task.key):
            return True
        say("reading")
        with channels_of(task, task.settings.ids) as channels:
            say("waiting")
            with self._turn:
                if self.is_winding_down.is_set():
                    return False
                answer = self._segment(channels, task, say)
            say("writing")
            self._write(answer, task)
        return True

    def _ask_model(self, channels: list[Volume], task: Task, say: Say) -> Segmentation:
        # Imported here, so that the first scan is read while torch is loaded.
        from textseg.cohort.segmenters import Segmenters, segment_task

        self._segmenters = self._segmenters or Segmenters()
        segmenter = self._segmenters.of(task)
        say("segmenting")
        return segment_task(segmenter, channels, task)

    def _forget_models(self) -> None:
        with self._turn:
            if self._segmenters is not None:
                self._segmenters.forget()


def _write_all(segmentation: Segmentation, task: Task) -> None:
    from textseg.cohort.outputs import write_outputs

    write_outputs(segmentation, task)


def _failure(task: Task, error: Exception) -> Outcome:
    if is_disk_full(error):
        return Outcome(task.id, "disk", "The disk is full.")
    ids = task.settings.ids
    words = sentence_of(error, task, ids) if isinstance(error, TextsegError) else ""
    if is_out_of_memory(error):
        enough = "The memory is not enough for this scan, even one prompt at a time."
        return Outcome(task.id, "memory", words or enough)
    if words:
        return Outcome(task.id, "failed", words)
    first_line = str(error).partition("\n")[0]
    words = f"Something failed that should not have ({type(error).__name__}: {first_line})."
    return Outcome(task.id, "failed", hide_in(task, ids, words))


def serve(worker: Worker, tasks: TextIO, answers: TextIO) -> None:
    """Do the tasks that come, one a line, until told to close; ends the process where nobody listens."""
    lock = threading.Lock()

    def send(line: str) -> None:
        with lock:
            try:
                answers.write(line + "\n")
                answers.flush()
            except OSError:
                # The run is gone: what it would have heard is in the outputs, or will be done again.
                os._exit(1)

    def do(task: Task) -> None:
        outcome = worker.run(task, lambda stage: send(json.dumps({"id": task.id, "stage": stage})))
        send(outcome.to_line())

    with ThreadPoolExecutor(THREADS) as threads:
        for line in tasks:
            message = json.loads(line)
            if message == CLOSE:
                return
            if message == WIND_DOWN:
                worker.is_winding_down.set()
            else:
                threads.submit(do, Task.from_line(line))
        # No farewell: the process that ran the cohort was killed, and another may be about to start.
        os._exit(1)


def main(worker: Worker | None = None) -> None:
    """The program: stdout is kept for answers, whatever libraries print."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(worker or Worker(), sys.stdin, answers)


if __name__ == "__main__":
    main()
