from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from textseg.embeddings.separation import measure_separation
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
    figures = measure_separation(ByUnderstanding(small_lexicon, sides=True), small_lexicon, 0, texts=100)
    # Some typing errors hide the meaning from understanding as well.
    assert figures["right thing first, understood"] > 0.9
    assert figures["right side, understood"] > 0.9
    assert figures["cosine to canonical words, mean, understood"] > 0.9
    assert figures["cosine to canonical words, 5th percentile, understood"] == 1
    assert figures["cosine of left and right, highest"] < 0.6


def test_an_encoder_that_is_blind_to_sides_is_found_out(small_lexicon: Lexicon) -> None:
    figures = measure_separation(ByUnderstanding(small_lexicon, sides=False), small_lexicon, 0, texts=100)
    assert figures["cosine of left and right, mean"] == 1
    assert figures["right side, understood"] == 0
    assert figures["cosine of structure and finding in it, highest"] < 0.9


@pytest.mark.parametrize("pair", ["left and right", "structure and finding in it", "different structures"])
def test_an_encoder_that_tells_nothing_apart_is_found_out(small_lexicon: Lexicon, pair: str) -> None:
    figures = measure_separation(SameForEverything(), small_lexicon, 0, texts=20)
    assert figures[f"cosine of {pair}, mean"] == 1
    assert figures["right side, raw"] == 0
    assert figures["right thing first, raw"] < 0.3
