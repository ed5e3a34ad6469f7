from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from textseg.embeddings.vocabulary import (
    PADDING,
    START,
    build_vocabulary,
    encode,
    load_vocabulary,
    save_vocabulary,
)
from textseg.errors import ModelError

# "left" and "right" are rare here, so that frequency alone would leave them in pieces.
TEXTS = ["kidney", "kidney tumor", "cleft palate", "bright lesion"] * 20 + ["left kidney", "right kidney"]


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return build_vocabulary(TEXTS, 320)


@pytest.mark.parametrize(
    "text", ["left kidney", "kidney left", "kidney (left)", "Left-sided kidney", "kidney, left"]
)
def test_left_is_one_token_wherever_it_stands(vocabulary: Tokenizer, text: str) -> None:
    assert vocabulary.encode(text).tokens.count("left") == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_stay_whole_while_merges_are_dropped(side: str) -> None:
    vocabulary = build_vocabulary(TEXTS, 320)
    vocabulary.model.dropout = 1.0
    tokens = vocabulary.encode(f"{side} kidney").tokens
    assert tokens[0] == side
    assert len(tokens) > len("kidney")


@pytest.mark.parametrize("text", ["cleft", "brighton"])
def test_a_side_inside_another_word_is_no_side(vocabulary: Tokenizer, text: str) -> None:
    assert not {"left", "right"} & set(vocabulary.encode(text).tokens)


@pytest.mark.parametrize("text", ["kdiney", "riñón izquierdo", "左腎", "🫁?"])
def test_any_script_and_any_typing_error_goes_there_and_back(vocabulary: Tokenizer, text: str) -> None:
    assert vocabulary.decode(vocabulary.encode(text).ids).strip() == text


def test_a_vocabulary_never_grows_past_its_size() -> None:
    assert build_vocabulary(TEXTS, 300).get_vocab_size() <= 300


def test_a_size_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 260 tokens, got 100"):
        build_vocabulary(TEXTS, 100)


def test_encode_pads_and_masks_what_is_shorter(vocabulary: Tokenizer) -> None:
    ids, mask = encode(vocabulary, ["kidney tumor", "", "kidney"], 64)
    assert mask.sum(dim=1).tolist() == [3, 1, 2]
    assert ids[:, 0].tolist() == [vocabulary.token_to_id(START)] * 3
    assert set(ids[~mask].tolist()) == {vocabulary.token_to_id(PADDING)}


def test_encode_cuts_what_is_too_long_and_says_so(
    vocabulary: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    ids, mask = encode(vocabulary, ["kidney " * 40, "kidney"], 16)
    assert ids.shape == mask.shape == (2, 16)
    assert "longer than 16 tokens" in caplog.text


def test_encode_of_no_texts_is_empty(vocabulary: Tokenizer) -> None:
    ids, mask = encode(vocabulary, [], 16)
    assert ids.shape == mask.shape == (0, 1)


def test_a_vocabulary_goes_to_disk_and_back(vocabulary: Tokenizer, tmp_path: Path) -> None:
    save_vocabulary(vocabulary, tmp_path)
    text = "Left kidney, tumor"
    assert load_vocabulary(tmp_path).encode(text).ids == vocabulary.encode(text).ids


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe"])
def test_a_file_that_is_no_vocabulary_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocabulary.json").write_bytes(content)
    with pytest.raises(ModelError, match="vocabulary"):
        load_vocabulary(tmp_path)


def test_a_missing_vocabulary_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        load_vocabulary(tmp_path)
