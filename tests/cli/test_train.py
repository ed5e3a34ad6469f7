"""`textseg train`: from a plan's folder to a model that predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run, Stub
from textseg.plan import PLAN_FILE, read_plan, write_plan


@pytest.fixture
def plan_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a plan for two steps on one phantom, with its text tower and without its network."""
    folder = shutil.copytree(tiny_model, tmp_path / "plan", ignore=shutil.ignore_patterns("network*"))
    plan = read_plan(folder)
    recipe = plan.training.model_copy(
        update={"steps": 2, "batch": 1, "prompts_per_sample": 2, "warmup_steps": 1, "mixture": {"phantom": 1}}
    )
    coarse = {**plan.groups, "torso": plan.groups["torso"].model_copy(update={"spacing_mm": (9, 9, 9)})}
    write_plan(plan.model_copy(update={"training": recipe, "groups": coarse}), folder / PLAN_FILE)
    phantom = {"layout": "phantom", "group": "torso", "mixture": "phantom", "count": 1, "seed": 1}
    sources = {"sources": [{**phantom, "validation_count": 0}]}
    (folder / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
    return folder


def test_train_gathers_trains_and_leaves_a_model(
    textseg: Run, plan_folder: Path, tmp_path: Path, scan: Path, stub: Stub
) -> None:
    places = ("--data", tmp_path, "--arrays", tmp_path / "arrays", "--run", tmp_path / "run")
    result = textseg("train", plan_folder, *places, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "Step 2 of 2" in result.stdout
    assert (tmp_path / "arrays" / "index.json").is_file()
    model = tmp_path / "run" / "model"
    assert textseg("predict", scan, "liver", "--model", model, "-o", tmp_path).exit_code == 0
    assert "no case was held back" in (model / "card.md").read_text(encoding="utf-8")


def test_train_on_a_run_that_has_ended_writes_its_model_again(
    textseg: Run, plan_folder: Path, tmp_path: Path
) -> None:
    (plan_folder / "card_introduction.md").write_text("# Mine, {facts[steps]} steps\n", encoding="utf-8")
    places = ("--data", tmp_path, "--arrays", tmp_path / "arrays", "--run", tmp_path / "run")
    for out in ("first", "second"):
        result = textseg("train", plan_folder, *places, "--device", "cpu", "-o", tmp_path / out)
        assert result.exit_code == 0, result.output
    first, second = (tmp_path / out for out in ("first", "second"))
    one, other = (load_file(folder / "network.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (second / "card.md").read_text(encoding="utf-8").startswith("# Mine, 2 steps\n")


def test_a_run_that_is_cut_short_has_a_model_and_no_card_yet(
    textseg: Run, plan_folder: Path, tmp_path: Path
) -> None:
    places = ("--data", tmp_path, "--arrays", tmp_path / "arrays", "--run", tmp_path / "run")
    result = textseg("train", plan_folder, *places, "--device", "cpu", "--minutes", "0")
    assert result.exit_code == 0, result.output
    assert "Step 1 of 2" in result.stdout
    assert (tmp_path / "run" / "model" / "network.safetensors").is_file()
    assert not (tmp_path / "run" / "model" / "card.md").exists()


def test_train_without_arrays_asks_for_data(textseg: Run, plan_folder: Path, tmp_path: Path) -> None:
    result = textseg("train", plan_folder, "--arrays", tmp_path / "arrays", "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert "give --data" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_train_refuses_a_place_that_can_not_be_written_to(
    textseg: Run, plan_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    places = ("--data", tmp_path, "--arrays", tmp_path / "file" / "arrays", "--run", tmp_path / "run")
    result = textseg("train", plan_folder, *places)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
