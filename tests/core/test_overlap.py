"""Threads beside the network: the same items in order, errors where they belong, and nothing left behind."""

from __future__ import annotations

import threading

import pytest

from textseg.overlap import Behind, ahead


def numbers(count, made, error=None):
    for number in range(count):
        made.append(number)
        yield number
    if error:
        raise error


def test_items_come_in_order_and_no_further_ahead_than_asked():
    made = []
    items = ahead(numbers(50, made), depth=2)
    seen = []
    for item in items:
        seen.append(item)
        # One is being put, and two wait.
        assert len(made) <= len(seen) + 3
    assert seen == list(range(50))


def test_an_error_comes_after_the_items_before_it():
    items = ahead(numbers(3, [], OSError("gone")))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_the_thread_ends_when_nobody_takes_any_more():
    before = threading.active_count()
    items = ahead(numbers(1000, []))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_work_behind_is_done_in_order_before_leaving():
    done = []
    with Behind(done.append) as behind:
        for number in range(20):
            behind.give(number)
    assert done == list(range(20))


def test_an_error_behind_is_raised_and_nobody_waits_for_ever():
    def fail(number):
        raise OSError(f"at {number}")

    def give_all():
        with Behind(fail) as behind:
            for number in range(20):
                behind.give(number)

    with pytest.raises(OSError, match="at 0"):
        give_all()
