"""`textseg finetune`: from a trained model to one's own labels and words."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device
from textseg_cli.train import put_beside

if TYPE_CHECKING:
    from textseg.dataset import Dataset
    from textseg.plan import Plan
    from textseg.prompts import Lexicon
    from textseg.train.loop import Step


class What(StrEnum):
    EVERYTHING = "everything"
    DECODER = "decoder"
    LORA = "lora"


@plain_errors()
def finetune(
    dataset_folder: Annotated[
        Path,
        typer.Argument(metavar="DATASET", help="nnU-Net's layout, or label maps; prompts.json beside it."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The new model.")],
    start: Annotated[str, typer.Option("--from", help="A model's name or folder.")] = "default",
    what: Annotated[What, typer.Option(help="What is trained.")] = What.EVERYTHING,
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 1000,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="A fifth of the model's own by default.")
    ] = None,
    rehearse: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of steps on synthetic torsos, against forgetting."),
    ] = 0.0,
    hold_back: Annotated[
        int, typer.Option(min=2, help="Every n-th case is kept for validation and never trained on.")
    ] = 5,
    run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Prepared cases, state and log; OUT.run by default."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
) -> None:
    """Teach a model your own labels and words.

    Checks the dataset, prepares its cases, trains, scores the cases that were
    held back, and writes a model that `textseg predict --model OUT` runs. Stopped
    at any time, the same command goes on.
    """
    from textseg.dataset import read_dataset
    from textseg.dataset_check import check_dataset, refuse_errors
    from textseg.destination import Destination
    from textseg.device import choose_compute
    from textseg.models import find_model
    from textseg.network.weights import load_network
    from textseg.prompts import default_lexicon
    from textseg.train.finetune import Tuned, finetune_plan, merge_low_rank, tuned_from
    from textseg.train.recipe import run_recipe, save_model, write_scored_card

    screen, lexicon = Screen(), default_lexicon()
    run = run or out.with_name(f"{out.name}.run")
    arrays, cores = run / "cases", os.cpu_count() or 1
    model = find_model(start)
    compute = choose_compute(device.value)
    for folder in (out, run):
        Destination(folder).check_folder()
    dataset = read_dataset(dataset_folder, lexicon)
    plan = finetune_plan(model.plan, dataset, steps, rehearse=rehearse, learning_rate=learning_rate)
    with screen.progress() as progress:
        refuse_errors(check_dataset(dataset, cores, progress, lexicon))
        _warn_of_likeness(screen, dataset, model.path, plan, lexicon)
        _prepare(dataset, plan, lexicon, arrays, hold_back, cores, progress)

        def report(step: Step) -> None:
            progress(f"loss {step.loss:.3f}", step.number, step.of)

        trained = run_recipe(
            plan,
            model.path,
            arrays,
            run,
            lexicon,
            compute.device,
            begin=tuned_from(lambda: load_network(model.path, plan), Tuned(what.value)),
            minutes=math.inf if minutes is None else minutes,
            report=report,
        )
        network = merge_low_rank(trained.network)
        put_beside(out, plan, model.path, model.path)
        save_model(network, plan, out, trained.steps)
        if trained.steps == steps:
            write_scored_card(
                trained,
                plan,
                out,
                arrays,
                lexicon,
                compute,
                progress=lambda done, of: progress("scoring held-back cases", done, of),
            )
    screen.lines([f"Step {trained.steps} of {steps}; the model is in {out}"])


def _prepare(
    dataset: Dataset,
    plan: Plan,
    lexicon: Lexicon,
    arrays: Path,
    hold_back: int,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> None:
    from textseg.train.gather import make_cases, phantom_jobs
    from textseg.train.labelled import dataset_jobs, split_cases

    jobs, words = dataset_jobs(dataset, plan, lexicon, split_cases(dataset, hold_back))
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


def _warn_of_likeness(screen: Screen, dataset: Dataset, model: Path, plan: Plan, lexicon: Lexicon) -> None:
    from textseg.embeddings.encoder import load_own_encoder
    from textseg.prompts import understand
    from textseg.train.finetune import confusable

    words = {name: understand(label.words[0], lexicon).canonical for name, label in dataset.labels.items()}
    for one, other, cosine in confusable(words, load_own_encoder(model, plan.text)):
        screen.warning(
            f"{one!r} and {other!r} have nearly the same vector (cosine {cosine:.3f}): the model can hardly "
            "tell them apart. Give one of them other words in prompts.json."
        )
