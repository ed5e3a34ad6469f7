"""Training on somebody's own dataset: check, plan, prepare, train, score, and a model's folder in the end.

Every step leaves its result in the run's folder and is not done again while nothing has changed: the same
call goes on wherever the one before was stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from textseg.atomic import write_bytes
from textseg.dataset import Dataset
from textseg.dataset_check import Problem, check_dataset, refuse_errors
from textseg.device import Compute
from textseg.fingerprint import files_key, kept_fingerprint, take_fingerprint
from textseg.plan import PLAN_FILE, Plan, read_plan
from textseg.planning import REASONS_FILE, make_plan, write_planned
from textseg.prompts import Lexicon
from textseg.train.distributed import here
from textseg.train.export import RunPlaces, keep_beside, write_trained
from textseg.train.finetune import finetune_plan
from textseg.train.gather import make_cases, phantom_jobs
from textseg.train.labelled import dataset_jobs
from textseg.train.loop import Beginning, Step, Trained, fresh
from textseg.train.recipe import run_recipe
from textseg.train.split import CaseSplit

Progress = Callable[[str, int, int], None]
CHECKED_FILE = "checked.json"
PLAN_FOLDER = "plan"


def check_once(
    dataset: Dataset, run: Path, lexicon: Lexicon, workers: int, progress: Progress
) -> tuple[Problem, ...]:
    """The dataset's warnings; none again once it was checked for this run and no file has changed.

    Raises:
        DatasetError: it has errors.
    """
    checked = run / CHECKED_FILE
    key = files_key(dataset)
    if _document(checked).get("files") == key:
        return ()
    problems = check_dataset(dataset, workers, progress, lexicon)
    refuse_errors(problems)
    write_bytes(checked, json.dumps({"files": key, "warnings": len(problems)}).encode())
    return tuple(problems)


def plan_once(
    dataset: Dataset,
    memory_bytes: int,
    base: Plan,
    run: Path,
    bytes_per_value: int,
    workers: int,
    progress: Progress,
) -> Plan:
    """The plan for a dataset and a memory budget, kept in the run's folder with its reasons.

    One that was planned there before, for the same files and the same budget, is taken as it is.

    Args:
        base, bytes_per_value: as for `textseg.planning.make_plan`.

    Raises:
        PlanError, DatasetError, OutputError: as `make_plan` and `take_fingerprint`.
    """
    folder = run / PLAN_FOLDER
    same_files = kept_fingerprint(dataset, folder) is not None
    same_budget = _document(folder / REASONS_FILE).get("budget_bytes") == memory_bytes
    if same_files and same_budget and (folder / PLAN_FILE).is_file():
        return read_plan(folder)
    fingerprint = take_fingerprint(dataset, folder, workers, progress)
    planned = make_plan(fingerprint, memory_bytes, base, bytes_per_value, progress=progress)
    write_planned(planned, folder, dataset.name)
    return planned.plan


def with_text_of(plan: Plan, folder: Path) -> Plan:
    """The plan for the text tower of a model's folder; as it is where that has no plan of its own.

    Raises:
        PlanError: the folder's plan is not valid.
    """
    if not (folder / PLAN_FILE).is_file():
        return plan
    text = read_plan(folder).text
    network = plan.network.model_copy(update={"text_width": text.vector_width})
    return plan.model_copy(update={"text": text, "network": network})


def scratch_plan(plan: Plan, dataset: Dataset, steps: int | None = None) -> Plan:
    """A dataset's plan with the recipe for training from random weights, by the plan's own optimiser.

    Args:
        steps: as many as the plan says where it is None.
    """
    recipe = plan.training
    planned = finetune_plan(plan, dataset, steps or recipe.steps, learning_rate=recipe.learning_rate)
    own = planned.training.model_copy(update={"full_scale_fraction": recipe.full_scale_fraction})
    return planned.model_copy(update={"training": own})


def train_on_dataset(
    dataset: Dataset,
    split: CaseSplit,
    plan: Plan,
    places: RunPlaces,
    lexicon: Lexicon,
    compute: Compute,
    *,
    begin: Callable[[Plan], Beginning] = fresh,
    minutes: float = math.inf,
    workers: int = 1,
    report: Callable[[Step], None] = lambda step: None,
    progress: Progress = lambda stage, done, of: None,
) -> Trained:
    """Prepare a dataset's cases, train on them, and write the model; its scores and card at the last step.

    Args:
        dataset: checked before.
        plan: with the recipe, from `scratch_plan` or `finetune_plan`.
        begin: what the run begins with: random weights, or trained ones.
        minutes: stop after so long; the same call goes on.
        workers: processes that prepare cases.
        report: called after every step.
        progress: called with the stage in words, the parts done and all parts.

    Raises:
        DatasetError: the dataset can't be trained on, or the run was begun with another plan.
    """
    world = here(compute.device)
    with world.first_goes_first():
        _prepare(split.of(dataset), split, plan, lexicon, places.arrays, workers, progress)
        keep_beside(places, plan)
    trained = run_recipe(
        plan,
        places.text,
        places.arrays,
        places.run,
        lexicon,
        compute.device,
        begin=begin,
        minutes=minutes,
        report=report,
    )
    if world.is_first:
        write_trained(trained, plan, places, lexicon, compute, progress=progress)
    return trained


def _prepare(
    dataset: Dataset,
    split: CaseSplit,
    plan: Plan,
    lexicon: Lexicon,
    arrays: Path,
    workers: int,
    progress: Progress,
) -> None:
    jobs, words = dataset_jobs(dataset, plan, lexicon, split.validation)
    if "phantom" in plan.training.mixture:
        jobs += phantom_jobs(plan, lexicon)
    make_cases(
        jobs,
        arrays,
        plan,
        words=words,
        workers=workers,
        progress=lambda done, of: progress("preparing cases", done, of),
    )


def _document(path: Path) -> dict[str, object]:
    """What a JSON file of ours holds; nothing where it is missing or broken: its step is then done again."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
