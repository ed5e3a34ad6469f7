"""`textseg convert`: a smaller, pickle-free folder that gives the same masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from textseg.errors import ModelError
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen


@plain_errors()
def convert(
    model: Annotated[Path, typer.Argument(metavar="IN", help="The folder of a released VoxTell.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")
    ] = False,
) -> None:
    """Write a smaller copy of a VoxTell folder that gives the same masks, bit for bit.

    Each tensor is kept once and those that never run are left out; the
    weights become safetensors, which hold no code. Their licence stays.
    """
    from textseg.models import KINDS, find_model

    found = find_model(model)
    if found.kind != "voxtell":
        raise ModelError(
            f"What can be converted is a VoxTell folder, but {model} is a model of {KINDS[found.kind]}."
        )
    from textseg.network.voxtell.folder import convert as convert_voxtell

    written = convert_voxtell(model, out, overwrite=overwrite)
    before, after = (folder.size_bytes / 1e6 for folder in (found, find_model(out)))
    Screen().lines(
        [
            f"Written to {out}: {', '.join(path.name for path in written)}.",
            f"{before:,.1f} MB became {after:,.1f} MB.",
            f"The licence of the weights stays {found.licence}.",
        ]
    )
