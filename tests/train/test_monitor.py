"""The log of a run: a row a step and no row twice, pictures, and TensorBoard where it is installed."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from textseg.train.loop import Step
from textseg.train.monitor import COLUMNS, CURVE_FILE, LOG_FILE, Monitor, read_log
from textseg.train.validation import Example, Verdict


def step(number, loss=0.5):
    return Step(number, 10, loss, (loss - 0.1, 0.1), 0.75, 0.001, 0.25, 1.5, None)


def steps_in(run):
    return [row["step"] for row in read_log(run / LOG_FILE)]


@pytest.fixture(autouse=True)
def _no_board(monkeypatch):
    """As where tensorboard is not installed, whether it is or not."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def test_rows_hold_what_a_step_gave(tmp_path):
    monitor = Monitor(tmp_path, 0)
    monitor.log(step(1), None)
    monitor.log(step(2), Verdict(0.625, ()))
    first, second = read_log(tmp_path / LOG_FILE)
    assert tuple(first) == COLUMNS
    assert (first["loss"], first["prompts"], first["sharing"], first["dice"]) == ("0.5", "0.4", "0.1", "")
    assert (second["smoothed"], second["seconds"], second["dice"]) == ("0.75", "0.25", "0.625")


def test_steps_after_the_last_state_are_not_logged_twice(tmp_path):
    monitor = Monitor(tmp_path, 0)
    for number in (1, 2, 3, 4):
        monitor.log(step(number), None)
    with (tmp_path / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write("5,0.4")  # killed in the middle of a row
    again = Monitor(tmp_path, 2)
    assert steps_in(tmp_path) == ["1", "2"]
    again.log(step(3, loss=0.25), None)
    assert steps_in(tmp_path) == ["1", "2", "3"]
    assert read_log(tmp_path / LOG_FILE)[2]["loss"] == "0.25"


def test_a_row_whose_end_is_missing_is_left_out_even_where_its_step_is_done(tmp_path):
    (tmp_path / LOG_FILE).write_text("step,loss\r\n1,0.5\r\n2,0.", encoding="utf-8")
    Monitor(tmp_path, 7)
    assert steps_in(tmp_path) == ["1"]


def test_a_log_of_an_older_version_goes_on(tmp_path):
    old = "step,loss,learning_rate\r\n100,0.5,0.001\r\n200,0.4,0.001\r\n"
    (tmp_path / LOG_FILE).write_text(old, encoding="utf-8", newline="")
    monitor = Monitor(tmp_path, 100)
    monitor.log(step(101), None)
    monitor.draw("old")
    rows = read_log(tmp_path / LOG_FILE)
    assert [(row["step"], row["prompts"]) for row in rows] == [("100", ""), ("101", "0.4")]


def test_a_run_without_a_log_has_no_rows(tmp_path):
    assert read_log(tmp_path / LOG_FILE) == []


def test_every_validation_leaves_examples_and_every_state_a_curve(tmp_path):
    disc = np.hypot(*np.mgrid[-6:6, -5:5]) < 4
    shown = Example("case_1, MR", "left kidney", (1.0, 2.0), disc.astype(np.float32), disc, disc, 1.0, True)
    monitor = Monitor(tmp_path, 0)
    monitor.log(step(1), Verdict(0.5, (shown,)))
    monitor.log(step(2), None)
    monitor.draw("tiny")
    assert {path.name for path in tmp_path.iterdir()} == {LOG_FILE, CURVE_FILE, "examples_1.png"}
    assert Image.open(tmp_path / CURVE_FILE).width > 700


def test_tensorboard_gets_the_same_numbers_where_it_is_installed(tmp_path, monkeypatch):
    made = []

    class Board:
        def __init__(self, folder, purge_step):
            self.folder, self.purge_step, self.scalars, self.flushed = folder, purge_step, [], False
            made.append(self)

        def add_scalar(self, name, value, number):
            self.scalars.append((name, value, number))

        def flush(self):
            self.flushed = True

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monitor = Monitor(tmp_path, 4)
    monitor.log(step(5), Verdict(0.25, ()))
    monitor.draw("tiny")
    (board,) = made
    # Steps that are taken again are hidden.
    assert board.purge_step == 5
    assert ("loss", 0.5, 5) in board.scalars
    assert ("dice", 0.25, 5) in board.scalars
    assert board.flushed
