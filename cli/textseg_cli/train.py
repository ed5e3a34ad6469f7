"""`textseg train`: from a plan and its sources to a model's folder."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg.errors import DatasetError
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device

if TYPE_CHECKING:
    from textseg.plan import Plan
    from textseg.train.loop import Step


@plain_errors()
def train(
    plan_folder: Annotated[
        Path, typer.Argument(metavar="PLAN_FOLDER", help="Holds plan.json, sources.json and the text tower.")
    ],
    arrays: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The training arrays; gathered from DATA where missing.")
    ],
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="State and log, to stop and to go on.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What the folders in sources.json lie in.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the text tower is, if not in PLAN_FOLDER."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The model; RUN/model by default."),
    ] = None,
) -> None:
    """Train a plan's network.

    Goes on from the state in RUN where there is one, and writes the model's
    folder whenever the time is up. At the last step it scores the held-back
    cases and writes the model's card; on a run that has ended it does only that.
    """
    from textseg.destination import Destination
    from textseg.device import choose_compute
    from textseg.plan import read_plan
    from textseg.prompts import default_lexicon
    from textseg.train.recipe import INTRODUCTION_FILE, run_recipe, save_model, write_scored_card

    screen = Screen()
    plan, lexicon = read_plan(plan_folder), default_lexicon()
    text, model = text or plan_folder, out or run / "model"
    compute = choose_compute(device.value)
    for folder in (arrays, run, model):
        Destination(folder).check_folder()
    with screen.progress() as progress:
        _gather_once(plan_folder, data, arrays, plan, progress)

        def report(step: Step) -> None:
            progress(f"loss {step.loss:.3f}", step.number, step.of)

        longest = math.inf if minutes is None else minutes
        trained = run_recipe(plan, text, arrays, run, lexicon, compute.device, minutes=longest, report=report)
        put_beside(model, plan, plan_folder, text)
        save_model(trained.network, plan, model, trained.steps)
        if trained.steps == plan.training.steps:
            introduction = plan_folder / INTRODUCTION_FILE
            write_scored_card(
                trained,
                plan,
                model,
                arrays,
                lexicon,
                compute,
                introduction=introduction if introduction.is_file() else None,
                progress=lambda done, of: progress("scoring held-back cases", done, of),
            )
    screen.lines([f"Step {trained.steps} of {plan.training.steps}; the model is in {model}"])


def put_beside(model: Path, plan: Plan, plan_folder: Path, text: Path) -> None:
    """What weights need beside them: the plan and the text tower, unless they are there already."""
    from textseg.plan import PLAN_FILE, write_plan

    model.mkdir(parents=True, exist_ok=True)
    if not model.samefile(plan_folder):
        write_plan(plan, model / PLAN_FILE)
    if not model.samefile(text):
        _copy_text_tower(text, model)


def _gather_once(
    plan_folder: Path, data: Path | None, arrays: Path, plan: Plan, progress: Callable[[str, int, int], None]
) -> None:
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


def _copy_text_tower(text: Path, model: Path) -> None:
    from textseg.embeddings.tower import WEIGHTS_FILE
    from textseg.embeddings.vocabulary import VOCABULARY_FILE

    for name in (WEIGHTS_FILE, VOCABULARY_FILE):
        shutil.copyfile(text / name, model / name)
