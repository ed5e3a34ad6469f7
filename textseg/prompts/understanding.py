"""What a prompt means: the structure and the finding that its words name.

Two limits, on purpose. Negation is not handled: "no liver lesion" is understood as a liver lesion, because a
prompt asks for a mask and does not report. And a prompt names one thing: of several structures the longest
name wins ("head of the fibula" is no head, though), then the one beside the side word, then the first; of
several findings one that says more than "lesion" or "mass".
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from textseg.errors import PromptError
from textseg.prompts import cleaning, languages
from textseg.prompts.cleaning import SIDES, Side
from textseg.prompts.languages import Language
from textseg.prompts.lexicon import Concept, Kind, Lexicon, default_lexicon

# After these words comes a neighbour, not the thing that is asked for.
_NEIGHBOUR_WORDS = frozenset(
    ("near", "nearby", "adjacent", "beside", "abutting", "touching", "compressing", "displacing",
     "neighboring", "neighbouring", "extending", "invading", "infiltrating", "encasing", "surrounding",
     "extends", "invades", "infiltrates", "encases", "abuts", "displaces", "compresses", "next", "behind")
)  # fmt: skip

# What was done or was there before, up to the end of its clause, is not what is asked for.
_HISTORY = re.compile(
    r"\b(?:status post|s/p|st\.? ?p\.|history of|h/o|known history of|zustand nach|z\. ?n\.)[^.,;]*[.,;]",
    re.IGNORECASE,
)
# "V. cava", "M. psoas": Latin in German reports.
_LATIN_LETTERS = {"a": "arteria", "v": "vena", "m": "musculus", "n": "nervus", "gl": "glandula"}
_LATIN_LETTER = re.compile(r"\b(A|V|M|N|Gl)\. ?([^\W\d_]{3,})", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """A prompt understood: where (structure) and what is abnormal there (finding), each None if not known.

    `side_said` is the side that the text gives to them. `unused` are the words that found no place in either;
    a caller may show them.
    """

    text: str
    words: str
    structure: Concept | None
    finding: Concept | None
    side_said: Side | None = None
    unused: tuple[str, ...] = ()

    @property
    def canonical(self) -> str:
        """Words for the text tower, such as "left kidney tumor"; the cleaned words if nothing is known."""
        if not self.known:
            return self.words
        name = canonical_name(self.structure, self.finding)
        lost_side = self.side is not None and (self.structure is None or self.structure.side is None)
        return f"{self.side} {name}" if lost_side else name

    @property
    def side(self) -> Side | None:
        """The side that the text says, even where the structure itself has none ("left liver")."""
        if self.structure is not None and self.structure.side is not None:
            return self.structure.side
        return self.side_said

    @property
    def group(self) -> str | None:
        """The group whose networks know it. A sarcoma is its own group wherever it grows."""
        if self.finding is not None and (self.structure is None or self.finding.group == "sarcoma"):
            return self.finding.group
        return self.structure.group if self.structure is not None else None

    @property
    def known(self) -> bool:
        return self.structure is not None or self.finding is not None

    @property
    def snomed(self) -> str | None:
        """SNOMED CT code of what the mask shows: of the finding if there is one, else of the structure."""
        concept = self.finding or self.structure
        return concept.snomed if concept is not None else None


def canonical_name(structure: Concept | None, finding: Concept | None) -> str:
    """One name for a structure, a finding, or both ("left pneumothorax" needs no place)."""
    if structure is None or finding is None:
        concept = structure or finding
        return concept.name if concept is not None else ""
    if not _usual_site(finding, structure):
        # A pair names its finding in the singular: "ovary tumor".
        place = structure.name if structure.side else structure.forms[0]
        return f"{place} {finding.name}"
    return f"{structure.side} {finding.name}" if structure.side else finding.name


def understand(text: str, lexicon: Lexicon | None = None) -> Prompt:
    """The structure and finding that a text names; unknown text keeps its words and has neither.

    Small spelling errors are forgiven, except in side words. Raises PromptError for text that is no prompt,
    for contradictory sides and for a side on which the structure does not exist.
    """
    lexicon = lexicon or default_lexicon()
    without_history = _HISTORY.sub(" ", text)
    if without_history != text and (prompt := _understood(without_history, lexicon)):
        return replace(prompt, text=text)
    words = cleaning.clean(_without_latin_letters(text, lexicon))
    spoken = lexicon.spoken(words)
    said = _in_english(cleaning.tokens(words), spoken, text, lexicon)
    spelt = _spelt(tuple(_split_sides(said, lexicon)), lexicon)
    tokens = _without_neighbours(lexicon.expand(spelt), lexicon)
    side = _side_said(tokens, words, text)
    foreign = bool(spoken) or (len(said) == 1 and said[0] in lexicon.also_english)
    matches = _matches(tokens, lexicon, foreign)
    place = _best_place(matches, tokens, side, lexicon)
    finding = _finding(matches, lexicon)
    _refuse_two_places(matches, tokens, words, text)
    structure = _on_side(place, side, text, lexicon)
    if place is None and finding is not None:
        structure = inferred_place(finding, side, lexicon)
    if side is None and (structure is not None or finding is not None):
        _refuse_misspelt_side(tokens, text, lexicon)
    return Prompt(text, words, structure, finding, side, _unused(tokens, place, matches))


def suggest(text: str, n: int = 3, lexicon: Lexicon | None = None) -> list[str]:
    """The n concept names nearest to a text, best first, for error messages; fewer if nothing is near."""
    names = {name.lower(): name for name in (lexicon or default_lexicon()).names()}
    words = " ".join(text.lower().split())[: cleaning.LONGEST_PROMPT]
    return [names[near] for near in difflib.get_close_matches(words, names, n=n, cutoff=0.5)]


def _understood(text: str, lexicon: Lexicon) -> Prompt | None:
    """What a part of a text names, None if that is nothing."""
    try:
        prompt = understand(text, lexicon)
    except PromptError:
        return None
    return prompt if prompt.known else None


# Languages.


def _in_english(
    tokens: tuple[str, ...], spoken: frozenset[Language], text: str, lexicon: Lexicon
) -> tuple[str, ...]:
    """The tokens without the articles of the languages that are spoken, and with their letters for sides."""
    if not spoken:
        return tokens[1:] if _starts_with_article(tokens, text, lexicon) else tokens
    dropped = {word for language in spoken for word in languages.FUNCTION_WORDS[language]}
    sides = {letter: side for language in spoken for letter, side in languages.SIDE_LETTERS[language].items()}
    read: list[str] = []
    for at, token in enumerate(tokens):
        # A letter before a number is no side: "vertèbre D 12".
        numbered = any(following.isdigit() for following in tokens[at + 1 : at + 2])
        if token in sides and not numbered:
            read.append(sides[token])
        elif token not in dropped:
            read.append(token)
    return tuple(read)


def _starts_with_article(tokens: tuple[str, ...], text: str, lexicon: Lexicon) -> bool:
    """Whether "la" is an article and no left atrium: in small letters before a structure ("la aorta")."""
    if tokens[:1] != ("la",) or not re.match(r"\s*la\s", text):
        return False
    bases = (lexicon.base_of(tokens[1:stop]) for stop in range(2, len(tokens) + 1))
    return any(base is not None and lexicon.kind_of(base) == "structure" for base in bases)


def _without_latin_letters(text: str, lexicon: Lexicon) -> str:
    """Latin written out before a word of a Latin name: "V. cava" is "vena cava"."""

    def written_out(found: re.Match[str]) -> str:
        word, following = _LATIN_LETTERS[found[1].lower()], found[2]
        return f"{word} {following}" if (word, cleaning.token(following)) in lexicon.latin_pairs else found[0]

    return _LATIN_LETTER.sub(written_out, text)


# Sides.


def _side_said(tokens: tuple[str, ...], words: str, text: str) -> Side | None:
    said: list[Side] = [side for side in SIDES if side in tokens]
    if len(said) < 2:
        return said[0] if said else None
    if _names_both_sides(words):
        return None
    raise PromptError(
        f"A prompt names one side, got both 'left' and 'right' in {text!r}; write one prompt for each side,"
        " or 'both' for the pair."
    )


def _names_both_sides(words: str) -> bool:
    """Whether "left and right" stands in the words, in any language."""
    spoken = [cleaning.side_of(word) or word for word in words.split()]
    return any(
        first in SIDES and second in SIDES and between in languages.AND | languages.OR
        for first, between, second in zip(spoken, spoken[1:], spoken[2:], strict=False)
    )


def _split_sides(tokens: tuple[str, ...], lexicon: Lexicon) -> Iterator[str]:
    """The tokens, with a side that is written together with its name ("leftkidney") split off."""
    for token in tokens:
        side = next((side for side in SIDES if token.startswith(side)), None)
        if side and token not in lexicon.vocabulary and token[len(side) :] in lexicon.vocabulary:
            yield from (side, token[len(side) :])
        else:
            yield token


def _refuse_misspelt_side(tokens: tuple[str, ...], text: str, lexicon: Lexicon) -> None:
    """A side that is spelt wrong is asked for again: guessing it could mark the wrong organ."""
    for token in tokens:
        if token in SIDES or token in lexicon.vocabulary or token in lexicon.plain_words or len(token) < 3:
            continue
        for side in SIDES:
            if edit_distance(token, side, 1) <= 1:
                raise PromptError(
                    f"A side must be spelt exactly, got {token!r} in {text!r}; did you mean {side!r}?"
                )


def _on_side(place: _Match | None, side: Side | None, text: str, lexicon: Lexicon) -> Concept | None:
    if place is None:
        return None
    structure = lexicon.with_side(place.base, side)
    if structure is None:
        only = lexicon.with_side(place.base, None)
        assert only is not None
        raise PromptError(
            f"There is no {side} one of this structure, got {text!r}; did you mean {only.name!r}?"
        )
    return structure


# Names.


@dataclass(frozen=True)
class _Match:
    """Tokens start to stop (half open) name a record; `size` counts them without side words."""

    start: int
    stop: int
    size: int
    base: str
    kind: Kind
    adjective: bool


def _matches(tokens: tuple[str, ...], lexicon: Lexicon, foreign: bool = False) -> list[_Match]:
    """Names that do not overlap, longest first.

    An adjective ("renal") counts only beside a finding or a general word ("hippocampal body"), and a foreign
    name that is an English word too only where the text is foreign.
    """
    candidates = sorted(
        _candidates(tokens, lexicon, foreign), key=lambda match: (-match.size, match.adjective, match.start)
    )
    chosen: list[_Match] = []
    for match in candidates:
        if all(match.stop <= other.start or other.stop <= match.start for other in chosen):
            chosen.append(match)
    nouns = [match for match in chosen if not match.adjective]
    if not any(match.kind == "finding" or match.base in lexicon.general for match in nouns):
        return nouns
    return chosen


def _candidates(tokens: tuple[str, ...], lexicon: Lexicon, foreign: bool) -> Iterator[_Match]:
    places = [place for place, token in enumerate(tokens) if token not in SIDES]
    for first in range(len(places)):
        for last in range(first, min(first + lexicon.longest, len(places))):
            named = tuple(tokens[place] for place in places[first : last + 1])
            if not foreign and len(named) == 1 and named[0] in lexicon.also_english:
                continue
            for adjective in (False, True):
                base = lexicon.base_of(named, adjective)
                if base is not None:
                    kind = lexicon.kind_of(base)
                    yield _Match(places[first], places[last] + 1, len(named), base, kind, adjective)
                    break


def _best_place(
    matches: Iterable[_Match], tokens: tuple[str, ...], side: Side | None, lexicon: Lexicon
) -> _Match | None:
    side_places = [place for place, token in enumerate(tokens) if token in SIDES] if side else []

    def preference(match: _Match) -> tuple[bool, int, bool, int, int]:
        general = match.base in lexicon.general
        sideless = bool(side) and not lexicon.has_sides(match.base)
        distance = min((_distance(match, place) for place in side_places), default=0)
        return (general, -match.size, sideless, distance, match.start)

    return min((match for match in matches if match.kind == "structure"), key=preference, default=None)


def _refuse_two_places(matches: list[_Match], tokens: tuple[str, ...], words: str, text: str) -> None:
    """A prompt like "liver and spleen" would lose one of the two."""
    named = sum(match.size for match in matches if match.kind == "structure")
    only_places = named == sum(token not in SIDES and token not in languages.AND for token in tokens)
    if len(matches) > 1 and only_places and languages.AND.intersection(words.split()):
        first, second = sorted(matches, key=lambda match: match.start)[:2]
        raise PromptError(
            f"A prompt names one structure, got {first.base.replace('_', ' ')!r} and"
            f" {second.base.replace('_', ' ')!r} in {text!r}; write one prompt for each."
        )


def _distance(match: _Match, place: int) -> int:
    if match.start <= place < match.stop:
        return 0
    return match.start - place if place < match.start else place - match.stop + 1


def _finding(matches: Iterable[_Match], lexicon: Lexicon) -> Concept | None:
    findings = [match for match in matches if match.kind == "finding"]
    best = min(
        findings,
        key=lambda match: (match.base in lexicon.general, -match.size, match.start),
        default=None,
    )
    return lexicon.with_side(best.base, None) if best else None


def inferred_place(finding: Concept, side: Side | None, lexicon: Lexicon) -> Concept | None:
    """Where a finding sits that occurs in one place alone: a right hydronephrosis is in the right kidney."""
    if not finding.parents:
        return None
    return lexicon.with_side(lexicon.concepts[finding.parents[0]].base, side)


def _usual_site(finding: Concept, structure: Concept) -> bool:
    pair = structure.parents[-1:] if structure.side else ()
    return any(parent in (structure.id, *pair) for parent in finding.parents)


def _without_neighbours(tokens: tuple[str, ...], lexicon: Lexicon) -> tuple[str, ...]:
    """Tokens up to "near" or "adjacent", unless no structure is named before."""
    stop = next((place for place, token in enumerate(tokens) if token in _NEIGHBOUR_WORDS), len(tokens))
    named_before = any(match.kind == "structure" for match in _matches(tokens[:stop], lexicon))
    return tokens[:stop] if named_before else tokens


def _unused(tokens: tuple[str, ...], place: _Match | None, matches: Iterable[_Match]) -> tuple[str, ...]:
    used = [match for match in matches if match is place or match.kind == "finding"]
    return tuple(
        token
        for at, token in enumerate(tokens)
        if token not in SIDES and not any(match.start <= at < match.stop for match in used)
    )


# Spelling.


def _spelt(tokens: tuple[str, ...], lexicon: Lexicon) -> tuple[str, ...]:
    """The tokens with their slips mended.

    Each into the one word that it nearly is; of several into the one that makes a name with its neighbours;
    else into any, if all mean the same.
    """
    mended = [_only_word(token, lexicon) or token for token in tokens]
    for at, token in enumerate(mended):
        if not _known(token, lexicon) and not _nearly_a_side(token):
            mended[at] = _fitting_word(mended, at, lexicon) or _any_word(token, lexicon) or token
    return tuple(mended)


def _known(token: str, lexicon: Lexicon) -> bool:
    words = token in lexicon.vocabulary or token in SIDES or token in lexicon.plain_words
    return words or any(character.isdigit() for character in token)


def _nearly_a_side(token: str) -> bool:
    return any(edit_distance(token, side, 1) <= 1 for side in SIDES)


def _only_word(token: str, lexicon: Lexicon) -> str | None:
    """The one lexicon word that a token nearly is, if it is a slip."""
    if len(token) < 4 or _known(token, lexicon):
        return None
    nearest = _nearest_words(token, lexicon.spelling_words)
    if not nearest:
        # The plural ending may have been cut from a word that only looked plural ("panceras").
        nearest = _nearest_words(token + "s", lexicon.spelling_words)
    return nearest[0] if len(nearest) == 1 and not _side_letter_added(token, nearest[0]) else None


def _any_word(token: str, lexicon: Lexicon) -> str | None:
    """One of the words that a token nearly is where all name the same, "orbit" and "orbital": the noun."""
    nearest = _nearest_words(token, lexicon.spelling_words) if len(token) >= 4 else ()
    nouns = {word: lexicon.base_of((word,)) for word in nearest}
    bases = {base or lexicon.base_of((word,), adjective=True) for word, base in nouns.items()}
    if len(bases) != 1 or None in bases or any(_side_letter_added(token, word) for word in nearest):
        return None
    return min(nearest, key=lambda word: (nouns[word] is None, word))


def _fitting_word(tokens: list[str], at: int, lexicon: Lexicon) -> str | None:
    """Of the words that a token nearly is the one that makes the longest name with its neighbours, if any."""
    token = tokens[at]
    if len(token) < 3:
        return None
    written = (token, token + "s")
    near = {word for each in written for word in _nearest_words(each, lexicon.words_in_names)}
    sizes = {word: _name_around([*tokens[:at], word, *tokens[at + 1 :]], at, lexicon) for word in near}
    longest = max(sizes.values(), default=0)
    fitting = [word for word, size in sizes.items() if size == longest]
    return fitting[0] if longest > 1 and len(fitting) == 1 else None


def _name_around(tokens: list[str], at: int, lexicon: Lexicon) -> int:
    """How many tokens the longest name around a token has; side words do not count."""
    middle = sum(token not in SIDES for token in tokens[:at])
    names = [token for token in tokens if token not in SIDES]
    sizes = [
        stop - start
        for start in range(max(0, middle - lexicon.longest + 1), middle + 1)
        for stop in range(middle + 1, min(start + lexicon.longest, len(names)) + 1)
        if lexicon.base_of(tuple(names[start:stop])) is not None
    ]
    return max(sizes, default=0)


@functools.lru_cache(maxsize=4096)
def _nearest_words(token: str, words: frozenset[str]) -> tuple[str, ...]:
    """The words that a token nearly is, all those that are nearest, as they are compared."""
    allowed = 2 if len(token) >= 8 else 1
    letters = set(token)
    nearest: list[str] = []
    for word in words:
        # One slip changes the set of letters by two at most: most words need no closer look.
        if abs(len(word) - len(token)) > allowed or len(letters.symmetric_difference(word)) > 2 * allowed:
            continue
        distance = edit_distance(token, word, allowed)
        if distance > 1 and word[0] != token[0]:
            # Two slips with one in the first letter are rarely slips: "increment" is no "concrement".
            continue
        if distance < allowed or (distance == allowed and not nearest):
            nearest = [word]
            allowed = distance
        elif distance == allowed:
            nearest.append(word)
    return tuple(dict.fromkeys(cleaning.token(word) for word in nearest))


def _side_letter_added(token: str, word: str) -> bool:
    """Whether a letter may be a side: "lkidney" is a slip or a left kidney, not ours to decide."""
    return token in {"l" + word, "r" + word, word + "l", word + "r"}


def edit_distance(one: str, other: str, enough: int) -> int:
    """Letters to insert, delete, replace or swap with a neighbour; `enough` + 1 once it must be more."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, last, row = row, before, [i]
        for j, counterpart in enumerate(other, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != counterpart))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == counterpart:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > enough:
            return enough + 1
    return row[-1]
