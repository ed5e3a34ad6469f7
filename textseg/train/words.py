"""The vectors of what training asks for: each target in many people's words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from textseg.embeddings.encoder import TextEncoder
from textseg.prompts import Lexicon, understand
from textseg.prompts.paraphrase import paraphrase
from textseg.train.cases import Target


def canonical_words(target: Target, lexicon: Lexicon) -> str:
    """What `understand` makes of a target's plain name: the words that the text encoder usually gets."""
    structure = lexicon.concepts[target.structure].name if target.structure else ""
    finding = lexicon.concepts[target.finding].name if target.finding else ""
    return understand(f"{structure} {finding}".strip(), lexicon).canonical


def target_vectors(
    targets: Iterable[Target], encoder: TextEncoder, lexicon: Lexicon, seed: int, paraphrases: int = 8
) -> dict[Target, Tensor]:
    """For each target (1 + paraphrases, width): its canonical words, then as different people write it."""
    targets = list(dict.fromkeys(targets))
    random = np.random.default_rng(seed)
    texts = []
    for target in targets:
        structure = lexicon.concepts[target.structure] if target.structure else None
        finding = lexicon.concepts[target.finding] if target.finding else None
        texts.append(canonical_words(target, lexicon))
        texts += [paraphrase(structure, finding, random, lexicon) for _ in range(paraphrases)]
    vectors = torch.cat([encoder.embed(texts[i : i + 256]) for i in range(0, len(texts), 256)])
    return dict(zip(targets, vectors.reshape(len(targets), 1 + paraphrases, -1), strict=True))
