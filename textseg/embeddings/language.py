"""Language models of `transformers` as text encoders: in memory only while they are asked."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from pickle import PickleError
from typing import Any, Literal

import torch
from torch import Tensor

from textseg.embeddings.extras import import_extra
from textseg.embeddings.local import fingerprint, read_config
from textseg.errors import ModelError

Pooling = Literal["last_token", "mean"]
# Texts that go through the model together.
TEXTS_AT_ONCE = 16
# Qwen3-Embedding is stored and was asked in bfloat16; BERT and its kin are small.
TYPES = {"last_token": torch.bfloat16, "mean": torch.float32}


class LanguageEncoder:
    """A language model in a folder as a `TextEncoder`; its vectors have any length.

    Nothing is loaded before a text is embedded, and nothing stays loaded afterwards: Qwen3-Embedding-4B takes
    8 GB, which the network wants next.

    Args:
        folder: in the format of `transformers`, with its tokenizer.
        pooling: "last_token" takes the last layer's state at the end of the text, as the Qwen3-Embedding
            models do (Zhang et al. 2025); "mean" the mean over its tokens, as BioLORD (Remy et al. 2024).
        longest_tokens: what a text is cut to.
        device: where it computes.
        dtype: of its weights; bfloat16 for "last_token", float32 for "mean" unless given.

    Raises:
        ModelError: the folder has no config.json that tells the width.
    """

    def __init__(
        self,
        folder: Path,
        pooling: Pooling,
        longest_tokens: int = 8192,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        width = read_config(folder).get("hidden_size")
        if not isinstance(width, int):
            raise ModelError(
                f"A language model's config.json tells its hidden_size, but that in {folder} does not. "
                "Is it one?"
            )
        self.width = width
        self._folder = folder
        self._pooling: Pooling = pooling
        self._longest = longest_tokens
        self._device = device or torch.device("cpu")
        self._dtype = dtype or TYPES[pooling]
        kind = str(self._dtype).removeprefix("torch.")
        self.name = f"{folder.name}-{pooling}-{longest_tokens}-{kind}-{fingerprint(folder)}"

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU, not normalised.

        Raises:
            ModelError: `transformers` is not installed, or the folder's model can't be loaded.
        """
        vectors = torch.empty((len(texts), self.width))
        if not texts:
            return vectors
        tokenizer, model = self._loaded()
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), TEXTS_AT_ONCE):
            places = order[start : start + TEXTS_AT_ONCE]
            batch = tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self._device)
            states = model(**batch).last_hidden_state
            vectors[places] = self._pooled(states, batch["attention_mask"]).float().cpu()
        del model, tokenizer
        gc.collect()
        return vectors

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (texts, tokens, width) → (texts, width)."""
        if self._pooling == "last_token":
            # Texts are padded on the left, so all of them end together.
            return states[:, -1]
        weights = mask[:, :, None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def _loaded(self) -> tuple[Any, Any]:
        transformers = import_extra("transformers", "llm", f"The text encoder {self._folder.name}")
        side = "left" if self._pooling == "last_token" else "right"
        # Renamed in version 5.
        dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, padding_side=side)
            model = transformers.AutoModel.from_pretrained(
                self._folder, local_files_only=True, **{dtype: self._dtype}
            )
        except (OSError, ValueError, KeyError, RuntimeError, PickleError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"A text encoder's folder is one that transformers can load, but {self._folder} is not "
                f"({reason}). Is it complete, and transformers new enough?"
            ) from error
        return tokenizer, model.eval().to(self._device)
