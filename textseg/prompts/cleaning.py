"""Prompt text as typed -> plain lower-case words, and those words -> the tokens that are compared."""

from __future__ import annotations

import functools
import re
import unicodedata

from textseg.errors import PromptError
from textseg.prompts import languages
from textseg.prompts.languages import Language
from textseg.prompts.languages import Side as Side


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LONGEST_PROMPT = 300
SIDES: tuple[Side, Side] = ("left", "right")

_SIDE_WORDS = {"l": "left", "lt": "left", "lft": "left", "r": "right", "rt": "right", "rgt": "right"}
_LATIN_SIDE_WORDS: dict[str, Side] = {
    "sinister": "left", "sinistra": "left", "sinistrum": "left",
    "dexter": "right", "dextra": "right", "dextrum": "right",
}  # fmt: skip
_SIDE_OF_WORD: dict[str, Side] = (
    {side: side for side in SIDES} | _LATIN_SIDE_WORDS | dict(languages.SIDE_OF_WORD)
)

_ARTICLES = frozenset({"the", "a", "an", "this", "these", "my", "his", "her", "their"})
_REQUEST = re.compile(
    r"^(?:(?:please|kindly|now|just|can you|could you|would you|i want|i need|we need|to|you|me|us|all"
    r"|everything|segment(?! (?:\d|[ivx]+ |h[eé]patique \d))|segmentation of|mask of|mask for|show|find"
    r"|outline|delineate|contour|mark|label|annotate|highlight|extract|detect|locate|identify|draw|give|get|see"
    r"|where is|where are|what is|is there|are there|any"
    r"|the|a|an|patient|patients) )+"
)
_COURTESY = re.compile(r" (?:please|thanks|thank you)$")

# Words that carry no anatomy: left out when a text is compared with the lexicon.
_FILLERS = _words(
    "of in on at to and or with for from by within inside into the a an is are was side sided sides handed"
    " both bilateral bilaterally no number nr patient"
)

_IRREGULAR_PLURALS = {
    "vertebrae": "vertebra", "metastases": "metastasis", "calculi": "calculus", "thrombi": "thrombus",
    "emboli": "embolus", "bronchi": "bronchus", "testes": "testis", "ovaria": "ovary", "femora": "femur",
    "humeri": "humerus", "tibiae": "tibia", "fibulae": "fibula", "patellae": "patella",
    "scapulae": "scapula", "claviculae": "clavicle", "hippocampi": "hippocampus", "thalami": "thalamus",
    "nuclei": "nucleus", "gyri": "gyrus", "menisci": "meniscus", "cortices": "cortex", "apices": "apex",
    "pelves": "pelvis", "feet": "foot", "atria": "atrium", "ganglia": "ganglion", "lymphomata": "lymphoma",
    "diverticula": "diverticulum", "bullae": "bulla", "stenoses": "stenosis", "fibroses": "fibrosis",
    "diagnoses": "diagnosis", "calves": "calf", "haematomata": "haematoma", "maxillae": "maxilla",
    "cochleae": "cochlea", "ulnae": "ulna", "radii": "radius", "abscesses": "abscess", "masses": "mass",
    "sinuses": "sinus", "plexuses": "plexus", "lenses": "lens", "teeth": "tooth", "hila": "hilum",
    "pleurae": "pleura", "axillae": "axilla", "thromboses": "thrombosis", "bodies": "body",
    "cavities": "cavity",
}  # fmt: skip
_SINGULAR_IN_S = _words(
    "pancreas lens pons deferens biceps triceps quadriceps teres ascites diabetes gas azygos hemiazygos"
    " dens os facies meninges pubes atlas ascendens descendens abducens accumbens corps poids fundus"
)

_BRITISH = (
    ("tumour", "tumor"), ("oesoph", "esoph"), ("oedem", "edem"), ("haem", "hem"), ("caec", "cec"),
    ("coeli", "celi"), ("grey", "gray"), ("fibre", "fiber"), ("centre", "center"), ("foet", "fet"),
    ("anaem", "anem"), ("disk", "disc"), ("phaeo", "pheo"), ("leucae", "leuke"), ("colour", "color"),
    ("paed", "ped"), ("lachrym", "lacrim"), ("orrhoea", "orrhea"), ("gynaec", "gynec"), ("faec", "fec"),
)  # fmt: skip
_AMERICAN = (
    (r"tumor", "tumour"), (r"esoph", "oesoph"), (r"edem", "oedem"), (r"hem(?=at|orr|ang|oth)", "haem"),
    (r"ischem", "ischaem"), (r"\bcec", "caec"), (r"celiac", "coeliac"), (r"gray", "grey"),
    (r"\bdisc\b", "disk"),
)  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)  # fmt: skip
_NUMBER_OF_ORDINAL = {word: str(number) for number, word in enumerate(ORDINALS, start=1)} | dict(
    languages.NUMBER_OF_ORDINAL
)
_ELIDED = re.compile(r"\b(?:l|d|qu)'(?=[aeiouyhàâäéèêëîïôöùûüœæ])")
# "Du côté gauche"; without its accents and alone "cote" is a rib.
_FRENCH_SIDE = re.compile(r"\b(?:(?:du |au |de |le )?côté|(?:du|au) cote) (?=gauche|droit)")
_SIZE = re.compile(
    r"\b\d+(?:\.\d+)?(?: (?:x|by) \d+(?:\.\d+)?){0,2} ?"
    r"(?:mm3?|cms?|cm3|ml|cc|millimet(?:er|re)s?|centimet(?:er|re)s?)\b"
)
# "T1" and "T2" also name MR contrasts; a contrast is not a vertebra.
_MR_CONTRAST = re.compile(
    r"\bt[12](?= (?:weighted|hyperintens|hypointens|isointens|bright|dark|flair|image|scan|signal|mr))"
    r"|\bt[12]w\b"
)


def clean(text: str) -> str:
    """The words of a prompt: lower case, no articles, requests, punctuation or plurals, sides spelt out.

    Spelling, accents and word order stay as typed. Raises PromptError when nothing usable is left.
    """
    _check_length(text)
    _check_script(text)
    text = re.sub(r"(?<=\d)[ªº]", "", text)  # Spanish "7ª"
    words = _without_punctuation(unicodedata.normalize("NFKC", text).lower())
    words = _join_levels(_without_request(words))
    tokens = [singular(_SIDE_WORDS.get(word, word)) for word in words.split() if word not in _ARTICLES]
    if not tokens:
        raise PromptError(
            f"A prompt must name a structure or a finding, got {_shown(text)}; try for example 'left kidney'."
        )
    return " ".join(tokens)


def singular(word: str) -> str:
    """The word without its plural ending; words that only look plural stay ("pancreas", "biceps")."""
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "os")):
        return word
    if word in _SINGULAR_IN_S or word in _SIDE_OF_WORD:  # German "links", "rechts"
        return word
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


@functools.lru_cache(maxsize=16384)
def token(word: str) -> str:
    """The form in which a word is compared: no accents, American spelling, singular, digits for ordinals."""
    word = languages.without_accents(word)
    # The forms of a foreign adjective come first: the English plural of "internos" would be another word.
    word = languages.BASE_OF_BENT_WORD.get(word) or singular(word)
    for british, american in _BRITISH:
        word = word.replace(british, american)
    word = _NUMBER_OF_ORDINAL.get(word, word)
    return re.sub(r"^(\d+)(?:st|nd|rd|th|er|e|eme|ere)$", r"\1", word)


def british(name: str) -> str:
    """The name in British spelling: "tumour", "haematoma"; the way back is in `token`."""
    for american, spelt in _AMERICAN:
        name = re.sub(american, spelt, name)
    return name


def side_of(token: str) -> str | None:
    """The side, "left" or "right", if the token is a side word, in any of our languages."""
    return _SIDE_OF_WORD.get(token)


def languages_of_sides(words: str) -> frozenset[Language]:
    """The languages whose side words stand in cleaned words."""
    spoken = (languages.LANGUAGE_OF_SIDE_WORD.get(word) for word in words.split())
    return frozenset(language for language in spoken if language)


def tokens(words: str) -> tuple[str, ...]:
    """Cleaned words as comparable tokens: fillers, sizes and MR contrasts left out, side words in English."""
    words = _MR_CONTRAST.sub(" ", _SIZE.sub(" ", words))
    compared = (token(word) for word in words.split() if word not in _FILLERS)
    return tuple(_SIDE_OF_WORD.get(each, each) for each in compared if each not in _FILLERS)


def _without_request(words: str) -> str:
    """Words after "please segment the"; a text that is all request ("patient outline") stays."""
    asked = _COURTESY.sub("", _REQUEST.sub("", words + " ").strip())
    return asked or words


def without_elision(text: str) -> str:
    """Lower-case French without the letters before an apostrophe: "l'aorte", where "l" is no left."""
    return _ELIDED.sub("", text)


def _without_punctuation(text: str) -> str:
    text = without_elision(re.sub(r"[‘’ʼ´`]", "'", text))
    text = _FRENCH_SIDE.sub("", text)
    text = re.sub(r"'s\b|s'(?=\s)", lambda match: "" if match[0] == "'s" else "s", text)
    text = re.sub(r"\b(left|l) ?/ ?(right|r)\b|\b(right|r) ?/ ?(left|l)\b", "left and right", text)
    text = text.replace("&", " and ").replace("×", " x ")
    text = re.sub(r"\b([ctl])(\d\d?) ?[-/] ?(\d\d?)\b", r"\1\2 \1\3", text)  # L4/5
    text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = re.sub(r"[^\w.]|_", " ", text)
    return " ".join(text.split())


def _join_levels(words: str) -> str:
    """Vertebrae written "L 5" and "T 12" as one word; but beside a rib "L 5" is the left fifth."""
    letters = "c|t|th|s" if re.search(r"\b(?:rib|costa)", words) else "c|t|th|s|l"
    return re.sub(rf"\b({letters}) (\d\d?)\b(?! ?[mc]m\b)", r"\1\2", words)


def _check_length(text: str) -> None:
    if not text.strip():
        raise PromptError("A prompt must not be empty; try for example 'left kidney'.")
    if len(text) > LONGEST_PROMPT:
        raise PromptError(
            f"A prompt has at most {LONGEST_PROMPT} characters, got a prompt of {len(text):,} characters"
            f" beginning with {_shown(text)}; name one structure or finding, for example 'left kidney tumor'."
        )


def _check_script(text: str) -> None:
    letters = [character for character in unicodedata.normalize("NFKC", text) if character.isalpha()]
    if not letters:
        raise PromptError(f"A prompt must hold words, got {_shown(text)}; try for example 'left kidney'.")
    if not any(_script(letter) == "Latin" for letter in letters):
        raise PromptError(
            f"Prompts are written in English or in Latin terms, got {_script(letters[0])} script:"
            f" {_shown(text)}; try for example 'left kidney' or 'ren sinister'."
        )


def _script(letter: str) -> str:
    first = unicodedata.name(letter, "unknown").split(" ")[0]
    return {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}.get(
        first, first.capitalize()
    )


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:40] + "…")
