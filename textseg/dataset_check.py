"""Everything that is wrong with a dataset, all at once, before anything long starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from textseg.dataset import PROMPTS_FILE, Dataset, DatasetCase, Label, meant_component
from textseg.errors import DatasetError, PromptError, TextsegError
from textseg.geometry import Geometry
from textseg.prompts import Lexicon, default_lexicon, understand
from textseg.scan import LabelMap, read_label_map, read_scan

Progress = Callable[[str, int, int], None]
Severity = Literal["error", "warning"]
Result = TypeVar("Result")

# nnU-Net's own check and ITK's let grids differ by rounding; a tenth of a millimetre is far below any voxel.
GRIDS_AGREE_MM = 0.1

# What a reader's sentence says, and the kind of problem that it is.
REFUSED = {
    "are NaN": "NaN",
    "are infinite": "infinite",
    "every voxel": "empty image",
    "whole numbers": "not labels",
    "Labels must be": "not labels",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    `error` stops what would come next; `warning` is unusual and may be meant. `case` is an id, or "" for the
    whole dataset; `kind` is a short name that stays the same, such as "missing image".
    """

    severity: Severity
    case: str
    kind: str
    message: str


def check_dataset(
    dataset: Dataset,
    workers: int = 1,
    progress: Progress = lambda stage, done, of: None,
    lexicon: Lexicon | None = None,
) -> list[Problem]:
    """All problems of a dataset, those of the whole first, then by case; every voxel is read.

    Args:
        workers: processes. More than one need a script to begin with `if __name__ == "__main__":`.
        progress: called with the stage, how many cases are done, and of how many.
        lexicon: against which the words of prompts.json are read; ours by default.
    """
    problems = [*_of_folder(dataset), *_of_prompts(dataset, lexicon or default_lexicon())]
    jobs = [(case, dataset.ignore) for case in dataset.cases]
    seen: set[str] = set()
    for found, present in in_processes(check_case, jobs, workers, "checking", progress):
        problems += found
        seen |= present
    for name in dataset.labels.keys() - seen if dataset.cases else ():
        problems.append(
            Problem("warning", "", "label in no case", f"No case shows {name!r}, so it can't be learnt.")
        )
    return sorted(problems, key=lambda problem: (problem.case, problem.severity, problem.kind))


def refuse_errors(problems: Sequence[Problem]) -> None:
    """Go on only without errors.

    Raises:
        DatasetError: there are some; it says how many and the first.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        first = f"{errors[0].case}: {errors[0].message}" if errors[0].case else errors[0].message
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise DatasetError(
            f"A dataset must be without errors, but this one has {count}, the first: {first.rstrip('.')}. "
            "`textseg plan check` lists all."
        )


def in_processes(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    stage: str,
    progress: Progress = lambda stage, done, of: None,
) -> list[Result]:
    """function(*job) for every job, in the jobs' order, in several processes or, for one worker, in this one.

    Raises:
        DatasetError: a process was killed, mostly for want of memory.
    """
    progress(stage, 0, len(jobs))
    if workers <= 1 or len(jobs) <= 1:
        results = []
        for job in jobs:
            results.append(function(*job))
            progress(stage, len(results), len(jobs))
        return results
    # A fork of a process in which torch or another library has started threads may hang.
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(stage, done, len(jobs))
        except BrokenProcessPool as error:
            raise DatasetError(
                f"{stage.capitalize()} needs its {workers} processes, but one was killed. "
                "Is the memory too small? Try fewer --workers."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def check_case(case: DatasetCase, ignore: int | None) -> tuple[list[Problem], frozenset[str]]:
    """The problems of one case's files, and which labels it shows."""
    problems: list[Problem] = []

    def error(kind: str, message: str) -> None:
        problems.append(Problem("error", case.id, kind, message))

    for number, path in enumerate(case.images):
        if path is None:
            error("missing image", f"The image of channel {number} is missing.")
    grids: list[tuple[str, Geometry]] = []
    for path in case.images:
        if path is not None:
            try:
                # Not all channels at once: each may be wrong in its own way.
                grids.append((path.name, read_scan(path).geometry))
            except TextsegError as problem:
                error(_kind_of(problem), str(problem))
    if case.labels is None:
        error("missing label map", "There is an image but no label map.")
        return [*problems, *_of_grids(case.id, grids)], frozenset()
    try:
        labels = read_label_map(case.labels)
    except TextsegError as problem:
        error(_kind_of(problem), str(problem))
        return [*problems, *_of_grids(case.id, grids)], frozenset()
    grids.append((f"its label map {labels.file.paths[0].name}", labels.geometry))
    found, present = _of_labels(case, labels, ignore)
    return [*problems, *_of_grids(case.id, grids), *found], present


# ---- the folder ----


def _of_folder(dataset: Dataset) -> Iterable[Problem]:
    if not dataset.cases:
        yield Problem(
            "error", "", "no cases", f"{dataset.folder} holds no case. Have the files another ending?"
        )
    if not dataset.labels:
        yield Problem("error", "", "no labels", "There is no label but the background.")
    for path in dataset.strangers:
        where = path.relative_to(dataset.folder)
        yield Problem("warning", "", "extra file", f"{where} belongs to no case. Check its name and ending.")
    count = len([case for case in dataset.cases if case.whole])
    if dataset.case_count not in (None, count):
        message = f"numTraining says {dataset.case_count}, there are {count} whole cases."
        yield Problem("warning", "", "number of cases", message)
    yield from _of_values(dataset)
    for label in dataset.labels.values():
        if label.words_from == "name":
            message = f"The lexicon does not know {label.name!r}; say in {PROMPTS_FILE} which words mean it."
            yield Problem("warning", "", "unknown words", message)


def _of_values(dataset: Dataset) -> Iterable[Problem]:
    """Labels of one value each that have the same one: one of them would never be learnt."""
    for values in {id(case.values): case.values for case in dataset.cases}.values():
        names: dict[int, list[str]] = {}
        for name, (first, *others) in values.items():
            if not others:
                names.setdefault(first, []).append(name)
        for value, same in names.items():
            if len(same) > 1:
                yield Problem("error", "", "same value", f"{' and '.join(same)} have the same value {value}.")


def _of_prompts(dataset: Dataset, lexicon: Lexicon) -> Iterable[Problem]:
    for name in dataset.file_prompts.labels.keys() - dataset.labels.keys():
        yield Problem("error", "", "prompts", f"{PROMPTS_FILE} names the label {name!r}, which is not there.")
    cases = {case.id: case for case in dataset.cases}
    for name, sentences in dataset.file_prompts.cases.items():
        if name not in cases:
            yield Problem("error", name, "prompts", f"{PROMPTS_FILE} names this case, which is not there.")
            continue
        for sentence in sentences:
            label = dataset.labels.get(sentence.label)
            if label is None or sentence.label not in cases[name].values:
                message = f"{sentence.text!r} means the label {sentence.label!r}, which is not there."
                yield Problem("error", name, "prompts", message)
            else:
                yield from _of_words(name, sentence.text, label, lexicon)
    for label in dataset.labels.values():
        if label.words_from == "prompts.json":
            for words in label.words:
                yield from _of_words("", words, label, lexicon)


def _of_words(case: str, words: str, label: Label, lexicon: Lexicon) -> Iterable[Problem]:
    """Words that are no prompt, and words that say another side than the label's own name."""
    try:
        said = understand(words, lexicon).side
    except PromptError as error:
        yield Problem("error", case, "prompts", f"{words!r} for {label.name!r}: {error}")
        return
    try:
        meant = understand(label.name.replace("_", " "), lexicon).side
    except PromptError:
        return
    if said is not None and meant is not None and said != meant:
        message = f"{words!r} says {said}, but it stands for {label.name!r}."
        yield Problem("error", case, "wrong side", message)


# ---- one case ----


def _kind_of(error: TextsegError) -> str:
    """A short name for what a reader refused."""
    words = str(error)
    kinds = {
        "NaN": "NaN",
        "infinite": "infinite",
        "every voxel": "empty image",
        "whole numbers": "not labels",
    }
    return next((kind for part, kind in kinds.items() if part in words), "unreadable")


def _of_grids(case: str, grids: Sequence[tuple[str, Geometry]]) -> Iterable[Problem]:
    """Whether all files of a case lie on the grid of the first."""
    if not grids:
        return
    first_name, first = grids[0]
    for name, grid in grids[1:]:
        if grid.shape != first.shape:
            message = f"{first_name} has {_size(first)} voxels, {name} has {_size(grid)}."
            yield Problem("error", case, "shapes differ", message)
            continue
        apart = float(np.abs(grid.corners_mm() - first.corners_mm()).max())
        if apart > GRIDS_AGREE_MM:
            turned = "" if grid.orientation == first.orientation else _turned(first, grid)
            message = f"{first_name} and {name} lie up to {_mm(apart)} apart in the world{turned}."
            yield Problem("error", case, "affines differ", message)


def _of_labels(
    case: DatasetCase, labels: LabelMap, ignore: int | None
) -> tuple[list[Problem], frozenset[str]]:
    problems: list[Problem] = []
    counts = np.bincount(labels.labels.ravel()) if labels.labels.max() < 2**20 else None
    present = set(np.unique(labels.labels).tolist() if counts is None else np.flatnonzero(counts).tolist())
    known = {0, ignore} | {value for values in case.values.values() for value in values}
    unknown = sorted(value for value in present if value not in known)
    if unknown:
        listed = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
        message = f"The label map holds {listed}, which its JSON file does not name."
        # Label maps alone are for synthesis, to which tissues without a name are welcome.
        severity: Severity = "error" if case.images else "warning"
        problems.append(Problem(severity, case.id, "unknown label", message))
    if present <= {0, ignore}:
        message = "The label map is empty. Is nothing there, or was it not drawn?"
        problems.append(Problem("warning", case.id, "empty labels", message))
    problems += _of_components(case, labels)
    return problems, frozenset(name for name, values in case.values.items() if present & set(values))


def _of_components(case: DatasetCase, labels: LabelMap) -> Iterable[Problem]:
    for sentence in case.sentences:
        values = case.values.get(sentence.label)
        if values is None:
            continue  # told by _of_prompts
        mask: NDArray[np.bool_] = np.isin(labels.labels, values)
        if not mask.any():
            message = f"{sentence.text!r} means {sentence.label!r}, which this case does not show."
            yield Problem("error", case.id, "prompts", message)
        elif sentence.component is not None:
            try:
                meant_component(mask, labels.geometry, sentence.component)
            except DatasetError as error:
                yield Problem("error", case.id, "prompts", f"{sentence.text!r}: {error}")


def _turned(first: Geometry, other: Geometry) -> str:
    return f"; their axes run {first.orientation} and {other.orientation}"


def _size(grid: Geometry) -> str:
    return " × ".join(map(str, grid.shape))


def _mm(length: float) -> str:
    return f"{length:.{max(0, 1 - math.floor(math.log10(length)))}f} mm"
