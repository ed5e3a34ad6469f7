"""A folder of training data as it lies on disk: which files are which case, which words mean which label.

Two layouts. nnU-Net's raw folder (version 2): `imagesTr` with one file a channel (case_0000.nii.gz),
`labelsTr`, and `dataset.json` with channel_names, labels (a value, or a list of values for a region) and
file_ending. Regions may overlap; regions_class_order, in which nnU-Net writes them into one map, is not
needed. Or a folder of label maps without images, from which images are synthesised, with their labels in
`names.json`: {"labels": {...}} for all of them, or one such entry for each file name. In both a label named
"ignore", the highest value, marks voxels that nobody labelled.

Beside either may lie `prompts.json`, with the words that people use:

    {
      "labels": {"cyst": ["renal cyst", "kidney cyst"]},
      "cases": {
        "case_07": [
          {"text": "a 2 cm cyst in the upper pole of the left kidney", "label": "cyst", "component": 2},
          {"text": "the small cyst behind it", "label": "cyst", "component": [41.5, -12.0, 130.2]}
        ]
      }
    }

`labels` gives for each label the words that mean it; one that is not there gets the lexicon's words for its
name. `cases` gives sentences of single cases and what they mean: a whole label or, with `component`, one
connected part of it, by its number (1 is the largest) or by a point in or near it in world mm (RAS+).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from scipy import ndimage

from textseg.errors import DatasetError, PromptError
from textseg.geometry import Geometry
from textseg.prompts import Lexicon, canonical_name, default_lexicon, understand, variants
from textseg.scan.formats import ending_of
from textseg.volume import Modality

DATASET_FILE = "dataset.json"
NAMES_FILE = "names.json"
PROMPTS_FILE = "prompts.json"
ANNOTATED_FILE = "annotated.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
BACKGROUND, IGNORE = "background", "ignore"

Layout = Literal["nnunet", "labelmaps"]
Values = tuple[int, ...]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
# Numbered from 1, the largest first; or a point (x, y, z) in world mm.
Component = Annotated[int, Field(ge=1)] | tuple[float, float, float]

# What a channel or a case may be called, in the words of dataset.json files that are around.
MODALITY_WORDS: Mapping[str, Modality] = {
    "ct": "ct",
    "cbct": "ct",
    "cect": "ct",
    "ncct": "ct",
    "cta": "ct",
    "mr": "mr",
    "mri": "mr",
    "t1": "mr",
    "t1w": "mr",
    "t1c": "mr",
    "t1ce": "mr",
    "t1gd": "mr",
    "t2": "mr",
    "t2w": "mr",
    "t2f": "mr",
    "flair": "mr",
    "dwi": "mr",
    "adc": "mr",
    "pet": "pet",
    "pt": "pet",
    "suv": "pet",
    "fdg": "pet",
}


@dataclass(frozen=True)
class Channel:
    """One channel of the images; modality None where its name does not tell."""

    name: str
    modality: Modality | None


@dataclass(frozen=True)
class Label:
    """Something that can be asked for: the words that mean it, the plainest first, and where they come from.

    group: of the lexicon; None for a name that it does not know.
    """

    name: str
    words: tuple[str, ...]
    words_from: Literal["prompts.json", "lexicon", "name"]
    group: str | None


class Sentence(BaseModel):
    """What somebody wrote about one case, and what it means: a label, or one component of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    text: Words
    label: str
    component: Component | None = None


class PromptsFile(BaseModel):
    """The content of prompts.json; see the head of this module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: dict[str, Annotated[tuple[Words, ...], Field(min_length=1)]] = {}
    cases: dict[str, tuple[Sentence, ...]] = {}


@dataclass(frozen=True)
class DatasetCase:
    """The files of one case.

    Args:
        images: one a channel, in the channels' order; None for a file that is missing; empty for label maps.
        labels: the label map; None where it is missing.
        values: which values of the label map show which label; a region has several.
        complete: the labels that are drawn in full; the others may be drawn in part or not. None for all.
    """

    id: str
    images: tuple[Path | None, ...]
    labels: Path | None
    values: Mapping[str, Values]
    sentences: tuple[Sentence, ...] = ()
    complete: frozenset[str] | None = None
    modality: Modality | None = None
    """Where the case's name tells it, as in "STS_001_PET"."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (*self.images, self.labels) if path is not None)

    @property
    def whole(self) -> bool:
        """Whether no file is missing."""
        return self.labels is not None and None not in self.images


@dataclass(frozen=True)
class Dataset:
    """A dataset as its folder and its JSON files describe it; no image has been opened yet.

    Args:
        cases: every case that has any file, in the order of their ids; `check_dataset` tells what is missing.
        ignore: the value of voxels that nobody labelled, or None.
        strangers: files in its folders that belong to no case.
        case_count: what dataset.json says in numTraining, if anything.
        file_prompts: what prompts.json says, also of labels and cases that are not there.
    """

    name: str
    folder: Path
    layout: Layout
    channels: tuple[Channel, ...]
    labels: Mapping[str, Label]
    cases: tuple[DatasetCase, ...]
    ignore: int | None = None
    strangers: tuple[Path, ...] = ()
    case_count: int | None = None
    file_prompts: PromptsFile = field(default_factory=PromptsFile)


def read_dataset(folder: str | Path, lexicon: Lexicon | None = None) -> Dataset:
    """The dataset in a folder, by its names and JSON files; images are not opened.

    Args:
        lexicon: where words come from for labels that prompts.json does not name; ours by default.

    Raises:
        DatasetError: the folder is no dataset, or one of its JSON files can't be read or understood.
    """
    folder = Path(folder)
    lexicon = lexicon or default_lexicon()
    prompts = _read_prompts(folder)
    if (folder / DATASET_FILE).is_file():
        return _read_nnunet(folder, prompts, lexicon)
    if (folder / NAMES_FILE).is_file():
        return _read_label_maps(folder, prompts, lexicon)
    raise DatasetError(
        f"A dataset is a folder with {DATASET_FILE} (nnU-Net's layout) or, for label maps without images, "
        f"{NAMES_FILE}; {folder} has neither. Is the path right?"
    )


def meant_component(
    mask: NDArray[np.bool_], geometry: Geometry, component: Component, tolerance_mm: float = 10.0
) -> NDArray[np.bool_]:
    """The connected part of a mask (x, y, z) that a sentence means; voxels that touch at a corner connect.

    Args:
        component: its number, 1 for the largest, or a point in world mm, which takes the nearest part.
        tolerance_mm: how far outside of any part the point may lie.

    Raises:
        DatasetError: there are not so many parts, or none so near to the point.
    """
    numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if isinstance(component, int):
        if component > count:
            raise DatasetError(f"A component is a number from 1 to {count} here, got {component}.")
        by_size = np.argsort(-np.bincount(numbered.ravel(), minlength=count + 1)[1:], kind="stable")
        return np.asarray(numbered == 1 + by_size[component - 1])
    voxels = np.argwhere(mask)
    distances = np.linalg.norm(geometry.to_world(voxels) - component, axis=1) if len(voxels) else np.array([])
    if not len(distances) or distances.min() > tolerance_mm:
        away = f"{distances.min():.0f} mm from the nearest voxel" if len(distances) else "in an empty mask"
        raise DatasetError(
            f"A component's point lies in or within {tolerance_mm:g} mm of it, this is {away}."
        )
    return np.asarray(numbered == numbered[tuple(voxels[distances.argmin()])])


def modality_in(name: str) -> Modality | None:
    """The modality that a channel's or case's name tells, such as "T1w", "CT" or "STS_001_PET"."""
    found = {MODALITY_WORDS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in MODALITY_WORDS}
    return found.pop() if len(found) == 1 else None


# ---- nnU-Net's layout ----


def _read_nnunet(folder: Path, prompts: PromptsFile, lexicon: Lexicon) -> Dataset:
    path = folder / DATASET_FILE
    document = _json_object(path)
    channels = _channels(document, path)
    values = _values(document.get("labels"), path)
    ignored = _without_ignored(values, path)
    files = _listed_files(folder, document, len(channels)) if "dataset" in document else None
    ending = str(document.get("file_ending") or ".nii.gz")
    strangers: tuple[Path, ...] = ()
    if files is None:
        files, strangers = _found_files(folder, ending, len(channels))
    complete = _complete(folder)
    cases = tuple(
        DatasetCase(
            id=name,
            images=images,
            labels=labels,
            values=values,
            sentences=prompts.cases.get(name, ()),
            complete=complete.get(name),
            modality=modality_in(name),
        )
        for name, (images, labels) in sorted(files.items())
    )
    count = document.get("numTraining")
    return Dataset(
        name=folder.resolve().name,
        folder=folder,
        layout="nnunet",
        channels=channels,
        labels=_labels(values, prompts, lexicon),
        cases=cases,
        ignore=ignored,
        strangers=strangers,
        case_count=count if isinstance(count, int) else None,
        file_prompts=prompts,
    )


Files = dict[str, tuple[tuple[Path | None, ...], Path | None]]


def _found_files(folder: Path, ending: str, channels: int) -> tuple[Files, tuple[Path, ...]]:
    """Cases by the names of their files, and files that belong to none."""
    pattern = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(ending))
    images: dict[str, dict[int, Path]] = {}
    strangers = []
    for path in _listing(folder / IMAGES):
        match = pattern.fullmatch(path.name)
        if match and int(match["channel"]) < channels:
            images.setdefault(match["case"], {})[int(match["channel"])] = path
        else:
            strangers.append(path)
    labels: dict[str, Path] = {}
    for path in _listing(folder / LABELS):
        if path.name.endswith(ending):
            labels[path.name[: -len(ending)]] = path
        else:
            strangers.append(path)
    names = images.keys() | labels.keys()
    files: Files = {
        name: (tuple(images.get(name, {}).get(number) for number in range(channels)), labels.get(name))
        for name in names
    }
    return files, tuple(strangers)


def _listed_files(folder: Path, document: Mapping[str, Any], channels: int) -> Files:
    """Cases that dataset.json itself lists, as nnU-Net allows, with paths from its own folder."""
    files: Files = {}
    try:
        for name, entry in document["dataset"].items():
            paths = [folder / image for image in entry["images"]]
            images = [path if path.is_file() else None for path in paths[:channels]]
            images += [None] * (channels - len(images))
            labels = folder / entry["label"]
            files[name] = (tuple(images), labels if labels.is_file() else None)
    except (AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f'"dataset" in {folder / DATASET_FILE} gives for each case its "images" and "label", '
            f"but it can't be read so ({type(error).__name__}: {error})."
        ) from error
    return files


def _listing(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(
            f"nnU-Net's layout has the folders {IMAGES} and {LABELS}, but {folder} is missing. "
            f"For label maps without images, describe them in {NAMES_FILE}."
        )
    # Hidden files are the system's own, and the second half of a NRRD, MetaImage or Analyze pair is no scan.
    seconds = (".raw", ".zraw", ".raw.gz")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in paths if not path.name.endswith(seconds)]


def _channels(document: Mapping[str, Any], path: Path) -> tuple[Channel, ...]:
    names = document.get("channel_names", document.get("modality"))
    if not isinstance(names, dict) or not names:
        raise DatasetError(f'{path} needs "channel_names", such as {{"0": "CT"}}; got {names!r}.')
    if sorted(names) != sorted(str(number) for number in range(len(names))):
        raise DatasetError(f'"channel_names" in {path} are numbered from 0, got {", ".join(names)}.')
    ordered = [str(names[str(number)]) for number in range(len(names))]
    return tuple(Channel(name, modality_in(name)) for name in ordered)


def _complete(folder: Path) -> dict[str, frozenset[str]]:
    path = folder / ANNOTATED_FILE
    if not path.is_file():
        return {}
    document = _json_object(path)
    try:
        return {name: frozenset(entry["complete"]) for name, entry in document.items()}
    except (KeyError, TypeError) as error:
        raise DatasetError(f'{path} gives each case its "complete" labels, but one lacks them.') from error


# ---- label maps without images ----


def _read_label_maps(folder: Path, prompts: PromptsFile, lexicon: Lexicon) -> Dataset:
    path = folder / NAMES_FILE
    document = _json_object(path)
    paths = [file for file in _listing_of_maps(folder) if ending_of(file.name)]
    everyone = document if "labels" in document else None
    values: dict[str, Values] = {}
    ignored: set[int] = set()
    cases = []
    for file in paths:
        own = everyone or document.get(file.name)
        if not isinstance(own, dict):
            raise DatasetError(f"{path} names the labels of each map, but has no entry {file.name!r}.")
        of_file = _values(own.get("labels"), path)
        ignored |= {value for value in [_without_ignored(of_file, path)] if value is not None}
        values |= of_file
        name = file.name[: -len(ending_of(file.name) or "")]
        cases.append(DatasetCase(name, (), file, of_file, prompts.cases.get(name, ())))
    if len(ignored) > 1:
        raise DatasetError(
            f'"{IGNORE}" has one value in all label maps of a folder, but in {path} it has '
            f"{' and '.join(map(str, sorted(ignored)))}. Give it the same one everywhere."
        )
    known = {path.name, PROMPTS_FILE}
    strangers = [file for file in _listing_of_maps(folder) if file not in paths and file.name not in known]
    return Dataset(
        name=folder.resolve().name,
        folder=folder,
        layout="labelmaps",
        channels=(),
        labels=_labels(values, prompts, lexicon),
        cases=tuple(cases),
        ignore=next(iter(ignored), None),
        strangers=tuple(strangers),
        file_prompts=prompts,
    )


def _listing_of_maps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


# ---- both ----


def _values(labels: Any, path: Path) -> dict[str, Values]:
    """Names of labels and their values, without the background.

    A region is the union of its values, as nnU-Net defines it; "ignore" stays in.
    """
    if not isinstance(labels, dict) or not labels:
        raise DatasetError(f'{path} needs "labels", such as {{"background": 0, "liver": 1}}; got {labels!r}.')
    values: dict[str, Values] = {}
    for name, value in labels.items():
        entries = value if isinstance(value, list) else [value]
        if not entries or any(
            isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in entries
        ):
            swapped = name.isdigit() and isinstance(value, str)
            hint = " Names come first, then values." if swapped else ""
            raise DatasetError(
                f"The value of a label is a whole number from 0, or a list of them for a region; in {path} "
                f"{name!r} has {value!r}.{hint}"
            )
        if name != BACKGROUND:
            values[name] = tuple(sorted(set(entries)))
    zero = [name for name, found in values.items() if 0 in found]
    if zero:
        raise DatasetError(f"0 is the background, but in {path} {zero[0]!r} has it. Give it another value.")
    return values


def _without_ignored(values: dict[str, Values], path: Path) -> int | None:
    """Take "ignore" out of the values; gives its one value, which nnU-Net wants above all others."""
    ignored = values.pop(IGNORE, None)
    if ignored is None:
        return None
    highest = max((value for found in values.values() for value in found), default=0)
    if len(ignored) > 1 or ignored[0] <= highest:
        raise DatasetError(
            f'"{IGNORE}" has one value, above those of all labels; in {path} it has '
            f"{', '.join(map(str, ignored))}, and the highest label has {highest}."
        )
    return ignored[0]


def _labels(values: Mapping[str, Values], prompts: PromptsFile, lexicon: Lexicon) -> dict[str, Label]:
    return {name: _label(name, prompts.labels.get(name), lexicon) for name in values}


def _label(name: str, words: Sequence[str] | None, lexicon: Lexicon) -> Label:
    plain = name.replace("_", " ")
    try:
        prompt = understand(plain, lexicon)
    except PromptError:
        # A name that is no prompt, such as "kidney (left or right)"; prompts.json has to say what it means.
        return Label(name, tuple(words or (plain,)), "prompts.json" if words else "name", None)
    if words:
        return Label(name, tuple(words), "prompts.json", prompt.group)
    if not prompt.known:
        return Label(name, (plain,), "name", None)
    concept = prompt.structure if prompt.finding is None else prompt.finding
    alone = prompt.structure is None or prompt.finding is None
    known_as = variants(concept) if alone and concept is not None else ()
    canonical = canonical_name(prompt.structure, prompt.finding)
    return Label(name, tuple(dict.fromkeys((canonical, *known_as, plain))), "lexicon", prompt.group)


def _read_prompts(folder: Path) -> PromptsFile:
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return PromptsFile()
    try:
        return PromptsFile.model_validate(_json_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise DatasetError(f"{path} is not valid: {where}: {first['msg']}{more}.") from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} must be a JSON file that can be read, but it is not: {error}.") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path} must hold a JSON object, but it holds a {type(document).__name__}.")
    return document
