"""Models on disk: our own folders (plan, weights, vocabulary, card), and those of others that we run."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal

from textseg.errors import ModelError, PromptError, ScanError
from textseg.network.nnunet_folder import (
    DATASET_FILE,
    PLANS_FILE,
    find_checkpoints,
    is_nnunet_folder,
    read_nnunet_folder,
)
from textseg.network.voxtell import plan as voxtell
from textseg.plan import PLAN_FILE, Plan, read_plan
from textseg.prompts import Prompt, clean, understand
from textseg.registry.entries import Entry, all_entries
from textseg.registry.table import (
    UNKNOWN,
    Row,
    count_numbers,
    memory_of,
    page,
    parameters_in_words,
    row_of,
    size_in_words,
)

CARD_FILE = "card.md"
# What a model was taught to find, with a dataset's own words; written by `textseg.train.export`.
TAUGHT_FILE = "taught.json"
WEIGHTS_FILES = ("network.safetensors", "text_tower.safetensors", "vocabulary.json")

Kind = Literal["textseg", "voxtell", "nnunet"]
KINDS: dict[Kind, str] = {"textseg": "textseg", "voxtell": "VoxTell", "nnunet": "nnU-Net"}

# What the registry has besides models.
ROLES = {
    "encoder": "a text encoder",
    "start": "an image encoder to train from",
    "foreign": "another project's network",
}
# Where a card tells the licence: "**Licence of the weights** CC BY-SA 4.0, because ...".
_CARD_LICENCE = re.compile(r"\*\*Licence of the weights\*\*:?\s+(.+?)(?:,|;|\.\s|\.?$)", re.MULTILINE)


@dataclass(frozen=True)
class ModelFolder:
    """A complete model on disk; nothing is loaded before it is asked for."""

    name: str
    path: Path
    kind: Kind = "textseg"

    @cached_property
    def plan(self) -> Plan:
        """The plan of a model of ours.

        Raises:
            ModelError: the model is another project's.
            PlanError: see `read_plan`.
        """
        if self.kind != "textseg":
            raise ModelError(
                f"Only textseg's own models have a plan, but {self.path} holds one of {KINDS[self.kind]}."
            )
        return read_plan(self.path)

    @property
    def plan_name(self) -> str:
        """What the model was made by: the name of its plan, or of the project that it comes from."""
        return self.plan.name if self.kind == "textseg" else KINDS[self.kind]

    @property
    def summary(self) -> str:
        """What it is for, in a sentence."""
        if self.kind == "textseg":
            return self.plan.summary
        if self.kind == "nnunet":
            labels = read_nnunet_folder(self.path).labels
            return f"An nnU-Net (Isensee et al. 2021) trained on {len(labels)} label(s)."
        return "VoxTell (Rokuss et al. 2025): any words, CT, MR and PET; research use, not commercial."

    @property
    def licence(self) -> str | None:
        """Of the weights, as far as they tell: ours in their file, or in the card beside them."""
        if self.kind == "voxtell":
            return voxtell.LICENCE
        if self.kind == "nnunet":
            dataset = read_nnunet_folder(self.path).dataset
            # nnU-Net writes it the British way, many datasets the American.
            licence = dataset.get("licence") or dataset.get("license")
            return str(licence) if licence else None
        told = _CARD_LICENCE.search(self.card)
        return metadata_of(self.path / WEIGHTS_FILES[0]).get("license") or (told[1] if told else None)

    @property
    def card(self) -> str:
        """The model card, Markdown; empty where the folder has none."""
        path = self.path / CARD_FILE
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @property
    def files(self) -> dict[str, Path]:
        """The files that decide what the model says, by what they are called in records."""
        if self.kind == "textseg":
            return {name: self.path / name for name in _own_files(self.path)}
        if self.kind == "nnunet":
            names = (PLANS_FILE, DATASET_FILE)
            found = [self.path / name for name in names] + list(find_checkpoints(self.path))
            return {path.relative_to(self.path).as_posix(): path for path in found}
        weights, bank = voxtell.weights_file(self.path), voxtell.find_bank(self.path)
        paths = [self.path / voxtell.PLANS_FILE, weights, *([bank] if bank else [])]
        return {path.name: path for path in paths}

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of each of `files`, in hexadecimal; worked out once, since others' weights are large."""
        from textseg.network.weights import file_hash

        return {name: file_hash(path) for name, path in self.files.items()}

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels that a scan has for this model, in their order."""
        if self.kind == "textseg":
            return self.plan.channels
        return read_nnunet_folder(self.path).channels if self.kind == "nnunet" else ("image",)

    def check_channels(self, count: int) -> None:
        """Refuse a scan of another number of channels, before anything is read or loaded.

        Raises:
            PlanError: a model of ours takes another number.
            ScanError: another project's does.
        """
        if self.kind == "textseg":
            self.plan.check_channels(count)
        elif count != len(self.channels):
            raise ScanError(
                f"The model {self.name!r} takes {len(self.channels)} channel(s) "
                f"({', '.join(self.channels)}), got {count}. "
                "Give one file a channel, the further ones by --channel."
            )

    def read_prompts(self, texts: Iterable[str]) -> list[Prompt]:
        """Prompts as this kind of model reads them: ours through the lexicon, others' in their own words too.

        Raises:
            PromptError: a text can't be a prompt, or not one of this kind of model.
        """
        if self.kind != "textseg":
            return [_freely(text) for text in texts]
        return [self._own_prompt(text) or understand(text) for text in texts]

    @cached_property
    def own_words(self) -> dict[str, str]:
        """The model's own words for what the lexicon does not know, cleaned, and what it was trained with.

        Raises:
            ModelError: the file of what it was taught can't be read.
        """
        path = self.path / TAUGHT_FILE
        if not path.is_file():
            return {}
        try:
            taught = json.loads(path.read_text(encoding="utf-8"))["taught"]
            said = [entry["words"] for entry in taught if entry["own"] and entry["words"]]
            return {clean(text): clean(texts[0]) for texts in said for text in texts}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path} lists what the model was taught, but it can't be read ({error}). Export it again."
            ) from error

    def _own_prompt(self, text: str) -> Prompt | None:
        """A prompt in the model's own words, which the lexicon might take for something else."""
        words = self.own_words.get(clean(text))
        return None if words is None else Prompt(text, words, None, None)


def _freely(text: str) -> Prompt:
    """A prompt for a model that reads sentences; what the lexicon makes of it is for the record."""
    words = clean(text)
    try:
        return understand(text)
    except PromptError:
        return Prompt(text, words, None, None)


def plans_folder() -> Path:
    """The folder of plans and weights that ship with the package."""
    return Path(str(files("textseg_plans")))


def shipped_models() -> list[ModelFolder]:
    """The models in the package that have weights, "default" first."""
    folders = [path.parent for path in plans_folder().glob(f"*/{PLAN_FILE}")]
    models = [ModelFolder(path.name, path) for path in folders if not _missing(path)]
    return sorted(models, key=lambda model: (model.name != "default", model.name))


def fetched_models() -> list[ModelFolder]:
    """The models of the registry that are on this machine."""
    here = [entry for entry in all_entries() if entry.kind == "model" and entry.is_here]
    kinds = [(entry, _kind_of(entry.model_folder)) for entry in here]
    return [ModelFolder(entry.name, entry.model_folder, kind) for entry, kind in kinds if kind]


def all_models_in_markdown() -> str:
    """A page of every model that ships or can be fetched: licence, size, memory and what it is for."""
    return page([*map(_row_of_shipped, shipped_models()), *map(row_of, all_entries())], all_entries())


def _row_of_shipped(model: ModelFolder) -> Row:
    numbers = sum(map(count_numbers, model.files.values()))
    return Row(
        model.name,
        model.summary,
        f"`--model {model.name}`; comes with textseg",
        model.licence or UNKNOWN,
        parameters_in_words(numbers / 1e6),
        size_in_words(model.size_bytes),
        memory_of(numbers / 1e6),
        "-",
    )


def find_model(model: str | Path) -> ModelFolder:
    """A shipped or fetched model by name, or any folder that holds one, of ours, VoxTell or nnU-Net.

    Raises:
        ModelError: there is no such model, or the folder lacks a file.
    """
    listed = next((entry for entry in all_entries() if entry.is_called(str(model))), None)
    fetched = [found for found in fetched_models() if listed is not None and found.name == listed.name]
    if fetched:
        return fetched[0]
    shipped = plans_folder() / str(model)
    path = shipped if str(model).isidentifier() and shipped.is_dir() else Path(model)
    if not path.is_dir():
        if listed is not None:
            raise ModelError(_why_none(listed))
        names = ", ".join(entry.name for entry in shipped_models()) or "none"
        raise ModelError(
            f"A model is a shipped one ({names}) or a folder, got {str(model)!r}, which is neither."
        )
    kind = _kind_of(path)
    missing = _missing(path)
    if kind is None:
        inside = [entry.name for entry in sorted(path.iterdir()) if entry.is_dir() and _kind_of(entry)]
        hint = f" Did you mean {' or '.join(inside)} in it?" if inside else ""
        raise ModelError(
            f"The folder of a model holds {', '.join((PLAN_FILE, *WEIGHTS_FILES))}, or a VoxTell release, "
            f"or a trained nnU-Net, but {path} has no {' and no '.join(missing)}.{hint}"
        )
    return ModelFolder(path.resolve().name, path, kind)


def _why_none(entry: Entry) -> str:
    """Why an entry of the registry can't be asked for masks, and what to do with it instead."""
    fetch = f"`textseg weights fetch {entry.name}`"
    if entry.kind != "model":
        where = "It is on this machine." if entry.is_here else f"{fetch} brings it here."
        return f"A model gives masks, but {entry.name} is {ROLES[entry.kind]}: {entry.use}. {where}"
    if entry.is_here:
        return f"A model is whole, but {entry.model_folder} is not any more. Use {fetch} --again."
    return f"{entry.name} is not on this machine. Get it with {fetch}."


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty where it says nothing or is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            # The format allows headers of 100 MB; ours have some 100 kB.
            header = json.loads(file.read(min(length, 100_000_000)))
        return {str(key): str(value) for key, value in header.get("__metadata__", {}).items()}
    except (OSError, ValueError, AttributeError, struct.error):
        return {}


def _kind_of(path: Path) -> Kind | None:
    if not _missing(path):
        return "textseg"
    if voxtell.is_voxtell_folder(path):
        return "voxtell"
    return "nnunet" if is_nnunet_folder(path) else None


def _missing(path: Path) -> list[str]:
    return [name for name in _own_files(path) if not (path / name).is_file()]


def _own_files(path: Path) -> tuple[str, ...]:
    """What a model of ours is made of: with another project's text encoder, no tower and no vocabulary."""
    try:
        text = json.loads((path / PLAN_FILE).read_text(encoding="utf-8")).get("text", {})
        has_tower = not text.get("encoder")
    except (OSError, ValueError, AttributeError):
        has_tower = True
    return (PLAN_FILE, *(WEIGHTS_FILES if has_tower else WEIGHTS_FILES[:1]))
