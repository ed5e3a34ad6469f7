"""How well an encoder keeps apart what a network must not confuse; figures for any `TextEncoder`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from textseg.embeddings.encoder import TextEncoder, embed_many
from textseg.prompts import Concept, Lexicon, canonical_name, understand
from textseg.prompts.paraphrase import paraphrase

Thing = tuple[Concept | None, Concept | None]
"""A structure and a finding; one of the two may be None."""

CHUNK = 256


def measure_separation(
    canonical: CanonicalVectors, lexicon: Lexicon, seed: int, texts: int = 3000
) -> dict[str, float]:
    """Figures on the canonical words of everything there is, and on that many held-out paraphrases.

    Fractions: how often the vector nearest to a text's is that of the right thing, among all structures with
    and without all findings; how often the right side is nearer than the other one. Cosines: of a text and
    its canonical words, of left and right of one thing, of a structure and a finding in it, of different
    structures. "raw" is the text as it is typed, "understood" the words that the lexicon makes of it.
    """
    random = np.random.default_rng(seed)
    drawn = canonical.draw(random, texts)
    raw = [paraphrase(*thing, random, lexicon, split="test") for thing in drawn]
    understood = [understand(text, lexicon).canonical for text in raw]
    figures: dict[str, float] = {"things": len(canonical.rows), "held-out texts": len(raw)}
    for name, said in (("raw", raw), ("understood", understood)):
        figures |= {f"{figure}, {name}": value for figure, value in canonical.figures_of(said, drawn).items()}
    return figures | canonical.cosines_between()


class CanonicalVectors:
    """The vectors of the canonical words of everything there is; things with the same words are one thing."""

    def __init__(self, encoder: TextEncoder, lexicon: Lexicon) -> None:
        self.encoder = encoder
        self._lexicon = lexicon
        structures: list[Concept | None] = [*lexicon.structures(), None]
        findings: list[Concept | None] = [None, *lexicon.findings()]
        self._things: list[Thing] = [(one, other) for one in structures for other in findings if one or other]
        words = dict.fromkeys(canonical_name(*thing) for thing in self._things)
        self.rows = {name: row for row, name in enumerate(words)}
        self.vectors = embed_many(encoder, list(self.rows))

    def draw(self, random: np.random.Generator, count: int) -> list[Thing]:
        """Structures alone for one half, findings alone or in a structure for the other."""
        alone = [thing for thing in self._things if thing[1] is None]
        found = [thing for thing in self._things if thing[1] is not None]
        return [pool[random.integers(len(pool))] for pool in (alone, found) for _ in range(count // 2)]

    def concepts(self) -> Iterator[Thing]:
        """Every structure and every finding by itself."""
        return (thing for thing in self._things if thing[0] is None or thing[1] is None)

    def figures_of(self, texts: Sequence[str], things: Sequence[Thing]) -> dict[str, float]:
        """How well the vectors of texts agree with those of the things that they mean."""
        vectors = embed_many(self.encoder, texts)
        meant = torch.tensor([self.row(thing) for thing in things])
        cosines = _cosines(vectors, self.vectors[meant])
        nearest = torch.cat([(part @ self.vectors.T).argmax(dim=1) for part in torch.split(vectors, CHUNK)])
        sided = [place for place, thing in enumerate(things) if self.mirrored(thing)]
        others = [self.row(other) for thing in things if (other := self.mirrored(thing))]
        return {
            "right thing first": _fraction(nearest == meant),
            "right side": _fraction(cosines[sided] > _cosines(vectors[sided], self.vectors[others])),
            "cosine to canonical words, mean": _rounded(cosines.mean()),
            "cosine to canonical words, 5th percentile": _rounded(cosines.quantile(0.05)),
        }

    def cosines_between(self) -> dict[str, float]:
        """Mean and highest cosine of the pairs that must be told apart."""
        groups = {
            "left and right": self._pairs((thing, self.mirrored(thing)) for thing in self._things),
            "structure and finding in it": self._pairs(
                (thing, (thing[0], None)) for thing in self._things if thing[0] and thing[1]
            ),
            "different structures": self._different_structures(),
        }
        figures = {}
        for name, cosines in groups.items():
            figures[f"cosine of {name}, mean"] = _rounded(cosines.mean())
            figures[f"cosine of {name}, highest"] = _rounded(cosines.max())
        return figures

    def _pairs(self, pairs: Iterable[tuple[Thing, Thing | None]]) -> Tensor:
        rows = [(self.row(one), self.row(other)) for one, other in pairs if other]
        ones, others = torch.tensor(rows).T
        return _cosines(self.vectors[ones], self.vectors[others])

    def _different_structures(self) -> Tensor:
        structures = self._lexicon.structures()
        vectors = self.vectors[[self.row((structure, None)) for structure in structures]]
        bases = {base: place for place, base in enumerate({structure.base: None for structure in structures})}
        places = torch.tensor([bases[structure.base] for structure in structures])
        return (vectors @ vectors.T)[places[:, None] != places]

    def row(self, thing: Thing) -> int:
        """Which row of `vectors` is that of a thing."""
        return self.rows[canonical_name(*thing)]

    def mirrored(self, thing: Thing) -> Thing | None:
        """The same on the other side; None for what has no side, or no other."""
        structure, finding = thing
        if structure is None or structure.side is None:
            return None
        other = self._lexicon.with_side(structure.base, "right" if structure.side == "left" else "left")
        return (other, finding) if other else None


def _cosines(ones: Tensor, others: Tensor) -> Tensor:
    return (ones * others).sum(dim=1)


def _fraction(right: Tensor) -> float:
    return _rounded(right.float().mean())


def _rounded(value: Tensor) -> float:
    return round(float(value), 4)
