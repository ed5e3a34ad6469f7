import pytest

from textseg.errors import PromptError
from textseg.prompts import clean
from textseg.prompts.cleaning import british, singular, token, tokens


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("Left Kidney", "left kidney"),
        ("the patient's left kidney", "left kidney"),
        ("the patient’s left kidney", "left kidney"),
        ("Please segment the spleen.", "spleen"),
        ("show me the left kidneys!", "left kidney"),
        ("kidney, left", "kidney left"),
        ("kidney (left)", "kidney left"),
        ("Lt kidney", "left kidney"),
        ("R. kidney", "right kidney"),
        ("liver_metastases", "liver metastasis"),
        ("ｌｉｖｅｒ", "liver"),
        ("  vertebra \n L 5 ", "vertebra l5"),
        ("rib L 5", "rib left 5"),
        ("pancreas", "pancreas"),
        ("tumour", "tumour"),
    ],
)
def test_clean_gives_plain_words(typed: str, words: str) -> None:
    assert clean(typed) == words


@pytest.mark.parametrize("typed", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(typed: str) -> None:
    with pytest.raises(PromptError, match="must not be empty"):
        clean(typed)


@pytest.mark.parametrize("typed", ["the", "42", "?!"])
def test_a_prompt_that_names_nothing_is_refused(typed: str) -> None:
    with pytest.raises(PromptError, match="left kidney"):
        clean(typed)


def test_a_long_prompt_is_refused_and_shown_only_in_part() -> None:
    with pytest.raises(PromptError, match=r"10,000 characters") as refused:
        clean("x" * 10_000)
    assert len(str(refused.value)) < 300


def test_three_hundred_characters_are_not_too_long() -> None:
    assert clean("kidney".ljust(300, "!")) == "kidney"
    with pytest.raises(PromptError):
        clean("kidney".ljust(301, "!"))


@pytest.mark.parametrize(
    ("typed", "script"),
    [("左肾", "Chinese"), ("почка", "Cyrillic"), ("كلية", "Arabic"), ("νεφρός", "Greek"), ("신장", "Korean")],
)
def test_a_script_without_words_of_ours_is_named(typed: str, script: str) -> None:
    with pytest.raises(PromptError, match=f"English.*{script}"):
        clean(typed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tumour", "tumor"),
        ("oesophagus", "esophagus"),
        ("haematoma", "hematoma"),
        ("caecum", "cecum"),
        ("coeliac", "celiac"),
        ("vertebrae", "vertebra"),
        ("riñón", "rinon"),
        ("cœur", "coeur"),
        ("7th", "seventh"),
        ("metastases", "metastasis"),
    ],
)
def test_spellings_of_a_word_compare_equal(one: str, other: str) -> None:
    assert token(one) == token(other)


@pytest.mark.parametrize(
    "name", ["tumor", "esophagus", "hematoma", "cecum", "celiac trunk", "edema", "gray matter"]
)
def test_british_spelling_and_back(name: str) -> None:
    assert british(name) != name
    assert [token(word) for word in british(name).split()] == [token(word) for word in name.split()]


@pytest.mark.parametrize(
    "word", ["pancreas", "biceps", "uterus", "pelvis", "pons", "lens", "abscess", "ascites"]
)
def test_words_that_only_look_plural_stay(word: str) -> None:
    assert singular(word) == word


def test_sizes_and_mr_contrasts_are_not_compared() -> None:
    assert tokens("3 cm mass liver") == ("mass", "liver")
    assert tokens("1.2 x 3.4 cm mass") == ("mass",)
    assert tokens("t1 weighted lesion") == ("weighted", "lesion")
    assert tokens("t1 vertebra") == ("t1", "vertebra")
