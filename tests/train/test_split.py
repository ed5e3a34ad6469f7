"""Which cases are held back: every n-th, a fold, a file; and a patient's cases together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textseg.dataset import Dataset, DatasetCase
from textseg.errors import DatasetError
from textseg.train.split import CaseSplit, choose_split, every_nth, fold_of, read_split


def dataset_of(*ids: str) -> Dataset:
    cases = tuple(DatasetCase(name, (), Path(f"{name}.nii.gz"), {"liver": (1,)}) for name in sorted(ids))
    return Dataset("set", Path("set"), "labelmaps", (), {}, cases)


ELEVEN = dataset_of(*(f"case{i:02d}" for i in range(11)))
SARCOMAS = dataset_of(*(f"STS_{i:03d}_{kind}" for i in range(4) for kind in ("CT", "MR", "PET")))


def test_every_nth_case_is_held_back() -> None:
    split = every_nth(ELEVEN, 5)
    assert split.validation == {"case04", "case09"}
    assert len(split.train) == 9
    assert every_nth(ELEVEN, 12).validation == set()


@pytest.mark.parametrize(
    "choose", [lambda: every_nth(SARCOMAS, 2, r"STS_\d+"), lambda: fold_of(SARCOMAS, 1, 2, r"STS_\d+")]
)
def test_a_patients_cases_stay_together(choose) -> None:
    split = choose()
    patients = [{name[:7] for name in side} for side in (split.train, split.validation)]
    assert not patients[0] & patients[1]
    assert len(split.validation) == 6


def test_folds_cover_every_case_once_and_are_those_of_nnunet() -> None:
    folds = [fold_of(ELEVEN, k) for k in range(5)]
    assert sorted(name for fold in folds for name in fold.validation) == [case.id for case in ELEVEN.cases]
    assert all(fold.train == {case.id for case in ELEVEN.cases} - fold.validation for fold in folds)
    selection = pytest.importorskip("sklearn.model_selection")
    names = [case.id for case in ELEVEN.cases]
    theirs = selection.KFold(n_splits=5, shuffle=True, random_state=12345).split(names)
    assert [fold.validation for fold in folds] == [{names[i] for i in held_back} for _, held_back in theirs]


def test_a_file_lists_the_cases_that_are_held_back(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"validation": ["case01"]}), encoding="utf-8")
    split = read_split(path, ELEVEN)
    assert split.validation == {"case01"}
    assert len(split.train) == 10


def test_a_fold_of_nnunets_file_leaves_out_what_it_does_not_list(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    folds = [{"train": ["case00"], "val": ["case01"]}, {"train": ["case02", "case03"], "val": ["case04"]}]
    path.write_text(json.dumps(folds), encoding="utf-8")
    split = choose_split(ELEVEN, fold=1, file=path)
    assert split == CaseSplit(frozenset({"case02", "case03"}), frozenset({"case04"}))
    assert [case.id for case in split.of(ELEVEN).cases] == ["case02", "case03", "case04"]
    with pytest.raises(DatasetError, match="folds 0 to 1"):
        choose_split(ELEVEN, fold=2, file=path)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"validation": ["nobody"]}, "has no nobody"),
        ({"validation": ["case01"], "train": ["case01"]}, "both hold for case01"),
        ({"validation": [f"case{i:02d}" for i in range(11)]}, "all 11 are held back"),
        ({"validation": "case01"}, "a list of the ids"),
        ({"train": ["case01"]}, 'lists its "validation"'),
        ("case01", 'lists its "validation"'),
        (7, 'lists its "validation"'),
    ],
)
def test_a_file_that_is_no_split_of_the_dataset_is_refused(tmp_path: Path, document, words) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DatasetError, match=words):
        read_split(path, ELEVEN)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="can be read"):
        read_split(tmp_path / "none.json", ELEVEN)
    (tmp_path / "text.json").write_text("case01", encoding="utf-8")
    with pytest.raises(DatasetError, match="can be read"):
        read_split(tmp_path / "text.json", ELEVEN)


def test_folds_and_patterns_that_can_not_be_are_refused() -> None:
    with pytest.raises(DatasetError, match="numbered from 0 to 4"):
        fold_of(ELEVEN, 5)
    with pytest.raises(DatasetError, match="2 to 11 folds"):
        fold_of(ELEVEN, 0, 12)
    with pytest.raises(DatasetError, match="at least 2"):
        every_nth(ELEVEN, 1)
    with pytest.raises(DatasetError, match="regular expression"):
        every_nth(ELEVEN, 2, "STS_(")
