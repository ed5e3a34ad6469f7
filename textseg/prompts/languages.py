"""German, French and Spanish in prompts: sides, words that name nothing, numbers, and bent adjectives."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


Side = Literal["left", "right"]
Language = Literal["de", "fr", "es"]
LANGUAGES: tuple[Language, ...] = ("de", "fr", "es")

# Forms of a name in a language with its side: {x} is the name, {side} the bent word for the side.
SIDED_FORMS: Mapping[Language, tuple[str, ...]] = {
    "de": ("{side} {x}", "{x} {adverb}"),
    "fr": ("{x} {side}", "{x} {adverb}"),
    "es": ("{x} {side}", "{x} {adverb}"),
}
SIDE_ADVERBS: Mapping[Language, Mapping[Side, str]] = {
    "de": {"left": "links", "right": "rechts"},
    "fr": {"left": "à gauche", "right": "à droite"},
    "es": {"left": "a la izquierda", "right": "a la derecha"},
}
SIDE_ADJECTIVES: Mapping[Language, Mapping[Side, Mapping[str, str]]] = {
    "de": {
        "left": {"m": "linker", "f": "linke", "n": "linkes"},
        "right": {"m": "rechter", "f": "rechte", "n": "rechtes"},
    },
    "fr": {"left": {"m": "gauche", "f": "gauche"}, "right": {"m": "droit", "f": "droite"}},
    "es": {"left": {"m": "izquierdo", "f": "izquierda"}, "right": {"m": "derecho", "f": "derecha"}},
}
BOTH: Mapping[Language, Mapping[str, str]] = {
    "de": {"m": "beide {x}", "f": "beide {x}", "n": "beide {x}"},
    "fr": {"m": "les deux {x}", "f": "les deux {x}"},
    "es": {"m": "ambos {x}", "f": "ambas {x}"},
}

_SIDE_WORDS: Mapping[Language, Mapping[Side, str]] = {
    "de": {
        "left": "linke linker linkes linken linkem links linksseitig linksseitige linksseitiger linksseitiges"
        " linksseitigen linksseitigem",
        "right": "rechte rechter rechtes rechten rechtem rechts rechtsseitig rechtsseitige rechtsseitiger"
        " rechtsseitiges rechtsseitigen rechtsseitigem",
    },
    "fr": {"left": "gauche gauches", "right": "droit droite droits droites"},
    "es": {
        "left": "izquierdo izquierda izquierdos izquierdas izq izqdo izqda",
        "right": "derecho derecha derechos derechas dcho dcha",
    },
}
SIDE_OF_WORD: Mapping[str, Side] = {
    word: side for sides in _SIDE_WORDS.values() for side, words in sides.items() for word in words.split()
}
LANGUAGE_OF_SIDE_WORD: Mapping[str, Language] = {
    word: language
    for language, sides in _SIDE_WORDS.items()
    for words in sides.values()
    for word in words.split()
}

# Sides that mean something else where their language is not spoken: "re" in letters, "d" in lists.
SIDE_LETTERS: Mapping[Language, Mapping[str, Side]] = {
    "de": {"li": "left", "re": "right"},
    "fr": {"g": "left", "d": "right"},
    "es": {},
}

# Words that name nothing, left out where their language is spoken; in English some of them do name
# something ("la" is the left atrium). Some have lost what looks like an English plural: "dans", "ambas".
FUNCTION_WORDS: Mapping[Language, frozenset[str]] = {
    "de": _words(
        "der die das den dem des ein eine einer eines einem einen im in am an auf bei beim mit von vom zu zum"
        " zur und oder ist sind es gibt bitte mir seite seiten beide beiden beider beidseits beidseitig"
        " beidseitige beidseitiger beidseitigen segmentiere segmentieren zeige zeig markiere markieren finde"
        " suche patient patienten patientin"
    ),
    "fr": _words(
        "le la les l un une des du de d en sur au aux avec et ou a par pour il y est sont dans deux bilateral"
        " bilaterale bilateraux chez patient patiente segmenter segmentez segmente montrer montrez montre"
        " trouver trouvez trouve delimiter merci svp dan"
    ),
    "es": _words(
        "el la lo los las un una uno unos unas de del al a en con y o por para se hay es son lado ambos ambas"
        " bilateral bilaterale paciente segmentar segmenta segmente mostrar muestra muestre encontrar"
        " encuentra encuentre localizar delimitar favor amba"
    ),
}
# Of these, what stands in English texts too says nothing about the language.
_NO_SIGN = _words("in an am a die on patient bilateral es y o d l un")
ARTICLES: Mapping[Language, frozenset[str]] = {
    language: words - _NO_SIGN for language, words in FUNCTION_WORDS.items()
}

AND, OR = _words("and und et y"), _words("or oder ou o")

_ORDINALS: Mapping[Language, tuple[str, ...]] = {
    "de": ("erst zweit dritt viert fünft sechst siebt acht neunt zehnt elft zwölft",),
    "fr": (
        "première deuxième troisième quatrième cinquième sixième septième huitième neuvième dixième onzième"
        " douzième",
        "premier seconde",
    ),
    "es": (
        "primera segunda tercera cuarta quinta sexta séptima octava novena décima undécima duodécima",
        "primero segundo tercero cuarto quinto sexto séptimo octavo noveno décimo undécimo duodécimo",
        "primer segundo tercer",
    ),
}

# Adjectives in names whose forms are compared as one: "untere", "der unteren", "inférieure".
_BENT: Mapping[Language, str] = {
    "de": "ober unter mittler vorder hinter inner äußer gemeinsam groß klein breit gerad weiß grau hart weich"
    " tief aufsteigend absteigend mediastinal axillär weiblich männlich abdominell thorakal autochthon"
    " perirenal viszeral subkutan verlängert vergrößert subdural epidural hepatozellulär vierköpfig",
    "fr": "supérieur inférieur antérieur postérieur interne externe commun moyen petit grand",
    "es": "interno externo medio primitivo común",
}

_TRANSCRIBED = {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"}


@functools.lru_cache(maxsize=16384)
def without_accents(word: str) -> str:
    """Lower case, without accents and ligatures: "œsophage" becomes "oesophage"."""
    word = word.lower().replace("œ", "oe").replace("æ", "ae").replace("ß", "ss")
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def transcribed(name: str) -> str:
    """A German name as it is typed without umlauts: "Koerper"."""
    return "".join(_TRANSCRIBED.get(letter, letter) for letter in name)


def bent(word: str, language: Language) -> tuple[str, ...]:
    """The forms of an adjective: "pulmonaire" and its plural; "óseo", "ósea", "óseos", "óseas"."""
    if language == "de":
        return tuple(word + ending for ending in ("", "e", "er", "es", "en", "em"))
    if language == "es":
        endings = ("o", "a", "os", "as") if word.endswith("o") else ("", "es")
        return tuple(word.removesuffix("o") + ending for ending in endings)
    if word.endswith("e"):
        return (word, word + "s")
    if word.endswith("al"):
        return (word, word + "e", word[:-1] + "ux", word + "es")
    if word.endswith("x"):
        return (word, word[:-1] + "se", word[:-1] + "ses")
    feminine = word + ("ne" if word.endswith("en") else "e")
    return (word, feminine, word + "s", feminine + "s")


def without_function_words(words: str, language: Language) -> str:
    """A name without its articles and prepositions: "tête pancréas"."""
    dropped = FUNCTION_WORDS[language]
    return " ".join(word for word in words.split() if without_accents(word) not in dropped)


def _bases_of_bent_words() -> dict[str, str]:
    bases: dict[str, str] = {}
    for language, words in _BENT.items():
        for word in words.split():
            bases |= {form: without_accents(word) for form in _plain_forms(word, language)}
    return bases


def _numbers_of_ordinals() -> dict[str, str]:
    numbers: dict[str, str] = {}
    for language, rows in _ORDINALS.items():
        for row in rows:
            for number, word in enumerate(row.split(), start=1):
                # "acht" alone is eight; "achte" is the eighth.
                forms = _plain_forms(word, language) - {word} if language == "de" else {without_accents(word)}
                numbers |= dict.fromkeys(forms, str(number))
    return numbers


def _plain_forms(word: str, language: Language) -> set[str]:
    spellings: Iterable[str] = (word, transcribed(word)) if language == "de" else (word,)
    forms = {without_accents(form) for spelling in spellings for form in bent(spelling, language)}
    # Cleaning has taken the last letter of what looks like an English plural: "comunes".
    return forms | {form[:-1] for form in forms if form.endswith("es")}


BASE_OF_BENT_WORD: Mapping[str, str] = _bases_of_bent_words()
NUMBER_OF_ORDINAL: Mapping[str, str] = _numbers_of_ordinals()
