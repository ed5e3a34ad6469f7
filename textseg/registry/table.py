"""The table of models for people who choose one: what it is for, its licence, its size, what it takes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from textseg.registry.entries import Entry

TITLES = ("Model", "What it is for", "How it is used", "Licence", "Parameters", "Files", "Memory", "Needs")
UNKNOWN = "not told"
# What the format allows, in bytes.
LONGEST_HEADER = 100_000_000


class Row(NamedTuple):
    """A line of the table, in words."""

    name: str
    what: str
    use: str
    licence: str
    parameters: str
    size: str
    memory: str
    needs: str


def row_of(entry: Entry) -> Row:
    """What the registry knows of weights."""
    return Row(
        f"{entry.name} ({entry.repository})",
        entry.title,
        entry.use,
        entry.licence or f"{UNKNOWN}; see {entry.repository}",
        UNKNOWN if entry.parameters_millions is None else parameters_in_words(entry.parameters_millions),
        UNKNOWN if entry.size_bytes is None else size_in_words(entry.size_bytes),
        entry.memory or "not measured",
        ", ".join(f"textseg[{extra}]" for extra in entry.needs) or "-",
    )


def parameters_in_words(millions: float) -> str:
    return f"{millions / 1000:.3g} B" if millions >= 1000 else f"{millions:.3g} M"


def size_in_words(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def count_numbers(path: Path) -> int:
    """How many numbers a safetensors file holds, by its header alone; 0 where it is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        return sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return 0


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The table in Markdown, a line a row."""
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown_of_missing(entries: Iterable[Entry]) -> str:
    """What keeps fetched weights from being run, a paragraph for each thing that is missing."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.missing:
            reasons.setdefault(entry.missing, []).append(entry.name)
    return "\n\n".join(f"**{' and '.join(names)}** {reason}" for reason, names in reasons.items())
