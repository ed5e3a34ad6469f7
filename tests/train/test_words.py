"""Words of targets: what training says of a thing is what a user's prompt becomes."""

from __future__ import annotations

from itertools import product

import torch

from textseg.prompts import understand
from textseg.train.cases import Target
from textseg.train.lesions import LESION_WORDS
from textseg.train.words import canonical_words, target_vectors

TARGETS = [Target("left_kidney"), Target("liver", "cyst"), Target(None, "soft_tissue_sarcoma")]


class Lengths:
    """In place of a text tower: keeps the texts and gives a row number for each."""

    name, width = "lengths", 1

    def __init__(self):
        self.texts = []

    def embed(self, texts):
        start = len(self.texts)
        self.texts += texts
        return torch.arange(start, start + len(texts), dtype=torch.float32)[:, None]


def test_canonical_words_mean_their_target(lexicon):
    organs = (
        "liver",
        "spleen",
        "left_kidney",
        "right_lung",
        "urinary_bladder",
        "left_adrenal_gland",
        "stomach",
    )
    findings = (None, *LESION_WORDS)
    for target in [*TARGETS, *(Target(organ, finding) for organ, finding in product(organs, findings))]:
        words = canonical_words(target, lexicon)
        prompt = understand(words, lexicon)
        assert prompt.canonical == words
        assert (prompt.structure.id if prompt.structure else None) == target.structure
        assert (prompt.finding.id if prompt.finding else None) == target.finding


def test_each_target_has_its_canonical_words_and_then_others(lexicon):
    encoder = Lengths()
    vectors = target_vectors([*TARGETS, TARGETS[0]], encoder, lexicon, seed=1, paraphrases=3)
    assert list(vectors) == TARGETS
    for target in TARGETS:
        texts = [encoder.texts[int(row)] for row in vectors[target]]
        assert len(texts) == 4
        assert texts[0] == canonical_words(target, lexicon)
        assert len(set(texts)) > 1


def test_the_seed_decides_the_words(lexicon):
    first, again, other = Lengths(), Lengths(), Lengths()
    for encoder, seed in ((first, 1), (again, 1), (other, 2)):
        target_vectors(TARGETS, encoder, lexicon, seed=seed)
    assert first.texts == again.texts != other.texts


def test_many_targets_come_in_order(lexicon):
    encoder = Lengths()
    targets = [Target(concept.id) for concept in lexicon.structures()[:300]]
    vectors = target_vectors(targets, encoder, lexicon, seed=1, paraphrases=0)
    assert [int(vectors[target][0]) for target in targets] == list(range(300))
