"""Prompts from a file: one a line, with comments."""

from __future__ import annotations

from pathlib import Path

from textseg.errors import PromptError


def read_prompts_file(path: Path) -> list[str]:
    """The prompts of a text file in their order: one a line, without blank lines and those that begin with #.

    Raises:
        PromptError: the file can't be read, or is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise PromptError(f"A prompts file must be readable, but {path} is not: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PromptError(
            f"A prompts file must be UTF-8 text, but {path} is not. Save it as UTF-8."
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
