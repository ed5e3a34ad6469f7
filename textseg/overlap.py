"""Work that goes on in a thread of its own beside the network."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")
# How often a thread that waits for room looks whether anybody still wants its work, in seconds.
LOOK_EVERY = 0.1


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items in the same order, made in a thread up to `depth` ahead of whoever takes them.

    An error on the way is raised where its item would have come. The thread ends when the iterator is closed.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    is_closed = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, is_closed), daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_closed.set()
        thread.join()


def _make(
    items: Iterable[Item],
    made: queue.Queue[tuple[Item | None, BaseException | None]],
    is_closed: threading.Event,
) -> None:
    end: BaseException = StopIteration()
    try:
        for item in items:
            if not _put(made, (item, None), is_closed):
                return
    except BaseException as error:
        end = error
    _put(made, (None, end), is_closed)


class Behind(Generic[Item]):
    """Calls a function with one item after the other in a thread, while whoever gives them goes on.

    At most `depth` items wait; who gives another one waits too. Used with `with`: leaving it waits for all
    of them, and an error of the function is raised there or when the next item is given.
    """

    def __init__(self, function: Callable[[Item], None], depth: int = 1) -> None:
        self._function = function
        self._waiting: queue.Queue[tuple[Item] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def give(self, item: Item) -> None:
        self._waiting.put((item,))
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Behind[Item]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            # After an error items are still taken, so that nobody waits for room for ever.
            if self._error is None:
                try:
                    self._function(*item)
                except BaseException as error:
                    self._error = error


def _put(
    made: queue.Queue[tuple[Item | None, BaseException | None]],
    entry: tuple[Item | None, BaseException | None],
    is_closed: threading.Event,
) -> bool:
    """Whether the entry was put before the taker went away."""
    while not is_closed.is_set():
        try:
            made.put(entry, timeout=LOOK_EVERY)
        except queue.Full:
            continue
        return True
    return False
