"""How often a text tower finds what held-out words mean, kind by kind, and how often a side is swapped.

    python tests/benchmarks/words.py [--model default] [--texts 500] [--seed 1] [--save]

Texts are drawn from wordings and names that the tower was never trained on: word orders, plurals, Latin,
abbreviations, typing errors, British spelling, lay words, sentences of reports, and names in German, French
and Spanish. Of each it is asked what comes first among all concepts of the lexicon, and among all structures
with and without all findings. "raw" is the text as it was typed, given to the tower as it is; "understood" is
what `textseg predict` does, which looks words up in the lexicon before the tower sees them.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
from turns import facts, tell

from textseg.embeddings.retrieval import Figures, measure_kinds
from textseg.embeddings.separation import CanonicalVectors
from textseg.models import find_model
from textseg.prompts import default_lexicon
from textseg.train.recipe import encoder_of

COLUMNS = ("right concept first, raw", "right concept first, understood", "right thing first, understood")


def in_all(kinds: dict[str, Figures]) -> dict[str, float]:
    """The mean of each share over all texts that have it, and the sum of swapped sides."""
    every: dict[str, float] = {"texts": sum(figures["texts"] for figures in kinds.values())}
    every["texts with a side"] = sum(figures["texts with a side"] for figures in kinds.values())
    for name in COLUMNS:
        told = [(figures[name], figures["texts"]) for figures in kinds.values() if name in figures]
        every[name] = round(sum(share * texts for share, texts in told) / sum(n for _, n in told), 4)
    for way in ("raw", "understood"):
        name = f"sides swapped, {way}"
        every[name] = sum(figures.get(name, 0) for figures in kinds.values())
    return every


def table(kinds: dict[str, Figures]) -> str:
    """Markdown: a row a kind, and one for all."""
    head = ["texts", *COLUMNS, "sides swapped, raw", "sides swapped, understood"]
    rows = ["| held-out texts | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for kind, figures in {**kinds, "all": in_all(kinds)}.items():
        told = [figures.get(name) for name in head]
        cells = ["–" if value is None else f"{value:g}" for value in told]
        rows.append("| " + " | ".join([kind, *cells]) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--texts", type=int, default=500, help="of each kind at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = find_model(asked.model)
    lexicon = default_lexicon()
    canonical = CanonicalVectors(encoder_of(model.path, model.plan), lexicon)
    kinds = measure_kinds(canonical, lexicon, asked.seed, asked.texts)
    result: dict[str, Any] = {
        "benchmark": "words",
        "command": " ".join(["python", "tests/benchmarks/words.py", *sys.argv[1:]]),
        **facts("cpu", asked.threads, ("torch", "tokenizers")),
        "model": asked.model,
        "concepts": len(list(canonical.concepts())),
        "kinds": kinds,
        "all": in_all(kinds),
    }
    tell(result, "words", save=asked.save)
    sys.stdout.write(table(kinds) + "\n")


if __name__ == "__main__":
    main()
