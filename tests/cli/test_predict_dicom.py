"""`textseg predict --format dicom-seg` and `rtstruct`: one DICOM object with the masks of all prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run, Stub
from textseg.scan import read_label_map, read_scan

pytest.importorskip("highdicom", reason="Needs highdicom, of the extra dicom.")
pytest.importorskip("skimage", reason="Needs scikit-image, of the extra dicom.")

KINDS = [("dicom-seg", "seg"), ("rtstruct", "rtstruct")]


@pytest.fixture
def study(write_series: Callable[..., Path]) -> Path:
    return write_series("study", number=4)


@pytest.mark.parametrize(("asked", "ending"), KINDS)
def test_one_file_holds_the_masks_that_single_files_would(
    predict: Run, stub: Stub, out: Path, study: Path, asked: str, ending: str
) -> None:
    stub.presences = [0.9, 0.1]
    result = predict("liver", "left kidney", "--format", asked, scan=study)
    assert result.exit_code == 0, result.output
    path = out / f"study_liver_left_kidney_{ending}.dcm"
    back = read_label_map(path, grid=read_scan(study).geometry)
    assert back.names == {1: "liver"}
    stub.presences = [0.9]
    predict("liver", "--format", "nii.gz", scan=study)
    single = read_label_map(out / "study_liver.nii.gz")
    assert np.array_equal(back.labels, single.labels)
    assert back.labels.any()
    record = json.loads((out / "study_liver_left_kidney_record.json").read_text(encoding="utf-8"))
    assert [prompt["file"] for prompt in record["prompts"]] == [path.name, None]


def test_out_may_name_the_dicom_file(predict: Run, stub: Stub, out: Path, study: Path) -> None:
    result = predict("liver", "spleen", "--format", "dicom-seg", scan=study, out=out / "organs.dcm")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["organs.dcm", "organs_record.json"]
    contradiction = predict("liver", "--format", "rtstruct", scan=study, out=out / "organs.nii.gz")
    assert contradiction.exit_code not in (0, 3)
    assert "must agree" in contradiction.output


@pytest.mark.parametrize(("asked", "_"), KINDS)
def test_a_scan_that_is_not_dicom_is_refused_before_the_work(
    predict: Run, stub: Stub, out: Path, asked: str, _: str
) -> None:
    result = predict("liver", "--format", asked)
    assert result.exit_code not in (0, 3)
    assert "the scan came as nii.gz" in " ".join(result.output.split())
    assert not out.exists()


def test_nothing_found_leaves_no_dicom_file(predict: Run, stub: Stub, out: Path, study: Path) -> None:
    predict("liver", "--format", "dicom-seg", scan=study)
    stub.presences = [0.1]
    assert predict("liver", "--format", "dicom-seg", "--overwrite", scan=study).exit_code == 3
    assert [path.name for path in out.iterdir()] == ["study_liver_record.json"]
