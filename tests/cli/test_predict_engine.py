"""`textseg predict`: memory, determinism, the backend and shortcuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_the_record_tells_the_budget_and_the_predicted_peak(predict: Run, out: Path) -> None:
    result = predict("liver", "--memory", "100GB", "--deterministic", "--backend", "torch", "--write-empty")
    assert result.exit_code in (0, 3), result.output
    (path,) = out.glob("*_record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["memory"]["budget_bytes"] == 100 * 10**9
    assert 10**8 < record["memory"]["predicted_peak_bytes"] < 100 * 10**9


@pytest.mark.parametrize(
    ("memory", "words"), [("lots", "a number and a unit"), ("10MB", "memory do not suffice")], ids=str
)
def test_memory_that_is_none_or_too_little_is_refused(
    memory: str, words: str, predict: Run, folder_of: Callable[[], list[str]]
) -> None:
    result = predict("liver", "--memory", memory)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert folder_of() == []


@pytest.mark.parametrize(
    ("options", "used"),
    [
        (("--no-early-exit",), (False, False)),
        ((), (False, True)),  # as the default's plan says
        (("--zoom", "--no-early-exit"), (True, False)),
        (("--zoom", "--early-exit"), (True, True)),
    ],
    ids=str,
)
def test_the_record_tells_which_shortcuts_were_taken(
    options: tuple[str, ...], used: tuple[bool, bool], predict: Run, out: Path
) -> None:
    result = predict("liver", *options, "--write-empty")
    assert result.exit_code in (0, 3), result.output
    (path,) = out.glob("*_record.json")
    taken = json.loads(path.read_text(encoding="utf-8"))["shortcuts"]
    if not any(used):
        assert taken is None
        return
    assert (taken["zoom_above"] is not None, taken["exit_below"] is not None) == used
    assert 0 <= taken["windows"] <= 1
    assert 0 <= taken["prompts"] <= 1
