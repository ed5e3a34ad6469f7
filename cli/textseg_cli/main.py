"""`textseg`: the commands by name. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import warnings
from typing import Annotated

import typer

from textseg.version import __version__
from textseg_cli.cohort import cohort
from textseg_cli.convert import convert
from textseg_cli.doctor import doctor
from textseg_cli.exits import EXIT_CODES
from textseg_cli.export import export
from textseg_cli.finetune import finetune
from textseg_cli.models import models
from textseg_cli.output import Screen, show_library_warnings
from textseg_cli.plan import plan
from textseg_cli.predict import predict
from textseg_cli.pretrain import pretrain
from textseg_cli.probe import probe
from textseg_cli.score import score
from textseg_cli.train import train
from textseg_cli.view import view
from textseg_cli.weights import weights

app = typer.Typer(
    name="textseg",
    help="Text-promptable 3D medical image segmentation: one sentence, one scan, one mask.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    # Errors are ours to tell: see textseg_cli.exits.
    pretty_exceptions_enable=False,
)
app.command(epilog=EXIT_CODES)(predict)
app.add_typer(cohort, name="cohort")
app.add_typer(models, name="models")
app.add_typer(weights, name="weights")
app.command()(convert)
app.command()(view)
app.command()(score)
app.command()(probe)
app.add_typer(plan, name="plan")
app.command()(train)
app.command()(finetune)
app.command()(pretrain)
app.command()(export)
app.command()(doctor)


def _show_version(asked: bool) -> None:
    if asked:
        Screen().lines([f"textseg {__version__}"])
        raise typer.Exit


@app.callback()
def textseg(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `textseg` command."""
    if not os.environ.get("TEXTSEG_DEBUG"):
        # Readers warn of headers in words meant for programmers; what matters is in our own warnings.
        warnings.simplefilter("ignore")
    show_library_warnings()
    app()


if __name__ == "__main__":
    main()
