"""`textseg probe`: what a model loses when words or scans change, as one table and one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from textseg.errors import DatasetError
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device

if TYPE_CHECKING:
    from textseg.scores.observations import Suite


@plain_errors()
def probe(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='A model by name, such as "default", or its folder.')
    ],
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Scans with labels, in nnU-Net's layout.")
    ],
    suites: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="paraphrases, laterality, absent, sentences, orientation, spacing, noise, crops; "
            "all by default. The last four cost a pass over the scan a change.",
        ),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases at most, drawn by the seed.")] = 5,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help='Only cases of this name, or like "STS_*_CT"; repeatable.'),
    ] = None,
    structures: Annotated[
        int, typer.Option(min=1, help="Structures of a case at most, left and right together.")
    ] = 12,
    prompts: Annotated[
        int, typer.Option(min=1, help="Paraphrases of a kind, and sentences, for each structure.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of cases, structures, paraphrases and noise.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; all by default.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="For CSV, Markdown, JSON, PNG and the page; a run that was stopped goes on from there.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the report there; answers to the same questions are kept."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
) -> None:
    """Find out what a model loses when prompts or scans change.

    Paraphrases, sides, absent structures, sentences, axis orders, voxel sizes,
    noise, contrast and crops: each as the Dice that is lost against the
    canonical prompt on the scan as it is.
    """
    chosen = _suites(suites)

    # What is wrong is said before the slow import of torch, and all the more before the slow work.
    from textseg.dataset import read_dataset
    from textseg.models import find_model

    found_model = find_model(model)
    data = read_dataset(dataset)
    from textseg.scores.probing import Probe, ask_with, choose_cases, probe_cases
    from textseg.scores.robustness_report import check_report, robustness_table, worst_table, write_robustness

    asked = Probe(chosen, prompts, structures, seed)
    picked = choose_cases(data, cases, seed, case or ())
    if out is not None:
        check_report(out, overwrite=overwrite)
    screen = Screen(quiet)
    with screen.progress() as bar:
        bar("loading the model", 0, 1)
        from textseg.inference import Segmenter

        segmenter = Segmenter(found_model.path, device=device.value, threads=threads)

        def told(stage: str, share: float, seconds_left: float | None) -> None:
            left = "" if seconds_left is None else f"; about {_duration(seconds_left)} left"
            bar(f"{stage}{left}", round(100 * share), 100)
            # The bar is for terminals; a log gets a line a case.
            if stage.endswith(": done") and share < 1:
                screen.note(f"{stage}{left}.")

        identity = {"name": found_model.name, "sha256": found_model.sha256}
        observations = probe_cases(
            data, picked, ask_with(segmenter), asked, model=identity, folder=out, progress=told
        )
    if not quiet:
        for table in (robustness_table(observations), worst_table(observations, 5)):
            screen.table(table.title, table.headings, table.rows)
    if out is not None:
        about = {
            "model": found_model.name,
            "dataset": data.name,
            "seed": seed,
            "structures": f"up to {structures}",
            "prompts": f"up to {prompts} of a kind",
        }
        written = write_robustness(out, observations, about, overwrite=overwrite)
        if not quiet:
            screen.lines([f"Written to {out}: {', '.join(path.name for path in written)}"])


def _suites(listed: str | None) -> tuple[Suite, ...]:
    from textseg.scores.observations import SUITES

    if listed is None:
        return SUITES
    names = [name.strip().lower() for name in listed.split(",") if name.strip()]
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        raise DatasetError(
            f"--suites takes names of suites with commas between them, got {listed!r}. "
            f"There are {', '.join(SUITES)}."
        )
    return cast("tuple[Suite, ...]", tuple(suite for suite in SUITES if suite in names))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
