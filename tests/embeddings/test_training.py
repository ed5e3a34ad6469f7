from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from textseg.embeddings.encoder import OwnTextEncoder, load_own_encoder
from textseg.embeddings.text_plan import TextPlan
from textseg.embeddings.tower import WEIGHTS_FILE, TextTower, save_tower
from textseg.embeddings.vocabulary import save_vocabulary
from textseg.prompts import Lexicon
from textseg.train.text import KEEPING, TextRecipe, lexicon_sha256, save_text_tower, train_text_tower

PLAN = TextPlan(
    vocabulary_size=400, width=48, layers=2, heads=3, hidden=96, longest_tokens=48, vector_width=64
)
RECIPE = TextRecipe(texts=600, batch=48, findings_per_step=2, measured_texts=200)
STEPS = 150

Trained = tuple[TextTower, Tokenizer, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(small_lexicon: Lexicon) -> Trained:
    return train_text_tower(small_lexicon, PLAN, STEPS, seed=2, recipe=RECIPE)


def test_a_few_seconds_of_training_tell_left_from_right(trained: Trained) -> None:
    tower, vocabulary, figures = trained
    left, right, said = OwnTextEncoder(tower, vocabulary).embed(
        ["left kidney", "right kidney", "show the kidney on the left"]
    )
    assert float(left @ right) < 0.6
    assert float(said @ left) > float(said @ right) + 0.3
    assert figures["right side, raw"] > 0.95


def test_a_few_seconds_of_training_tell_a_lesion_from_its_organ(trained: Trained) -> None:
    tower, vocabulary, _ = trained
    organ, lesion, said = OwnTextEncoder(tower, vocabulary).embed(
        ["liver", "liver tumor", "neoplasm of the liver"]
    )
    assert float(organ @ lesion) < 0.7
    assert float(said @ lesion) > 0.8


def test_the_vocabulary_is_left_without_random_merges(trained: Trained) -> None:
    _, vocabulary, _ = trained
    assert vocabulary.model.dropout is None


def test_the_same_seed_gives_the_same_tower(small_lexicon: Lexicon) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    recipe = replace(RECIPE, merge_dropout=0.0)
    towers = [
        train_text_tower(small_lexicon, PLAN, 3, 7, lambda *step: told.append(step), recipe)[0]
        for _ in range(2)
    ]
    one, other = (tower.state_dict() for tower in towers)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [step for step, _, _ in told] == [1, 2, 3] * 2
    assert told[:3] == told[3:]


def test_training_on_keeps_the_vectors_of_canonical_words(
    trained: Trained, small_lexicon: Lexicon, tmp_path: Path
) -> None:
    tower, vocabulary, _ = trained
    save_tower(tower, tmp_path, {})
    save_vocabulary(vocabulary, tmp_path)
    words = ["left kidney", "right kidney", "kidneys", "liver", "liver tumor", "left kidney cyst"]
    before = OwnTextEncoder(tower, vocabulary).embed(words)
    kept = load_own_encoder(tmp_path, PLAN)
    recipe = replace(KEEPING, texts=600, batch=48, held=32, measured_texts=200)
    again, same_vocabulary, figures = train_text_tower(
        small_lexicon, PLAN, 60, seed=3, recipe=recipe, kept=kept
    )
    after = OwnTextEncoder(again, same_vocabulary).embed(words)
    assert (before * after).sum(dim=1).min() > 0.99
    assert not torch.equal(before, after)
    assert figures["kept"]["cosine of concepts, lowest"] > 0.99
    assert figures["kept"]["cosine of concepts, lowest"] <= figures["kept"]["cosine of concepts, mean"] <= 1
    # The next reader must find the very same tokens.
    assert same_vocabulary.to_str() == vocabulary.to_str()


def test_what_is_saved_can_be_loaded_and_says_where_it_came_from(
    trained: Trained, small_lexicon: Lexicon, tmp_path: Path
) -> None:
    tower, vocabulary, figures = trained
    sha256 = lexicon_sha256(small_lexicon)
    report = {"date": "2000-02-29", "steps": STEPS, "seed": 2, "lexicon_sha256": sha256, "figures": figures}
    save_text_tower(tmp_path, tower, vocabulary, report)
    loaded = load_own_encoder(tmp_path, PLAN).embed(["left kidney"])
    torch.testing.assert_close(
        loaded, OwnTextEncoder(tower, vocabulary).embed(["left kidney"]), atol=5e-3, rtol=0
    )
    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as weights:
        assert weights.metadata() == {
            "date": "2000-02-29",
            "steps": "150",
            "seed": "2",
            "lexicon_sha256": sha256,
        }
    assert json.loads((tmp_path / "text_report.json").read_text(encoding="utf-8")) == report
