"""Other ways to say what a prompt says, kind by kind, to find out which of them a model minds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from textseg.dataset import Label
from textseg.errors import PromptError
from textseg.prompts import cleaning, understand
from textseg.prompts.lexicon import Concept, Lexicon, default_lexicon, variants
from textseg.prompts.paraphrase import HELD_OUT_TEMPLATES

Kind = Literal["synonym", "word order", "typing error", "language"]
KINDS: tuple[Kind, ...] = ("synonym", "word order", "typing error", "language")

# Of a finding in a place, beside "left kidney tumor".
PLACED_ORDERS = ("{f} of the {x}", "{f} in the {x}", "{x}: {f}", "{f}, {x}", "{f} ({x})")
# For names that the lexicon does not know, for which nothing can be composed.
PLAIN_SENTENCES = (
    "segment the {x}",
    "please outline the {x} in this scan",
    "where is the {x}?",
    "give me a mask of the {x}",
)
SHORTEST_MISTYPED = 4
TRIES = 30
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Meaning:
    """What a label's canonical words say; neither structure nor finding where the lexicon does not know."""

    words: str
    structure: Concept | None
    finding: Concept | None

    @property
    def placed(self) -> bool:
        """Whether it is a finding in a structure, both of them named."""
        return self.structure is not None and self.finding is not None

    @property
    def concept(self) -> Concept | None:
        """The one thing that is named, if it is one."""
        return None if self.placed else self.structure or self.finding

    def mirrored(self, lexicon: Lexicon | None = None) -> str | None:
        """The canonical words for the same thing on the other side; None for what has no sides."""
        lexicon = lexicon or default_lexicon()
        if self.structure is None or lexicon.mirrored(self.structure) is self.structure:
            return None
        side = self.structure.side
        return re.sub(rf"\b{side}\b", "right" if side == "left" else "left", self.words)


def meaning_of(words: str, lexicon: Lexicon | None = None) -> Meaning:
    """What canonical words mean."""
    try:
        prompt = understand(words, lexicon or default_lexicon())
    except PromptError:
        return Meaning(words, None, None)
    # The lexicon adds the place that a finding implies; one that is not said is not said otherwise either.
    implied = prompt.finding is not None and words == prompt.finding.name
    return Meaning(words, None if implied else prompt.structure, prompt.finding)


def wordings(
    label: Label, kind: Kind, most: int, random: np.random.Generator, lexicon: Lexicon | None = None
) -> list[str]:
    """At most so many texts that mean what a label's canonical words mean, drawn from all of one kind.

    Empty where there are none: only things with sides, or in places, have other word orders.
    """
    lexicon = lexicon or default_lexicon()
    meaning = meaning_of(label.words[0], lexicon)
    if kind == "typing error":
        return _first(_typing_errors(meaning, random, lexicon), most, meaning.words)
    choices = [*dict.fromkeys(_WORDINGS[kind](meaning, label))]
    drawn = (choices[i] for i in random.permutation(len(choices)))
    return _first(drawn, most, meaning.words)


def sentences(
    label: Label, most: int, random: np.random.Generator, lexicon: Lexicon | None = None
) -> list[str]:
    """At most so many sentences around a label's names, of those that training never sees."""
    lexicon = lexicon or default_lexicon()
    meaning = meaning_of(label.words[0], lexicon)
    if meaning.structure is None and meaning.finding is None:
        drawn = (PLAIN_SENTENCES[i].format(x=meaning.words) for i in random.permutation(len(PLAIN_SENTENCES)))
        return _first(drawn, most, meaning.words)
    return _first(_sentences(meaning, random), most, meaning.words)


def _first(texts: Iterable[str], most: int, canonical: str) -> list[str]:
    found: list[str] = []
    for text in texts:
        if len(found) == most:
            break
        if text.lower() not in {canonical.lower(), *(each.lower() for each in found)}:
            found.append(text)
    return found


def _synonyms(meaning: Meaning, label: Label) -> Iterator[str]:
    if label.words_from == "prompts.json":
        yield from label.words[1:]
    if meaning.concept is not None:
        yield from (*meaning.concept.synonyms, *meaning.concept.abbreviations)
    elif meaning.structure is not None and meaning.finding is not None:
        place = _place(meaning.structure)
        names = meaning.structure.synonyms if meaning.structure.side else meaning.structure.forms
        yield from (f"{name} {meaning.finding.name}" for name in names)
        yield from (f"{place} {name}" for name in meaning.finding.synonyms)


def _word_orders(meaning: Meaning, label: Label) -> Iterator[str]:
    if meaning.concept is not None:
        concept = meaning.concept
        latin = [concept.latin] if concept.latin else []
        others = {concept.name, *concept.synonyms, *concept.abbreviations, *concept.translations, *latin}
        yield from (text for text in variants(concept) if text not in others)
    elif meaning.structure is not None and meaning.finding is not None:
        place = _place(meaning.structure)
        yield from (order.format(x=place, f=meaning.finding.name) for order in PLACED_ORDERS)


def _languages(meaning: Meaning, label: Label) -> Iterator[str]:
    if meaning.concept is not None:
        yield from meaning.concept.translations
        if meaning.concept.latin:
            yield meaning.concept.latin


_WORDINGS: Mapping[Kind, Callable[[Meaning, Label], Iterator[str]]] = {
    "synonym": _synonyms,
    "word order": _word_orders,
    "language": _languages,
}


def _place(structure: Concept) -> str:
    """A pair gives its place in the singular: "kidney tumor"."""
    return structure.name if structure.side else structure.forms[0]


def _sentences(meaning: Meaning, random: np.random.Generator) -> Iterator[str]:
    """Held-out sentences with a name in each, drawn among the English ones."""
    both = meaning.structure is not None and meaning.finding is not None
    fitting = [template for template in sorted(HELD_OUT_TEMPLATES) if _fits(template, meaning, both)]
    place = meaning.structure
    adjectives = place.adjectives if place is not None else ()
    for at in random.permutation(len(fitting)):
        fields = {"size": "3 cm", "part": "lower part", "adj": _pick(adjectives, random)}
        fields["side"] = (place.side if place is not None else None) or ""
        if both and place is not None and meaning.finding is not None:
            fields |= {
                "x": _place(place),
                "f": _pick((meaning.finding.name, *meaning.finding.synonyms), random),
            }
        elif meaning.concept is not None:
            fields["x"] = _pick((meaning.concept.name, *meaning.concept.synonyms), random)
        yield " ".join(fitting[at].format(**fields).split())


def _fits(template: str, meaning: Meaning, both: bool) -> bool:
    if both or "{f}" in template:
        adjectives = meaning.structure.adjectives if meaning.structure is not None else ()
        return both and "{f}" in template and ("{adj}" not in template or bool(adjectives))
    return meaning.finding is None or "normal" not in template


def _pick(choices: Sequence[str], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))] if choices else ""


def _typing_errors(meaning: Meaning, random: np.random.Generator, lexicon: Lexicon) -> Iterator[str]:
    """The canonical words with one word mistyped; a slip may hide the meaning, not change it."""
    letters = rf"[^\W\d_]{{{SHORTEST_MISTYPED},}}"
    found = [
        match
        for match in re.finditer(letters, meaning.words)
        # A side that is mistyped is refused: guessing it could mark the wrong organ.
        if cleaning.side_of(cleaning.token(match[0])) is None
    ]
    for _ in range(TRIES if found else 0):
        word = found[int(random.integers(len(found)))]
        text = meaning.words[: word.start()] + _slip(word[0], random) + meaning.words[word.end() :]
        if _may_mean(text, meaning, lexicon):
            yield text


def _slip(word: str, random: np.random.Generator) -> str:
    """One slip after the first letter: two swapped, one dropped, one doubled or another (Damerau 1964)."""
    at = int(random.integers(1, len(word) - 1))
    before, letter, following, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    other = ALPHABET[int(random.integers(len(ALPHABET)))]
    slips = (following + letter, following, letter + letter + following, other + following)
    return before + slips[int(random.integers(len(slips)))] + after


def _may_mean(text: str, meaning: Meaning, lexicon: Lexicon) -> bool:
    try:
        prompt = understand(text, lexicon)
    except PromptError:
        return False
    if meaning.structure is None and meaning.finding is None:
        return not prompt.known
    same_finding = prompt.finding in (meaning.finding, None)
    same_structure = prompt.structure in (meaning.structure, None) or meaning.structure is None
    return same_finding and same_structure
