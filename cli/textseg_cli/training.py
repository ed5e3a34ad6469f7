"""What `textseg train` and `textseg finetune` share: their options, and the way from a checked dataset on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg_cli.output import Screen
from textseg_cli.predict import Device

if TYPE_CHECKING:
    from textseg.dataset import Dataset
    from textseg.device import Compute
    from textseg.plan import Plan
    from textseg.prompts import Lexicon
    from textseg.train.export import RunPlaces
    from textseg.train.loop import Beginning, Step, Trained
    from textseg.train.split import CaseSplit

Progress = Callable[[str, int, int], None]

HoldBack = Annotated[int, typer.Option(min=2, help="Every n-th case is held back and never trained on.")]
Fold = Annotated[
    int | None,
    typer.Option(min=0, help="Hold back this fold instead, numbered from 0, as nnU-Net makes them."),
]
Folds = Annotated[int, typer.Option(min=2, help="How many folds there are.")]
Split = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='{"validation": [ids]}, or splits_final.json of nnU-Net with --fold.'),
]
Patients = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Finds the patient in a case's id; a patient's cases stay together."),
]
Minutes = Annotated[float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="Same weights bit for bit each time: float32, one thread, slower."),
]
Licence = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of the new weights, kept in them and in every record: CC BY 4.0."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")]


@dataclass(frozen=True)
class SplitChoice:
    """What was said of which cases to hold back; see `textseg.train.split.choose_split`."""

    hold_back: int
    fold: int | None
    folds: int
    file: Path | None
    patients: str | None

    def of(self, dataset: Dataset) -> CaseSplit:
        from textseg.train.split import choose_split

        return choose_split(
            dataset,
            hold_back=self.hold_back,
            fold=self.fold,
            folds=self.folds,
            file=self.file,
            patients=self.patients,
        )


@contextmanager
def together(device: Device, exact: bool) -> Iterator[Screen]:
    """Around a training, in each process that torchrun started; only the first of them says anything.

    Args:
        exact: train in deterministic mode.
    """
    from textseg.device import choose_compute
    from textseg.train.deterministic import deterministic
    from textseg.train.distributed import joined

    with joined(choose_compute(device.value).device) as world, deterministic(exact):
        yield Screen(quiet=not world.is_first)


def run_beside(out: Path) -> Path:
    """Where a run is kept by default."""
    # The folder "." has a name only as an absolute path.
    out = out if out.name else out.resolve()
    return out.with_name(f"{out.name}.run")


def check_writable(places: RunPlaces) -> None:
    """Refuse places that can't be written to before any work is done."""
    from textseg.destination import Destination

    for folder in (places.arrays, places.run, places.model):
        Destination(folder).check_folder()


def note_warnings(screen: Screen, problems: tuple[object, ...], dataset: Path) -> None:
    if problems:
        what = "1 warning" if len(problems) == 1 else f"{len(problems)} warnings"
        screen.note(f"{what} about this dataset; `textseg plan check {dataset}` lists them.")


def warn_of_likeness(screen: Screen, dataset: Dataset, text: Path, plan: Plan, lexicon: Lexicon) -> None:
    from textseg.train.finetune import confusable
    from textseg.train.labelled import label_targets
    from textseg.train.recipe import encoder_of
    from textseg.train.words import own_texts

    words = {
        name: own_texts(target, said, lexicon)[0]
        for name, (target, said) in label_targets(dataset.labels, lexicon).items()
    }
    for one, other, cosine in confusable(words, encoder_of(text, plan)):
        screen.warning(
            f"{one!r} and {other!r} have nearly the same vector (cosine {cosine:.3f}): the model can hardly "
            "tell them apart. Give one of them other words in prompts.json."
        )


def step_shown(progress: Progress) -> Callable[[Step], None]:
    return lambda step: progress(str(step), step.number, step.of)


def train_and_tell(
    screen: Screen,
    dataset: Dataset,
    split: CaseSplit,
    plan: Plan,
    places: RunPlaces,
    lexicon: Lexicon,
    compute: Compute,
    minutes: float,
    progress: Progress,
    begin: Callable[[Plan], Beginning] | None = None,
) -> None:
    """The part that training from scratch and fine-tuning share: from a checked dataset to its model."""
    from textseg.train.loop import fresh
    from textseg.train.own import train_on_dataset

    warn_of_likeness(screen, dataset, places.text, plan, lexicon)
    trained = train_on_dataset(
        dataset,
        split,
        plan,
        places,
        lexicon,
        compute,
        begin=begin or fresh,
        minutes=minutes,
        workers=os.cpu_count() or 1,
        report=step_shown(progress),
        progress=progress,
    )
    tell(screen, trained, plan, places)


def tell(screen: Screen, trained: Trained, plan: Plan, places: RunPlaces) -> None:
    """How far a run is, where its model is, and of which step the weights are; by the first process alone."""
    if screen.quiet:
        return
    lines = [f"Step {trained.steps} of {plan.training.steps}; the model is in {places.model}"]
    if trained.best is not None:
        best = f"step {trained.best.step}, the best on held-back cases: Dice {trained.best.dice:.3f}"
        lines.append(f"Its weights are those of {best}")
    screen.lines(lines)
