"""One thread does, another goes on."""

from __future__ import annotations

import re
import threading

import pytest

from textseg.errors import PromptError
from textseg.viewer.work import Work

SECONDS = 20


@pytest.fixture
def work():
    work = Work()
    yield work
    work.close()


def finish(work):
    """Deliver until nothing is left to be done."""
    waiting = threading.Event()
    for _ in range(SECONDS * 100):
        work.deliver()
        if not work.busy:
            return
        waiting.wait(0.01)
    raise AssertionError("the work does not end")


def test_tasks_run_elsewhere_in_order_and_are_delivered_here(work):
    ran, heard = [], []
    for number in range(3):
        work.submit(
            lambda number=number: ran.append((number, threading.current_thread().name)) or number,
            lambda result: heard.append((result, threading.current_thread().name)),
            pytest.fail,
        )
    assert work.busy
    assert heard == []
    finish(work)
    assert [number for number, _ in ran] == [0, 1, 2]
    assert all(name.startswith("textseg-viewer") for _, name in ran)
    assert heard == [(number, threading.current_thread().name) for number in range(3)]


def test_cancelling_stops_what_runs_and_what_waits_and_no_more(work):
    begun, go_on = threading.Event(), threading.Event()
    heard, wrong = [], []

    def slow():
        begun.set()
        assert go_on.wait(SECONDS)
        work.progress("thinking", 1, 2)
        return "slow"

    work.submit(slow, heard.append, wrong.append)
    work.submit(lambda: "waiting", heard.append, wrong.append)
    assert begun.wait(SECONDS)
    work.cancel()
    work.submit(lambda: "later", heard.append, wrong.append)
    go_on.set()
    finish(work)
    assert heard == ["later"]
    assert wrong == ["Stopped; everything is as before."] * 2


def test_progress_comes_with_the_delivery():
    heard = []
    work = Work(lambda *stage: heard.append(stage))
    work.submit(lambda: [work.progress("looking", done, 3) for done in range(3)], lambda _: None, pytest.fail)
    finish(work)
    assert heard == [("looking", 2, 3)]
    work.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PromptError("A prompt has words."), "A prompt has words."),
        (MemoryError(), "memory is not enough"),
        (ZeroDivisionError("by zero\nand more"), r"should not have \(ZeroDivisionError: by zero\)"),
    ],
)
def test_errors_are_told_in_words(work, error, words):
    heard = []

    def fail():
        raise error

    work.submit(fail, pytest.fail, heard.append)
    finish(work)
    (sentence,) = heard

    assert re.search(words, sentence)
