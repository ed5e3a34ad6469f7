"""Where the text vectors should lie: one target for every structure, with and without a finding in it.

A target is a weighted sum of codes, and a code is a random direction that only its name decides. So the
angles are designed, not hoped for: left and right of one structure, and an organ and its lesion, have a
cosine of about one half. A structure with a finding that no training text put together still has its target.

Image networks are trained on the vectors that a tower gives, which lie near the targets, not on them. So a
tower that is trained again for such networks takes the vectors of the one before as its targets, as they are:
`KeptVectors`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from textseg.embeddings.encoder import TextEncoder, embed_many
from textseg.prompts import Concept, Lexicon, canonical_name
from textseg.prompts.cleaning import Side

# Shares of a target's squared length, without and with a finding. A lesion keeps little of its organ's own
# codes and has others in their place: a plain sum that is far enough from the organ would be nearly the same
# for a lesion of the kidney and one of the liver.
ALONE = {"place": 0.70, "side": 0.30}
WITH_FINDING = {"place": 0.15, "side": 0.09, "place of a finding": 0.20, "side of a finding": 0.16}
FINDING = 0.40

# Of a place's squared length, what it shares with its group: the structures of one group lie a little closer.
GROUP_SHARE = 0.15


@dataclass(frozen=True)
class Place:
    """A structure, or anywhere, and the side that is said; also of what has no sides ("left liver")."""

    structure: Concept | None
    side: Side | None

    def words(self, finding: Concept | None) -> str:
        """What the tower reads for the place, or for a finding in it, once a prompt is understood."""
        name = canonical_name(self.structure, finding)
        return f"{self.side} {name}" if self.lopsided else name

    @property
    def lopsided(self) -> bool:
        """Whether a side is said of what has none of its own."""
        return self.side is not None and (self.structure is None or self.structure.side is None)


def places(lexicon: Lexicon) -> Iterator[Place]:
    """Every structure and anywhere; with left and right beside it where it has no sides of its own."""
    for structure in lexicon.structures():
        yield Place(structure, structure.side)
        if not lexicon.has_sides(structure.base):
            yield from (Place(structure, "left"), Place(structure, "right"))
    yield from (Place(None, None), Place(None, "left"), Place(None, "right"))


class Targets:
    """The targets of all places and findings in them, with vectors of this width."""

    def __init__(self, places: Sequence[Place], findings: Sequence[Concept], width: int) -> None:
        self._width = width
        structures = [place.structure for place in places if place.structure]
        self._sided = frozenset(structure.base for structure in structures if structure.side)
        self._alone = self._rows([self._around(place, ALONE) for place in places])
        self._around_finding = self._rows([self._around(place, WITH_FINDING) for place in places])
        self._findings = self._rows([self._code(f"finding {finding.base}") for finding in findings])

    def alone(self) -> Tensor:
        """Unit vectors (places, width), float32: the places themselves."""
        return F.normalize(self._alone, dim=-1)

    def with_findings(self, chosen: Sequence[int]) -> Tensor:
        """Unit vectors (places, chosen, width), float32: every place with each of the chosen findings."""
        return F.normalize(
            self._around_finding[:, None] + math.sqrt(FINDING) * self._findings[list(chosen)], dim=-1
        )

    def _rows(self, vectors: list[NDArray[np.float64]]) -> Tensor:
        return torch.from_numpy(np.stack(vectors).astype(np.float32))

    def _around(self, place: Place, shares: dict[str, float]) -> NDArray[np.float64]:
        vector = np.zeros(self._width)
        for kind, share in shares.items():
            code = self._side if kind.startswith("side") else self._structure
            vector += math.sqrt(share) * code(kind, place)
        return vector

    def _structure(self, kind: str, place: Place) -> NDArray[np.float64]:
        if place.structure is None:
            return self._code(f"{kind} anywhere")
        own = self._code(f"{kind} {place.structure.base}")
        group = self._code(f"{kind} group {place.structure.group}")
        return math.sqrt(1 - GROUP_SHARE) * own + math.sqrt(GROUP_SHARE) * group

    def _side(self, kind: str, place: Place) -> NDArray[np.float64]:
        """Left and right are opposite, both sides of a pair together a third direction; no side has none."""
        if place.side is None:
            paired = place.structure is not None and place.structure.base in self._sided
            return self._code(f"{kind} both") if paired else np.zeros(self._width)
        return self._code(kind) if place.side == "left" else -self._code(kind)

    def _code(self, name: str) -> NDArray[np.float64]:
        """A direction of length one that only the name decides."""
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        values = np.random.default_rng(seed).standard_normal(self._width)
        return values / float(np.linalg.norm(values))


class KeptVectors:
    """The vectors that an earlier encoder gives the canonical words of places and of findings in them.

    There are more than a hundred thousand: what a step does not need is not computed.
    """

    def __init__(self, places: Sequence[Place], findings: Sequence[Concept], encoder: TextEncoder) -> None:
        self._places, self._findings, self._encoder = places, findings, encoder
        self._names = [place.words(None) for place in places]
        self._alone = embed_many(encoder, self._names)
        self._others = _rows_of_other_sides(places)

    def alone(self) -> Tensor:
        """Unit vectors (places, width), float32: the places themselves."""
        return self._alone

    def findings_around(self, meant: Sequence[tuple[int, int]]) -> tuple[list[str], Tensor]:
        """Words, and unit vectors (words, width), of findings in places, and of the same on the other side.

        Args:
            meant: rows of places and columns of findings.
        """
        both = [(each, column) for row, column in meant for each in (row, self._others[row])]
        words = list(dict.fromkeys(self._places[row].words(self._findings[column]) for row, column in both))
        return words, embed_many(self._encoder, words)

    def draw(self, count: int, random: np.random.Generator) -> tuple[list[str], Tensor]:
        """Canonical words with their vectors (count, width), half of them findings in places."""
        anywhere = next(row for row, place in enumerate(self._places) if place == Place(None, None))
        words = []
        for at in range(count):
            row = int(random.integers(len(self._places) + len(self._findings)))
            finding = None
            if row >= len(self._places):
                row, finding = anywhere, self._findings[row - len(self._places)]
            elif at % 2 or row == anywhere:
                finding = self._findings[int(random.integers(len(self._findings)))]
            words.append(self._places[row].words(finding))
        return words, embed_many(self._encoder, words)


def _rows_of_other_sides(places: Sequence[Place]) -> list[int]:
    """For each place the row of the same place on the other side, or its own."""
    rows = {(place.structure and place.structure.base, place.side): row for row, place in enumerate(places)}
    other: dict[Side | None, Side | None] = {"left": "right", "right": "left", None: None}
    return [
        rows.get((place.structure and place.structure.base, other[place.side]), row)
        for row, place in enumerate(places)
    ]
