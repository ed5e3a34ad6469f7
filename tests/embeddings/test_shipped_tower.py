"""What the tower of the default model promises to the network that reads its vectors."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.embeddings.encoder import OwnTextEncoder, load_own_encoder
from textseg.embeddings.tower import WEIGHTS_FILE, load_tower
from textseg.errors import ModelError
from textseg.plan import read_plan
from textseg.prompts import canonical_name, default_lexicon, paraphrase, understand

FOLDER = Path(str(resources.files("textseg_plans"))) / "default"


@pytest.fixture(scope="module")
def encoder() -> OwnTextEncoder:
    return load_own_encoder(FOLDER, read_plan(FOLDER).text)


@pytest.fixture(scope="module")
def structures(encoder: OwnTextEncoder) -> Tensor:
    """The vectors of all structures' names, in the lexicon's order."""
    return encoder.embed([structure.name for structure in default_lexicon().structures()])


def nearest(vector: Tensor, structures: Tensor) -> str:
    return default_lexicon().structures()[int((structures @ vector).argmax())].name


def cosine(encoder: OwnTextEncoder, one: str, other: str) -> float:
    first, second = encoder.embed([one, other])
    return float(first @ second)


@pytest.mark.parametrize("structure", ["kidney", "lung", "femur", "hippocampus", "adrenal gland", "rib 7"])
def test_left_and_right_are_apart(encoder: OwnTextEncoder, structure: str) -> None:
    assert cosine(encoder, f"left {structure}", f"right {structure}") <= 0.5


# Towers that go on from this one keep its vectors, since networks were trained on them: these too.
@pytest.mark.parametrize("structure", ["kidney", "lung", "femur", "hippocampus", "adrenal gland", "rib 7"])
@pytest.mark.parametrize("finding", ["tumor", "cyst"])
def test_findings_on_the_left_and_on_the_right_are_apart(
    encoder: OwnTextEncoder, structure: str, finding: str
) -> None:
    assert cosine(encoder, f"left {structure} {finding}", f"right {structure} {finding}") <= 0.76


def test_left_and_right_are_apart_in_the_mean_of_everything(
    encoder: OwnTextEncoder, structures: Tensor
) -> None:
    everything = default_lexicon().structures()
    rows = {structure.id: row for row, structure in enumerate(everything)}
    pairs = [
        (rows[structure.id], rows[default_lexicon().mirrored(structure).id])
        for structure in everything
        if structure.side == "left" and default_lexicon().mirrored(structure) != structure
    ]
    left, right = torch.tensor(pairs).T
    cosines = (structures[left] * structures[right]).sum(dim=1)
    assert len(cosines) > 100
    assert cosines.mean() <= 0.55
    assert cosines.max() <= 0.75


@pytest.mark.parametrize(
    "organ", ["left kidney", "liver", "brain", "right lung", "pancreas", "urinary bladder"]
)
@pytest.mark.parametrize("finding", ["tumor", "cyst", "metastasis"])
def test_a_finding_is_apart_from_the_organ(encoder: OwnTextEncoder, organ: str, finding: str) -> None:
    assert cosine(encoder, organ, f"{organ} {finding}") <= 0.8


@pytest.mark.parametrize(
    ("one", "other"), [("rib 7", "rib 8"), ("vertebra L3", "vertebra L4"), ("liver", "spleen")]
)
def test_neighbours_are_apart(encoder: OwnTextEncoder, one: str, other: str) -> None:
    one, other = understand(one).canonical, understand(other).canonical
    assert one != other
    assert cosine(encoder, one, other) <= 0.6


@pytest.mark.parametrize(
    "text",
    ["left kidney", "kidney, left", "ren sinister", "l kidney", "the kidney on the left side", "left renal"],
)
def test_forms_of_the_left_kidney_are_the_left_kidney(
    encoder: OwnTextEncoder, structures: Tensor, text: str
) -> None:
    assert nearest(encoder.embed([text])[0], structures) == "left kidney"


@pytest.mark.parametrize("text", ["left kidney", "left-sided kidney", "ren sinister", "LK", "linke Niere"])
def test_what_is_understood_as_the_left_kidney_has_its_vector(encoder: OwnTextEncoder, text: str) -> None:
    assert torch.equal(encoder.embed([understand(text).canonical]), encoder.embed(["left kidney"]))


@pytest.mark.parametrize("text", ["left kidny", "Left KIDNEY please", "please segment the left kideny"])
def test_typing_errors_and_sentences_keep_structure_and_side(
    encoder: OwnTextEncoder, structures: Tensor, text: str
) -> None:
    assert nearest(encoder.embed([text])[0], structures) == "left kidney"


def test_paraphrases_that_are_understood_lie_on_their_canonical_words(encoder: OwnTextEncoder) -> None:
    cosines = canonical_cosines(encoder, understood=True)
    assert cosines.mean() >= 0.97


def test_raw_paraphrases_lie_near_their_canonical_words(encoder: OwnTextEncoder) -> None:
    cosines = canonical_cosines(encoder, understood=False)
    # The lexicon has learnt German, French and Spanish since this tower was trained.
    assert cosines.mean() >= 0.83


def canonical_cosines(encoder: OwnTextEncoder, understood: bool) -> Tensor:
    """Of two hundred held-out paraphrases of structures and of tumors in them."""
    lexicon, random = default_lexicon(), np.random.default_rng(11)
    finding = lexicon.find("tumor")
    things = [
        (lexicon.structures()[random.integers(len(lexicon.structures()))], (None, finding)[at % 2])
        for at in range(200)
    ]
    texts = [paraphrase(*thing, random, lexicon, split="test") for thing in things]
    said = [understand(text).canonical for text in texts] if understood else texts
    names = [canonical_name(*thing) for thing in things]
    return (encoder.embed(said) * encoder.embed(names)).sum(dim=1)


def test_the_files_are_small_enough_to_ship() -> None:
    assert (FOLDER / WEIGHTS_FILE).stat().st_size <= 7_000_000
    assert (FOLDER / "vocabulary.json").stat().st_size <= 300_000


def test_a_download_that_stopped_half_way_is_a_model_error(tmp_path: Path) -> None:
    shutil.copy(FOLDER / WEIGHTS_FILE, tmp_path)
    with (tmp_path / WEIGHTS_FILE).open("r+b") as weights:
        weights.truncate(1_000_000)
    with pytest.raises(ModelError, match="whole safetensors file"):
        load_tower(tmp_path, read_plan(FOLDER).text)


def test_a_plan_of_another_width_is_a_model_error() -> None:
    wider = read_plan(FOLDER).text.model_copy(update={"width": 240})
    with pytest.raises(ModelError, match=r"tokens\.weight is \(4096, 192\) instead of \(4096, 240\)"):
        load_tower(FOLDER, wider)
