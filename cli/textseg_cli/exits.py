"""How a command ends: one sentence for a person, one number for a script."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from textseg.errors import TextsegError, says_out_of_memory
from textseg_cli.output import show_error

FAILED = 1
BAD_INPUT = 2  # typer's own number for a wrong option
NOTHING_FOUND = 3
STOPPED = 130  # as shells count an interrupt

EXIT_CODES = (
    "Exit codes: 0 done, and for predict at least one prompt was found; 1 failure; 2 bad input (scan, "
    "prompt, model, option, place to write); 3 no prompt was found; 130 stopped. "
    "With TEXTSEG_DEBUG=1 an error shows its traceback."
)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Around a command: an error becomes one sentence on stderr and an exit code."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("TEXTSEG_DEBUG"):
            raise
        sentence, code = _sentence_and_code(error)
        show_error(sentence)
        raise typer.Exit(code) from error


def _sentence_and_code(error: BaseException) -> tuple[str, int]:
    if isinstance(error, TextsegError):
        return str(error), BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        return "Stopped.", STOPPED
    if says_out_of_memory(error):
        return (
            "The memory is not enough for this scan. Ask for fewer prompts at once, or close other programs; "
            "with --device cuda try --device cpu.",
            FAILED,
        )
    reason = str(error).partition("\n")[0]
    return (
        f"Something failed that should not have ({type(error).__name__}: {reason}); "
        "run with TEXTSEG_DEBUG=1 for the traceback.",
        FAILED,
    )
