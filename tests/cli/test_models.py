"""`textseg models`: what is listed and what is shown of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from textseg.models import shipped_models
from textseg.prompts import default_lexicon


@pytest.fixture
def shipped(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships the tiny model as its default, and a plan without weights."""
    shutil.copytree(tiny_model, tmp_path / "plans" / "default")
    (tmp_path / "plans" / "large").mkdir()
    shutil.copy(tiny_model / "plan.json", tmp_path / "plans" / "large")
    monkeypatch.setattr("textseg.models.plans_folder", lambda: tmp_path / "plans")
    return tmp_path / "plans"


def test_models_with_weights_are_listed_with_what_they_know(textseg: Run, shipped: Path) -> None:
    result = textseg("models")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if "tests only" in line]
    assert line.split()[0] == "default"
    assert "torso, limbs, sarcoma" in line
    assert "large" not in result.stdout


def test_no_models_is_said_in_words(textseg: Run, shipped: Path) -> None:
    shutil.rmtree(shipped / "default")
    result = textseg("models")
    assert result.exit_code == 0
    assert "No model has its weights here" in result.stdout


def test_show_prints_card_groups_and_counts(textseg: Run, shipped: Path) -> None:
    result = textseg("models", "show", "default")
    assert result.exit_code == 0
    assert "Random weights, for tests only." in result.stdout
    count = len(default_lexicon().concepts_in("hippocampus"))
    (line,) = [line for line in result.stdout.splitlines() if line.strip().startswith("hippocampus")]
    assert line.split() == ["hippocampus", "1", "×", "1", "×", "1", str(count)]


def test_show_lists_structures(textseg: Run, tiny_model: Path) -> None:
    lines = textseg("models", "show", tiny_model, "--structures").stdout.splitlines()
    assert "torso:" in lines
    assert "  left kidney" in lines


def test_an_unknown_model_is_bad_input(textseg: Run) -> None:
    result = textseg("models", "show", "nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'nothing', which is neither" in result.stderr


def test_the_default_model_is_listed(textseg: Run) -> None:
    if "default" not in [model.name for model in shipped_models()]:
        pytest.skip("The default model's weights are not in plans/default yet.")
    assert "default" in textseg("models").stdout
