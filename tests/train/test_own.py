"""The steps of a training on one's own data that are not done again while nothing has changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.dataset.small_dataset import write_small_dataset
from tests.tiny_model import tiny_plan, write_tiny_model
from textseg.dataset import Dataset, read_dataset
from textseg.errors import DatasetError
from textseg.plan import PLAN_FILE, Plan, read_plan, write_plan
from textseg.planning import REASONS_FILE
from textseg.prompts import default_lexicon
from textseg.train.own import check_once, plan_once, scratch_plan, with_text_of

LEXICON = default_lexicon()


def silent(stage: str, done: int, of: int) -> None:
    pass


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return read_dataset(write_small_dataset(tmp_path / "Dataset007_Kidney"), LEXICON)


def test_a_dataset_is_checked_again_only_when_a_file_has_changed(dataset: Dataset, tmp_path: Path) -> None:
    (dataset.folder / "imagesTr" / "notes.txt").write_text("a stranger", encoding="utf-8")
    dataset = read_dataset(dataset.folder, LEXICON)
    assert check_once(dataset, tmp_path, LEXICON, 1, silent)
    assert check_once(dataset, tmp_path, LEXICON, 1, silent) == ()
    (dataset.folder / "labelsTr" / "a.nii.gz").touch()
    assert check_once(dataset, tmp_path, LEXICON, 1, silent)


def test_a_dataset_with_errors_is_refused_each_time(dataset: Dataset, tmp_path: Path) -> None:
    (dataset.folder / "labelsTr" / "b.nii.gz").unlink()
    broken = read_dataset(dataset.folder, LEXICON)
    for _ in range(2):
        with pytest.raises(DatasetError):
            check_once(broken, tmp_path, LEXICON, 1, silent)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Plan]]:
    """In place of planning: what was planned, (bytes, base), each giving its base back."""
    made: list[tuple[int, Plan]] = []

    @dataclasses.dataclass
    class Planned:
        plan: Plan

    def make(fingerprint: Any, memory_bytes: int, base: Plan, *rest: Any, **more: Any) -> Planned:
        made.append((memory_bytes, base))
        return Planned(base)

    def write(planned: Planned, folder: Path, name: str) -> None:
        write_plan(planned.plan, folder / PLAN_FILE)
        document = {"budget_bytes": made[-1][0]}
        (folder / REASONS_FILE).write_text(json.dumps(document), encoding="utf-8")

    monkeypatch.setattr("textseg.train.own.make_plan", make)
    monkeypatch.setattr("textseg.train.own.write_planned", write)
    return made


def test_a_plan_is_made_again_only_for_another_budget_or_other_files(
    dataset: Dataset, tmp_path: Path, plans: list[tuple[int, Plan]]
) -> None:
    def planned(memory: int) -> Plan:
        return plan_once(dataset, memory, tiny_plan(), tmp_path, 4, 1, silent)

    assert planned(1) == planned(1)
    assert len(plans) == 1
    planned(2)
    assert [memory for memory, _ in plans] == [1, 2]
    (dataset.folder / "labelsTr" / "a.nii.gz").touch()
    planned(2)
    assert len(plans) == 3


def test_a_plan_that_was_edited_in_the_run_is_kept(
    dataset: Dataset, tmp_path: Path, plans: list[tuple[int, Plan]]
) -> None:
    plan = plan_once(dataset, 1, tiny_plan(), tmp_path, 4, 1, silent)
    edited = plan.model_copy(update={"summary": "mine"})
    write_plan(edited, tmp_path / "plan" / PLAN_FILE)
    assert plan_once(dataset, 1, tiny_plan(), tmp_path, 4, 1, silent).summary == "mine"


def test_training_from_scratch_keeps_the_plans_recipe_but_for_its_data(dataset: Dataset) -> None:
    plan = tiny_plan()
    own = scratch_plan(plan, dataset, 70)
    assert own.training.steps == 70
    assert own.training.learning_rate == plan.training.learning_rate
    assert own.training.mixture == {"own": 1.0}
    assert own.network == plan.network
    assert scratch_plan(plan, dataset).training.steps == plan.training.steps


def test_training_from_scratch_keeps_the_plans_optimiser_and_scales(dataset: Dataset) -> None:
    plan = tiny_plan()
    asked = {"optimiser": "muon", "full_scale_fraction": 0.5}
    plan = plan.model_copy(update={"training": plan.training.model_copy(update=asked)})
    own = scratch_plan(plan, dataset).training
    assert (own.optimiser, own.full_scale_fraction) == ("muon", 0.5)


def test_a_plan_takes_the_text_tower_that_a_model_has(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    plan = read_plan(Path(__file__).parents[2] / "plans" / "default")
    with_tower = with_text_of(plan, folder)
    assert with_tower.text == read_plan(folder).text
    assert with_tower.network.text_width == with_tower.text.vector_width
    Plan.model_validate(with_tower.model_dump())
    assert with_text_of(plan, tmp_path) == plan
