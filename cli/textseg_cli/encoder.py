"""The option --encoder: weights that the image encoder of a run begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg_cli.output import Screen

if TYPE_CHECKING:
    from textseg.train.start import StartReport

Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="PATH",
        help="Weights that the image encoder begins with: of pretrain, nnU-Net, STU-Net, or a model of ours.",
    ),
]


def encoder_told(screen: Screen, run: Path) -> Callable[[StartReport], None]:
    """What to do with the report of a start: keep it in the run's folder, and say what it comes to."""
    from textseg.train.start import TABLE_FILE, keep_report

    def tell(report: StartReport) -> None:
        keep_report(report, run)
        screen.note(report.summary)
        for note in report.notes:
            screen.note(note)
        screen.note(f"What was taken and what was not is in {run / TABLE_FILE}.")

    return tell
