"""A disk cache of text vectors, so that a large encoder reads each prompt once.

One small file a vector rather than one sqlite database: a rename is atomic on a cluster's network disks,
where sqlite's locks are not to be relied on, and a damaged file costs one vector, not all of them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textseg.atomic import write_bytes
from textseg.embeddings.encoder import TextEncoder
from textseg.embeddings.files import user_cache

_DIGEST_BYTES = hashlib.sha256().digest_size
_STORED = np.dtype("<f4")

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where vectors are kept: `$TEXTSEG_CACHE/vectors`, or in the folder this platform has for caches."""
    return user_cache() / "vectors"


class CachedTextEncoder:
    """A `TextEncoder` that asks another one only for texts whose vectors are not on disk yet.

    A damaged entry is computed again; a folder that can't be written is mentioned once in the log and
    otherwise costs nothing but the time.

    Args:
        encoder: makes the vectors that are missing. Its name is part of every key, and covers its weights and
            how it words a text.
        folder: of the cache, `cache_folder()` unless given.
    """

    def __init__(self, encoder: TextEncoder, folder: Path | None = None) -> None:
        self._encoder = encoder
        self._folder = folder or cache_folder()
        self._writable = True

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def width(self) -> int:
        return self._encoder.width

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU."""
        vectors = {text: vector for text in texts if (vector := self._read(text)) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in vectors]
        if missing:
            for text, vector in zip(missing, self._encoder.embed(missing), strict=True):
                vectors[text] = vector
                self._write(text, vector)
        return torch.stack([vectors[text] for text in texts]) if texts else torch.empty((0, self.width))

    def _path(self, text: str) -> Path:
        key = hashlib.sha256(f"{self.name}\0{text}".encode()).hexdigest()
        return self._folder / key[:2] / key[2:]

    def _read(self, text: str) -> Tensor | None:
        """The vector on disk; None where there is none, or none that is whole."""
        try:
            content = self._path(text).read_bytes()
        except OSError:
            return None
        digest, values = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(values).digest() != digest or len(values) != self.width * _STORED.itemsize:
            return None
        return torch.from_numpy(np.frombuffer(values, _STORED).astype(np.float32))

    def _write(self, text: str, vector: Tensor) -> None:
        values = vector.numpy().astype(_STORED).tobytes()
        try:
            write_bytes(self._path(text), hashlib.sha256(values).digest() + values)
        except OSError as error:
            if self._writable:
                _log.warning("Text vectors can't be kept in %s: %s.", self._folder, error.strerror or error)
            self._writable = False
