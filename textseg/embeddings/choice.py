"""Which text encoder a plan asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from textseg.embeddings.cache import CachedTextEncoder
from textseg.embeddings.clip import OpenClipEncoder
from textseg.embeddings.encoder import TextEncoder, load_own_encoder
from textseg.embeddings.language import LanguageEncoder
from textseg.embeddings.local import need_local
from textseg.embeddings.text_plan import EncoderPlan, TextPlan
from textseg.errors import ModelError


class WordedTextEncoder:
    """A `TextEncoder` that asks another one in the wording of a plan; the wording is part of its name."""

    def __init__(self, encoder: TextEncoder, plan: EncoderPlan) -> None:
        self._encoder = encoder
        self._plan = plan
        self.width = encoder.width
        self.name = f"{encoder.name} asked {plan.wording!r}"

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU."""
        return self._encoder.embed([self._plan.word(text) for text in texts])


def load_text_encoder(folder: Path, plan: TextPlan, device: torch.device | None = None) -> TextEncoder:
    """The encoder of a model: its own tower, or the one that its plan names; vectors are kept on disk.

    A prompt whose vector is on disk loads no language model.

    Args:
        folder: of the model.
        device: where another project's encoder computes; our tower stays on the CPU.

    Raises:
        ModelError: its files are missing or damaged, or its vectors have not the width of the plan.
    """
    if plan.encoder is None:
        return CachedTextEncoder(load_own_encoder(folder, plan))
    encoder = _foreign(folder, plan.encoder, device)
    if encoder.width != plan.vector_width:
        raise ModelError(
            f"This model takes text vectors of {plan.vector_width} numbers by its plan, but "
            f"{plan.encoder.source} gives {encoder.width}."
        )
    return CachedTextEncoder(WordedTextEncoder(encoder, plan.encoder))


def _foreign(folder: Path, plan: EncoderPlan, device: torch.device | None) -> TextEncoder:
    if plan.kind == "open_clip":
        return OpenClipEncoder(plan.source, folder, device)
    return LanguageEncoder(need_local(plan.source, folder), plan.kind, plan.longest_tokens, device)
