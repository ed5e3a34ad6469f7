"""Other words for the same thing."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.dataset import Label
from textseg.errors import PromptError
from textseg.prompts import default_lexicon, understand, variants
from textseg.prompts.paraphrase import HELD_OUT_TEMPLATES
from textseg.scores.wordings import KINDS, Kind, meaning_of, sentences, wordings


def label(words: str, *others: str) -> Label:
    return Label(words, (words, *others), "prompts.json" if others else "lexicon", "torso")


def random() -> np.random.Generator:
    return np.random.default_rng(6)


@pytest.mark.parametrize("words", ["left kidney", "liver", "left kidney tumor", "vertebra L1", "left rib 7"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_means_the_same_or_hides_it(words: str, kind: Kind) -> None:
    found = wordings(label(words), kind, 20, random())
    assert len(found) == len(set(found)) <= 20
    assert words not in found
    for text in found:
        prompt = understand(text)
        hidden = kind == "typing error" and prompt.canonical != words
        assert prompt.canonical == words or ((hidden and prompt.structure is None) or prompt.finding is None)


def test_kinds_do_not_overlap() -> None:
    (kidney,) = (each for each in default_lexicon().concepts.values() if each.name == "left kidney")
    found = {kind: set(wordings(label("left kidney"), kind, 99, random())) for kind in KINDS}
    assert "LK" in found["synonym"]
    assert "kidney, left" in found["word order"]
    assert found["language"] == {*kidney.translations, kidney.latin}
    assert found["synonym"] | found["word order"] | found["language"] == set(variants(kidney)) - {
        "left kidney"
    }


def test_a_typing_error_is_one_slip_and_never_in_the_side() -> None:
    found = wordings(label("left kidney"), "typing error", 30, random())
    assert len(found) > 10
    for text in found:
        side, _, name = text.partition(" ")
        assert side == "left"
        assert abs(len(name) - len("kidney")) <= 1
        assert name[0] == "k"


def test_a_finding_in_a_place_is_put_in_other_orders() -> None:
    found = wordings(label("left kidney tumor"), "word order", 9, random())
    assert "tumor of the left kidney" in found
    assert len(found) == 5


def test_the_datasets_own_words_are_its_synonyms() -> None:
    assert wordings(label("gizmo", "doodad"), "synonym", 5, random()) == ["doodad"]


def test_sentences_are_those_that_training_never_sees() -> None:
    found = sentences(label("left kidney"), 20, random())
    assert len(found) >= 4
    for text in found:
        prompt = understand(text)
        assert prompt.canonical == "left kidney"
        name = next(
            each for each in sorted(variants_of("left kidney"), key=len, reverse=True) if each in text
        )
        assert text.replace(name, "{x}") in HELD_OUT_TEMPLATES


def test_unknown_names_still_get_typing_errors_and_sentences() -> None:
    assert len(wordings(label("gizmo part"), "typing error", 3, random())) == 3
    assert wordings(label("gizmo part"), "language", 3, random()) == []
    assert all("gizmo part" in text for text in sentences(label("gizmo part"), 3, random()))


def test_the_other_side_of_a_meaning() -> None:
    assert meaning_of("left kidney").mirrored() == "right kidney"
    assert meaning_of("right kidney tumor").mirrored() == "left kidney tumor"
    assert meaning_of("liver").mirrored() is None
    # A heart's chambers are named left and right, and a mirror does not make one the other.
    assert meaning_of("left atrium").mirrored() is None
    assert meaning_of("gizmo").structure is None


def test_words_that_are_no_prompt_mean_nothing() -> None:
    with pytest.raises(PromptError):
        understand("left kidney right")
    assert meaning_of("left kidney right").structure is None


def variants_of(words: str) -> tuple[str, ...]:
    structure = understand(words).structure
    assert structure is not None
    return variants(structure)
