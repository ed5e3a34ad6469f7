"""The vocabulary: texts to token ids, by byte-level BPE: any typing error and any script has tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from textseg.atomic import write_bytes
from textseg.errors import ModelError

VOCABULARY_FILE = "vocabulary.json"
PADDING, START = "[PAD]", "[START]"

# A wrong side is the worst mistake of all, so its word is never assembled from pieces.
WHOLE_WORDS = ("left", "right")

# The fewest tokens a vocabulary can have: 256 bytes, padding, start and the whole words.
FEWEST_TOKENS = 256 + 2 + len(WHOLE_WORDS)

_log = logging.getLogger(__name__)


def build_vocabulary(texts: Iterable[str], size: int) -> Tokenizer:
    """A vocabulary of at most `size` tokens, made of the pieces that are frequent in the texts.

    "left" and "right" are tokens of their own wherever they stand as words, and a text starts with a start
    token, so that even an empty one has something to embed.
    """
    if size < FEWEST_TOKENS:
        raise ValueError(f"A vocabulary needs at least {FEWEST_TOKENS} tokens, got {size}.")
    vocabulary = Tokenizer(models.BPE())
    vocabulary.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # Every word starts with its space, also the first, so that a word is the same tokens wherever it stands.
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    vocabulary.decoder = decoders.ByteLevel()
    whole = [AddedToken(word, single_word=True, normalized=True) for word in WHOLE_WORDS]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(whole),
        min_frequency=2,
        special_tokens=[PADDING, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    vocabulary.add_tokens(whole)
    return vocabulary


def save_vocabulary(vocabulary: Tokenizer, folder: Path) -> None:
    """Write the vocabulary into a model's folder."""
    write_bytes(folder / VOCABULARY_FILE, vocabulary.to_str().encode())


def load_vocabulary(folder: Path) -> Tokenizer:
    """The vocabulary in a model's folder.

    Raises:
        ModelError: the file is missing, or no vocabulary of ours.
    """
    path = folder / VOCABULARY_FILE
    try:
        vocabulary = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror
        raise ModelError(
            f"A model's folder needs a vocabulary, but {path} can't be read: {reason}."
        ) from error
    # `tokenizers` raises nothing finer than Exception for text that is not a vocabulary.
    except Exception as error:
        raise ModelError(
            f"The vocabulary must be JSON of `tokenizers`, but {path} is not: {error}."
        ) from error
    missing = [token for token in (PADDING, START, *WHOLE_WORDS) if vocabulary.token_to_id(token) is None]
    if missing:
        raise ModelError(f"The vocabulary must hold {', '.join(missing)}, but {path} does not.")
    return vocabulary


def encode(vocabulary: Tokenizer, texts: Sequence[str], longest: int) -> tuple[Tensor, Tensor]:
    """Token ids int64 and mask bool, both (texts, tokens); the mask is True where there is a token.

    As many tokens as the longest text needs, at most `longest`; what is longer is cut, with a warning.
    """
    start, padding = _id(vocabulary, START), _id(vocabulary, PADDING)
    rows = [[start, *encoding.ids] for encoding in vocabulary.encode_batch(list(texts))]
    if any(len(row) > longest for row in rows):
        _log.warning("A prompt is longer than %d tokens; the rest of it is not read.", longest)
    tokens = min(longest, max((len(row) for row in rows), default=1))
    ids = torch.full((len(rows), tokens), padding, dtype=torch.int64)
    mask = torch.zeros((len(rows), tokens), dtype=torch.bool)
    for place, row in enumerate(rows):
        kept = row[:tokens]
        ids[place, : len(kept)] = torch.tensor(kept)
        mask[place, : len(kept)] = True
    return ids, mask


def _id(vocabulary: Tokenizer, token: str) -> int:
    known = vocabulary.token_to_id(token)
    assert known is not None, "load_vocabulary refuses a vocabulary without it"
    return known
