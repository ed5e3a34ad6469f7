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
INTRODUCTION = """# Models

Written by `textseg weights list --markdown`. Memory is that of the weights unless it says otherwise; images
and features come on top. What is not told, nobody here has seen: no revision, hash or size is taken from
hearsay, and `textseg weights fetch` notes those that came. A licence that forbids commercial use has to be
accepted once, and the licence of the weights is in the record beside every mask."""
OTHERS = """## From a folder or a file

- `--model FOLDER`: a model that `textseg train` or `textseg finetune` made; VoxTell as released or as
  `textseg convert` writes it; a trained nnU-Net v2 (`textseg[train]`), also one of TotalSegmentator's, whose
  labels are asked for in words. The licence is the one that card, weights or `dataset.json` tell.
- A plan's `text.encoder`: a folder of transformers (`textseg[llm]`; `last_token` for Qwen3-Embedding, `mean`
  for BERT and its kin), or any name, folder or architecture with weights that open_clip knows
  (`textseg[clip]`; BiomedCLIP, UniMed-CLIP, PMC-CLIP).
- `--encoder FILE`: an nnU-Net's or STU-Net's encoder to train from."""
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
        entry.memory or memory_of(entry.parameters_millions),
        ", ".join(f"textseg[{extra}]" for extra in entry.needs) or "-",
    )


def memory_of(parameters_millions: float | None) -> str:
    """That of the weights alone, in words; images and features come on top."""
    if parameters_millions is None:
        return "not measured"
    return f"{size_in_words(round(parameters_millions * 4e6))} of weights in float32"


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


def page(rows: Iterable[Sequence[str]], entries: Iterable[Entry]) -> str:
    """The whole page of models in Markdown: the table, what else can be a model, and what can't be run."""
    return (
        "\n\n".join((INTRODUCTION, markdown(rows), OTHERS, "## Not run", markdown_of_missing(entries))) + "\n"
    )


def markdown_of_missing(entries: Iterable[Entry]) -> str:
    """What keeps fetched weights from being run, a paragraph for each thing that is missing."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.missing:
            reasons.setdefault(entry.missing, []).append(entry.name)
    return "\n\n".join(f"**{' and '.join(names)}** {reason}" for reason, names in reasons.items())
