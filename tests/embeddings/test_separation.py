from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from textseg.embeddings.retrieval import measure_kinds
from textseg.embeddings.separation import CanonicalVectors, measure_separation
from textseg.prompts import Lexicon, understand


class SameForEverything:
    name = "same-1"
    width = 4

    def embed(self, texts: Sequence[str]) -> Tensor:
        return torch.ones((len(texts), self.width))


class ByUnderstanding:
    """Far-apart vectors for different meanings, the same for the same meaning; blind to sides if asked."""

    name = "understanding-1"
    width = 64

    def __init__(self, lexicon: Lexicon, sides: bool) -> None:
        self._lexicon = lexicon
        self._sides = sides

    def embed(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._vector(understand(text, self._lexicon).canonical) for text in texts])

    def _vector(self, words: str) -> Tensor:
        if not self._sides:
            words = words.replace("left", "one").replace("right", "one")
        seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big")
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))


def test_an_encoder_that_understands_is_nearly_perfect(small_lexicon: Lexicon) -> None:
    canonical = CanonicalVectors(ByUnderstanding(small_lexicon, sides=True), small_lexicon)
    figures = measure_separation(canonical, small_lexicon, 0, texts=100)
    # Some typing errors hide the meaning from understanding as well.
    assert figures["right thing first, understood"] > 0.9
    assert figures["right side, understood"] > 0.9
    assert figures["cosine to canonical words, mean, understood"] > 0.9
    assert figures["cosine to canonical words, 5th percentile, understood"] == 1
    assert figures["cosine of left and right, highest"] < 0.6


def test_an_encoder_that_is_blind_to_sides_is_found_out(small_lexicon: Lexicon) -> None:
    canonical = CanonicalVectors(ByUnderstanding(small_lexicon, sides=False), small_lexicon)
    figures = measure_separation(canonical, small_lexicon, 0, texts=100)
    assert figures["cosine of left and right, mean"] == 1
    assert figures["right side, understood"] == 0
    assert figures["cosine of structure and finding in it, highest"] < 0.9


@pytest.mark.parametrize("pair", ["left and right", "structure and finding in it", "different structures"])
def test_an_encoder_that_tells_nothing_apart_is_found_out(small_lexicon: Lexicon, pair: str) -> None:
    figures = measure_separation(
        CanonicalVectors(SameForEverything(), small_lexicon), small_lexicon, 0, texts=20
    )
    assert figures[f"cosine of {pair}, mean"] == 1
    assert figures["right side, raw"] == 0
    assert figures["right thing first, raw"] < 0.3


def test_kinds_are_measured_one_by_one(small_lexicon: Lexicon) -> None:
    canonical = CanonicalVectors(ByUnderstanding(small_lexicon, sides=True), small_lexicon)
    kinds = measure_kinds(canonical, small_lexicon, 0, texts=30)
    # This lexicon has no Latin, no abbreviations and no other languages.
    assert {kind for kind, figures in kinds.items() if figures["texts"] == 0} == {
        "Latin", "abbreviation", "lay word", "German", "French", "Spanish",
    }  # fmt: skip
    for kind in ("word order", "plural", "British spelling", "report sentence"):
        assert kinds[kind]["right thing first, raw"] == 1, kind
        assert kinds[kind]["right thing first, understood"] == 1, kind
    assert kinds["word order"]["right concept first, raw"] == 1
    assert kinds["word order"]["sides swapped, raw"] == 0
    assert kinds["word order"]["texts with a side"] == kinds["word order"]["texts"]
    # A slip may hide the meaning.
    assert 0.5 < kinds["spelling mistake"]["right thing first, understood"] <= 1


def test_swapped_sides_are_counted_kind_by_kind(small_lexicon: Lexicon) -> None:
    class Swapped(ByUnderstanding):
        name = "swapped-1"

        def embed(self, texts: Sequence[str]) -> Tensor:
            others = {"left": "right", "right": "left"}
            plain = small_lexicon.names()
            return super().embed(
                [
                    text if text in plain else " ".join(others.get(word, word) for word in text.split())
                    for text in texts
                ]
            )

    canonical = CanonicalVectors(Swapped(small_lexicon, sides=True), small_lexicon)
    figures = measure_kinds(canonical, small_lexicon, 0, texts=30)["plural"]
    assert figures["sides swapped, raw"] == figures["texts with a side"] > 0
    assert figures["sides swapped, understood"] == 0
