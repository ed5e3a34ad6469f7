"""The vectors of what training asks for: each target in many people's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from textseg.embeddings.encoder import OwnTextEncoder, TextEncoder
from textseg.prompts import Lexicon, clean, understand
from textseg.prompts.paraphrase import paraphrase
from textseg.train.cases import Target, Words


def canonical_words(target: Target, lexicon: Lexicon) -> str:
    """What `understand` makes of a target's plain name: the words that the text encoder usually gets."""
    if target.own:
        return target.own
    structure = lexicon.concepts[target.structure].name if target.structure else ""
    finding = lexicon.concepts[target.finding].name if target.finding else ""
    return understand(f"{structure} {finding}".strip(), lexicon).canonical


def own_texts(target: Target, words: Sequence[str], lexicon: Lexicon) -> list[str]:
    """What the text encoder gets of a dataset's own words for a target, the plainest first.

    A label of its own keeps words that the lexicon would only understand in part; everything else is
    understood, as a prompt will be.
    """
    is_label = target.own is not None and not target.own.endswith(f": {words[0] if words else ''}")
    return [clean(text) if is_label else understand(text, lexicon).canonical for text in words]


def target_vectors(
    targets: Iterable[Target],
    encoder: TextEncoder,
    lexicon: Lexicon,
    seed: int,
    paraphrases: int = 8,
    own_words: Words | None = None,
) -> dict[Target, Tensor]:
    """For each target (texts, width): its canonical words, then as different people write it.

    Args:
        paraphrases: how many ways of saying it are drawn from the lexicon.
        own_words: what a dataset calls some of its targets; all that there is for those outside the lexicon.
    """
    random = np.random.default_rng(seed)
    texts: dict[Target, list[str]] = {}
    for target in dict.fromkeys(targets):
        own = own_texts(target, (own_words or {}).get(target, ()), lexicon)
        texts[target] = own if target.own else [canonical_words(target, lexicon)]
        if not target.own:
            structure = lexicon.concepts[target.structure] if target.structure else None
            finding = lexicon.concepts[target.finding] if target.finding else None
            said = [paraphrase(structure, finding, random, lexicon) for _ in range(paraphrases)]
            texts[target] += said + (own if paraphrases else [])
    every = [text for said in texts.values() for text in said]
    # A language model is loaded once a call and cuts texts into batches by itself; our tower does neither.
    chunk = 256 if isinstance(encoder, OwnTextEncoder) else max(1, len(every))
    vectors = torch.cat([encoder.embed(every[i : i + chunk]) for i in range(0, len(every), chunk)])
    return dict(zip(texts, torch.split(vectors, [len(said) for said in texts.values()]), strict=True))
