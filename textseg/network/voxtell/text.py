"""The text vectors of VoxTell: ready ones from its bank, and Qwen3-Embedding-4B asked as in training."""

from __future__ import annotations

import difflib
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.embeddings.cache import CachedTextEncoder
from textseg.embeddings.encoder import TextEncoder
from textseg.embeddings.language import LanguageEncoder
from textseg.embeddings.local import find_local
from textseg.errors import ModelError, PromptError
from textseg.network.voxtell.plan import BANK_FILE, find_bank
from textseg.prompts import Prompt, variants
from textseg.safe_loading import check_archive

# The query that the text model was asked with in training.
TASK = "Given an anatomical term query, retrieve the precise anatomical entity and location it represents"
TEXT_MODEL = "Qwen/Qwen3-Embedding-4B"
LONGEST_TOKENS = 8192
# A bank is packed: its labels, fixed-width text, shrink to a twentieth.
BANK_GROWTH = 100


class BankTextEncoder:
    """Ready vectors by lower-case prompt as a `TextEncoder`, and an encoder for all other prompts.

    Args:
        bank: vectors (width,) by prompt.
        encoder: makes the vectors of Qwen3-Embedding-4B for texts as `instruct` wraps them; None for none.
    """

    def __init__(self, bank: Mapping[str, Tensor], width: int, encoder: TextEncoder | None = None) -> None:
        if encoder is not None and encoder.width != width:
            raise ModelError(
                f"This VoxTell takes text vectors of {width} numbers, as {TEXT_MODEL} gives, "
                f"but {encoder.name} gives {encoder.width}."
            )
        self.width = width
        self._bank = bank
        self._encoder = encoder

    @cached_property
    def name(self) -> str:
        """Worked out when it is asked for: the release's bank is some hundred megabytes to read through."""
        return f"voxtell-{_fingerprint(self._bank)}" + (f"-{self._encoder.name}" if self._encoder else "")

    @property
    def prompts(self) -> tuple[str, ...]:
        """What can be asked without an encoder."""
        return tuple(self._bank)

    def wording(self, prompt: Prompt) -> str:
        """What to ask for a prompt: its own words in lower case, as VoxTell was trained.

        Words that the bank lacks give way to words of the bank that name the same thing by the lexicon: "lt.
        kidney" becomes "left kidney", with an encoder and without, so that both give the same mask and no
        language model is loaded for a way of writing. Only what the bank does not mean goes to the encoder.

        Raises:
            PromptError: no vector can be had for it, with what the bank has that is near.
        """
        words = " ".join(prompt.text.lower().split())
        if words in self._bank:
            return words
        # A word that the lexicon lost ("small") would be lost to VoxTell too, and nobody would know.
        names = [prompt.words, *([] if prompt.unused else _names_of(prompt))]
        meant = next((name for name in names if name in self._bank), None)
        if meant is not None:
            return meant
        if self._encoder is None:
            raise PromptError(self._refusal(words, prompt.canonical if prompt.known else None))
        return words

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU, not normalised.

        Raises:
            PromptError: a text is not in the bank and there is no encoder.
        """
        prompts = [text.lower() for text in texts]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._bank]
        made: dict[str, Tensor] = {}
        if missing:
            if self._encoder is None:
                raise PromptError(self._refusal(missing[0]))
            vectors = self._encoder.embed([instruct(prompt) for prompt in missing])
            made = dict(zip(missing, vectors, strict=True))
        found = [self._bank[p] if p in self._bank else made[p] for p in prompts]
        return torch.stack(found) if found else torch.empty((0, self.width))

    def _refusal(self, prompt: str, meaning: str | None = None) -> str:
        near = difflib.get_close_matches(prompt, self._bank, n=3, cutoff=0.5)
        if meaning is not None:
            near += difflib.get_close_matches(meaning.lower(), self._bank, n=3, cutoff=0.5)
        names = " or ".join(f'"{name}"' for name in dict.fromkeys(near))
        read_as = f' (read as "{meaning}")' if meaning and meaning.lower() != prompt else ""
        return (
            f'VoxTell has no ready text vector for "{prompt}"{read_as}, and for other prompts than the '
            f"{len(self._bank):,} of its bank it needs the language model {TEXT_MODEL}, which is not here."
            + (f" Try {names}." if names else " `textseg models show` with --structures lists the bank.")
            + ' Or get it: pip install "textseg[llm]", textseg weights fetch qwen3-embedding-4b.'
        )


def _names_of(prompt: Prompt) -> Iterator[str]:
    """Ways to write what a prompt means, in lower case, the lexicon's own name first."""
    if not prompt.known:
        return
    yield prompt.canonical.lower()
    structure, finding = prompt.structure, prompt.finding
    if prompt.side is not None and (structure is None or structure.side is None):
        # A side that only the text gives is in no name of the lexicon.
        return
    if structure is None or finding is None:
        concept = structure or finding
        yield from (name.lower() for name in (variants(concept) if concept else ()))
        return
    for place in variants(structure):
        for what in (finding.name, *finding.synonyms):
            for name in (f"{place} {what}", f"{what} of the {place}", f"{what} in the {place}"):
                yield name.lower()


def instruct(prompt: str) -> str:
    """The prompt as VoxTell's text model was asked it: lower-case, after the task."""
    return f"Instruct: {TASK}\nQuery: {prompt.lower()}"


def find_text_model(device: torch.device) -> TextEncoder | None:
    """Qwen3-Embedding-4B with a cache on disk, where both it and `transformers` are on this machine."""
    folder = find_local(TEXT_MODEL)
    if folder is None or find_spec("transformers") is None:
        return None
    return CachedTextEncoder(LanguageEncoder(folder, "last_token", LONGEST_TOKENS, device))


def load_text(folder: Path, width: int, encoder: TextEncoder | None = None) -> BankTextEncoder:
    """The text vectors that come with a VoxTell folder, and an encoder for what they lack.

    Raises:
        ModelError: the bank is damaged or of another width, or there is neither bank nor encoder.
    """
    path = find_bank(folder)
    if path is None and encoder is None:
        raise ModelError(
            f"VoxTell needs {BANK_FILE}, its bank of text vectors, or a Qwen3-Embedding-4B encoder, "
            f"but there is no bank in {folder} or beside it. Fetch it from embeddings/ of the release."
        )
    bank = {} if path is None else _read_bank(path, width)
    return BankTextEncoder(bank, width, encoder)


def bank_labels(path: Path) -> list[str]:
    """The prompts that a bank has vectors for.

    Raises:
        ModelError: the file can't be read as a bank.
    """
    labels, _ = _bank_arrays(path)
    return [str(label) for label in labels.ravel().tolist()]


def _read_bank(path: Path, width: int) -> dict[str, Tensor]:
    labels, vectors = _bank_arrays(path)
    if labels.dtype.kind != "U" or vectors.shape != (labels.size, width):
        raise ModelError(
            f"VoxTell's bank has a vector of {width} numbers for each label, but {path} has "
            f"{labels.size} labels and vectors {vectors.shape}. Is it the bank of another version?"
        )
    values = torch.from_numpy(vectors.astype(np.float32))
    if not torch.isfinite(values).all():
        raise ModelError(f"Text vectors must be finite numbers, but {path} holds NaN or infinity.")
    return dict(zip(labels.ravel().tolist(), values, strict=True))


def _bank_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        check_archive(path, BANK_GROWTH)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["labels"], arrays["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(
            f"VoxTell's bank holds the arrays labels and embeddings, but {path} can't be read so ({error})."
        ) from error


def _fingerprint(bank: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for label, vector in bank.items():
        digest.update(label.encode() + b"\0" + vector.numpy().tobytes())
    return digest.hexdigest()[:12]
