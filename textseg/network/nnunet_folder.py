"""Trained folders of nnU-Net v2: what is where, and their labels by name; loads no torch.

`<trainer>__<plans>__<configuration>/` holds plans.json, dataset.json and a checkpoint a fold (Isensee et al.,
Nature Methods 2021).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textseg.errors import ModelError, PromptError
from textseg.prompts import Prompt, understand

PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
CHECKPOINT_NAMES = ("checkpoint_final.pth", "checkpoint_best.pth")
# Labels that are nobody's to ask for.
UNASKED = ("background", "ignore")


@dataclass(frozen=True)
class NnunetFolder:
    """What a trained folder says of itself.

    labels: the values of each label that can be asked for, several for a region.
    channels: names of the input channels, in their order.
    checkpoints: one a fold, all of which vote.
    """

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    labels: Mapping[str, tuple[int, ...]]
    channels: tuple[str, ...]
    checkpoints: tuple[Path, ...]

    def label_for(self, prompt: Prompt) -> str:
        """The label that a prompt names: by its very name, else by what the lexicon makes of both.

        Raises:
            PromptError: there is none, with those that are near.
        """
        names = {_plain(label): label for label in self.labels}
        said = _plain(prompt.text)
        if said in names:
            return names[said]
        meant = _meaning(prompt)
        same = [label for plain, label in names.items() if meant and _meaning_of(plain) == meant]
        if len(same) == 1 and not prompt.unused:
            return same[0]
        near = same or [names[each] for each in _near(prompt, names)] or list(self.labels)
        listed = ", ".join(near[:12]) + (f" and {len(near) - 12} more" if len(near) > 12 else "")
        raise PromptError(
            f"An nnU-Net segments the labels it was trained on, and none of them is {prompt.text!r}. "
            f"Did you mean {listed}?"
        )


def is_nnunet_folder(folder: Path) -> bool:
    """Whether a folder is one that nnU-Net v2 trained. Those of nnInteractive, for clicks, are not."""
    described = (folder / PLANS_FILE).is_file() and (folder / DATASET_FILE).is_file()
    return described and not (folder / "inference_info.json").exists() and bool(find_checkpoints(folder))


def find_checkpoints(folder: Path) -> tuple[Path, ...]:
    """The checkpoints that vote: final ones of all numbered folds, else of `fold_all`, else best ones."""
    for name in CHECKPOINT_NAMES:
        there = sorted(path for path in folder.glob(f"fold_*/{name}") if path.is_file())
        numbered = [path for path in there if path.parent.name.removeprefix("fold_").isdecimal()]
        if there:
            return tuple(numbered or there)
    return ()


def read_nnunet_folder(folder: Path) -> NnunetFolder:
    """What a trained folder says of itself.

    Raises:
        ModelError: a file is missing or does not say what nnU-Net's own do.
    """
    plans, dataset = _document(folder / PLANS_FILE), _document(folder / DATASET_FILE)
    try:
        labels = {
            str(name): tuple(map(int, value)) if isinstance(value, list) else (int(value),)
            for name, value in dataset["labels"].items()
            if name not in UNASKED
        }
        # nnU-Net v1 called it modality, and some still do.
        channels = dataset.get("channel_names") or dataset["modality"]
        named = tuple(str(channels[key]) for key in sorted(channels, key=int))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"nnU-Net's {DATASET_FILE} has labels and channel_names, but {folder / DATASET_FILE} has them "
            f"not so ({type(error).__name__}: {error})."
        ) from error
    checkpoints = find_checkpoints(folder)
    if not checkpoints or not labels:
        raise ModelError(
            f"An nnU-Net has labels and fold_*/{CHECKPOINT_NAMES[0]}, but {folder} has "
            f"{'no label' if checkpoints else 'no checkpoint'}."
        )
    return NnunetFolder(folder, plans, dataset, labels, named, checkpoints)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"A trained nnU-Net has a {path.name} that is JSON, but {path} can't be read "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} must be a JSON object, got a {type(document).__name__}.")
    return document


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _meaning(prompt: Prompt) -> tuple[str | None, ...] | None:
    """Structure, finding and side, where the lexicon knows them."""
    if not prompt.known:
        return None
    structure, finding = prompt.structure, prompt.finding
    return structure.id if structure else None, finding.id if finding else None, prompt.side


def _meaning_of(label: str) -> tuple[str | None, ...] | None:
    try:
        prompt = understand(label)
    except PromptError:
        return None
    # A label with a word that is lost ("kidney cortex rim") is not what the rest of it says.
    return None if prompt.unused else _meaning(prompt)


def _near(prompt: Prompt, names: Mapping[str, str]) -> list[str]:
    near = [
        *difflib.get_close_matches(_plain(prompt.text), names, n=3, cutoff=0.5),
        *difflib.get_close_matches(prompt.canonical.lower(), names, n=3, cutoff=0.5),
    ]
    return list(dict.fromkeys(near))
