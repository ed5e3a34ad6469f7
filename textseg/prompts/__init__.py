"""Words to meaning: clean a prompt, find the structure and the finding that it names."""

from textseg.prompts.cleaning import clean
from textseg.prompts.lexicon import Concept, Lexicon, LexiconError, default_lexicon, variants
from textseg.prompts.listed import read_prompts_file
from textseg.prompts.paraphrase import HELD_OUT_TEMPLATES, paraphrase, split_of
from textseg.prompts.understanding import Prompt, canonical_name, suggest, understand

__all__ = [
    "HELD_OUT_TEMPLATES",
    "Concept",
    "Lexicon",
    "LexiconError",
    "Prompt",
    "canonical_name",
    "clean",
    "default_lexicon",
    "paraphrase",
    "read_prompts_file",
    "split_of",
    "suggest",
    "understand",
    "variants",
]
