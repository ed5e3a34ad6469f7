"""The text towers of open_clip as text encoders; nothing here asks the network.

Some towers are a BERT of `transformers` (BiomedCLIP's, UniMed-CLIP's). Their open_clip_config.json only names
its repository, and open_clip would ask the hub for its config.json; we look for it on this machine instead.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from torch import Tensor

from textseg.embeddings.extras import import_extra
from textseg.embeddings.local import find_local, fingerprint, need_local, read_config
from textseg.errors import ModelError

CONFIG_FILE = "open_clip_config.json"
BERT_CONFIG_FILE = "config.json"
# Any of them is a tokenizer of `transformers`.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")
# open_clip's own, where a configuration has none.
CONTEXT_LENGTH = 77
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class _Tower:
    """What open_clip is asked for.

    model: its name or folder; weights: their file, if the name does not tell; mark: what stands for both in a
    cache; text: the configuration of the text tower; folder: that of the model, where it has one.
    """

    model: str
    weights: str | None
    width: int
    mark: str
    text: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


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
            ModelError: open_clip is not installed, or can't load the source, or the source is built by files
                that are not on this machine.
        """
        if not texts:
            return torch.empty((0, self.width))
        open_clip = _open_clip()
        changed = _with_local_bert(self._tower)
        try:
            tokenizer = _tokenizer(open_clip, self._tower)
            model = open_clip.create_model(
                self._tower.model, pretrained=self._tower.weights, pretrained_text=False, **changed
            )
        except (OSError, ValueError, KeyError, RuntimeError, PickleError) as error:
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
    config = read_config(folder, CONFIG_FILE).get("model_cfg", {})
    width = config.get("embed_dim")
    if not isinstance(width, int):
        raise ModelError(f"{CONFIG_FILE} of a CLIP tells its embed_dim, but that in {folder} does not.")
    mark = f"{folder.name}-{fingerprint(folder)}"
    return _Tower(f"local-dir:{folder}", None, width, mark, config.get("text_cfg", {}), folder)


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
    width = int(config["embed_dim"])
    return _Tower(architecture, str(path), width, f"{architecture}-{mark}", config.get("text_cfg", {}))


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


def _with_local_bert(tower: _Tower) -> dict[str, Any]:
    """What to change in a tower's configuration so that it is built of files on this machine alone."""
    name = tower.text.get("hf_model_name")
    if not name:
        return {}
    import_extra("transformers", "llm", f"The text tower of {tower.model}")
    own = tower.folder / BERT_CONFIG_FILE if tower.folder else None
    # Some folders hold the configuration of the whole CLIP there.
    is_own = own is not None and own.is_file() and "vision_config" not in read_config(own.parent)
    folder = tower.folder if is_own else _holding(str(name), (BERT_CONFIG_FILE,), tower)
    return {"text_cfg": {**tower.text, "hf_model_name": str(folder), "hf_model_pretrained": False}}


def _tokenizer(open_clip: Any, tower: _Tower) -> Any:
    name = tower.text.get("hf_tokenizer_name")
    if not name:
        return open_clip.get_tokenizer(tower.model)
    folder = tower.folder
    if folder is None or not any((folder / file).is_file() for file in TOKENIZER_FILES):
        folder = _holding(str(name), TOKENIZER_FILES, tower)
    return import_module("open_clip.tokenizer").HFTokenizer(
        str(folder),
        context_length=tower.text.get("context_length", CONTEXT_LENGTH),
        tokenizer_mode=tower.text.get("tokenizer_mode"),
        **(tower.text.get("tokenizer_kwargs") or {}),
    )


def _holding(name: str, files: Sequence[str], tower: _Tower) -> Path:
    """The folder on this machine that has one of the files of a repository that a tower is built by."""
    folder = find_local(name, tower.folder)
    if folder is None or not any((folder / file).is_file() for file in files):
        raise ModelError(
            f"The text tower of {tower.model} needs the {files[0]} of {name}, which is not on this machine. "
            f"Get it with `textseg weights fetch {name.rpartition('/')[2].lower()}` if that is listed, or "
            f"with `hf download {name} {files[0]}`."
        )
    return folder


def _open_clip() -> Any:
    return import_extra("open_clip", "clip", "A CLIP text tower")
