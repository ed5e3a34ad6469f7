"""`textseg train`: from one's own dataset, or a plan's folder, to a model that predicts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Run, Stub
from tests.train.test_labelled import write_dataset
from textseg.plan import PLAN_FILE, read_plan, write_plan
from textseg.train.cases import read_index


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take longer to start than these cases to prepare."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


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


@pytest.fixture
def own_plan(tiny_model: Path, tmp_path: Path) -> Path:
    """A plan's folder as textseg plan leaves it, small, of two steps."""
    plan = read_plan(tiny_model)
    recipe = plan.training.model_copy(update={"steps": 2, "batch": 1, "mixture": {"set": 1.0}})
    (tmp_path / "own_plan").mkdir()
    write_plan(plan.model_copy(update={"training": recipe}), tmp_path / "own_plan" / PLAN_FILE)
    return tmp_path / "own_plan"


@pytest.fixture
def train_own(textseg: Run, tiny_model: Path, own_plan: Path, tmp_path: Path) -> Callable[..., Any]:
    """Trains on a small dataset by the small plan, with more options: train_own("--minutes", "0")."""
    dataset = write_dataset(tmp_path / "set", cases=("a", "b", "c"))

    def run(*options: object, out: str = "mine") -> Any:
        where = ("-o", tmp_path / out, "--plan", own_plan, "--text", tiny_model, "--device", "cpu")
        return textseg("train", dataset, *where, *options)

    return run


def test_train_on_ones_own_dataset_leaves_a_model_that_predicts_without_it(
    textseg: Run, train_own: Callable[..., Any], tmp_path: Path, scan: Path, stub: Stub
) -> None:
    result = train_own("--hold-back", "3")
    assert result.exit_code == 0, result.output
    assert "Step 2 of 2" in result.stdout
    for folder in ("set", "mine.run", "own_plan"):
        shutil.rmtree(tmp_path / folder)
    card = (tmp_path / "mine" / "card.md").read_text(encoding="utf-8")
    assert "| left kidney |" in card
    assert "| odd thing |" in card
    assert textseg("predict", scan, "odd thing", "--model", tmp_path / "mine", "-o", tmp_path).exit_code == 0


def test_training_on_ones_own_dataset_goes_on_where_it_stopped(
    train_own: Callable[..., Any], tmp_path: Path
) -> None:
    assert "Step 1 of 2" in train_own("--minutes", "0").stdout
    assert not (tmp_path / "mine" / "card.md").exists()
    made = (tmp_path / "mine.run" / "cases" / "a.zip").stat().st_mtime_ns
    assert "Step 2 of 2" in train_own().stdout
    assert (tmp_path / "mine" / "card.md").is_file()
    assert (tmp_path / "mine.run" / "cases" / "a.zip").stat().st_mtime_ns == made


def test_cases_are_held_back_as_a_split_says(train_own: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train": ["c"], "validation": ["a"]}', encoding="utf-8")
    assert train_own("--split", tmp_path / "split.json", "--minutes", "0").exit_code == 0
    splits = {facts.name: facts.split for facts in read_index(tmp_path / "mine.run" / "cases")}
    assert splits == {"c": "train", "a": "validation"}
    result = train_own("--fold", "3", "--folds", "3", out="other")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "numbered from 0 to 2" in result.stderr


def test_a_model_that_is_there_is_replaced_by_its_own_run_alone(
    train_own: Callable[..., Any], tmp_path: Path
) -> None:
    assert train_own("--minutes", "0").exit_code == 0
    weights = (tmp_path / "mine" / "network.safetensors").read_bytes()
    refused = train_own("--run", tmp_path / "another.run")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "mine" / "network.safetensors").read_bytes() == weights
    assert not (tmp_path / "another.run").exists()
    (tmp_path / "mine" / "card.md").write_text("of the model before", encoding="utf-8")
    assert train_own("--run", tmp_path / "another.run", "--overwrite", "--minutes", "0").exit_code == 0
    assert not (tmp_path / "mine" / "card.md").exists()


def test_without_a_plan_one_is_made_for_the_memory_and_kept(textseg: Run, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    dataset = write_dataset(tmp_path / "set", cases=("a", "b"))
    options = ("-o", tmp_path / "mine", "--memory", "600MB", "--steps", "1", "--device", "cpu")
    result = textseg("train", dataset, *options)
    assert result.exit_code == 0, result.output
    planned = tmp_path / "mine.run" / "plan" / PLAN_FILE
    assert read_plan(planned).training.steps > 1
    assert read_plan(tmp_path / "mine").training.steps == 1
    assert read_plan(tmp_path / "mine").network == read_plan(planned).network


def test_a_folder_that_is_neither_a_dataset_nor_a_plan_is_one_sentence(textseg: Run, tmp_path: Path) -> None:
    result = textseg("train", tmp_path, "-o", tmp_path / "mine")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "dataset.json or names.json" in result.stderr
    nowhere = textseg("train", tmp_path)
    assert (nowhere.exit_code, len(nowhere.stderr.splitlines())) == (2, 1)
    assert "-o mymodel" in nowhere.stderr
