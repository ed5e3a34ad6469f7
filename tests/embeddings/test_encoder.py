from __future__ import annotations

from pathlib import Path

import pytest
import torch

from textseg.embeddings.encoder import OwnTextEncoder, TextEncoder, load_own_encoder
from textseg.embeddings.text_plan import TextPlan
from textseg.embeddings.tower import TextTower, save_tower
from textseg.embeddings.vocabulary import build_vocabulary, save_vocabulary
from textseg.errors import ModelError

PLAN = TextPlan(
    vocabulary_size=300, width=24, layers=2, heads=3, hidden=40, longest_tokens=12, vector_width=16
)
TEXTS = ["left kidney", "", "a right kidney tumor of some size and shape"]


def tower(seed: int) -> TextTower:
    torch.manual_seed(seed)
    return TextTower(PLAN, dropout=0.5)


def encoder(seed: int = 0) -> OwnTextEncoder:
    return OwnTextEncoder(tower(seed), build_vocabulary(TEXTS, PLAN.vocabulary_size))


def test_our_encoder_is_a_text_encoder() -> None:
    ours: TextEncoder = encoder()
    vectors = ours.embed(TEXTS)
    assert vectors.shape == (3, ours.width) == (3, 16)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_dropout_is_off_while_embedding() -> None:
    ours = encoder()
    assert torch.equal(ours.embed(TEXTS), ours.embed(TEXTS))


def test_a_text_has_the_same_vector_alone_as_among_others() -> None:
    ours = encoder()
    together = ours.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(ours.embed([text])[0], vector, atol=1e-5, rtol=0)


def test_no_texts_give_no_vectors() -> None:
    assert encoder().embed([]).shape == (0, 16)


def test_vectors_may_enter_the_training_of_another_network() -> None:
    network = torch.nn.Linear(16, 1)
    network(encoder().embed(TEXTS)).sum().backward()
    assert network.weight.grad is not None


def test_the_name_follows_the_weights_and_the_vocabulary() -> None:
    other_vocabulary = build_vocabulary(["spleen"] * 9, PLAN.vocabulary_size)
    names = {encoder(0).name, encoder(1).name, OwnTextEncoder(tower(0), other_vocabulary).name}
    assert len(names) == 3
    assert encoder(0).name == encoder(0).name


def test_an_encoder_goes_to_disk_and_back(tmp_path: Path) -> None:
    vocabulary = build_vocabulary(TEXTS, PLAN.vocabulary_size)
    save_tower(tower(0), tmp_path, {})
    save_vocabulary(vocabulary, tmp_path)
    loaded = load_own_encoder(tmp_path, PLAN)
    torch.testing.assert_close(
        loaded.embed(TEXTS), OwnTextEncoder(tower(0), vocabulary).embed(TEXTS), atol=2e-3, rtol=0
    )


def test_a_vocabulary_larger_than_the_plan_is_a_model_error(tmp_path: Path) -> None:
    smaller = PLAN.model_copy(update={"vocabulary_size": 262})
    save_tower(TextTower(smaller), tmp_path, {})
    save_vocabulary(build_vocabulary(TEXTS * 9, 300), tmp_path)
    with pytest.raises(ModelError, match="may have 262 tokens by the plan"):
        load_own_encoder(tmp_path, smaller)
