"""The lexicon: every structure and finding that we have words for, read from `lexicon.json`.

A record of the file is one line. Its fields:

name                 canonical English, without a side; "{n}" stands for a value of `each`
sided                true: the record makes left X, right X and the pair
only                 "left" or "right": exists on that side alone (middle lobe of the lung)
general              true: a region that gives way to anything else named with it ("head of the fibula")
mirrored             false: left and right are names, not mirror images (heart chambers, lobes of the liver)
each, also           values of "{n}", and further names of single values
plural, collective   name of the pair; collective: the sides are plural too ("left ribs")
suffix               "muscle" or "bone": may be added to any name of the record
lay                  synonyms that people use who are no doctors
synonyms, adjectives, abbreviations, sided_abbreviations, latin, latin_gender
translations         by language; of a sided thing "Niere|Nieren.f": name, its plural and its gender
foreign_adjectives   by language, unbent: "rénal"
snomed               SNOMED CT code, sideless; for a family a code for each value
parents, parts       names of records; "rib {1-12}" stands for twelve

`shorthand` maps single words that stand for several ("gallstone" is a stone in the gallbladder), and
`compounds` are the two halves of German ones ("Nierenzyste"). `also_english` are foreign names that are
English words too ("rate", a spleen): they count only where their language is spoken. `plain_words` are
English words one slip away from a name ("structure", "stricture"): they are never corrected into it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from textseg.errors import TextsegError
from textseg.prompts import cleaning, languages
from textseg.prompts.cleaning import Side
from textseg.prompts.languages import LANGUAGES, Language

Kind = Literal["structure", "finding"]

GROUPS = ("brain", "hippocampus", "head_neck", "torso", "sarcoma", "limbs")

_ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
_LATIN_SIDE = {
    "left": {"m": "sinister", "f": "sinistra", "n": "sinistrum"},
    "right": {"m": "dexter", "f": "dextra", "n": "dextrum"},
}


class LexiconError(TextsegError, ValueError):
    """A lexicon file that contradicts itself."""


@dataclass(frozen=True)
class Concept:
    """One thing that a prompt may name.

    `forms` are its names without the side; the other names carry it. `lay` are those of the synonyms that
    no doctor uses. `translated` are names by language. `parents` and `parts` are ids; the parents of a thing
    with a side end with its pair.
    """

    id: str
    name: str
    kind: Kind
    base: str
    side: Side | None
    group: str
    synonyms: tuple[str, ...] = ()
    latin: str | None = None
    abbreviations: tuple[str, ...] = ()
    translated: tuple[tuple[Language, tuple[str, ...]], ...] = ()
    snomed: str | None = None
    parents: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    adjectives: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    lay: tuple[str, ...] = ()
    foreign_adjectives: tuple[tuple[Language, tuple[str, ...]], ...] = ()

    @property
    def translations(self) -> tuple[str, ...]:
        """Its names in all languages."""
        return tuple(name for _, names in self.translated for name in names)


def variants(concept: Concept) -> tuple[str, ...]:
    """All ways to write a concept: names, synonyms, word orders, Latin, abbreviations, translations."""
    written: list[str] = [concept.name, *concept.synonyms]
    for form in concept.forms:
        written += word_orders(form, concept.side) if concept.side else [form]
    if concept.latin:
        written.append(concept.latin)
    written += [*concept.abbreviations, *concept.translations]
    return tuple(dict.fromkeys(written))


class Lexicon:
    """All concepts, and the words that find them. Immutable once made; `load` reads the file."""

    def __init__(
        self,
        concepts: Iterable[Concept],
        shorthand: Mapping[str, str],
        unmirrored: Iterable[str] = (),
        general: Iterable[str] = (),
        plain_words: Iterable[str] = (),
        also_english: Iterable[str] = (),
    ):
        self.concepts: Mapping[str, Concept] = MappingProxyType(_by_id(concepts))
        self._sides = _sides_of_bases(self.concepts.values())
        self._names = _index(self.concepts.values(), _names_of)
        self._adjectives = _index(self.concepts.values(), _adjectives_of)
        self._shorthand = _shorthand_tokens(shorthand, self.concepts.values(), self._names)
        self._unmirrored = frozenset(unmirrored)
        self.general = frozenset(general)
        self.vocabulary: frozenset[str] = frozenset(self._shorthand).union(*self._names, *self._adjectives)
        self.plain_words = frozenset(cleaning.token(word) for word in plain_words) - self.vocabulary
        written = _written_words(self.concepts.values())
        self.spelling_words = written - _short_lay_words(self.concepts.values())
        self.words_in_names = written.union(cleaning.ORDINALS)
        self.also_english = frozenset(cleaning.token(word) for word in also_english)
        self.latin_pairs = _latin_pairs(self.concepts.values())
        self._languages = _languages_of_words(self.concepts.values())
        self._english = _english_words(self.concepts.values()) | self.also_english
        self.longest = max(len(key) for key in self._names)
        self._check_links()

    @classmethod
    def load(cls, path: Path | str | None = None) -> Lexicon:
        """The lexicon of a JSON file; without a path, the one that ships with the package."""
        file = Path(path) if path else resources.files(__package__).joinpath("lexicon.json")
        content = json.loads(file.read_text(encoding="utf-8"))
        records = _by_name(record for family in _records(content) for record in _members(family))
        concepts = [concept for record in records.values() for concept in _concepts(record, records)]
        unmirrored = [_slug(name) for name, record in records.items() if record.get("mirrored") is False]
        general = [_slug(name) for name, record in records.items() if record.get("general")]
        plain_words = " ".join(content.get("plain_words", ())).split()
        shorthand = _compounds(content.get("compounds", {})) | content.get("shorthand", {})
        also_english = content.get("also_english", "").split()
        return cls(concepts, shorthand, unmirrored, general, plain_words, also_english)

    def find(self, cleaned_words: str) -> Concept | None:
        """The concept that these words, all of them and in any order, name; None if there is none."""
        tokens = self.expand(cleaning.tokens(cleaned_words))
        sides = {token for token in tokens if token in cleaning.SIDES}
        base = self.base_of(tuple(token for token in tokens if token not in cleaning.SIDES))
        if base is None:
            return None
        return self.with_side(base, sides.pop() if len(sides) == 1 else None, strict=True)

    def base_of(self, tokens: tuple[str, ...], adjective: bool = False) -> str | None:
        """The sideless record that these tokens name, in any order; or the one whose adjective they are."""
        index = self._adjectives if adjective else self._names
        return index.get(tuple(sorted(tokens)))

    def with_side(self, base: str, side: str | None, strict: bool = False) -> Concept | None:
        """The concept of a sideless record on a side. Where a thing has no sides the side is ignored, or, if
        strict, there is no such concept; a thing of one side has no other."""
        sides = self._sides[base]
        if side in sides:
            return sides[side]
        if None in sides:
            return None if strict and side else sides[None]
        return next(iter(sides.values())) if side is None else None

    def kind_of(self, base: str) -> Kind:
        return next(iter(self._sides[base].values())).kind

    def has_sides(self, base: str) -> bool:
        return any(side is not None for side in self._sides[base])

    def expand(self, tokens: tuple[str, ...]) -> tuple[str, ...]:
        """Tokens with shorthand written out: "rll" becomes "right lower lobe lung"."""
        return tuple(word for token in tokens for word in self._shorthand.get(token, (token,)))

    def spoken(self, words: str) -> frozenset[Language]:
        """The languages beside English and Latin that cleaned words are written in.

        One side word or one name tells, and where a name is Latin or English too, an article beside it.
        """
        found = set(cleaning.languages_of_sides(words))
        tokens = cleaning.tokens(words)
        for token in tokens:
            if token not in self._english:
                found |= self._languages.get(token, frozenset())
        for language in LANGUAGES:
            known = any(language in self._languages.get(token, ()) for token in tokens)
            if known and not languages.ARTICLES[language].isdisjoint(tokens):
                found.add(language)
        return frozenset(found)

    def mirrored(self, concept: Concept) -> Concept:
        """The concept's name in a scan mirrored left to right; itself without a side or a mirror image."""
        if concept.side is None or concept.base in self._unmirrored:
            return concept
        return self._sides[concept.base].get("right" if concept.side == "left" else "left", concept)

    def names(self) -> tuple[str, ...]:
        return tuple(concept.name for concept in self.concepts.values())

    def concepts_in(self, group: str) -> tuple[Concept, ...]:
        return tuple(concept for concept in self.concepts.values() if concept.group == group)

    def structures(self) -> tuple[Concept, ...]:
        return tuple(concept for concept in self.concepts.values() if concept.kind == "structure")

    def findings(self) -> tuple[Concept, ...]:
        return tuple(concept for concept in self.concepts.values() if concept.kind == "finding")

    def _check_links(self) -> None:
        for concept in self.concepts.values():
            unknown = [link for link in concept.parents + concept.parts if link not in self.concepts]
            if unknown:
                raise LexiconError(
                    f"Parents and parts must be names in the lexicon, {concept.name} has {unknown}."
                )
            if concept.group not in GROUPS:
                raise LexiconError(f"A group is one of {GROUPS}, {concept.name} has {concept.group!r}.")


@functools.cache
def default_lexicon() -> Lexicon:
    """The lexicon that ships with the package, read once."""
    return Lexicon.load()


# From the file to concepts.


def _records(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("structure", "finding"):
        for group, records in content[kind + "s"].items():
            for record in records:
                yield {"kind": kind, "group": group, **record}


def _by_name(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    named: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["name"] in named:
            raise LexiconError(f"A record is written once, got {record['name']!r} twice.")
        named[record["name"]] = record
    return named


def _members(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A family ("rib {n}") as its single records; any other record as it is."""
    if "each" not in record:
        yield record
        return
    for value in record["each"]:
        member = {
            key: _filled(content, value) for key, content in record.items() if key not in ("each", "also")
        }
        member["synonyms"] = member.get("synonyms", []) + record.get("also", {}).get(value, [])
        member["snomed"] = record.get("snomed", {}).get(value)
        yield member


def _filled(content: Any, value: str) -> Any:
    if isinstance(content, list):
        return [_filled(each, value) for each in content]
    if isinstance(content, dict):
        return {key: _filled(each, value) for key, each in content.items()}
    if not isinstance(content, str):
        return content
    roman = _ROMAN[int(value)] if value.isdigit() else value
    return content.replace("{n}", value).replace("{roman}", roman)


def _concepts(record: dict[str, Any], records: Mapping[str, dict[str, Any]]) -> Iterator[Concept]:
    if record.get("sided"):
        yield _concept(record, "left", records)
        yield _concept(record, "right", records)
        yield _concept(record, None, records)
    else:
        yield _concept(record, record.get("only"), records)


def _concept(record: dict[str, Any], side: Side | None, records: Mapping[str, dict[str, Any]]) -> Concept:
    forms = _forms(record)
    name = _name(record, side)
    sided_abbreviations = record.get("sided_abbreviations", {})
    pair_parts = [_slug(_name(record, each)) for each in ("left", "right")] if record.get("sided") else []
    parts = pair_parts if pair_parts and side is None else _linked(record, "parts", side, records)
    parents = _linked(record, "parents", side, records) + (
        [_slug(_name(record, None))] if pair_parts and side else []
    )
    abbreviations = [_with_side(each, side) for each in record.get("abbreviations", ())]
    return Concept(
        id=_slug(name),
        name=name,
        kind=record["kind"],
        base=_slug(record["name"]),
        side=side,
        group=record["group"],
        synonyms=tuple(_with_side(form, side) for form in forms if form != record["name"]),
        latin=_latin(record, side),
        abbreviations=tuple(
            abbreviations + ([sided_abbreviations[side]] if side in sided_abbreviations else [])
        ),
        translated=tuple(
            (language, tuple(dict.fromkeys(_translations(language, record, side)))) for language in LANGUAGES
        ),
        snomed=record.get("snomed"),
        parents=tuple(dict.fromkeys(parents)),
        parts=tuple(parts),
        adjectives=tuple(record.get("adjectives", ())),
        forms=forms,
        lay=tuple(_with_side(each, side) for each in record.get("lay", ())),
        foreign_adjectives=tuple(
            (language, tuple(form for word in words for form in languages.bent(word, language)))
            for language, words in record.get("foreign_adjectives", {}).items()
        ),
    )


def _name(record: dict[str, Any], side: Side | None) -> str:
    name: str = record["name"]
    if side:
        return _with_side(name, side)
    if not record.get("sided") or record.get("collective"):
        return name
    return record.get("plural") or plural(f"{name} {record['suffix']}" if "suffix" in record else name)


def _with_side(name: str, side: Side | None) -> str:
    return f"{side} {name}" if side else name


def _forms(record: dict[str, Any]) -> tuple[str, ...]:
    """All sideless English names of a record."""
    forms = [record["name"], *record.get("synonyms", ()), *record.get("lay", ())]
    if "plural" in record:
        forms.append(record["plural"])
    if "suffix" in record:
        forms += [f"{form} {record['suffix']}" for form in forms if record["suffix"] not in form]
    forms += [cleaning.british(form) for form in forms]
    for form in list(forms):
        numbered = re.fullmatch(r"(.*\D) (\d\d?)", form)
        if numbered:
            forms += _ordinals(numbered[1], int(numbered[2]))
    return tuple(dict.fromkeys(forms))


def _ordinals(noun: str, number: int) -> list[str]:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number, "th")
    return [f"{number}{ending} {noun}", f"{cleaning.ORDINALS[number - 1]} {noun}"]


def plural(name: str) -> str:
    """The English plural of a name, of its head where it has one: "lobes of liver"."""
    head, _, rest = name.partition(" of ")
    if head[-1].isdigit():
        return f"{head} on both sides"
    if head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "es" if head.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{head} of {rest}" if rest else head


def _latin(record: dict[str, Any], side: Side | None) -> str | None:
    latin: str | None = record.get("latin")
    if latin is None or side is None:
        return latin
    gender = record.get("latin_gender")
    return f"{latin} {_LATIN_SIDE[side][gender]}" if gender else None


def _translations(language: Language, record: dict[str, Any], side: Side | None) -> Iterator[str]:
    """Names in a language; German ones also as they are typed without umlauts."""
    for name in record.get("translations", {}).get(language, ()):
        for written in _translation(language, name, side):
            yield written
            if language == "de":
                yield languages.transcribed(written)


def _translation(language: Language, name: str, side: Side | None) -> Iterator[str]:
    """The forms of a translation such as "Niere|Nieren.f", whose gender chooses the word for the side."""
    names, _, gender = name.partition(".")
    one, _, several = names.partition("|")
    if side is None:
        yield one
        if several:
            yield several
        if several and gender:
            yield languages.BOTH[language][gender].format(x=several)
    elif gender:
        word = languages.SIDE_ADJECTIVES[language][side][gender]
        adverb = languages.SIDE_ADVERBS[language][side]
        for form in languages.SIDED_FORMS[language]:
            yield form.format(x=one, side=word, adverb=adverb)


def _linked(
    record: dict[str, Any], field: str, side: Side | None, records: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Ids of the parents or parts, on the same side where they have sides."""
    ids = []
    for name in _counted(record.get(field, ())):
        linked = records.get(name)
        if linked is None:
            raise LexiconError(f"The {field} of {record['name']!r} must be names of records, got {name!r}.")
        only = linked.get("only")
        if only and side and only != side:
            continue
        ids.append(_slug(_name(linked, only or (side if linked.get("sided") else None))))
    return ids


def _counted(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        counted = re.fullmatch(r"(.*)\{(\d+)-(\d+)\}", name)
        if counted is None:
            yield name
        else:
            yield from (f"{counted[1]}{n}" for n in range(int(counted[2]), int(counted[3]) + 1))


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


# From concepts to the words that find them.


def _by_id(concepts: Iterable[Concept]) -> dict[str, Concept]:
    found: dict[str, Concept] = {}
    for concept in concepts:
        if concept.id in found:
            raise LexiconError(f"A concept is defined once, got {concept.id!r} twice.")
        found[concept.id] = concept
    return found


def _sides_of_bases(concepts: Iterable[Concept]) -> dict[str, dict[str | None, Concept]]:
    bases: dict[str, dict[str | None, Concept]] = {}
    for concept in concepts:
        bases.setdefault(concept.base, {})[concept.side] = concept
    return bases


def _names_of(concept: Concept) -> tuple[str, ...]:
    latin = (concept.latin,) if concept.latin else ()
    return concept.forms + latin + _bare_translations(concept) + concept.abbreviations


def _bare_translations(concept: Concept) -> tuple[str, ...]:
    """Translations as they are compared, without articles and prepositions."""
    return tuple(
        languages.without_function_words(cleaning.without_elision(name.lower()), language)
        for language, names in concept.translated
        for name in names
    )


def _adjectives_of(concept: Concept) -> tuple[str, ...]:
    return concept.adjectives + tuple(word for _, words in concept.foreign_adjectives for word in words)


def _languages_of_words(concepts: Iterable[Concept]) -> dict[str, frozenset[Language]]:
    """The words of translations, and of foreign adjectives, by the languages that they belong to."""
    found: dict[str, frozenset[Language]] = {}
    for concept in concepts:
        for language, names in (*concept.translated, *concept.foreign_adjectives):
            for name in names:
                bare = languages.without_function_words(cleaning.without_elision(name.lower()), language)
                for token in _tokens(bare):
                    if token not in cleaning.SIDES and not token[0].isdigit():
                        found[token] = found.get(token, frozenset()) | {language}
    return found


def _latin_pairs(concepts: Iterable[Concept]) -> frozenset[tuple[str, str]]:
    """The first two words of Latin names: of "vena cava inferior" the first is often only a letter."""
    names = (_tokens(concept.latin) for concept in concepts if concept.latin)
    return frozenset((name[0], name[1]) for name in names if len(name) > 1)


def _english_words(concepts: Iterable[Concept]) -> frozenset[str]:
    """Words of English and Latin names and of abbreviations."""
    found: set[str] = set()
    for concept in concepts:
        for words in (*concept.forms, *concept.adjectives, *concept.abbreviations, concept.latin or ""):
            found.update(_tokens(words))
    return frozenset(found)


def _index(concepts: Iterable[Concept], words_of: Any) -> dict[tuple[str, ...], str]:
    """Sorted tokens -> sideless record. Two records that claim the same words are a mistake in the file."""
    index: dict[tuple[str, ...], str] = {}
    for concept in concepts:
        for words in words_of(concept):
            key = tuple(sorted(token for token in _tokens(words) if token not in cleaning.SIDES))
            claimed = index.setdefault(key, concept.base)
            if claimed != concept.base:
                raise LexiconError(
                    f"A name belongs to one concept, {words!r} is claimed by {claimed!r} and"
                    f" {concept.base!r}; take it away from one of them."
                )
    return index


def _written_words(concepts: Iterable[Concept]) -> frozenset[str]:
    """English and Latin words into which spelling is corrected, as they are compared.

    And longer ones as they are written: British "tumour", Latin plurals. Translations would catch English
    words.
    """
    found: set[str] = set()
    for concept in concepts:
        for words in (*concept.forms, *concept.adjectives, concept.latin or ""):
            found.update(token for token in _tokens(words) if len(token) >= 4)
            written = words.lower().replace("-", " ").split()
            found.update(word for word in written if len(word) >= (7 if word.endswith("s") else 6))
    return frozenset(found.difference(cleaning.SIDES))


def _short_lay_words(concepts: Iterable[Concept]) -> frozenset[str]:
    """Short words of lay names alone, into which too much would be corrected: "trips" is no "traps"."""
    lay, others = set[str](), set[str]()
    for concept in concepts:
        names = [name.removeprefix(f"{concept.side} ") for name in concept.lay]
        for words in (*concept.forms, *concept.adjectives, concept.latin or ""):
            (lay if any(name in words for name in names) else others).update(_tokens(words))
    return frozenset(word for word in lay - others if len(word) < 6)


def _tokens(name: str) -> tuple[str, ...]:
    return cleaning.tokens(name.lower().replace("-", " ").replace(",", " "))


def _compounds(halves: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """German words for a finding in a place: "Nierenzyste" is a kidney cyst."""
    compounds = {
        place + finding: f"{place_in_english} {finding_in_english}"
        for place, place_in_english in halves.get("of", {}).items()
        for finding, finding_in_english in halves.get("is", {}).items()
    }
    return compounds | {languages.transcribed(word): meant for word, meant in compounds.items()}


def _shorthand_tokens(
    shorthand: Mapping[str, str], concepts: Iterable[Concept], names: Mapping[tuple[str, ...], str]
) -> dict[str, tuple[str, ...]]:
    """Shorthand by its token; what is a name by itself stays one."""
    written_out = {cleaning.token(word): cleaning.tokens(words) for word, words in shorthand.items()}
    written_out = {token: words for token, words in written_out.items() if (token,) not in names}
    for concept in concepts:
        for abbreviation in concept.abbreviations:
            if concept.side and " " not in abbreviation:
                meant = cleaning.tokens(concept.name)
                if written_out.setdefault(cleaning.token(abbreviation), meant) != meant:
                    raise LexiconError(f"An abbreviation stands for one concept, got {abbreviation!r} twice.")
    return written_out


def word_orders(form: str, side: Side) -> list[str]:
    """A sideless name with its side, in all the ways in which people put the two together."""
    orders = [f"{side} {form}", f"{form} {side}", f"{form}, {side}", f"{form} ({side})"]
    orders += [f"{form} on the {side}", f"{side}-sided {form}"]
    orders += [f"{side[0]}t {form}", f"{side[0]} {form}", f"{form} {side[0].upper()}"]
    head, of, rest = form.partition(" of ")
    if of:
        orders += [f"{head} of {side} {rest}", f"{head} of the {side} {rest}"]
    return orders
