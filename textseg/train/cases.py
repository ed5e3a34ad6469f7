"""Training cases as plain arrays on their working grid: all that training reads, without any scan reader.

A folder of arrays holds `index.json` and one file of compressed blocks a case, so it can be carried to a
machine that has nothing but torch and numpy, and a patch is read without the rest of its case.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textseg.atomic import write_bytes
from textseg.errors import DatasetError
from textseg.train.blocks import BlockedArray, read_blocks, write_blocks
from textseg.volume import Modality

INDEX_FILE = "index.json"
Split = Literal["train", "validation"]
# A structure that only just reaches into a patch is asked for as neither present nor absent.
FEWEST_VOXELS = 12
# How many voxels of each target are remembered as places to draw a patch around.
MOST_PLACES = 300


@dataclass(frozen=True)
class Target:
    """What a prompt asks for: a structure, a finding, or a finding in a structure, by their lexicon ids.

    own: what somebody's own words name instead: a label that the lexicon does not know, or a sentence.
    """

    structure: str | None
    finding: str | None = None
    own: str | None = None

    @property
    def key(self) -> str:
        return f"{self.structure or ''}+{self.finding or ''}" + (f"+{self.own}" if self.own else "")


Words = Mapping[Target, Sequence[str]]


@dataclass(frozen=True)
class CaseFacts:
    """What is known of a case besides its voxels.

    targets: for each thing that can be asked for, the label values that show it.
    tissues: the name of every label value, targets or not, from which a synthesised image takes its contrast.
    ignore: the value of voxels that nobody labelled; what they show is not known.
    modality: of the image or, where the plan tells its channels apart, of the first; None for a label map.
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
    ignore: int | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A case in canonical axes at the working spacing, in memory or in a file that is read block by block.

    labels (x, y, z) uint8 or int16; images (x, y, z) float16, normalised, one a channel of the plan, in its
    order; none for a label map, whose images are synthesised.
    """

    facts: CaseFacts
    labels: NDArray[Any] | BlockedArray
    images: tuple[NDArray[np.float16] | BlockedArray, ...] = ()

    @property
    def known(self) -> NDArray[np.bool_]:
        """Voxels (x, y, z) that somebody labelled, if only as background; reads the whole label map."""
        labels = np.asarray(self.labels)
        ignore = self.facts.ignore
        return np.ones(labels.shape, np.bool_) if ignore is None else np.asarray(labels != ignore)


@dataclass(frozen=True, eq=False)
class Place:
    """A case with some of the places where each of its targets lies, so patches can be drawn around them.

    centres: voxels (n, 3) of each target that the case really shows; voxels: how many each has; air: the
    value of each channel beyond its borders.
    """

    case: Case
    centres: dict[Target, NDArray[Any]]
    voxels: dict[Target, int]
    air: tuple[float, ...]


def find_places(case: Case, most: int = MOST_PLACES) -> Place:
    """Up to `most` voxels of each target; the same ones for a case of the same name."""
    random = np.random.default_rng(zlib.crc32(case.facts.name.encode()))
    labels = np.asarray(case.labels)
    order = np.argsort(labels, axis=None, kind="stable")
    values, starts = np.unique(labels.reshape(-1)[order], return_index=True)
    runs = dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))
    centres, voxels = {}, {}
    for target, wanted in case.facts.targets:
        found = [runs[label] for label in wanted if label in runs]
        if sum(map(len, found)) >= FEWEST_VOXELS:
            chosen = random.choice(np.concatenate(found), size=most)
            centres[target] = np.stack(np.unravel_index(chosen, labels.shape), axis=1)
            voxels[target] = sum(map(len, found))
    return Place(case, centres, voxels, tuple(float(np.asarray(image).min()) for image in case.images))


def write_case(case: Case, folder: Path, made_from: str = "") -> None:
    """Write a case with its places.

    Args:
        made_from: what the case was made from, to see later whether it needs to be made again.
    """
    place = find_places(case)
    volumes = {"labels": np.asarray(case.labels)}
    volumes |= {_volume_of(i): np.asarray(image) for i, image in enumerate(case.images)}
    targets = [target for target, _ in case.facts.targets]
    shown = [i for i, target in enumerate(targets) if target in place.centres]
    centres = [place.centres[targets[i]] for i in shown]
    tables = {"centres": np.concatenate(centres).astype(np.int16) if centres else np.empty((0, 3), np.int16)}
    facts = {
        "made_from": made_from,
        "air": list(place.air),
        "shown": [[i, len(c), place.voxels[targets[i]]] for i, c in zip(shown, centres, strict=True)],
    }
    write_blocks(case_path(case.facts, folder), volumes, tables, facts)


def write_index(facts: list[CaseFacts], folder: Path, words: Words | None = None) -> None:
    """Write the facts of all cases, and the words of targets that have some of their own."""
    kept = [[asdict(target), list(texts)] for target, texts in (words or {}).items()]
    document = {"cases": [asdict(entry) for entry in facts], "words": kept}
    write_bytes(folder / INDEX_FILE, json.dumps(document, indent=1).encode())


def case_path(facts: CaseFacts, folder: Path) -> Path:
    return folder / f"{facts.name}.zip"


def is_made(facts: CaseFacts, folder: Path, made_from: str) -> bool:
    """Whether the folder holds this case, whole and made from just this."""
    try:
        return bool(read_blocks(case_path(facts, folder))[2]["made_from"] == made_from)
    except DatasetError:
        return False


def read_index(folder: Path) -> list[CaseFacts]:
    """The facts of all cases in a folder of arrays.

    Raises:
        DatasetError: the folder holds no index.
    """
    return [_facts(entry) for entry in _index(folder)["cases"]]


def read_words(folder: Path) -> dict[Target, tuple[str, ...]]:
    """The words of targets that have some of their own, the plainest first.

    Raises:
        DatasetError: the folder holds no index.
    """
    return {Target(**target): tuple(texts) for target, texts in _index(folder).get("words", [])}


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DatasetError(
            f"A folder of training arrays holds {INDEX_FILE}, but {folder} does not. Gather it first."
        )
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def read_case(facts: CaseFacts, folder: Path) -> Case:
    """A case whose voxels are read when they are asked for.

    Raises:
        DatasetError: its file is missing or broken.
    """
    return read_place(facts, folder).case


def read_place(facts: CaseFacts, folder: Path) -> Place:
    """A case with its places, whose voxels are read when they are asked for.

    Raises:
        DatasetError: its file is missing or broken.
    """
    volumes, tables, kept = read_blocks(case_path(facts, folder))
    images = tuple(volumes[_volume_of(i)] for i in range(len(volumes) - 1))
    case = Case(facts, volumes["labels"], images)
    centres, voxels, start = {}, {}, 0
    for index, count, size in kept["shown"]:
        target, _ = facts.targets[index]
        centres[target] = tables["centres"][start : start + count]
        voxels[target] = size
        start += count
    # Older files, of one image or none, hold a single number.
    air = kept["air"] if isinstance(kept["air"], list) else [kept["air"]] * len(images)
    return Place(case, centres, voxels, tuple(air))


def _volume_of(channel: int) -> str:
    """The name of a channel's image in the file of a case."""
    return f"image_{channel}" if channel else "image"


def _facts(entry: dict[str, Any]) -> CaseFacts:
    targets = [(Target(**target), tuple(values)) for target, values in entry.pop("targets")]
    tissues = {int(value): name for value, name in entry.pop("tissues").items()}
    spacing = tuple(entry.pop("spacing_mm"))
    return CaseFacts(**entry, spacing_mm=spacing, targets=targets, tissues=tissues)
