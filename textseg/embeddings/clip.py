"""The text towers of open_clip as text encoders."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textseg.embeddings.extras import import_extra
from textseg.embeddings.local import find_local, fingerprint, need_local, read_config
from textseg.errors import ModelError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class _Tower:
    """What open_clip is asked for: a model's name, the file of its weights if the name does not tell, and
    what stands for both in a cache."""

    model: str
    weights: str | None
    width: int
    mark: str


class OpenClipEncoder:
    """The text tower of a CLIP as a `TextEncoder`, in memory only while it is asked.

    Args:
        source: a folder with open_clip_config.json, a name on the hub whose files lie on this machine, or an
            architecture with the tag or the file of its weights ("ViT-B-32:laion2b_s34b_b79k").
        beside: a model's folder, in which the source may lie.
        device: where it computes.

    Raises:
        ModelError: the source is not on this machine or is no CLIP, or it is given by architecture and
            open_clip is not installed.
    """

    def __init__(self, source: str, beside: Path | None = None, device: torch.device | None = None) -> None:
        self._tower = _find_tower(source, beside)
        self.width = self._tower.width
        self.name = f"open_clip-{self._tower.mark}"
        self._device = device or torch.device("cpu")

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU, not normalised; texts are cut to the tower's length.

        Raises:
            ModelError: open_clip is not installed, or can't load the source.
        """
        if not texts:
            return torch.empty((0, self.width))
        open_clip = _open_clip()
        try:
            tokenizer = open_clip.get_tokenizer(self._tower.model)
            model = open_clip.create_model(
                self._tower.model, pretrained=self._tower.weights, pretrained_text=False
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"A CLIP is one that open_clip can load, but {self._tower.model} is not ({reason})."
            ) from error
        model = model.eval().to(self._device)
        chunks = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        parts = [model.encode_text(tokenizer(list(chunk)).to(self._device)) for chunk in chunks]
        vectors = torch.cat(parts).float().cpu()
        del model
        gc.collect()
        return vectors


def _find_tower(source: str, beside: Path | None) -> _Tower:
    architecture, colon, weights = source.partition(":")
    if colon and architecture not in ("hf-hub", "local-dir"):
        return _named_tower(architecture, weights)
    folder = need_local(source, beside)
    width = read_config(folder, CONFIG_FILE).get("model_cfg", {}).get("embed_dim")
    if not isinstance(width, int):
        raise ModelError(f"{CONFIG_FILE} of a CLIP tells its embed_dim, but that in {folder} does not.")
    return _Tower(f"local-dir:{folder}", None, width, f"{folder.name}-{fingerprint(folder)}")


def _named_tower(architecture: str, weights: str) -> _Tower:
    open_clip = _open_clip()
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ModelError(
            f"open_clip has no architecture {architecture!r}; `open_clip.list_models()` tells which it has."
        )
    path = _weights_file(open_clip, architecture, weights)
    facts = path.stat()
    mark = hashlib.sha256(f"{weights}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()[:12]
    return _Tower(architecture, str(path), int(config["embed_dim"]), f"{architecture}-{mark}")


def _weights_file(open_clip: Any, architecture: str, weights: str) -> Path:
    """The file of weights, or that of a tag in open_clip's list, if it lies on this machine."""
    if Path(weights).is_file():
        return Path(weights)
    repository, _, name = str(
        open_clip.get_pretrained_cfg(architecture, weights).get("hf_hub", "")
    ).rpartition("/")
    folder = find_local(repository) if repository else None
    names = (name,) if name else WEIGHTS_NAMES
    found = next((folder / each for each in names if folder and (folder / each).is_file()), None)
    if found is None:
        where = f" Try `hf download {repository}`." if repository else " Is the tag one of open_clip's?"
        raise ModelError(
            f"The weights of a CLIP must lie on this machine, but {weights!r} of {architecture} "
            f"do not.{where}"
        )
    return found


def _open_clip() -> Any:
    return import_extra("open_clip", "clip", "A CLIP text tower")
