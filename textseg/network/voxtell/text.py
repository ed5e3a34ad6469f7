"""The text vectors of VoxTell: ready ones from its bank, and Qwen3-Embedding-4B asked as in training."""

from __future__ import annotations

import difflib
import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textseg.embeddings.encoder import TextEncoder
from textseg.errors import ModelError, PromptError
from textseg.network.voxtell.plan import BANK_FILE
from textseg.safe_loading import check_archive

# The query that the text model was asked with in training.
TASK = "Given an anatomical term query, retrieve the precise anatomical entity and location it represents"
TEXT_MODEL = "Qwen/Qwen3-Embedding-4B"
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
        self.name = f"voxtell-{_fingerprint(bank)}" + (f"-{encoder.name}" if encoder else "")

    @property
    def prompts(self) -> tuple[str, ...]:
        """What can be asked without an encoder."""
        return tuple(self._bank)

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

    def _refusal(self, prompt: str) -> str:
        near = difflib.get_close_matches(prompt, self._bank, n=3, cutoff=0.5)
        names = " or ".join(f'"{name}"' for name in near)
        return (
            f'VoxTell has no ready text vector for "{prompt}", and for other prompts than the '
            f"{len(self._bank):,} of its bank it needs a Qwen3-Embedding-4B encoder."
            + (f" Try {names}." if near else "")
        )


def instruct(prompt: str) -> str:
    """The prompt as VoxTell's text model was asked it: lower-case, after the task."""
    return f"Instruct: {TASK}\nQuery: {prompt.lower()}"


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


def find_bank(folder: Path) -> Path | None:
    """The bank in a VoxTell folder, or beside it where the release has it; None if there is none."""
    folder = folder.resolve()
    beside = folder.parent / "embeddings"
    inside = folder / "embeddings"
    places = [folder, inside, inside / folder.name, beside / folder.name, beside]
    return next((place / BANK_FILE for place in places if (place / BANK_FILE).is_file()), None)


def _read_bank(path: Path, width: int) -> dict[str, Tensor]:
    try:
        check_archive(path, BANK_GROWTH)
        with np.load(path, allow_pickle=False) as arrays:
            labels, vectors = arrays["labels"], arrays["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(
            f"VoxTell's bank holds the arrays labels and embeddings, but {path} can't be read so ({error})."
        ) from error
    if labels.dtype.kind != "U" or vectors.shape != (labels.size, width):
        raise ModelError(
            f"VoxTell's bank has a vector of {width} numbers for each label, but {path} has "
            f"{labels.size} labels and vectors {vectors.shape}. Is it the bank of another version?"
        )
    values = torch.from_numpy(vectors.astype(np.float32))
    if not torch.isfinite(values).all():
        raise ModelError(f"Text vectors must be finite numbers, but {path} holds NaN or infinity.")
    return dict(zip(labels.ravel().tolist(), values, strict=True))


def _fingerprint(bank: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for label, vector in bank.items():
        digest.update(label.encode() + b"\0" + vector.numpy().tobytes())
    return digest.hexdigest()[:12]
