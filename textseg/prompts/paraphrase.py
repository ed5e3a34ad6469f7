"""The many ways in which people write a prompt: material to train and to test a text tower."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from textseg.errors import PromptError
from textseg.prompts import cleaning, languages
from textseg.prompts.languages import LANGUAGES, Language
from textseg.prompts.lexicon import Concept, Lexicon, default_lexicon, plural, variants, word_orders
from textseg.prompts.understanding import canonical_name, edit_distance, inferred_place, understand

if TYPE_CHECKING:
    import numpy

Split = Literal["train", "test"]
Kind = Literal[
    "word order", "plural", "Latin", "abbreviation", "spelling mistake", "British spelling", "lay word",
    "report sentence", "German", "French", "Spanish",
]  # fmt: skip
KINDS: tuple[Kind, ...] = (
    "word order", "plural", "Latin", "abbreviation", "spelling mistake", "British spelling", "lay word",
    "report sentence", "German", "French", "Spanish",
)  # fmt: skip
Choice = TypeVar("Choice")

# {x} is the structure or the finding. The bare name comes as often as all sentences together.
_THING_TEMPLATES = (
    "the {x}", "segment the {x}", "please segment the {x}", "segment {x}", "show me the {x}", "show {x}",
    "outline the {x}", "{x} segmentation", "mask of the {x}", "where is the {x}",
    "find the {x} in this scan", "contour the {x}", "delineate the {x}", "the patient's {x}", "{x}.",
    "highlight the {x}", "{x} please", "label the {x}", "I need the {x}", "extract the {x}",
    "mark the {x}", "can you segment the {x}?", "segmentation of the {x}", "{x} only", "{x} on this CT",
    "{x} on MRI", "draw the {x}", "locate {x}", "{x} visible",
)  # fmt: skip
_STRUCTURE_TEMPLATES = (
    "the {x} is unremarkable", "{x} appears normal", "unremarkable {x}", "normal {x}", "the entire {x}",
    "{x} in its full extent", "the {x} shows no obvious change",
)  # fmt: skip
_FINDING_TEMPLATES = (
    "a {size} {x}", "{size} {x}", "small {x}", "a large {x}", "suspicious {x}", "{x}, {size}",
    "there is a {x}", "new {x}", "{x} measuring {size}", "known {x}", "multiple {x}", "all {x}",
)  # fmt: skip
# {f} is the finding, {x} the structure with its side, {adj} its adjective, {side} the side alone.
_PLACED_TEMPLATES = (
    "{x} {f}", "{x} {f}", "{x} {f}", "{f} of the {x}", "{f} in the {x}", "{f} of {x}", "{f} in {x}",
    "{x}: {f}", "{f}, {x}", "{f} ({x})", "{x} with {f}", "segment the {x} {f}",
    "segment the {f} in the {x}", "show me the {f} of the {x}", "there is a {f} in the {x}",
    "a {size} {f} in the {x}", "{size} {f} of the {x}", "{size} {x} {f}", "{f} in the {part} of the {x}",
    "a {size} {f} in the {part} of the {x}", "known {f} within the {x}", "new {x} {f}",
    "the {f} in the patient's {x}", "suspicious {size} {f} in the {x}", "please outline the {x} {f}",
    "{x} {f} measuring {size}", "{x} contains a {f}", "{x} shows a {size} {f}",
    "mask of the {f} in the {x}", "CT shows a {size} {f} in the {x}", "stable {f} of the {x}",
    "{f} of the {x} measuring up to {size}", "follow-up of a {f} in the {x}", "{x} with a {size} {f}",
    "interval growth of the {f} in the {part} of the {x}", "there is a {size} {f} in the {x}",
    "biopsy-proven {f} of the {x}", "{size} {f} centred in the {x}",
)  # fmt: skip
_ADJECTIVE_TEMPLATES = (
    "{side} {adj} {f}", "{adj} {f} {on_side}", "segment the {side} {adj} {f}", "a {size} {side} {adj} {f}",
    "{adj} {f}, {side}", "{size} {adj} {f} {on_side}", "the {side} {adj} {f}", "{f}, {side} {adj}",
)  # fmt: skip
_PARTS = (
    "upper part", "lower part", "upper pole", "lower pole", "medial aspect", "lateral aspect",
    "central portion", "periphery", "dorsal part", "ventral aspect", "middle third",
)  # fmt: skip

# Sentences that training never sees, so that retrieval can be measured on new ones.
HELD_OUT_TEMPLATES = frozenset(
    {
        "could you kindly delineate the {x}", "give me a mask for the {x}", "annotate the {x}",
        "{x} of this patient", "identify the {x} on the images", "{x} is normal in size",
        "{f} located in the {x}", "{f} arising from the {x}",
        "we see a {size} {f} within the {part} of the {x}", "annotate the {x} {f}", "{x} harbouring a {f}",
        "evaluate the {side} {adj} {f}", "incidental {size} {f} in the {x}",
        "there is a {size} {f} in the {part} of the {x}", "findings suspicious for a {f} of the {x}",
        "the {x} demonstrates a {size} {f}",
    }
)  # fmt: skip

# In other languages, around a name that is not bent: German cases would bend it.
_FOREIGN_TEMPLATES: dict[Language, tuple[str, ...]] = {
    "de": ("{x}", "{x}", "{x}", "bitte {x} segmentieren", "{x} segmentieren", "{x} bitte", "zeige {x}",
           "CT: {x}"),
    "fr": ("{x}", "{x}", "{x}", "segmenter {x}", "montrez {x}", "{x} s'il vous plaît", "{x} sur ce scanner",
           "masque : {x}"),
    "es": ("{x}", "{x}", "{x}", "segmentar {x}", "muestra {x}", "{x} por favor", "localizar {x}", "TC: {x}"),
}  # fmt: skip
_LANGUAGE_OF_KIND: dict[Kind, Language] = {"German": "de", "French": "fr", "Spanish": "es"}
# The share of foreign names that are typed without their accents.
_BARE_RATE = 0.3

_KEYBOARD = {
    letter: row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for at, letter in enumerate(row)
}
_TYPING_ERROR_RATE = 0.25
_TRIES = 40


def paraphrase(
    structure: Concept | None,
    finding: Concept | None,
    random: numpy.random.Generator,
    lexicon: Lexicon | None = None,
    split: Split = "train",
    foreign: float = 0.0,
) -> str:
    """One random way to write a structure, a finding, or a finding in a structure.

    Args:
        foreign: how often one thing alone is named in German, French or Spanish where it has such a name.

    The two splits share no sentence with the same names in it. What is returned always means what was asked:
    a text that `understand` reads as something else is drawn again; a typing error may hide the meaning, not
    change it. Where nothing suits after many draws it is the canonical name.
    """
    lexicon = lexicon or default_lexicon()
    if structure is None and finding is None:
        raise PromptError("A paraphrase needs a structure or a finding, got neither.")
    for _ in range(_TRIES):
        text = None
        if foreign and random.random() < foreign:
            text = _foreign(structure, finding, _pick(LANGUAGES, random), random, split)
        text = text or _written(structure, finding, random, split)
        if text is not None and _means(text, structure, finding, lexicon):
            return _in_some_case(_perhaps_mistyped(text, structure, finding, lexicon, random), random)
    return canonical_name(structure, finding)


def paraphrase_of(
    kind: Kind,
    structure: Concept | None,
    finding: Concept | None,
    random: numpy.random.Generator,
    lexicon: Lexicon | None = None,
) -> str | None:
    """One held-out text of a kind for a structure, a finding or both; None where there is none.

    Its words may have been seen in training, in other sentences; no sentence was with the same words in it.
    Nothing is drawn again because it is misunderstood.
    """
    lexicon = lexicon or default_lexicon()
    both = structure is not None and finding is not None
    if kind == "spelling mistake":
        return _first(lambda: _held_out_slip(structure, finding, random, lexicon))
    if kind == "report sentence":
        return _report_sentence(structure, finding, random) if both else None
    concept = structure or finding
    if both or concept is None:
        return None
    if kind in _LANGUAGE_OF_KIND:
        language = _LANGUAGE_OF_KIND[kind]
        known = bool(dict(concept.translated).get(language))
        return _first(lambda: _foreign(structure, finding, language, random, "test")) if known else None
    names = _names_of_kind(kind, concept)
    return _first(lambda: _held_out(structure, _pick(names, random), random)) if names else None


def _first(draw: Callable[[], str | None]) -> str | None:
    """The first draw that gives something; None after many in vain."""
    return next((text for _ in range(_TRIES) if (text := draw()) is not None), None)


def _held_out(structure: Concept | None, name: str, random: numpy.random.Generator) -> str | None:
    """A name in a sentence, if that is of the held-out split."""
    template = _template_for_one(structure, random, "test")
    return template.format(x=name, size=_size(random)) if split_of(template, name) == "test" else None


def _held_out_slip(
    structure: Concept | None, finding: Concept | None, random: numpy.random.Generator, lexicon: Lexicon
) -> str | None:
    text = _written(structure, finding, random, "test")
    mistyped = _mistyped(text, lexicon, random) if text else None
    return mistyped if mistyped != text else None


def _names_of_kind(kind: Kind, concept: Concept) -> Sequence[str]:
    """The names of one kind, without the canonical one."""
    side = f"{concept.side} " if concept.side else ""
    names: Sequence[str] = ()
    if kind == "word order" and concept.side is not None:
        names = [name for form in concept.forms for name in word_orders(form, concept.side)]
    elif kind == "plural":
        names = [side + plural(form) for form in concept.forms if not form.endswith("s")]
    elif kind == "British spelling":
        spelt = ((form, cleaning.british(form)) for form in concept.forms)
        names = [side + british for form, british in spelt if british != form]
    elif kind == "Latin" and concept.latin:
        names = [concept.latin]
    elif kind == "abbreviation":
        names = concept.abbreviations
    elif kind == "lay word":
        names = concept.lay
    return [name for name in dict.fromkeys(names) if name != concept.name]


def _report_sentence(
    structure: Concept | None, finding: Concept | None, random: numpy.random.Generator
) -> str | None:
    assert structure is not None
    assert finding is not None
    template = _pick(sorted(each for each in HELD_OUT_TEMPLATES if "{f}" in each and "{x}" in each), random)
    names = {"x": _name(structure, random), "f": _name(finding, random)}
    return template.format(size=_size(random), part=_pick(_PARTS, random), **names)


def _foreign(
    structure: Concept | None,
    finding: Concept | None,
    language: Language,
    random: numpy.random.Generator,
    split: Split,
) -> str | None:
    """A thing by its name in a language, or None where it has none or the sentence is of the other split."""
    if structure is not None and finding is not None:
        return None
    concept = structure or finding
    assert concept is not None
    names = dict(concept.translated).get(language, ())
    if not names:
        return None
    template, name = _pick(_FOREIGN_TEMPLATES[language], random), _pick(names, random)
    if split_of(template, name) != split:
        return None
    if random.random() < _BARE_RATE and language != "de":
        name = languages.without_accents(name)
    return template.format(x=name)


def split_of(template: str, *names: str) -> Split:
    """The split of a sentence with these names in it: test for a tenth of all and the held-out sentences."""
    if template in HELD_OUT_TEMPLATES:
        return "test"
    return "test" if zlib.crc32("|".join((template, *names)).encode()) % 10 == 0 else "train"


def _written(
    structure: Concept | None, finding: Concept | None, random: numpy.random.Generator, split: Split
) -> str | None:
    """A filled template of the split, or None if the one drawn belongs to the other split or does not fit."""
    fields = {"size": _size(random), "part": _pick(_PARTS, random)}
    if structure is not None and finding is not None:
        template = _pick(_templates_for_both(structure, split), random)
        fields |= {"x": _name(structure, random), "f": _name(finding, random), "side": structure.side or ""}
        fields |= {"adj": _pick(structure.adjectives, random) if structure.adjectives else ""}
        fields |= {"on_side": f"on the {structure.side}" if structure.side else ""}
        names = [fields["x"] if "{x}" in template else fields["adj"], fields["f"]]
    else:
        template = _template_for_one(structure, random, split)
        concept = structure or finding
        assert concept is not None
        fields["x"] = _name(concept, random)
        names = [fields["x"]]
    text = " ".join(template.format(**fields).split()).replace(" ,", ",")
    # The canonical name is what the paraphrases are compared with, so training must know it.
    belongs_to = "train" if text == canonical_name(structure, finding) else split_of(template, *names)
    return text if belongs_to == split else None


def _templates_for_both(structure: Concept, split: Split) -> Sequence[str]:
    templates = _PLACED_TEMPLATES + (_ADJECTIVE_TEMPLATES * 2 if structure.adjectives else ())
    if split == "train":
        return templates
    held_out = [each for each in sorted(HELD_OUT_TEMPLATES) if "{f}" in each]
    return (*templates, *(each for each in held_out if structure.adjectives or "{adj}" not in each))


def _template_for_one(structure: Concept | None, random: numpy.random.Generator, split: Split) -> str:
    if random.random() < 0.5:
        return "{x}"
    templates = _THING_TEMPLATES + (_STRUCTURE_TEMPLATES if structure is not None else _FINDING_TEMPLATES)
    if split == "test":
        held_out = (each for each in sorted(HELD_OUT_TEMPLATES) if "{f}" not in each)
        templates += tuple(each for each in held_out if structure is not None or "normal" not in each)
    return _pick(templates, random)


def _name(concept: Concept, random: numpy.random.Generator) -> str:
    """The plain name a third of the time, else any variant; now and then a plural ("left kidneys")."""
    if random.random() < 0.3:
        return concept.name
    if concept.side is not None and random.random() < 0.1:
        return f"{concept.side} {plural(concept.forms[0])}"
    if concept.kind == "finding" and random.random() < 0.1:
        return plural(concept.name)
    # Names in other languages come by themselves, and not where an older tower would have to read them.
    return _pick([name for name in variants(concept) if name not in concept.translations], random)


def _size(random: numpy.random.Generator) -> str:
    length = random.integers(3, 80)
    if random.random() < 0.5:
        return f"{length} mm"
    if random.random() < 0.5:
        return f"{length / 10:.1f} cm"
    return f"{length / 10:.1f} x {random.integers(3, 80) / 10:.1f} cm"


def _means(text: str, structure: Concept | None, finding: Concept | None, lexicon: Lexicon) -> bool:
    try:
        prompt = understand(text, lexicon)
    except PromptError:
        return False
    if structure is None and finding is not None:
        structure = inferred_place(finding, None, lexicon)
    return prompt.structure is structure and prompt.finding is finding


def _perhaps_mistyped(
    text: str,
    structure: Concept | None,
    finding: Concept | None,
    lexicon: Lexicon,
    random: numpy.random.Generator,
) -> str:
    if random.random() >= _TYPING_ERROR_RATE:
        return text
    mistyped = _mistyped(text, lexicon, random)
    try:
        prompt = understand(mistyped, lexicon)
    except PromptError:
        return text
    hidden_at_most = prompt.structure in (structure, None) and prompt.finding in (finding, None)
    return mistyped if hidden_at_most or _means(mistyped, structure, finding, lexicon) else text


def _mistyped(text: str, lexicon: Lexicon, random: numpy.random.Generator) -> str:
    """The text with one word mistyped; never a side, nor a short word, nor into another word that we know."""
    words = [match for match in re.finditer(r"[^\W\d_]+", text) if _may_be_mistyped(match[0])]
    if not words:
        return text
    word = _pick(words, random)
    wrong = _slip(word[0], random)
    if (
        wrong.lower() in lexicon.vocabulary
        or cleaning.token(wrong) in lexicon.vocabulary
        or _like_a_side(wrong)
    ):
        return text
    return text[: word.start()] + wrong + text[word.end() :]


def _may_be_mistyped(word: str) -> bool:
    return len(word) >= 4 and cleaning.side_of(cleaning.token(word)) is None and not _like_a_side(word)


def _like_a_side(word: str) -> bool:
    return any(edit_distance(word.lower(), side, 1) <= 1 for side in cleaning.SIDES)


def _slip(word: str, random: numpy.random.Generator) -> str:
    """One slip of the finger after the first letter: swap, drop, double, or the key beside."""
    at = int(random.integers(1, len(word) - 1))
    before, letter, following, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    swapped, dropped = following + letter, following
    slips = [before + middle + after for middle in (swapped, dropped, letter * 2 + following)]
    neighbours = _KEYBOARD.get(letter.lower(), "")
    if neighbours:
        slips.append(before + _pick(neighbours, random) + following + after)
    return _pick(slips, random)


def _in_some_case(text: str, random: numpy.random.Generator) -> str:
    draw = random.random()
    if draw < 0.08:
        return text.upper()
    if draw < 0.3:
        return text[:1].upper() + text[1:]
    return text.title() if draw < 0.34 and "'" not in text else text


def _pick(choices: Sequence[Choice], random: numpy.random.Generator) -> Choice:
    return choices[int(random.integers(len(choices)))]
