"""Models on disk: a folder with a plan, weights of network and text tower, a vocabulary and a card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from textseg.errors import ModelError
from textseg.plan import PLAN_FILE, Plan, read_plan

CARD_FILE = "card.md"
WEIGHTS_FILES = ("network.safetensors", "text_tower.safetensors", "vocabulary.json")


@dataclass(frozen=True)
class ModelFolder:
    """A complete model on disk; nothing is loaded before it is asked for."""

    name: str
    path: Path

    @cached_property
    def plan(self) -> Plan:
        return read_plan(self.path)

    @property
    def card(self) -> str:
        """The model card, Markdown; empty where the folder has none."""
        path = self.path / CARD_FILE
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def plans_folder() -> Path:
    """The folder of plans and weights that ship with the package."""
    return Path(str(files("textseg_plans")))


def shipped_models() -> list[ModelFolder]:
    """The models in the package that have weights, "default" first."""
    folders = [path.parent for path in plans_folder().glob(f"*/{PLAN_FILE}")]
    models = [ModelFolder(path.name, path) for path in folders if not _missing(path)]
    return sorted(models, key=lambda model: (model.name != "default", model.name))


def find_model(model: str | Path) -> ModelFolder:
    """A shipped model by name, or any folder that holds one.

    Raises:
        ModelError: there is no such model, or the folder lacks a file.
    """
    shipped = plans_folder() / str(model)
    path = shipped if str(model).isidentifier() and shipped.is_dir() else Path(model)
    if not path.is_dir():
        names = ", ".join(entry.name for entry in shipped_models()) or "none"
        raise ModelError(
            f"A model is a shipped one ({names}) or a folder, got {str(model)!r}, which is neither."
        )
    missing = _missing(path)
    if missing:
        raise ModelError(
            f"The folder of a model holds {', '.join((PLAN_FILE, *WEIGHTS_FILES))}, "
            f"but {path} has no {' and no '.join(missing)}."
        )
    return ModelFolder(path.resolve().name, path)


def _missing(path: Path) -> list[str]:
    return [name for name in (PLAN_FILE, *WEIGHTS_FILES) if not (path / name).is_file()]
