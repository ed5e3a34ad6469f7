import numpy
import pytest

from textseg.errors import PromptError
from textseg.prompts import HELD_OUT_TEMPLATES, Concept, default_lexicon, paraphrase, split_of, understand
from textseg.prompts.languages import without_accents
from textseg.prompts.paraphrase import Kind, Split, paraphrase_of

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


@pytest.mark.parametrize(
    ("kind", "concept", "texts"),
    [
        ("Latin", LEFT_KIDNEY, "ren sinister"),
        ("abbreviation", LEFT_KIDNEY, "LK"),
        ("lay word", LEXICON.concepts["left_clavicle"], "left collarbone|left collar bone"),
        ("British spelling", TUMOR, "tumour"),
        ("plural", LEFT_KIDNEY, "left kidneys"),
        ("word order", LEFT_KIDNEY, "kidney, left|lt kidney|kidney on the left"),
    ],
)
def test_a_kind_of_paraphrase_holds_its_names(kind: Kind, concept: Concept, texts: str) -> None:
    random = numpy.random.default_rng(5)
    thing = (None, concept) if concept.kind == "finding" else (concept, None)
    drawn = {paraphrase_of(kind, *thing, random) for _ in range(60)}
    assert any(name in text for name in texts.split("|") for text in drawn if text), drawn


@pytest.mark.parametrize(("kind", "language"), [("German", "de"), ("French", "fr"), ("Spanish", "es")])
def test_a_language_is_spoken_around_its_own_names(kind: Kind, language: str) -> None:
    random = numpy.random.default_rng(5)
    drawn = [(each, paraphrase_of(kind, each, None, random)) for each in LEXICON.structures()[:120]]
    spoken = [(each, text) for each, text in drawn if text is not None]
    assert len(spoken) > 40
    for concept, text in spoken:
        names = [without_accents(name) for name in dict(concept.translated)[language]]
        assert any(name in without_accents(text) for name in names), (concept.id, text)


def test_a_slip_of_the_finger_is_one_and_no_side_is_mistyped() -> None:
    random = numpy.random.default_rng(6)
    for _ in range(30):
        text = paraphrase_of("spelling mistake", LEFT_KIDNEY, None, random)
        assert text is not None
        assert understand(text).side in ("left", None)


def test_a_report_sentence_needs_a_finding_in_a_structure() -> None:
    random = numpy.random.default_rng(7)
    text = paraphrase_of("report sentence", LEFT_KIDNEY, TUMOR, random)
    assert text is not None
    assert len(text.split()) > 2
    assert paraphrase_of("report sentence", LEFT_KIDNEY, None, random) is None


def test_what_has_no_name_of_a_kind_has_no_paraphrase_of_it() -> None:
    random = numpy.random.default_rng(8)
    assert paraphrase_of("abbreviation", LIVER, None, random) is None
    assert paraphrase_of("word order", LIVER, None, random) is None
    assert paraphrase_of("Latin", LIVER, TUMOR, random) is None


def test_foreign_names_are_drawn_as_often_as_asked_for() -> None:
    random = numpy.random.default_rng(9)
    names = [name.lower() for name in LIVER.translations] + ["higado"]

    def share(foreign: float) -> float:
        texts = [paraphrase(LIVER, None, random, foreign=foreign).lower() for _ in range(60)]
        return sum(any(name in text for name in names) for text in texts) / 60

    assert share(1.0) > 0.6
    assert share(0.0) == 0
