"""`textseg train`: from one's own dataset, or from a plan and its sources, to a model's folder."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg.errors import DatasetError, OutputError
from textseg_cli.encoder import Encoder, encoder_told
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device
from textseg_cli.training import (
    Deterministic,
    Fold,
    Folds,
    HoldBack,
    Licence,
    Minutes,
    Overwrite,
    Patients,
    Progress,
    Split,
    SplitChoice,
    check_writable,
    note_warnings,
    run_beside,
    step_shown,
    tell,
    together,
    train_and_tell,
)

if TYPE_CHECKING:
    from textseg.dataset import Dataset
    from textseg.device import Compute
    from textseg.plan import Plan
    from textseg.train.export import RunPlaces
    from textseg.train.loop import Beginning


@plain_errors()
def train(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="nnU-Net's layout, or label maps with names.json; or a plan's folder with sources.json.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The model; RUN/model by default."),
    ] = None,
    plan_folder: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FOLDER", help="From textseg plan; made for --memory without it."),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What a training step may take: 8GB, 24GiB, 800MB.")
    ] = "8GB",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all; the plan's by default.")] = None,
    hold_back: HoldBack = 5,
    fold: Fold = None,
    folds: Folds = 5,
    split: Split = None,
    patients: Patients = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Whose text tower is used; the default model's, or the plan's own."
        ),
    ] = None,
    encoder: Encoder = None,
    begin_with: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Go on from a model's weights in a further round, by a plan's own recipe."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="State and log; OUT.run by default.")
    ] = None,
    arrays: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Prepared cases; RUN/cases by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What the folders in sources.json lie in.")
    ] = None,
    minutes: Minutes = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    exact: Deterministic = False,
    licence: Licence = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a network from scratch on your own dataset, or by a plan's own recipe.

    Checks and plans the dataset, prepares its cases, trains, scores the cases that
    were held back, and writes a model with its card that `textseg predict --model
    OUT` runs. Stopped at any time, the same command goes on.

    A folder with plan.json and sources.json is trained from the data that it names.

    On several GPUs, which share out the plan's batch:
    torchrun --nproc-per-node 2 -m textseg_cli -- train ...
    """
    run, model = _run_and_model(run, out)
    places = _places(source, model, run, arrays or run / "cases", text, licence)
    longest = math.inf if minutes is None else minutes
    with together(device, exact) as screen:
        if _is_dataset(source):
            chosen = SplitChoice(hold_back, fold, folds, split, patients)
            asked = PlanChoice(plan_folder, memory, steps)
            if begin_with is not None:
                raise DatasetError(
                    f"--begin-with goes with a plan's own recipe, but {source} is a dataset. To go on from a "
                    f"model with it: textseg finetune {source} --from {begin_with}."
                )
            _train_own(screen, source, asked, chosen, places, encoder, longest, device, overwrite)
        else:
            began = _Began(encoder, begin_with)
            _train_recipe(screen, source, data, places, began, longest, device, overwrite)


@dataclass(frozen=True)
class PlanChoice:
    """What was said of the plan: a folder, or a size of memory to make one for; and of its steps."""

    folder: Path | None
    memory: str
    steps: int | None


def _train_own(
    screen: Screen,
    folder: Path,
    asked: PlanChoice,
    chosen: SplitChoice,
    places: RunPlaces,
    encoder: str | None,
    minutes: float,
    device: Device,
    overwrite: bool,
) -> None:
    from textseg.dataset import read_dataset
    from textseg.device import choose_compute
    from textseg.planning import parse_memory
    from textseg.prompts import default_lexicon
    from textseg.train.distributed import here
    from textseg.train.export import check_model_place
    from textseg.train.own import check_once, scratch_plan

    lexicon, cores = default_lexicon(), os.cpu_count() or 1
    compute = choose_compute(device.value)
    budget = parse_memory(asked.memory)
    check_writable(places)
    check_model_place(places, overwrite=overwrite)
    begin = _beginning(screen, encoder, places.run)
    dataset = read_dataset(folder, lexicon)
    split = chosen.of(dataset)
    with screen.progress() as progress:
        with here(compute.device).first_goes_first():
            note_warnings(screen, check_once(dataset, places.run, lexicon, cores, progress), folder)
            plan = _plan(dataset, asked.folder, budget, places, compute, cores, progress)
        plan = scratch_plan(plan, dataset, asked.steps)
        train_and_tell(screen, dataset, split, plan, places, lexicon, compute, minutes, progress, begin=begin)


def _plan(
    dataset: Dataset,
    folder: Path | None,
    budget: int,
    places: RunPlaces,
    compute: Compute,
    workers: int,
    progress: Progress,
) -> Plan:
    from textseg.models import plans_folder
    from textseg.plan import read_plan
    from textseg.train.memory import bytes_per_value
    from textseg.train.own import plan_once, with_text_of

    if folder is not None:
        return read_plan(folder)
    base = with_text_of(read_plan(plans_folder() / "default"), places.text)
    width = bytes_per_value("cuda" if compute.device.type == "cuda" else "cpu")
    return plan_once(dataset, budget, base, places.run, width, workers, progress)


@dataclass(frozen=True)
class _Began:
    """What a run of a plan's recipe begins with: an encoder, all of a model, or neither."""

    encoder: str | None
    model: str | None


def _train_recipe(
    screen: Screen,
    plan_folder: Path,
    data: Path | None,
    places: RunPlaces,
    began: _Began,
    minutes: float,
    device: Device,
    overwrite: bool,
) -> None:
    from textseg.device import choose_compute
    from textseg.plan import read_plan
    from textseg.prompts import default_lexicon
    from textseg.train.distributed import here
    from textseg.train.export import check_model_place, keep_beside, write_trained
    from textseg.train.recipe import INTRODUCTION_FILE, run_recipe

    plan, lexicon = read_plan(plan_folder), default_lexicon()
    compute = choose_compute(device.value)
    check_writable(places)
    check_model_place(places, overwrite=overwrite, own_plan=plan_folder)
    introduction = plan_folder / INTRODUCTION_FILE
    if began.model is None:
        begin = _beginning(screen, began.encoder, places.run)
    else:
        begin = _next_round(screen, began, plan, places.run)
    world = here(compute.device)
    with screen.progress() as progress:
        with world.first_goes_first():
            _gather_once(plan_folder, data, places.arrays, plan, progress)
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
            report=step_shown(progress),
        )
        if world.is_first:
            write_trained(
                trained,
                plan,
                places,
                lexicon,
                compute,
                introduction=introduction if introduction.is_file() else None,
                progress=progress,
            )
    tell(screen, trained, plan, places)


def _beginning(screen: Screen, encoder: str | None, run: Path) -> Callable[[Plan], Beginning]:
    """Random weights, with those of --encoder where they fit."""
    from textseg.train.loop import fresh
    from textseg.train.start import read_encoder_weights, started_from

    if encoder is None:
        return fresh
    return started_from(read_encoder_weights(encoder), report=encoder_told(screen, run))


def _next_round(screen: Screen, began: _Began, plan: Plan, run: Path) -> Callable[[Plan], Beginning]:
    """A trained model's weights, as far as they fit."""
    from textseg.models import find_model
    from textseg.train.continued import continued, keep_beginning

    assert began.model is not None
    if began.encoder is not None:
        raise DatasetError("--encoder and --begin-with both say what a run begins with. Give one of them.")
    kept = keep_beginning(find_model(began.model).path, plan, run)
    screen.note(f"{kept:.0%} of the network begins with the weights of {began.model}.")
    return continued(run)


def _run_and_model(run: Path | None, out: Path | None) -> tuple[Path, Path]:
    if run is not None:
        return run, out or run / "model"
    if out is None:
        raise OutputError("A model needs a place, but neither --out nor --run names one. Try -o mymodel.")
    return run_beside(out), out


def _is_dataset(folder: Path) -> bool:
    from textseg.dataset import DATASET_FILE, NAMES_FILE
    from textseg.plan import PLAN_FILE

    names = {name for name in (DATASET_FILE, NAMES_FILE, PLAN_FILE) if (folder / name).is_file()}
    if not names:
        raise DatasetError(
            f"What is trained on is a folder with {DATASET_FILE} or {NAMES_FILE}, or a plan's with "
            f"{PLAN_FILE}; {folder} has none of them. Is the path right?"
        )
    return not names <= {PLAN_FILE}


def _places(
    source: Path, model: Path, run: Path, arrays: Path, text: str | None, licence: str | None
) -> RunPlaces:
    from textseg.embeddings.tower import WEIGHTS_FILE
    from textseg.models import find_model
    from textseg.train.export import RunPlaces

    if text is None:
        tower = find_model("default").path if _is_dataset(source) else source
    elif (Path(text) / WEIGHTS_FILE).is_file():
        tower = Path(text)
    else:
        tower = find_model(text).path
    return RunPlaces(model, run, arrays, tower, licence)


def _gather_once(plan_folder: Path, data: Path | None, arrays: Path, plan: Plan, progress: Progress) -> None:
    from textseg.prompts import default_lexicon
    from textseg.train.cases import INDEX_FILE
    from textseg.train.gather import SOURCES_FILE, gather

    if (arrays / INDEX_FILE).is_file():
        return
    sources = plan_folder / SOURCES_FILE
    if data is None or not sources.is_file():
        raise DatasetError(
            f"Training needs arrays, but {arrays} has no {INDEX_FILE}; to gather them, give --data and a "
            f"plan's folder with {SOURCES_FILE}."
        )
    gather(
        data,
        arrays,
        plan,
        sources,
        default_lexicon(),
        workers=os.cpu_count() or 1,
        progress=lambda done, of: progress("preparing cases", done, of),
    )
