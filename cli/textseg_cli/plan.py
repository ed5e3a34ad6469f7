"""`textseg plan`: from a dataset to a plan with its reasons; and a table of what is wrong with a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from textseg.errors import OutputError
from textseg_cli.exits import BAD_INPUT, plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device

if TYPE_CHECKING:
    from textseg.dataset_check import Problem
    from textseg.fingerprint import Fingerprint
    from textseg.plan import Plan
    from textseg.planning import Planned, Reason


class _MakeByDefault(TyperGroup):
    """`textseg plan DATASET` is `textseg plan make DATASET`; a folder called "show" is ./show."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["make", *args]
        return list(super().parse_args(ctx, args))


plan = typer.Typer(
    cls=_MakeByDefault,
    help="Plan the training of a dataset: textseg plan DATASET [OPTIONS], as with make.",
    no_args_is_help=True,
)

OPTIMISERS = {"adamw": "AdamW", "muon": "Muon"}

DatasetFolder = Annotated[
    Path,
    typer.Argument(metavar="DATASET", help="nnU-Net's raw layout, or label maps with names.json."),
]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes that read scans.", default_factory=lambda: os.cpu_count() or 1)
]


@plan.command()
@plain_errors()
def make(
    dataset_folder: DatasetFolder,
    workers: Workers,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What a training step may take: 8GB, 24GiB, 800MB.")
    ] = "8GB",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="By default DATASET's name + _plan.")
    ] = None,
    device: Annotated[
        Device, typer.Option(help="What will train; cuda may be planned for where there is none.")
    ] = Device.AUTO,
    width: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=32,
            help="The first stage's width, 8, 16, 24 or 32. By default the widest that fits; less is faster.",
            show_default=False,
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="MM", help="The working spacing, 3 or 1,1,5. By default the cases' median, as nnU-Net's."
        ),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run two training steps and measure.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that is there.")] = False,
) -> None:
    """Plan the training of a dataset for a memory budget.

    Checks the dataset, takes its fingerprint (kept in the output folder as
    long as no file changes), and writes plan.json, planning.json with the
    reasons, and fingerprint.json.
    """
    from textseg.dataset import read_dataset
    from textseg.device import choose_compute
    from textseg.models import plans_folder
    from textseg.plan import PLAN_FILE, read_plan
    from textseg.planning import (
        make_plan,
        parse_memory,
        parse_spacing,
        widths_to_try,
        with_measured,
        write_planned,
    )
    from textseg.train.memory import bytes_per_value, measure_training_memory

    screen = Screen()
    budget = parse_memory(memory)
    widths_to_try(width)  # told before any scan is read
    spacing_mm = None if spacing is None else parse_spacing(spacing)
    dataset = read_dataset(dataset_folder)
    folder = out or Path(f"{dataset.name}_plan")
    if (folder / PLAN_FILE).exists() and not overwrite:
        raise OutputError(
            f"Files are never replaced unasked, but {folder} already holds {PLAN_FILE}. "
            "Use --overwrite or another folder."
        )
    kind = choose_compute("auto").device.type if device is Device.AUTO else device.value
    with screen.progress() as progress:
        fingerprint = _fingerprint(screen, dataset, folder, workers, progress)
        base = read_plan(plans_folder() / "default")
        planned = make_plan(fingerprint, budget, base, bytes_per_value(kind), width, spacing_mm, progress)
        if measure:
            progress("measuring", 0, 1)
            peak = measure_training_memory(planned.plan, "cuda" if kind == "cuda" else "cpu")
            planned = with_measured(planned, peak)
    write_planned(planned, folder, dataset.name)
    _show_fingerprint(screen, fingerprint)
    _show_plan(screen, planned.plan, planned.reasons)
    _warn_of_memory(screen, planned)
    screen.lines([f"Written to {folder / PLAN_FILE}"])


@plan.command()
@plain_errors()
def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A plan.json, or the folder of one.")],
) -> None:
    """Show a plan as tables, with its reasons where it was planned from a dataset."""
    from textseg.fingerprint import FINGERPRINT_FILE, read_fingerprint
    from textseg.plan import read_plan
    from textseg.planning import read_reasons

    screen = Screen()
    found = read_plan(path)
    folder = path if path.is_dir() else path.parent
    reasons = read_reasons(folder)
    if reasons and (folder / FINGERPRINT_FILE).is_file():
        _show_fingerprint(screen, read_fingerprint(folder))
    _show_plan(screen, found, reasons)


@plan.command()
@plain_errors()
def check(dataset_folder: DatasetFolder, workers: Workers) -> None:
    """List all problems of a dataset in one table; every voxel is read.

    Exit code 2 if there is an error, 0 if there are only warnings or none.
    """
    from textseg.dataset import read_dataset
    from textseg.dataset_check import check_dataset

    screen = Screen()
    dataset = read_dataset(dataset_folder)
    with screen.progress() as progress:
        problems = check_dataset(dataset, workers, progress)
    _show_problems(screen, problems)
    errors = sum(problem.severity == "error" for problem in problems)
    channels = ", ".join(channel.name for channel in dataset.channels) or "label maps without images"
    contents = f"{_count(len(dataset.cases), 'case')}, {_count(len(dataset.labels), 'label')}, {channels}"
    found = f"{_count(errors, 'error')}, {_count(len(problems) - errors, 'warning')}"
    screen.lines([f"{dataset.name}: {contents}: {found}"])
    if errors:
        raise typer.Exit(BAD_INPUT)


def _fingerprint(screen: Screen, dataset: Any, folder: Path, workers: int, progress: Any) -> Fingerprint:
    """The kept one, or the dataset is checked first; its problems are shown before any is an error."""
    from textseg.dataset_check import check_dataset, refuse_errors
    from textseg.fingerprint import kept_fingerprint, take_fingerprint

    kept = kept_fingerprint(dataset, folder)
    if kept is not None:
        screen.note(
            f"No file of {dataset.name} has changed since its fingerprint was taken; it is used again."
        )
        return kept
    problems = check_dataset(dataset, workers, progress)
    _show_problems(screen, problems)
    refuse_errors(problems)
    return take_fingerprint(dataset, folder, workers, progress)


def _show_problems(screen: Screen, problems: Sequence[Problem]) -> None:
    if problems:
        rows = [(one.severity, one.case or "all", one.kind, one.message) for one in problems]
        screen.table("Problems", ("", "Case", "Kind", "What"), rows)


def _show_fingerprint(screen: Screen, fingerprint: Fingerprint) -> None:
    rows = [
        (
            name,
            label.group or "not in the lexicon",
            str(label.cases),
            _ml(label.median_ml),
            _ml(label.smallest_ml),
        )
        for name, label in fingerprint.labels.items()
    ]
    columns = ("Label", "Group", "Cases", "Median (ml)", "Smallest (ml)")
    screen.table(f"{fingerprint.dataset}: {len(fingerprint.cases)} cases", columns, rows)
    if fingerprint.intensities:
        screen.table(
            "Intensities inside labels",
            ("Channel", "Modality", "Cases", "Mean", "SD", "Median", "0.5 %", "99.5 %"),
            [
                (
                    one.channel,
                    one.modality.upper(),
                    str(one.cases),
                    *(f"{value:g}" for value in (one.mean, one.sd, one.median, one.low, one.high)),
                )
                for one in fingerprint.intensities
            ],
        )


def _show_plan(screen: Screen, found: Plan, reasons: Sequence[Reason]) -> None:
    network = found.network
    size = [float(n) for n in found.training.patch_voxels]
    rows = []
    for stage, stride in enumerate(network.strides):
        size = [n / step for n, step in zip(size, stride, strict=True)]
        rows.append(
            (
                str(stage),
                _times(stride),
                _times(network.stage_kernels[stage]),
                _times(size),
                str(network.widths[stage]),
                str(network.blocks_per_stage[stage]),
                str(network.prompt_channels[stage]),
            )
        )
    screen.facts(
        found.name, {"summary": found.summary, "channels": ", ".join(found.channels)} | _facts(found)
    )
    columns = ("Stage", "Stride", "Kernel", "Voxels", "Width", "Blocks", "Channels a prompt")
    screen.table("Network", columns, rows)
    if reasons:
        screen.table(
            "Reasons", ("What", "Chosen", "Why"), [(one.what, one.value, one.why) for one in reasons]
        )


def _facts(found: Plan) -> dict[str, str]:
    looks = {
        group: f"{_times(part.spacing_mm)}{', mirrored too' if part.mirrored else ''}"
        for group, part in found.groups.items()
    }
    recipe = found.training
    return {
        "spacing (mm)": "; ".join(f"{group} {look}" for group, look in looks.items()),
        "patch, batch": f"{_times(recipe.patch_voxels)} voxels, {recipe.batch} a step",
        "modalities": ", ".join(modality.upper() for modality in found.intensity),
        "recipe": f"{recipe.steps} steps with {OPTIMISERS[recipe.optimiser]}, "
        f"learning rate {recipe.learning_rate:g}, "
        f"{recipe.prompts_per_sample} prompts a sample",
    }


def _warn_of_memory(screen: Screen, planned: Planned) -> None:
    if planned.measured_bytes is not None and planned.measured_bytes > planned.budget_bytes:
        screen.warning("A training step took more than the budget; plan for a little less.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)


def _ml(volume: float | None) -> str:
    return "in no case" if volume is None else f"{volume:.3g}"
