"""Training cases as plain arrays on their working grid: all that training reads, without any scan reader.

A folder of arrays holds `index.json` and one compressed .npz a case, so it can be carried to a machine that
has nothing but torch and numpy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textseg.errors import DatasetError
from textseg.volume import Modality

INDEX_FILE = "index.json"
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Target:
    """What a prompt asks for: a structure, a finding, or a finding in a structure, by their lexicon ids."""

    structure: str | None
    finding: str | None = None

    @property
    def key(self) -> str:
        return f"{self.structure or ''}+{self.finding or ''}"


@dataclass(frozen=True)
class CaseFacts:
    """What is known of a case besides its voxels.

    targets: for each thing that can be asked for, the label values that show it.
    tissues: the name of every label value, targets or not, from which a synthesised image takes its contrast.
    An image without its own label for a structure does not show that it is absent: only `targets` are known.
    """

    name: str
    group: str
    mixture: str
    split: Split
    spacing_mm: tuple[float, float, float]
    modality: Modality | None
    targets: list[tuple[Target, tuple[int, ...]]] = field(default_factory=list)
    tissues: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """A case in memory, in canonical axes at the working spacing.

    labels (x, y, z) uint8 or int16; image (x, y, z) float16, normalised, or None for a label map, whose image
    is synthesised.
    """

    facts: CaseFacts
    labels: NDArray[Any]
    image: NDArray[np.float16] | None


def write_case(case: Case, folder: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {"labels": case.labels}
    if case.image is not None:
        arrays["image"] = case.image
    np.savez_compressed(folder / f"{case.facts.name}.npz", **arrays)  # type: ignore[arg-type]


def write_index(facts: list[CaseFacts], folder: Path) -> None:
    document = {"cases": [asdict(entry) for entry in facts]}
    (folder / INDEX_FILE).write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_index(folder: Path) -> list[CaseFacts]:
    """The facts of all cases in a folder of arrays.

    Raises:
        DatasetError: the folder holds no index.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DatasetError(
            f"A folder of training arrays holds {INDEX_FILE}, but {folder} does not. Gather it first."
        )
    return [_facts(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["cases"]]


def read_case(facts: CaseFacts, folder: Path) -> Case:
    with np.load(folder / f"{facts.name}.npz") as arrays:
        return Case(facts, arrays["labels"], arrays.get("image"))


def _facts(entry: dict[str, Any]) -> CaseFacts:
    targets = [(Target(**target), tuple(values)) for target, values in entry.pop("targets")]
    tissues = {int(value): name for value, name in entry.pop("tissues").items()}
    spacing = tuple(entry.pop("spacing_mm"))
    return CaseFacts(**entry, spacing_mm=spacing, targets=targets, tissues=tissues)
