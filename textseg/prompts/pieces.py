"""Which structures are one piece: what of a mask lies apart from such an organ is a slip of the network."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from textseg.prompts.understanding import Prompt


def is_one_piece(prompt: Prompt) -> bool:
    """Whether a prompt names what hangs together: a kidney, but not kidneys, nor a kidney's cyst."""
    structure = prompt.structure
    if prompt.finding is not None or structure is None:
        return False
    is_pair = f"left_{structure.base}" in structure.parts
    return structure.base in one_piece_names() and not is_pair


@cache
def one_piece_names() -> frozenset[str]:
    """The lexicon's names, without the side, of all structures that are one piece."""
    document = json.loads(files("textseg.prompts").joinpath("one_piece.json").read_text(encoding="utf-8"))
    return frozenset(name for names in document.values() if isinstance(names, list) for name in names)
