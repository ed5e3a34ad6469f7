import numpy
import pytest

from textseg.errors import PromptError
from textseg.prompts import HELD_OUT_TEMPLATES, default_lexicon, paraphrase, split_of, understand
from textseg.prompts.paraphrase import Split

LEXICON = default_lexicon()
LIVER, LEFT_KIDNEY = LEXICON.concepts["liver"], LEXICON.concepts["left_kidney"]
TUMOR = LEXICON.concepts["tumor"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_paraphrase_never_means_something_else(split: Split) -> None:
    random = numpy.random.default_rng(0)
    structures, findings = LEXICON.structures(), LEXICON.findings()
    understood = 0
    for _ in range(600):
        structure = structures[random.integers(len(structures))]
        finding = findings[random.integers(len(findings))] if random.random() < 0.3 else None
        prompt = understand(paraphrase(structure, finding, random, split=split))
        assert prompt.structure in (structure, None)
        assert prompt.finding in (finding, None)
        understood += prompt.structure is structure and prompt.finding is finding
    assert understood > 540


def test_a_paraphrase_keeps_its_side() -> None:
    random = numpy.random.default_rng(1)
    sided = [concept for concept in LEXICON.structures() if concept.side]
    for _ in range(400):
        structure = sided[random.integers(len(sided))]
        prompt = understand(paraphrase(structure, None, random))
        assert prompt.side == structure.side or not prompt.known


def test_every_structure_and_finding_has_paraphrases_of_both_splits() -> None:
    random = numpy.random.default_rng(2)
    for concept in LEXICON.concepts.values():
        structure, finding = (concept, None) if concept.kind == "structure" else (None, concept)
        assert paraphrase(structure, finding, random, split="train")
        assert paraphrase(structure, finding, random, split="test")


def test_the_same_seed_gives_the_same_words() -> None:
    one, other = numpy.random.default_rng(7), numpy.random.default_rng(7)
    for _ in range(20):
        assert paraphrase(LIVER, TUMOR, one) == paraphrase(LIVER, TUMOR, other)


def test_paraphrases_vary() -> None:
    random = numpy.random.default_rng(3)
    texts = {paraphrase(LEFT_KIDNEY, TUMOR, random) for _ in range(200)}
    assert len(texts) > 150
    assert any("renal" in text.lower() for text in texts)
    assert any(text.isupper() for text in texts)


def test_training_never_sees_a_test_text() -> None:
    random = numpy.random.default_rng(4)
    train: set[str] = set()
    test: set[str] = set()
    for _ in range(600):
        train.add(paraphrase(LEFT_KIDNEY, None, random, split="train").lower())
        test.add(paraphrase(LEFT_KIDNEY, None, random, split="test").lower())
    assert not any("could you kindly delineate" in text for text in train)
    assert any("could you kindly delineate" in text for text in test)
    assert len(test - train) > 0.95 * len(test)


def test_the_split_depends_on_sentence_and_names_alone() -> None:
    assert all(split_of(template, "liver") == "test" for template in HELD_OUT_TEMPLATES)
    drawn = [split_of("the {x}", concept.name) for concept in LEXICON.concepts.values()]
    assert 0.05 < drawn.count("test") / len(drawn) < 0.15
    assert drawn == [split_of("the {x}", concept.name) for concept in LEXICON.concepts.values()]


def test_nothing_to_paraphrase_is_refused() -> None:
    with pytest.raises(PromptError):
        paraphrase(None, None, numpy.random.default_rng(0))
