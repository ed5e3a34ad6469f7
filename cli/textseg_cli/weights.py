"""`textseg weights`: weights of other projects, from the hub to this machine and on to others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textseg.errors import ModelError
from textseg_cli.exits import FAILED, plain_errors
from textseg_cli.output import Screen

if TYPE_CHECKING:
    from textseg.registry.entries import Entry

weights = typer.Typer(help="Fetch weights of other projects, check, convert, pack and remove them.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `textseg weights list` has it.")]


@weights.callback(invoke_without_command=True)
@plain_errors()
def weights_of_others(context: typer.Context) -> None:
    """Fetch weights of other projects, check, convert, pack and remove them."""
    if context.invoked_subcommand is None:
        _list(Screen())


@weights.command("list")
@plain_errors()
def list_weights(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="All models with licence, size, memory and use, as Markdown.")
    ] = False,
) -> None:
    """List what can be fetched, under which licence, and what is here."""
    if as_markdown:
        _list_in_markdown(Screen())
    else:
        _list(Screen())


@weights.command()
@plain_errors()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="As `textseg weights list` has them.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence that forbids commercial use.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Take them from what `pack` wrote.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Fetch also what is here.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
) -> None:
    """Fetch weights into the user's cache, going on where an earlier try stopped.

    The licence is shown; one that forbids commercial use is accepted once.
    """
    from textseg.registry.entries import find_entry
    from textseg.registry.fetch import fetch as fetch_entry
    from textseg.registry.pack import bundled, unpack

    screen = Screen(quiet)
    if bundle is not None:
        for entry in bundled(bundle, names or ()):
            accepted = accept_licence or _asked(screen, entry)
            with screen.progress() as progress:
                unpack(bundle, [entry.name], accept_licence=accepted, progress=progress)
            screen.lines([str(entry.model_folder)])
        return
    if not names:
        raise ModelError("What to fetch is a name of `textseg weights list`, got none.")
    for entry in [find_entry(name) for name in names]:
        accepted = accept_licence or _asked(screen, entry)
        with screen.progress() as progress:
            folder = fetch_entry(entry.name, accept_licence=accepted, again=again, progress=progress)
        screen.lines([str(folder)])


@weights.command()
@plain_errors()
def verify(name: Name) -> None:
    """Hold fetched files against the sizes and hashes that were noted."""
    from textseg.registry.fetch import verify as verify_entry

    screen = Screen()
    with screen.progress() as progress:
        wrong = verify_entry(name, progress)
    screen.lines([f"{each}." for each in wrong] or [f"{name} is as it was fetched."])
    if wrong:
        raise typer.Exit(FAILED)


@weights.command()
@plain_errors()
def convert(name: Name) -> None:
    """Make fetched VoxTell weights smaller and free of pickles; masks stay the same, bit for bit."""
    from textseg.registry.fetch import convert_fetched

    saved = convert_fetched(name)
    Screen().lines(
        [f"{name} takes {saved / 1e6:,.1f} MB less." if saved else f"{name} was converted already."]
    )


@weights.command()
@plain_errors()
def path(name: Name) -> None:
    """Print the folder of fetched weights."""
    from textseg.registry.entries import find_entry, read_note

    entry = find_entry(name)
    read_note(entry)
    Screen().lines([str(entry.model_folder)])


@weights.command()
@plain_errors()
def rm(name: Name) -> None:
    """Remove fetched weights from this machine."""
    from textseg.registry.fetch import remove

    Screen().lines([f"{name} is removed, {remove(name) / 1e6:,.1f} MB are free."])


@weights.command()
@plain_errors()
def pack(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="The zip file to write.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="What to pack; all that is here by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Put fetched weights into one file for a machine without network.

    There, `textseg weights fetch --from FILE` puts them in place. Their
    licences go with them.
    """
    from textseg.registry.pack import pack as pack_entries

    screen = Screen()
    with screen.progress() as progress:
        packed = pack_entries(bundle, names or (), overwrite=overwrite, progress=progress)
    screen.lines([f"{bundle} holds {', '.join(packed)}, {bundle.stat().st_size / 1e6:,.1f} MB."])


def _list(screen: Screen) -> None:
    from textseg.registry.entries import all_entries

    rows = [
        (entry.name, _state(entry), entry.licence or "not told", entry.repository, entry.title)
        for entry in all_entries()
    ]
    screen.table("Weights of other projects", ("Name", "Here", "Licence", "From", "What it is"), rows)


def _list_in_markdown(screen: Screen) -> None:
    from textseg.models import all_models_in_markdown

    screen.lines(all_models_in_markdown().splitlines())


def _state(entry: Entry) -> str:
    from textseg.registry.entries import read_note

    if not entry.is_here:
        return "no"
    note = read_note(entry)
    return f"{note.size_bytes / 1e6:,.1f} MB" + (", converted" if note.converted else "")


def _asked(screen: Screen, entry: Entry) -> bool:
    """Show the licence; ask for it where it has to be accepted and there is a person to ask."""
    from textseg.registry.fetch import is_accepted

    screen.note(f"{entry.name} is under the licence {entry.licence_text}. Cite: {entry.citation}.")
    if entry.missing:
        screen.note(entry.missing)
    if entry.needs:
        extras = ",".join(entry.needs)
        screen.note(f'To use it: pip install "textseg[{extras}]".')
    if entry.is_here or is_accepted(entry) or not sys.stdin.isatty():
        return False
    return typer.confirm("It forbids commercial use. Do you accept it?", err=True)
