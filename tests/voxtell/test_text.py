"""Prompts to vectors: from the bank by lower-case prompt, else from an encoder asked as VoxTell was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.voxtell.tiny_folder import LABELS, write_bank
from textseg.errors import ModelError, PromptError
from textseg.network.voxtell.plan import BANK_FILE, find_bank
from textseg.network.voxtell.text import instruct, load_text


class Counting:
    """An encoder whose vectors hold the length of each text."""

    name = "counting"

    def __init__(self, width=20):
        self.width = width
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        return torch.tensor([[float(len(text))] * self.width for text in texts])


def test_the_bank_answers_in_any_case(folder, tiny):
    encoder = load_text(folder, tiny.text)
    with np.load(folder / "embeddings" / BANK_FILE) as bank:
        expected = bank["embeddings"].astype(np.float32)
    vectors = encoder.embed(["Left Kidney", "liver", "LIVER"])
    assert vectors.dtype == torch.float32
    assert np.array_equal(vectors.numpy(), expected[[1, 0, 0]])
    assert encoder.prompts == LABELS
    assert encoder.embed([]).shape == (0, tiny.text)


def test_what_the_bank_lacks_needs_an_encoder(folder, tiny):
    with pytest.raises(PromptError) as error:
        load_text(folder, tiny.text).embed(["liver", "left kidneys"])
    assert '"left kidneys"' in str(error.value)
    assert "Qwen3-Embedding-4B" in str(error.value)
    assert 'Try "left kidney"' in str(error.value)


def test_an_encoder_is_asked_once_for_what_the_bank_lacks(folder, tiny):
    encoder = Counting()
    text = load_text(folder, tiny.text, encoder)
    vectors = text.embed(["Gallbladder", "liver", "gallbladder"])
    assert encoder.asked == [instruct("gallbladder")]
    assert torch.equal(vectors[0], vectors[2])
    assert vectors[0, 0] == len(instruct("gallbladder"))
    assert text.name != load_text(folder, tiny.text).name


def test_the_instruction_is_the_one_of_training():
    assert instruct("Left Kidney") == (
        "Instruct: Given an anatomical term query, retrieve the precise anatomical entity and location "
        "it represents\nQuery: left kidney"
    )


def test_an_encoder_of_another_width_is_refused(folder, tiny):
    with pytest.raises(ModelError, match=r"20 numbers, .* counting gives 21"):
        load_text(folder, tiny.text, Counting(21))


def test_the_bank_in_the_folder_comes_before_the_one_beside_it(folder, tiny):
    beside = write_bank(folder.parent / "embeddings" / folder.name / BANK_FILE, tiny.text, ("heart",))
    inside = folder / "embeddings" / BANK_FILE
    assert find_bank(folder) == inside
    inside.unlink()
    assert find_bank(folder) == beside
    beside.unlink()
    assert find_bank(folder) is None
    with pytest.raises(ModelError, match="no bank"):
        load_text(folder, tiny.text)
    assert load_text(folder, tiny.text, Counting()).embed(["liver"]).shape == (1, tiny.text)


def test_a_bank_of_another_width_is_refused(folder, tiny):
    write_bank(folder / "embeddings" / BANK_FILE, tiny.text + 1)
    with pytest.raises(ModelError, match="another version"):
        load_text(folder, tiny.text)


@pytest.mark.parametrize("arrays", [{"labels": np.array(["a"])}, {"embeddings": np.zeros((1, 20))}])
def test_a_bank_without_an_array_is_refused(folder, tiny, arrays):
    np.savez(folder / "embeddings" / BANK_FILE, **arrays)
    with pytest.raises(ModelError, match="labels and embeddings"):
        load_text(folder, tiny.text)


def test_a_bank_with_pickled_labels_is_refused(folder, tiny):
    labels = np.array(["a"], dtype=object)
    np.savez(folder / "embeddings" / BANK_FILE, labels=labels, embeddings=np.zeros((1, tiny.text)))
    with pytest.raises(ModelError, match="labels and embeddings"):
        load_text(folder, tiny.text)


def test_a_bank_with_nan_is_refused(folder, tiny):
    vectors = np.full((1, tiny.text), np.nan, np.float16)
    np.savez(folder / "embeddings" / BANK_FILE, labels=np.array(["liver"]), embeddings=vectors)
    with pytest.raises(ModelError, match="NaN"):
        load_text(folder, tiny.text)


@pytest.mark.parametrize("keep", [0, 10, -10])
def test_a_truncated_bank_is_refused(folder, tiny, keep):
    path = folder / "embeddings" / BANK_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="can't be read"):
        load_text(folder, tiny.text)
