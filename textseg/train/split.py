"""Which cases of a dataset are trained on, and which are held back to choose and to score by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from textseg.dataset import Dataset
from textseg.errors import DatasetError

# What nnU-Net shuffles the cases with before it cuts them into folds.
NNUNET_SEED = 12345


@dataclass(frozen=True)
class CaseSplit:
    """Ids of cases. A case in neither is left out."""

    train: frozenset[str]
    validation: frozenset[str]

    def of(self, dataset: Dataset) -> Dataset:
        """The dataset with the cases that the split names and no others."""
        named = self.train | self.validation
        return replace(dataset, cases=tuple(case for case in dataset.cases if case.id in named))


def every_nth(dataset: Dataset, n: int, patients: str | None = None) -> CaseSplit:
    """Every n-th case in the order of the ids is held back; of fewer than n cases none is.

    Args:
        patients: a regular expression that finds the patient in a case's id ("STS_[0-9]+"): then every n-th
            patient is held back, with all of their cases.

    Raises:
        DatasetError: n is below 2, or `patients` is no regular expression.
    """
    if n < 2:
        raise DatasetError(f"Holding back every n-th case needs an n of at least 2, got {n}.")
    return _without(dataset, _patients(dataset, patients)[n - 1 :: n], patients)


def fold_of(dataset: Dataset, fold: int, folds: int = 5, patients: str | None = None) -> CaseSplit:
    """One fold of a cross-validation: with five of them, just the folds that nnU-Net makes.

    Args:
        fold: 0 to folds - 1.
        patients: as for `every_nth`; the folds are then made of patients.

    Raises:
        DatasetError: there is no such fold, or there are more folds than cases.
    """
    names = _patients(dataset, patients)
    if not 2 <= folds <= len(names):
        raise DatasetError(f"{len(names)} cases make 2 to {len(names)} folds, got {folds}.")
    if not 0 <= fold < folds:
        raise DatasetError(f"A fold is numbered from 0 to {folds - 1}, got {fold}.")
    # scikit-learn's KFold as nnU-Net calls it (generate_crossval_split): the generator is part of the result.
    order = np.arange(len(names))
    np.random.RandomState(NNUNET_SEED).shuffle(order)
    return _without(dataset, [names[i] for i in np.array_split(order, folds)[fold]], patients)


def read_split(path: Path, dataset: Dataset, fold: int = 0) -> CaseSplit:
    """The split in a JSON file: {"validation": [ids]}, or nnU-Net's splits_final.json.

    With "train" beside it, cases in neither list are left out; without it all others are trained on.

    Args:
        fold: which entry of nnU-Net's list.

    Raises:
        DatasetError: the file can't be read or names cases that the dataset lacks, or one case twice.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"A split is a JSON file that can be read, but {path} is not: {error}.") from error
    if isinstance(document, list):
        if not 0 <= fold < len(document):
            raise DatasetError(f"{path} has folds 0 to {len(document) - 1}, got {fold}.")
        document = document[fold]
    lists = document if isinstance(document, dict) else {}
    validation = _ids(lists, ("validation", "val"), path)
    if validation is None:
        raise DatasetError(f'A split lists its "validation" cases, but {path} does not.')
    everyone = frozenset(case.id for case in dataset.cases if case.whole)
    train = _ids(lists, ("train",), path)
    split = CaseSplit(everyone - validation if train is None else train, validation)
    unknown = sorted((split.train | split.validation) - everyone)
    if unknown:
        raise DatasetError(
            f"A split names cases of its dataset, but {dataset.name} has no {_listed(unknown)}, "
            f"which {path} names."
        )
    if split.train & split.validation:
        both = _listed(sorted(split.train & split.validation))
        raise DatasetError(f"A case is trained on or held back, but in {path} both hold for {both}.")
    return _with_something_to_train(split)


def choose_split(
    dataset: Dataset,
    *,
    hold_back: int = 5,
    fold: int | None = None,
    folds: int = 5,
    file: Path | None = None,
    patients: str | None = None,
) -> CaseSplit:
    """The split of a file, else of a fold, else of every `hold_back`-th case.

    Raises:
        DatasetError: see `read_split`, `fold_of` and `every_nth`.
    """
    if file is not None:
        return read_split(file, dataset, fold or 0)
    if fold is not None:
        return fold_of(dataset, fold, folds, patients)
    return every_nth(dataset, hold_back, patients)


def _patients(dataset: Dataset, pattern: str | None) -> list[str]:
    return sorted({_patient(case.id, pattern) for case in dataset.cases if case.whole})


def _patient(case: str, pattern: str | None) -> str:
    if pattern is None:
        return case
    try:
        found = re.search(pattern, case)
    except re.error as error:
        raise DatasetError(
            f"Patients are found by a regular expression such as STS_[0-9]+, got {pattern!r}: {error}."
        ) from error
    return found.group() if found else case


def _without(dataset: Dataset, held_back: Iterable[str], patients: str | None) -> CaseSplit:
    away = frozenset(held_back)
    sides: dict[bool, list[str]] = {True: [], False: []}
    for case in dataset.cases:
        if case.whole:
            sides[_patient(case.id, patients) in away].append(case.id)
    return _with_something_to_train(CaseSplit(frozenset(sides[False]), frozenset(sides[True])))


def _with_something_to_train(split: CaseSplit) -> CaseSplit:
    if not split.train:
        raise DatasetError(
            f"Training needs a case, but all {len(split.validation)} are held back. Hold back fewer."
        )
    return split


def _ids(lists: Mapping[str, Any], keys: Sequence[str], path: Path) -> frozenset[str] | None:
    listed = next((lists[key] for key in keys if key in lists), None)
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise DatasetError(f'"{keys[0]}" in {path} is a list of the ids of cases, got {listed!r}.')
    return frozenset(listed)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
