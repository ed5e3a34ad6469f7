"""Which file of a prediction belongs to which of a reference, and what their labels mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.errors import DatasetError, GeometryError, PromptError
from textseg.geometry import Box, Geometry, bounding_box
from textseg.prompts import understand
from textseg.scan import read_label_map
from textseg.scan.formats import ending_of
from textseg.scores.overlap import Mask, around

RECORD_ENDING = "_record.json"
# What a cohort calls the record in each scan's folder.
COHORT_RECORD = "result.json"
DATASET_FILE = "dataset.json"
# nnU-Net's ending for the first channel of a scan, which masks made from that file carry on.
CHANNEL = "_0000"
# textseg's name for a label map of all prompts.
COMBINED = "_labels"
# TotalSegmentator's folder of masks within a case.
SEGMENTATIONS = "segmentations"
BACKGROUND = ("background", "unlabelled", "unlabeled")
# nnU-Net's name for voxels that nobody labelled.
IGNORE = "ignore"

Values = tuple[int, ...]


@dataclass(frozen=True)
class Names:
    """What the labels of a label map mean.

    Args:
        labels: for each number from 1 its name.
        regions: names of several numbers together, as nnU-Net defines them.
        ignore: the number of voxels that nobody labelled, where nothing is judged.
        known: for partly labelled data the structures that were looked for, by case; a case that is not
            listed was labelled in full.
        complete: for data of which some labels are drawn in part the structures that are drawn in full, by
            case; of a case that is listed no others are scored.
    """

    labels: Mapping[int, str] = field(default_factory=dict)
    regions: Mapping[str, Values] = field(default_factory=dict)
    ignore: int | None = None
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)
    complete: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def named(self) -> bool:
        """Whether any number has a name."""
        return bool(self.labels or self.regions)


@dataclass(frozen=True)
class CaseFiles:
    """One scan on one side: a label map, or one mask a structure by its words.

    Args:
        label_map: None where there are masks.
        masks: by the words that they answer.
        denied: words that were asked and not found, so that there is no file.
        presence: 0 to 1, by the words, where a record says it.
        names: what the numbers of the label map mean, if the files' own folder says it.
    """

    label_map: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    denied: frozenset[str] = frozenset()
    presence: Mapping[str, float] = field(default_factory=dict)
    names: Names = field(default_factory=Names)


@dataclass(frozen=True)
class CasePair:
    """One scan to score."""

    case: str
    predicted: CaseFiles
    reference: CaseFiles


@dataclass(frozen=True, eq=False)
class Labelled:
    """A file's labels (x, y, z) in canonical axis order, its grid, its names, and where each label lies.

    `resampled` says that they lay on another grid before.
    """

    labels: NDArray[Any]
    grid: Geometry
    names: Mapping[int, str]
    boxes: Mapping[int, Box]
    resampled: bool = False


def read_names(path: Path) -> Names:
    """Names of labels from a JSON file: nnU-Net's dataset.json, or {"liver": 1, ...}, or {"1": "liver", ...}.

    A list of numbers is a region that holds them all; what is called "ignore" is judged nowhere.
    A key "known" holds, for partly labelled data, the names of the structures that were looked for by case.

    Raises:
        DatasetError: the file can't be read or is none of these.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(
            f"Names of labels must be a JSON file, but {path} can't be read: {error}."
        ) from error
    wrong = DatasetError(
        f'Names of labels must be like {{"liver": 1, "spleen": 2}} or {{"1": "liver"}}, but {path} is not.'
    )
    if not isinstance(document, dict):
        raise wrong
    table = document.get("labels", {key: value for key, value in document.items() if key != "known"})
    if not isinstance(table, dict):
        raise wrong
    labels: dict[int, str] = {}
    regions: dict[str, Values] = {}
    for key, value in table.items():
        if isinstance(value, list) and value and all(isinstance(number, int) for number in value):
            regions[key] = tuple(value)
            continue
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if not (isinstance(name, str) and str(number).isdigit()):
            raise wrong
        if int(number) and name.lower() not in BACKGROUND:
            labels[int(number)] = name
    ignored = next((number for number, name in labels.items() if name.lower() == IGNORE), None)
    if ignored is not None:
        del labels[ignored]
    known = document.get("known", {})
    if not isinstance(known, dict) or not all(isinstance(names, list) for names in known.values()):
        raise wrong
    return Names(labels, regions, ignored, known)


def read_complete(path: Path) -> dict[str, list[str]]:
    """Which labels each case shows in full, from annotated.json: {"case": {"complete": [...], ...}, ...}.

    Raises:
        DatasetError: the file can't be read or is none of that kind.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        return {case: [str(name) for name in entry["complete"]] for case, entry in document.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f'{path} gives each case its "complete" labels, but it can\'t be read so '
            f"({type(error).__name__}: {error})."
        ) from error


def find_pairs(predicted: Path, reference: Path) -> list[CasePair]:
    """Match predictions to the cases of a reference by name.

    Either both are files, or both are folders. A folder holds, for the case "case12":
        case12.nii.gz                  a label map (any format that textseg reads), or
        case12/liver.nii.gz            one mask a structure, also in case12/segmentations, or
        case12_liver.nii.gz            the same without folders, as textseg writes it with a record beside.
    The folder of a cohort is one of the second kind, its records included.
    A structure that has a mask in other cases of the prediction but not in this one was not found here.

    Raises:
        DatasetError: a file or folder is missing, or a case of the reference has no prediction.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise DatasetError(f"What is scored must exist, but there is no file or folder {path}.")
    if predicted.is_dir() != reference.is_dir():
        raise DatasetError(
            f"Prediction and reference are two files or two folders, got {predicted} and {reference}."
        )
    if not reference.is_dir():
        return [CasePair(_stem(reference), CaseFiles(predicted), CaseFiles(reference))]
    theirs, ours = _collect(reference), _collect(predicted)
    theirs = _grouped(theirs, ours)
    if not theirs:
        raise DatasetError(
            f"A folder of references must hold label maps or masks, but {reference} holds none."
        )
    pairs = [CasePair(case, _prediction_of(case, ours), files) for case, files in sorted(theirs.items())]
    missing = [pair.case for pair in pairs if pair.predicted == CaseFiles()]
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DatasetError(
            f"Every case of the reference needs a prediction of its name, but {predicted} has none for "
            f"{listed}. "
            "Is it the right folder? To score fewer cases, give a folder with fewer references."
        )
    return _with_denied(pairs)


def open_labels(path: Path, *, onto: Geometry | None = None, resample: bool = False) -> Labelled:
    """Read a label map or mask in canonical axis order, checked to lie on a grid where one is given.

    Args:
        path: any file that `read_label_map` reads; a DICOM SEG or RTSTRUCT is read onto the grid.
        onto: the canonical grid of the scan, as a rule the reference's.
        resample: bring labels from another grid by nearest neighbour rather than refuse.

    Raises:
        ScanError: it can't be read as labels.
        GeometryError: it lies on another grid and `resample` is off.
    """
    found = read_label_map(path, grid=onto)
    order = found.geometry.canonical_order()
    labels, grid = order.apply(found.labels), found.geometry.reordered(order)
    moved = onto is not None and not grid.is_close(onto)
    if onto is not None and moved:
        if not resample:
            raise GeometryError(
                f"A prediction must lie on the grid of its reference, but {path.name} is {grid} from "
                f"{_origin(grid)} mm and the reference {onto} from {_origin(onto)} mm. "
                "Use --resample to bring it there."
            )
        labels, grid = _resampled(labels, grid, onto), onto
    return Labelled(labels, grid, found.names, _boxes(labels), moved)


def cut(labelled: Labelled, values: Values | None, box: Box) -> Mask:
    """The mask of labels together, or of all there are for None, in a box of the grid."""
    part = labelled.labels[box.slices]
    if values is None:
        return np.asarray(part != 0)
    return np.asarray(part == values[0] if len(values) == 1 else np.isin(part, values))


def box_of(labelled: Labelled, values: Values | None) -> Box | None:
    """Where labels lie, or all there are for None; None where there is none of them."""
    if values is None:
        return around(labelled.boxes.values())
    return around(labelled.boxes[value] for value in values if value in labelled.boxes)


def match_names(reference: Iterable[str], predicted: Iterable[str]) -> dict[str, str]:
    """For each name of the reference the prediction's name for the same thing, where it has one.

    First the very same words, whatever their case and separators; then what the lexicon understands as the
    same ("kidney, left" and "left kidney"), where that is one name on each side.
    """
    theirs, ours = list(reference), list(predicted)
    plain = {_plain(name): name for name in ours}
    matched = {name: plain[_plain(name)] for name in theirs if _plain(name) in plain}
    left_theirs = _by_meaning(name for name in theirs if name not in matched)
    left_ours = _by_meaning(name for name in ours if name not in matched.values())
    for meaning, names in left_theirs.items():
        answers = left_ours.get(meaning, [])
        if len(names) == 1 and len(answers) == 1:
            matched[names[0]] = answers[0]
    return matched


# ---- names ----


def _plain(name: str) -> str:
    return " ".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _by_meaning(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_meaning(name), []).append(name)
    return found


def _meaning(name: str) -> str:
    try:
        return understand(_plain(name)).canonical
    except PromptError:
        return _plain(name)


# ---- files ----


def _collect(folder: Path) -> dict[str, CaseFiles]:
    """The cases of a folder by name; a file that no record explains is taken for a label map."""
    recorded, claimed = _from_records(folder)
    cases = dict(recorded)
    own = folder / DATASET_FILE
    names = read_names(own) if own.is_file() else Names()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path in claimed:
            continue
        if path.is_dir():
            files = _case_folder(path)
            if files is not None:
                cases[path.name] = files
        elif ending_of(path.name) is not None:
            cases.setdefault(_stem(path), CaseFiles(path, names=names))
    return cases


def _case_folder(folder: Path) -> CaseFiles | None:
    """A folder of one case: masks by name, with a record or without."""
    recorded, _ = _from_records(folder)
    if recorded:
        return _joined(recorded.values())
    inner = folder / SEGMENTATIONS
    found = inner if inner.is_dir() else folder
    masks = {_stem(path): path for path in sorted(found.iterdir()) if _is_image(path)}
    return CaseFiles(masks=masks) if masks else None


def _from_records(folder: Path) -> tuple[dict[str, CaseFiles], set[Path]]:
    """Cases that textseg's own records tell of, and the files that those name."""
    cases: dict[str, CaseFiles] = {}
    claimed: set[Path] = set()
    own = folder / COHORT_RECORD
    for path in sorted([*folder.glob(f"*{RECORD_ENDING}"), *([own] if own.is_file() else [])]):
        record = _record(path)
        if record is None:
            continue
        prompts = record["prompts"]
        files = {each["prompt"]: folder / each["file"] for each in prompts if each["file"]}
        one_map = (
            len(set(files.values())) == 1 and len(prompts) > 1 and COMBINED in next(iter(files.values())).name
        )
        found = CaseFiles(
            next(iter(files.values())) if one_map else None,
            {} if one_map else files,
            frozenset(each["prompt"] for each in prompts if not each["found"]),
            {each["prompt"]: float(each["presence"]) for each in prompts},
        )
        scan = _stem(Path(record["scan"]["files"][0])) if record["scan"]["files"] else path.stem
        case = scan.removesuffix(CHANNEL)
        cases[case] = _joined([cases[case], found]) if case in cases else found
        claimed |= set(files.values())
    return cases, claimed


def _record(path: Path) -> dict[str, Any] | None:
    """The content of one of our records; None for a file that is only called like one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    is_ours = isinstance(content, dict) and str(content.get("format", "")).startswith("textseg-record")
    return content if is_ours else None


def _joined(parts: Iterable[CaseFiles]) -> CaseFiles:
    whole = CaseFiles()
    for part in parts:
        whole = CaseFiles(
            part.label_map or whole.label_map,
            {**whole.masks, **part.masks},
            whole.denied | part.denied,
            {**whole.presence, **part.presence},
            part.names if part.names != Names() else whole.names,
        )
    return whole


def _grouped(theirs: dict[str, CaseFiles], ours: Mapping[str, CaseFiles]) -> dict[str, CaseFiles]:
    """References named after scan and prompt, where the prediction's records say what the scans are."""
    scans = [case for case, files in ours.items() if files.masks and case not in theirs]
    grouped: dict[str, CaseFiles] = {}
    for stem, files in theirs.items():
        scan = next((scan for scan in scans if stem.startswith(f"{scan}_") and files.label_map), None)
        if scan is None:
            grouped[stem] = files
        elif files.label_map is not None:
            masks = {**grouped.get(scan, CaseFiles()).masks, _words(stem, scan): files.label_map}
            grouped[scan] = CaseFiles(masks=masks)
    return grouped


def _prediction_of(case: str, ours: Mapping[str, CaseFiles]) -> CaseFiles:
    for name in (case, f"{case}{CHANNEL}", f"{case}{COMBINED}", f"{case}{CHANNEL}{COMBINED}"):
        if name in ours:
            return ours[name]
    masks = {
        _words(stem, case): files.label_map
        for stem, files in ours.items()
        if stem.startswith(f"{case}_") and files.label_map
    }
    return CaseFiles(masks=masks)


def _words(stem: str, case: str) -> str:
    """What a mask is of, by its name without the case."""
    return stem[len(case) + 1 :].removeprefix(f"{CHANNEL[1:]}_").replace("_", " ")


def _with_denied(pairs: list[CasePair]) -> list[CasePair]:
    asked = {words for pair in pairs for words in (*pair.predicted.masks, *pair.predicted.denied)}
    completed = []
    for pair in pairs:
        files = pair.predicted
        if files.label_map is None:
            files = replace(files, denied=frozenset(asked - set(files.masks)))
        completed.append(replace(pair, predicted=files))
    return completed


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and ending_of(path.name) is not None


def _stem(path: Path) -> str:
    ending = ending_of(path.name)
    return path.name[: -len(ending)] if ending else path.name


# ---- voxels ----


def _boxes(labels: NDArray[Any]) -> dict[int, Box]:
    """The box of each label, in one pass; of a label map with huge numbers one label at a time."""
    if int(labels.max(initial=0)) == 1:
        box = bounding_box(labels != 0)
        return {} if box is None else {1: box}
    if int(labels.max(initial=0)) > np.iinfo(np.uint16).max:
        found = {int(value): bounding_box(labels == value) for value in np.unique(labels) if value}
        return {value: box for value, box in found.items() if box is not None}
    objects = ndimage.find_objects(labels)
    return {
        value: Box((x.start, y.start, z.start), (x.stop, y.stop, z.stop))
        for value, found_slices in enumerate(objects, start=1)
        if found_slices is not None
        for x, y, z in (found_slices,)
    }


def _resampled(labels: NDArray[Any], grid: Geometry, onto: Geometry) -> NDArray[Any]:
    # Late: only this needs torch, which takes a second to load.
    import torch

    from textseg.resample import resample

    moved = resample(torch.from_numpy(np.ascontiguousarray(labels)), grid, onto, "nearest")
    return np.asarray(moved.numpy())


def _origin(grid: Geometry) -> str:
    return "(" + ", ".join(f"{mm:.2f}" for mm in grid.affine[:3, 3]) + ")"
