"""How well an encoder finds what held-out texts mean, kind by kind; figures for any `TextEncoder`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from textseg.embeddings.encoder import embed_many
from textseg.embeddings.separation import CHUNK, CanonicalVectors, Thing
from textseg.errors import PromptError
from textseg.prompts import Lexicon, understand
from textseg.prompts.paraphrase import KINDS, Kind, paraphrase_of

Figures = dict[str, float]
# Of some kinds few concepts have a name, and most are drawn in vain.
_DRAWS_EACH = 40


def measure_kinds(
    canonical: CanonicalVectors, lexicon: Lexicon, seed: int, texts: int = 500
) -> dict[str, Figures]:
    """For every kind of paraphrase: how often the right thing comes first, and how often a side is swapped.

    First of everything there is: all structures with and without all findings; and, where a text means one
    concept, first of all concepts. "raw" is the text as it is typed, "understood" the words that the lexicon
    makes of it; a text that is refused counts as wrong.

    Args:
        canonical: the vectors of everything.
        texts: of each kind at most; fewer where there are not so many different ones.
    """
    return {
        kind: _figures(kind, canonical, lexicon, np.random.default_rng([seed, at]), texts)
        for at, kind in enumerate(KINDS)
    }


def _figures(
    kind: Kind, canonical: CanonicalVectors, lexicon: Lexicon, random: np.random.Generator, texts: int
) -> Figures:
    drawn = dict(_drawn(kind, canonical, lexicon, random, texts))
    said, things = list(drawn), list(drawn.values())
    sided = sum(canonical.mirrored(thing) is not None for thing in things)
    figures: Figures = {"texts": len(said), "texts with a side": sided}
    if not said:
        return figures
    understood = [_canonical(text, lexicon) for text in said]
    for name, words in (("raw", said), ("understood", understood)):
        figures |= {f"{figure}, {name}": value for figure, value in _first(canonical, words, things).items()}
    return figures


def _drawn(
    kind: Kind, canonical: CanonicalVectors, lexicon: Lexicon, random: np.random.Generator, texts: int
) -> Iterator[tuple[str, Thing]]:
    """Different texts of a kind with what they mean."""
    concepts = list(canonical.concepts())
    seen: set[str] = set()
    for at in range(texts * _DRAWS_EACH):
        placed = kind == "report sentence" or (kind == "spelling mistake" and at % 2)
        thing = _placed(lexicon, random) if placed else concepts[random.integers(len(concepts))]
        text = paraphrase_of(kind, *thing, random, lexicon)
        if text is not None and text not in seen:
            seen.add(text)
            yield text, thing
        if len(seen) == texts:
            return


def _placed(lexicon: Lexicon, random: np.random.Generator) -> Thing:
    """A finding in a structure."""
    structures, findings = lexicon.structures(), lexicon.findings()
    return structures[random.integers(len(structures))], findings[random.integers(len(findings))]


def _canonical(text: str, lexicon: Lexicon) -> str | None:
    try:
        return understand(text, lexicon).canonical
    except PromptError:
        return None


def _first(canonical: CanonicalVectors, words: Sequence[str | None], things: Sequence[Thing]) -> Figures:
    answered = torch.tensor([each is not None for each in words])
    vectors = embed_many(canonical.encoder, [each or "" for each in words])
    meant = torch.tensor([canonical.row(thing) for thing in things])
    nearest = torch.cat([(part @ canonical.vectors.T).argmax(dim=1) for part in torch.split(vectors, CHUNK)])
    figures = {"right thing first": _mean((nearest == meant) & answered)}
    alone = torch.tensor([thing[0] is None or thing[1] is None for thing in things])
    if alone.any():
        rows = torch.tensor(sorted({canonical.row(thing) for thing in canonical.concepts()}))
        among = rows[(vectors[alone] @ canonical.vectors[rows].T).argmax(dim=1)]
        figures["right concept first"] = _mean((among == meant[alone]) & answered[alone])
    others = [canonical.mirrored(thing) for thing in things]
    sided = torch.tensor([other is not None for other in others])
    if sided.any():
        mirror = torch.tensor([canonical.row(other) for other in others if other is not None])
        own = (vectors[sided] * canonical.vectors[meant[sided]]).sum(dim=1)
        opposite = (vectors[sided] * canonical.vectors[mirror]).sum(dim=1)
        figures["sides swapped"] = int((opposite >= own).sum())
    return figures


def _mean(right: torch.Tensor) -> float:
    return round(float(right.float().mean()), 4)
