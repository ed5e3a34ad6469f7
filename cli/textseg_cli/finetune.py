"""`textseg finetune`: from a trained model to one's own labels and words."""

from __future__ import annotations

import math
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg_cli.encoder import Encoder, encoder_told
from textseg_cli.exits import plain_errors
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
    Split,
    SplitChoice,
    check_writable,
    note_warnings,
    run_beside,
    together,
    train_and_tell,
)

if TYPE_CHECKING:
    from textseg.network.build import TextPromptedNetwork


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
        float | None, typer.Option(min=0, help="The model's own by default, for AdamW a fifth of it.")
    ] = None,
    rehearse: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of steps on synthetic torsos, against forgetting."),
    ] = 0.0,
    hold_back: HoldBack = 5,
    fold: Fold = None,
    folds: Folds = 5,
    split: Split = None,
    patients: Patients = None,
    encoder: Encoder = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Prepared cases, state and log; OUT.run by default."),
    ] = None,
    minutes: Minutes = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    exact: Deterministic = False,
    licence: Licence = None,
    overwrite: Overwrite = False,
) -> None:
    """Teach a model your own labels and words.

    Checks the dataset, prepares its cases, trains, scores the cases that were
    held back, and writes a model that `textseg predict --model OUT` runs. Stopped
    at any time, the same command goes on. Without --licence the new weights are under
    that of the ones they begin with.
    """
    from textseg.dataset import read_dataset
    from textseg.device import choose_compute
    from textseg.models import find_model
    from textseg.network.weights import load_network
    from textseg.prompts import default_lexicon
    from textseg.train.distributed import here
    from textseg.train.export import RunPlaces, check_model_place
    from textseg.train.finetune import Tuned, finetune_plan, tuned_from
    from textseg.train.own import check_once
    from textseg.train.start import put_into, read_encoder_weights

    lexicon = default_lexicon()
    run = run or run_beside(out)
    model = find_model(start)
    places = RunPlaces(out, run, run / "cases", model.path, licence or model.licence)
    compute = choose_compute(device.value)
    check_writable(places)
    check_model_place(places, overwrite=overwrite)
    dataset = read_dataset(dataset_folder, lexicon)
    chosen = SplitChoice(hold_back, fold, folds, split, patients).of(dataset)
    tuned = Tuned(what.value)
    plan = finetune_plan(
        model.plan, dataset, steps, tuned=tuned, rehearse=rehearse, learning_rate=learning_rate
    )
    weights = read_encoder_weights(encoder) if encoder else None

    def trained() -> TextPromptedNetwork:
        network = load_network(model.path, plan)
        if weights is not None:
            encoder_told(screen, places.run)(put_into(weights, network))
        return network

    begin = tuned_from(trained, tuned)
    longest = math.inf if minutes is None else minutes
    with together(device, exact) as screen, screen.progress() as progress:
        with here(compute.device).first_goes_first():
            problems = check_once(dataset, run, lexicon, os.cpu_count() or 1, progress)
        note_warnings(screen, problems, dataset_folder)
        train_and_tell(
            screen,
            dataset,
            chosen,
            plan,
            places,
            lexicon,
            compute,
            longest,
            progress,
            begin=begin,
        )
