"""All that the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from textseg.result import Found
    from textseg.sides import SideCheck

# A file or a pipe has no width; wide enough that no table is folded there.
PIPE_WIDTH = 240


@dataclass(frozen=True)
class Screen:
    """Where one command writes.

    Args:
        quiet: nothing but errors.
        json: stdout is kept for one JSON document.
    """

    quiet: bool = False
    json: bool = False

    @cached_property
    def _out(self) -> Console:
        return _console()

    @cached_property
    def _err(self) -> Console:
        # One console for messages and progress, so that a message does not tear the bar.
        return _console(stderr=True)

    def note(self, message: str) -> None:
        """Something worth knowing that is nobody's mistake."""
        self._message("Note: ", "bold cyan", message)

    def warning(self, message: str) -> None:
        self._message("Warning: ", "bold yellow", message)

    def _message(self, word: str, style: str, message: str) -> None:
        if not self.quiet:
            self._err.print(Text.assemble((word, style), _one_line(message)), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar on stderr while there is a person to see it; gives the function that moves it."""
        if self.quiet or not self._err.is_terminal:
            yield lambda stage, done, of: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task("starting", total=None)

            def show(stage: str, done: int, of: int) -> None:
                # A single step is all or nothing: the bar only shows that something is being done.
                bar.update(task, description=stage, completed=done, total=of if of > 1 else None)

            yield show

    def segmentation(self, found: Sequence[Found], written: Sequence[Path]) -> None:
        """What was found and where the files are; as JSON, the record, which was written last."""
        document = written[-1].read_text(encoding="utf-8")
        missing = [str(each) for each in found if not each.is_there]
        if self.json:
            self._out.out(document, end="", highlight=False)
            for sentence in missing:
                self._message("", "", sentence)
        elif not self.quiet:
            record = json.loads(document)
            self._out.print(_found_table(record))
            self.lines(missing)
            self.lines([_summary(record), f"Written to {written[-1].parent}, with {written[-1].name}"])

    def sides(self, checks: Sequence[SideCheck]) -> None:
        """What the mirrored scan said to each prompt, and which sides are not to be relied on."""
        if not self.quiet and not self.json:
            self.lines([str(check) for check in checks])
        for check in checks:
            if check.warning:
                self.warning(check.warning)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*columns, title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row)
        self._out.print(table)

    def facts(self, title: str, rows: Mapping[str, str]) -> None:
        """A titled list of names and what is to say about each."""
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        for name, value in rows.items():
            table.add_row(f"  {name}", value)
        self._out.print(table)

    def lines(self, lines: Sequence[str]) -> None:
        """Each as it is, however long."""
        for line in lines:
            self._out.print(line, soft_wrap=True)

    def markdown(self, text: str) -> None:
        """Set in type on a terminal; as it is for anyone else."""
        if not self._out.is_terminal:
            self.lines(text.splitlines())
            return
        from rich.markdown import Markdown

        self._out.print(Markdown(text))


def show_error(sentence: str) -> None:
    """One line on stderr, whatever was asked for."""
    _console(stderr=True).print(Text.assemble(("Error: ", "bold red"), _one_line(sentence)), soft_wrap=True)


def show_library_warnings() -> None:
    """What textseg's own modules log goes to stderr as our warnings; other libraries are silent."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("Warning: %(message)s"))
    logging.getLogger("textseg").addHandler(handler)
    logging.getLogger().addHandler(logging.NullHandler())


def hide_library_warnings() -> None:
    for handler in logging.getLogger("textseg").handlers:
        handler.setLevel(logging.ERROR)


def _console(stderr: bool = False) -> Console:
    # Neither prompts nor file names are markup, even with brackets in them.
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _found_table(record: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("Prompt")
    table.add_column("Understood as")
    table.add_column("Presence", justify="right", no_wrap=True)
    table.add_column("Volume (ml)", justify="right", no_wrap=True)
    table.add_column("File", overflow="fold")
    for prompt in record["prompts"]:
        table.add_row(
            prompt["prompt"],
            prompt["understood_as"],
            f"{prompt['presence']:.2f}",
            f"{prompt['volume_ml']:.1f}" if prompt["found"] else "not found",
            prompt["file"] or "",
        )
    return table


def _summary(record: Mapping[str, Any]) -> str:
    """What was segmented with what, in one line."""
    scan = record["scan"]
    shape = " × ".join(str(n) for n in scan["shape"])
    spacing = " × ".join(f"{mm:.3g}" for mm in scan["spacing_mm"])
    return (
        f"{scan['modality'].upper()}, {shape} voxels of {spacing} mm; model {record['model']['name']}; "
        f"{record['device']}; {record['seconds']:.1f} s"
    )
