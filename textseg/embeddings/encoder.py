"""The interface behind which every text encoder stands, and the one that is ours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from textseg.embeddings.text_plan import TextPlan
from textseg.embeddings.tower import TextTower, load_tower
from textseg.embeddings.vocabulary import encode, load_vocabulary
from textseg.errors import ModelError


class TextEncoder(Protocol):
    """Texts to vectors. The name covers the weights: encoders of one name give the same vectors."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU; the caller has already cleaned the texts."""
        ...


class OwnTextEncoder:
    """Our tower and its vocabulary as a `TextEncoder`; its vectors have length one."""

    def __init__(self, tower: TextTower, vocabulary: Tokenizer) -> None:
        self.tower = tower.eval()
        self.vocabulary = vocabulary
        self.width = tower.plan.vector_width
        self.name = f"textseg-{_fingerprint(tower, vocabulary)}"

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        ids, mask = encode(self.vocabulary, texts, self.tower.plan.longest_tokens)
        device = self.tower.project.weight.device
        vectors: Tensor = self.tower(ids.to(device), mask.to(device))
        return vectors.cpu()


def load_own_encoder(folder: Path, plan: TextPlan) -> OwnTextEncoder:
    """The encoder whose weights and vocabulary lie in a model's folder.

    Raises:
        ModelError: a file is missing or damaged, or they do not fit the plan or one another.
    """
    vocabulary = load_vocabulary(folder)
    if vocabulary.get_vocab_size() > plan.vocabulary_size:
        raise ModelError(
            f"The vocabulary in {folder} may have {plan.vocabulary_size} tokens by the plan, "
            f"but it has {vocabulary.get_vocab_size()}."
        )
    return OwnTextEncoder(load_tower(folder, plan), vocabulary)


def embed_many(encoder: TextEncoder, texts: Sequence[str], chunk: int = 256) -> Tensor:
    """Vectors (texts, width) of length one; texts of like length go together, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = torch.empty((len(texts), encoder.width))
    for start in range(0, len(order), chunk):
        places = order[start : start + chunk]
        vectors[places] = encoder.embed([texts[place] for place in places])
    return F.normalize(vectors, dim=-1)


def _fingerprint(tower: TextTower, vocabulary: Tokenizer) -> str:
    """Twelve hexadecimal digits that change with any weight or token."""
    digest = hashlib.sha256(vocabulary.to_str().encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
