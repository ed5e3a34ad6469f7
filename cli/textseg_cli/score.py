"""`textseg score`: predictions against references, as tables and pictures."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg.errors import DatasetError
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen

if TYPE_CHECKING:
    from textseg.scores.challenge import Challenge
    from textseg.scores.measures import Rules


class ChallengeChoice(StrEnum):
    CVPR = "cvpr"
    CVPR_WITH_ABSENT = "cvpr-with-absent"
    REXGROUNDING = "rexgrounding"


@plain_errors()
def score(
    predicted: Annotated[
        Path, typer.Argument(metavar="PRED", help="A mask or label map, or a folder of them.")
    ],
    reference: Annotated[
        Path, typer.Argument(metavar="REF", help="The truth: a file for a file, a folder for a folder.")
    ],
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help='What labels mean: {"liver": 1, ...} or nnU-Net\'s dataset.json; beside REF it is found, '
            "as is annotated.json, which says what is drawn in full.",
        ),
    ] = None,
    tolerance: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            metavar="MM",
            help="Of the surface Dice (NSD), 2 mm by default; repeatable, and the first is ranked by.",
        ),
    ] = None,
    lesion: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Judge the pieces of this structure one by one, as tumors are; repeatable."
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="PRED2", help="Another system's predictions to compare with; repeatable."),
    ] = None,
    challenge: Annotated[
        ChallengeChoice | None,
        typer.Option(help="Also count as this challenge does, and by its rules."),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Bring predictions to the grid of their reference; else refused."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="For CSV, JSON, Markdown, LaTeX and PNG files."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases at once; as many as there are processors by default.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
) -> None:
    """Score predictions against references.

    Dice, IoU, surface Dice, Hausdorff and average surface distances in mm,
    volumes, lesions one by one, and presence; with bootstrap intervals, paired
    tests and a ranking for several systems. Cases are matched by their names,
    structures by what their names mean.
    """
    from textseg.dataset import ANNOTATED_FILE
    from textseg.scores.cases import Scoring, score_pairs
    from textseg.scores.challenge import CHALLENGES
    from textseg.scores.inputs import DATASET_FILE, Names, find_pairs, read_complete, read_names
    from textseg.scores.report import brief_tables_of, write_report

    screen = Screen(quiet)
    systems = _systems([predicted, *(against or [])])
    names = names or _beside(reference, DATASET_FILE)
    annotated = _beside(reference, ANNOTATED_FILE)
    chosen = CHALLENGES[challenge.value] if challenge else None
    rules = _rules(chosen, tolerance or [])
    known = read_names(names) if names else Names()
    if annotated:
        known = replace(known, complete=read_complete(annotated))
    scoring = Scoring(known, rules, tuple(lesion or ()), resample)
    pairs = {system: find_pairs(path, reference) for system, path in systems.items()}
    scores, notes = {}, []
    with screen.progress() as progress:
        for system, files in pairs.items():
            several = workers or len(os.sched_getaffinity(0))
            found = score_pairs(files, scoring, several, progress)
            scores[system] = [score for case in found for score in case.scores]
            notes += [f"{system}: {note}" for case in found for note in case.notes]
    for note in notes:
        screen.note(note)
    if not quiet:
        for table in brief_tables_of(scores, chosen):
            screen.table(table.title, table.headings, table.rows)
    if out is not None:
        written = write_report(out, scores, rules, challenge=chosen, notes=notes, overwrite=overwrite)
        if not quiet:
            screen.lines([f"Written to {out}: {', '.join(path.name for path in written)}"])


def _beside(reference: Path, name: str) -> Path | None:
    """A file in the folder of references, or beside it, as nnU-Net lays them out."""
    folder = reference.parent if reference.is_file() else reference
    places = (folder / name, folder.resolve().parent / name)
    return next((path for path in places if path.is_file()), None)


def _rules(challenge: Challenge | None, tolerances_mm: list[float]) -> Rules:
    from textseg.scores.measures import Rules

    rules = Rules() if challenge is None else challenge.rules
    if not tolerances_mm:
        return rules
    first, *others = dict.fromkeys(tolerances_mm)
    if challenge is not None and first != rules.tolerance_mm:
        raise DatasetError(
            f"The challenge {challenge.name} judges surfaces at {rules.tolerance_mm:g} mm, but --tolerance "
            f"asks for {first:g}. Give {rules.tolerance_mm:g} first, or leave one of the two options away."
        )
    return replace(rules, tolerance_mm=first, further_mm=tuple(others))


def _systems(paths: list[Path]) -> dict[str, Path]:
    """Each system's name, that of its folder or file; with the folder above where two are the same."""
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise DatasetError("Systems that are compared must differ, but one folder was given twice.")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in resolved]
    return dict(zip(names, paths, strict=True))
