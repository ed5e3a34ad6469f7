"""Training in processes of its own: a killed one loses nothing, two that share a batch learn the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.tiny_model import write_tiny_model
from tests.train.recipe_process import train_recipe
from textseg.plan import PLAN_FILE, Plan, read_plan, write_plan
from textseg.train.cases import write_case, write_index
from textseg.train.checkpoint import BEST_FILE, STATE_FILE, find_best
from textseg.train.monitor import LOG_FILE, read_log

PROGRAM = REPOSITORY / "tests" / "train" / "recipe_process.py"
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LONGEST_S = 900.0
ATTEMPTS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arrays(tmp_path_factory, phantom_cases):
    folder = tmp_path_factory.mktemp("arrays")
    for case in phantom_cases:
        write_case(case, folder)
    write_index([case.facts for case in phantom_cases], folder)
    return folder


@pytest.fixture(scope="module")
def model_for(tmp_path_factory):
    """A model's folder whose plan has these numbers in its recipe."""

    def make(**numbers: object) -> Path:
        folder = write_tiny_model(tmp_path_factory.mktemp("model"))
        plan = read_plan(folder)
        network = plan.network.model_copy(update={"norm": "instance"})
        # What a person would correct, and whether the finest scale runs, is drawn anew in each process.
        recipe = {"prompts_per_sample": 3, "warmup_steps": 2, "correction_fraction": 0.0}
        recipe |= {"full_scale_fraction": 1.0}
        training = plan.training.model_copy(update=recipe | numbers)
        changed = plan.model_copy(update={"training": training, "network": network})
        write_plan(Plan.model_validate(changed.model_dump()), folder / PLAN_FILE)
        return folder

    return make


def start(*arguments, before=()):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *before, str(PROGRAM), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_logged(run):
    log = run / LOG_FILE
    return log.read_bytes().count(b"\n") - 1 if log.is_file() else 0


def lines(run):
    """The log without the seconds, which nobody can repeat."""
    return [{**row, "seconds": ""} for row in read_log(run / LOG_FILE)]


def state_of(run):
    return torch.load(run / STATE_FILE, weights_only=True)


def assert_same(one, other):
    """Nested states, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key != "seconds":
                assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def kill_somewhere(model, arrays, run, steps):
    """Begin a run of so many steps and kill it at a random moment between its first and its last."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(run, ignore_errors=True)
        process, after = start(model, arrays, run), random.randrange(1, steps - 6)
        deadline = time.monotonic() + LONGEST_S
        while steps_logged(run) < after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output
        # On a busy machine it may have come to its end before we were there.
        if 0 < steps_logged(run) < steps:
            return
    pytest.fail(f"None of {ATTEMPTS} runs could be killed before its end.")


def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, arrays, model_for):
    steps = 18
    model, killed, whole = model_for(steps=steps, validate_every=5), tmp_path / "killed", tmp_path / "whole"
    kill_somewhere(model, arrays, killed, steps)
    train_recipe(model, arrays, killed)
    undisturbed = train_recipe(model, arrays, whole)
    assert_same(state_of(killed), state_of(whole))
    assert lines(killed) == lines(whole)
    assert [row["step"] for row in lines(whole)] == [str(n) for n in range(1, steps + 1)]
    # Not byte by byte: safetensors writes step and Dice in now this order, now that.
    assert_same(load_file(killed / BEST_FILE), load_file(whole / BEST_FILE))
    assert undisturbed.best == find_best(killed)
    pictures = {path.name for path in whole.glob("*.png")}
    assert pictures == {"curve.png", *(f"examples_{step}.png" for step in (5, 10, 15, 18))}
    assert {path.name for path in killed.glob("*.png")} == pictures


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path, arrays, model_for):
    model = model_for(steps=4, batch=4, validate_every=2)
    process = start(model, arrays, tmp_path / "two", before=TWO_PROCESSES)
    output, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, output
    alone = train_recipe(model, arrays, tmp_path / "one")
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    for part in ("network", "averaged"):
        for name, weights in one[part].items():
            torch.testing.assert_close(two[part][name], weights, atol=1e-4, rtol=1e-3, msg=name)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    # One log and one set of files: the second process wrote nothing.
    rows = read_log(tmp_path / "two" / LOG_FILE)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    expected = [float(row["loss"]) for row in read_log(tmp_path / "one" / LOG_FILE)]
    assert [float(row["loss"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1]
    assert alone.best.dice == pytest.approx(find_best(tmp_path / "two").dice, abs=0.01)
