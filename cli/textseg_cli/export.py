"""`textseg export`: from a run, ended or not, to a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen


@plain_errors()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of train or finetune.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The model.")],
    last: Annotated[
        bool, typer.Option("--last", help="The last weights, even where others did better in validation.")
    ] = False,
    float32: Annotated[
        bool, typer.Option("--float32", help="Weights as they were trained; float16 by default.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Make a model from a run.

    The folder holds all that `textseg predict --model FOLDER` needs: weights, plan, text tower, the words
    that the model was taught, and its card. Neither the run nor its dataset is needed from then on.
    """
    from textseg.destination import Destination
    from textseg.train.export import export_run

    Destination(out).check_folder()
    steps = export_run(run, out, last=last, float32=float32, overwrite=overwrite)
    Screen().lines([f"The model is in {out}, from a run of {steps} {'step' if steps == 1 else 'steps'}"])
