"""Every structure of every case: files in, scores out, one case at a time in each process."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from textseg.errors import DatasetError, PromptError
from textseg.geometry import Box, Geometry
from textseg.prompts import understand
from textseg.scan import derived_kind
from textseg.scores.inputs import (
    BACKGROUND,
    CaseFiles,
    CasePair,
    Labelled,
    Names,
    Values,
    box_of,
    cut,
    match_names,
    open_labels,
)
from textseg.scores.measures import Rules, StructureScore, score_structure
from textseg.scores.overlap import Mask, around

Progress = Callable[[str, int, int], None]

# A box with one voxel, for a structure that neither side has.
NOWHERE = Box((0, 0, 0), (1, 1, 1))


@dataclass(frozen=True)
class Scoring:
    """What holds for every case.

    Args:
        names: what the labels of label maps mean; without them the files' own names, then their numbers.
        rules: how masks are judged.
        lesions: names of structures whose pieces are judged one by one; findings that the lexicon knows as
            such (tumor, lesion, nodule, ...) always are.
        resample: bring predictions to the reference's grid where they lie on another one.
    """

    names: Names = field(default_factory=Names)
    rules: Rules = field(default_factory=Rules)
    lesions: Collection[str] = ()
    resample: bool = False


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case, and what a person should know about them."""

    case: str
    scores: tuple[StructureScore, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Side:
    """Where each structure's label is: a file that is read when it is asked for, or an open label map."""

    files: CaseFiles
    label_map: Labelled | None
    values: Mapping[str, Values]

    @property
    def names(self) -> list[str]:
        return [*self.values, *self.files.masks, *self.files.denied]


def score_pairs(
    pairs: Sequence[CasePair],
    scoring: Scoring,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[CaseScores]:
    """Score cases, several at once; memory is that of one case's label maps times the workers.

    Args:
        pairs: see `find_pairs`.
        scoring: see `Scoring`.
        workers: processes; with 1 everything happens in this one.
        progress: called with a word, how many cases are done and of how many.

    Returns:
        In the order of the pairs.

    Raises:
        ScanError, GeometryError: a file can't be read as labels, or lies on another grid.
        DatasetError: nothing in a case can be scored.
    """
    score = partial(score_pair, scoring=scoring)
    found: dict[str, CaseScores] = {}
    with _mapped(min(workers, len(pairs))) as run:
        for scores in run(score, pairs):
            found[scores.case] = scores
            if progress is not None:
                progress("scoring", len(found), len(pairs))
    return [found[pair.case] for pair in pairs]


def score_pair(pair: CasePair, scoring: Scoring) -> CaseScores:
    """Score every structure that the reference knows and the prediction was asked for."""
    reference = _reference_side(pair, scoring)
    grid = _grid_of(pair, reference)
    predicted = _predicted_side(pair, reference, grid, scoring)
    known = scoring.names.known.get(pair.case)
    complete = scoring.names.complete.get(pair.case)
    named = [name for name in reference.names if known is None or _has(reference, name) or name in known]
    wanted = [name for name in named if complete is None or name in complete]
    partial = [name for name in named if name not in wanted and _has(reference, name)]
    matched = match_names(wanted, predicted.names)
    presence = predicted.files.presence
    ignore = scoring.names.ignore if scoring.names.named else pair.reference.names.ignore
    scores, resampled = [], False
    for name in wanted:
        if name in matched:
            answer = matched[name]
            theirs, ours = _layer(reference, name, grid, scoring), _layer(predicted, answer, grid, scoring)
            resampled |= ours.labelled is not None and ours.labelled.resampled
            box = around(found for layer in (theirs, ours) if (found := layer.box) is not None) or NOWHERE
            scores.append(
                score_structure(
                    pair.case,
                    name,
                    ours.mask(box) & _is_judged(reference, box, ignore),
                    theirs.mask(box),
                    grid,
                    scoring.rules,
                    presence=presence.get(answer, math.nan),
                    lesions=name in scoring.lesions or is_finding(name),
                )
            )
    if not scores:
        raise DatasetError(
            f"A prediction must name structures as its reference does, but in {pair.case} none is the same: "
            f"{_some(predicted.names)} against {_some(wanted)}. Give --names."
        )
    notes = [f"{pair.case}: resampled to the grid of the reference."] if resampled else []
    if partial:
        notes.append(f"{pair.case}: drawn in part in the reference, and so not scored: {_some(partial)}.")
    answered = match_names(named, predicted.names)
    shown = [name for name in predicted.names if _has(predicted, name)]
    return CaseScores(pair.case, tuple(scores), (*notes, *_notes(pair.case, wanted, shown, answered)))


def _is_judged(reference: _Side, box: Box, ignore: int | None) -> Mask:
    """Where somebody has looked."""
    if reference.label_map is None or ignore is None:
        return np.ones(box.shape, np.bool_)
    return ~cut(reference.label_map, (ignore,), box)


def is_finding(name: str) -> bool:
    """Whether a name is one of something that comes in pieces: a tumor, a nodule, a metastasis."""
    try:
        return understand(name).finding is not None
    except PromptError:
        return False


@dataclass(frozen=True, eq=False)
class _Layer:
    """One structure on one side: its label in an open file; no file for one that is known to be empty."""

    labelled: Labelled | None
    values: Values | None

    @property
    def box(self) -> Box | None:
        return None if self.labelled is None else box_of(self.labelled, self.values)

    def mask(self, box: Box) -> Mask:
        if self.labelled is None:
            return np.zeros(box.shape, np.bool_)
        return cut(self.labelled, self.values, box)


def _layer(side: _Side, name: str, grid: Geometry, scoring: Scoring) -> _Layer:
    if name in side.values:
        return _Layer(side.label_map, side.values[name])
    if name in side.files.masks:
        return _Layer(open_labels(side.files.masks[name], onto=grid, resample=scoring.resample), None)
    return _Layer(None, None)


def _reference_side(pair: CasePair, scoring: Scoring) -> _Side:
    files = pair.reference
    if files.label_map is None:
        return _Side(files, None, {})
    # Contours, and frames without the empty ones, lie on the grid of the scan, which the prediction has.
    onto = _grid_of_prediction(pair) if derived_kind(files.label_map) else None
    opened = open_labels(files.label_map, onto=onto)
    names = next((one for one in (scoring.names, files.names) if one.named), Names(opened.names))
    return _Side(files, opened, _values(names, opened))


def _grid_of_prediction(pair: CasePair) -> Geometry | None:
    files = pair.predicted
    paths = [path for path in (files.label_map, *files.masks.values()) if path is not None]
    own = next((path for path in paths if not derived_kind(path)), None)
    return None if own is None else open_labels(own).grid


def _predicted_side(pair: CasePair, reference: _Side, grid: Geometry, scoring: Scoring) -> _Side:
    files = pair.predicted
    if files.label_map is None:
        return _Side(files, None, {})
    opened = open_labels(files.label_map, onto=grid, resample=scoring.resample)
    own = Names(opened.names) if opened.names else files.names
    if own.named:
        return _Side(files, opened, _values(own, opened))
    # Without names of its own a prediction counts as the reference does.
    return _Side(files, opened, {**_values(own, opened, reference.values), **reference.values})


def _values(names: Names, opened: Labelled, taken: Mapping[str, Values] | None = None) -> dict[str, Values]:
    """The numbers of each name and region, and of numbers without one."""
    values: dict[str, Values] = {
        name: (number,) for number, name in names.labels.items() if number and name.lower() not in BACKGROUND
    }
    values |= names.regions
    numbered = {number for each in (*values.values(), *(taken or {}).values()) for number in each}
    unnamed = (number for number in opened.boxes if number not in numbered and number != names.ignore)
    return values | {f"label {number}": (number,) for number in unnamed}


def _grid_of(pair: CasePair, reference: _Side) -> Geometry:
    if reference.label_map is not None:
        return reference.label_map.grid
    return open_labels(next(iter(pair.reference.masks.values()))).grid


def _has(side: _Side, name: str) -> bool:
    if side.label_map is None:
        return name in side.files.masks
    return any(value in side.label_map.boxes for value in side.values.get(name, ()))


def _notes(
    case: str, wanted: Sequence[str], predicted: Sequence[str], matched: Mapping[str, str]
) -> Iterator[str]:
    missing = [name for name in wanted if name not in matched]
    if missing:
        yield f"{case}: not asked of the prediction, and so not scored: {_some(missing)}."
    others = [name for name in predicted if name not in matched.values()]
    if others:
        yield f"{case}: predicted, but not known to the reference, and so not scored: {_some(others)}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "nothing"


@contextmanager
def _mapped(
    workers: int,
) -> Iterator[Callable[[Callable[[CasePair], CaseScores], Sequence[CasePair]], Iterator[CaseScores]]]:
    """A function that maps in this process or in several; what fails stops the rest."""
    if workers <= 1:
        yield lambda score, pairs: map(score, pairs)
        return
    # Not fork, which copies the locks of whatever threads there are.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def run(score: Callable[[CasePair], CaseScores], pairs: Sequence[CasePair]) -> Iterator[CaseScores]:
        jobs = [pool.submit(score, pair) for pair in pairs]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            raise MemoryError("A process that scored a case was killed.") from error

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
