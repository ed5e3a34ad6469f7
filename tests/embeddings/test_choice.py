"""The encoder that a plan asks for, and that nothing large is loaded for a prompt whose vector is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.embeddings.tiny_language import WIDTH, write_language_model
from tests.tiny_model import TEXT_WIDTH, tiny_plan, write_tiny_model
from textseg.embeddings.cache import CachedTextEncoder
from textseg.embeddings.choice import WordedTextEncoder, load_text_encoder
from textseg.embeddings.language import LanguageEncoder
from textseg.embeddings.text_plan import EncoderPlan
from textseg.errors import ModelError
from textseg.models import find_model
from textseg.plan import read_plan

WORDING = "a small {prompt} of the query"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))


class Lengths:
    """Counts letters, and how often it is asked."""

    name, width = "lengths", 2

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def encoder_plan(**changes: object) -> EncoderPlan:
    return EncoderPlan.model_validate({"kind": "mean", "source": "encoder", **changes})


def test_the_plan_chooses_our_tower_by_default(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    encoder = load_text_encoder(folder, read_plan(folder).text)
    assert encoder.name.startswith("textseg-")
    assert encoder.embed(["liver"]).shape == (1, TEXT_WIDTH)


def test_the_plan_chooses_a_language_model_and_its_wording(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model" / "encoder", "bert").parent
    text = tiny_plan().text.model_copy(update={"vector_width": WIDTH})
    plain, worded = (
        load_text_encoder(folder, text.model_copy(update={"encoder": encoder_plan(wording=wording)}))
        for wording in ("{prompt}", WORDING)
    )
    bare = LanguageEncoder(folder / "encoder", "mean", 512)
    assert torch.equal(plain.embed(["liver"]), bare.embed(["liver"]))
    assert torch.equal(worded.embed(["liver"]), bare.embed(["a small liver of the query"]))
    # From the cache now, and not mixed up.
    assert torch.equal(plain.embed(["liver"]), bare.embed(["liver"]))
    with pytest.raises(ModelError, match=f"of 32 numbers by its plan, but encoder gives {WIDTH}"):
        load_text_encoder(folder, text.model_copy(update={"vector_width": 32, "encoder": encoder_plan()}))


def test_a_wording_is_part_of_the_key_of_the_cache(tmp_path: Path) -> None:
    for wording in ("{prompt}", WORDING, "{prompt}!"):
        counting = Lengths()
        encoder = CachedTextEncoder(WordedTextEncoder(counting, encoder_plan(wording=wording)), tmp_path)
        expected = float(len(wording.replace("{prompt}", "liver")))
        assert encoder.embed(["liver"])[0, 0] == expected
        assert encoder.embed(["liver"])[0, 0] == expected
        assert len(counting.asked) == 1


def test_a_prompt_from_the_cache_loads_no_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    (folder / "encoder").mkdir(parents=True)
    (folder / "encoder" / "config.json").write_text(json.dumps({"hidden_size": 2}))
    text = tiny_plan().text.model_copy(update={"vector_width": 2, "encoder": encoder_plan()})
    monkeypatch.setattr(LanguageEncoder, "embed", lambda self, texts: Lengths().embed(texts))
    first = load_text_encoder(folder, text).embed(["liver", "spleen"])

    def refuse(*_: object) -> None:
        raise AssertionError("a language model was loaded")

    monkeypatch.undo()
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LanguageEncoder, "_loaded", refuse)
    again = load_text_encoder(folder, text)
    assert torch.equal(again.embed(["spleen", "liver"]), first[[1, 0]])
    with pytest.raises(AssertionError, match="was loaded"):
        again.embed(["aorta"])


def test_a_model_with_another_encoder_needs_no_tower(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / "vocabulary.json").unlink()
    with pytest.raises(ModelError, match=r"no vocabulary\.json"):
        find_model(folder)
    document = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    document["text"]["encoder"] = {"kind": "last_token", "source": "Qwen/Qwen3-Embedding-4B"}
    (folder / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    model = find_model(folder)
    assert set(model.files) == {"plan.json", "network.safetensors"}
    assert model.plan.text.encoder == EncoderPlan(kind="last_token", source="Qwen/Qwen3-Embedding-4B")


@pytest.mark.parametrize(
    "changes",
    [{"kind": "word2vec"}, {"source": ""}, {"wording": "Query: "}, {"longest_tokens": 0}, {"top": 1}],
)
def test_an_encoder_plan_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        encoder_plan(**changes)


def test_braces_in_a_wording_stay() -> None:
    assert encoder_plan(wording="{x} {prompt} {}").word("liver") == "{x} liver {}"
