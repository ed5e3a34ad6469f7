"""One thread for all that takes time, so that a window goes on answering; no Qt in here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from textseg.errors import TextsegError, says_out_of_memory

_log = logging.getLogger(__name__)

Task = Callable[[], Any]
Then = Callable[[Any], None]
Failed = Callable[[str], None]


class Cancelled(Exception):  # noqa: N818  # nothing went wrong
    """Whoever waited for a task has asked to stop it."""


@dataclass(frozen=True)
class _Order:
    task: Task
    then: Then
    failed: Failed


class Work:
    """Tasks one after the other in a thread of their own; what they come to is handed over by `deliver`.

    `submit`, `cancel` and `deliver` belong to the thread of the window, `progress` to the tasks.

    Args:
        on_progress: called by `deliver` with the newest stage in words, the steps done and all steps.
    """

    def __init__(self, on_progress: Callable[[str, int, int], None] = lambda stage, done, of: None) -> None:
        self._thread = ThreadPoolExecutor(1, "textseg-viewer")
        self._events: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stop = threading.Event()
        self._on_progress = on_progress
        self._newest: tuple[str, int, int] | None = None
        self._waiting: list[Future[None]] = []

    @property
    def busy(self) -> bool:
        """Whether something is being done or has not been delivered yet."""
        return bool(self._waiting)

    def submit(self, task: Task, then: Then, failed: Failed) -> None:
        """Do a task after those before it; what it gave, or the words of what went wrong, is delivered."""
        self._waiting.append(self._thread.submit(self._run, _Order(task, then, failed)))

    def progress(self, stage: str, done: int, of: int) -> None:
        """For tasks: tell how far one is.

        Raises:
            Cancelled: it should stop.
        """
        self._newest = (stage, done, of)
        if self._stop.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Stop the task that runs at its next progress, and forget those that wait for it."""
        self._stop.set()
        # Once those before it are gone, which an order to do so tells best.
        self._waiting.append(self._thread.submit(self._stop.clear))

    def deliver(self) -> None:
        """Hand over whatever came in since the last call."""
        newest, self._newest = self._newest, None
        if newest is not None:
            self._on_progress(*newest)
        self._waiting = [one for one in self._waiting if not one.done()]
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return
            event()

    def close(self) -> None:
        """Stop, without waiting for a task that runs."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, order: _Order) -> None:
        try:
            if self._stop.is_set():
                raise Cancelled
            result = order.task()
        except Exception as error:
            words = in_words(error)
            self._events.put(lambda: order.failed(words))
        else:
            self._events.put(lambda: order.then(result))


def in_words(error: Exception) -> str:
    """An error as a sentence for a person; what should not have happened goes to the log besides."""
    if isinstance(error, TextsegError):
        return str(error)
    if isinstance(error, Cancelled):
        return "Stopped; everything is as before."
    if says_out_of_memory(error):
        return "The memory is not enough for this step. Close other programs, or choose the device cpu."
    _log.error("a step of the viewer failed", exc_info=error)
    reason = str(error).partition("\n")[0]
    return f"Something failed that should not have ({type(error).__name__}: {reason})."
