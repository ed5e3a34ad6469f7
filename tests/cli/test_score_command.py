"""`textseg score`: two folders in, tables and files out."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.cli.conftest import AFFINE, BOX, Run


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases with a liver, and a tumor in one of them; the prediction is a voxel off along y."""
    predicted, reference = tmp_path / "mine", tmp_path / "truth"
    for folder in (predicted, reference):
        folder.mkdir()
    for case in ("a", "b"):
        labels = np.zeros((26, 32, 22), np.uint8)
        labels[BOX] = 1
        if case == "a":
            labels[8:11, 16:19, 10:13] = 2
        nib.save(nib.Nifti1Image(labels, AFFINE), reference / f"{case}.nii.gz")
        nib.save(nib.Nifti1Image(np.roll(labels, 1, axis=1), AFFINE), predicted / f"{case}.nii.gz")
    names = {"labels": {"background": 0, "liver": 1, "liver tumor": 2}}
    (reference / "dataset.json").write_text(json.dumps(names), encoding="utf-8")
    return predicted, reference


def test_folders_are_scored_and_a_report_is_written(
    textseg: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    result = textseg("score", *folders, "-o", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    (liver,) = [
        line for line in result.stdout.splitlines() if line.split()[:1] == ["liver"] and "2/2" in line
    ]
    assert "2.5" in liver
    assert "Lesions" in result.stdout
    assert "Written to" in result.stdout
    document = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert document["systems"]["mine"]["structures"]["liver tumor"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert document["rules"]["tolerance_mm"] == 2.0
    again = textseg("score", *folders, "-o", tmp_path / "out", "--workers", 1)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


def test_two_systems_are_ranked(textseg: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    predicted, reference = folders
    result = textseg("score", reference, reference, "--against", predicted, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "Ranking" in result.stdout
    assert "truth against others" in result.stdout
    twice = textseg("score", predicted, reference, "--against", predicted)
    assert twice.exit_code == 2
    assert "must differ" in twice.stderr


def test_a_challenge_brings_its_own_rules(textseg: Run, folders: tuple[Path, Path]) -> None:
    result = textseg("score", *folders, "--challenge", "cvpr", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "Challenge cvpr" in result.stdout
    assert "DSC_TP" in result.stdout


def test_a_challenge_is_not_bent_by_a_tolerance(textseg: Run, folders: tuple[Path, Path]) -> None:
    bent = textseg("score", *folders, "--challenge", "cvpr", "--tolerance", 5, "--workers", 1)
    assert bent.exit_code == 2
    assert "cvpr judges surfaces at 2 mm" in bent.stderr
    same = textseg("score", *folders, "--challenge", "cvpr", "--tolerance", 2, "--workers", 1, "--quiet")
    assert same.exit_code == 0


def test_further_tolerances_stand_beside_the_first(
    textseg: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    tolerances = ("--tolerance", 1, "--tolerance", 3)
    result = textseg("score", *folders, *tolerances, "-o", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "NSD at 3 mm" in result.stdout
    document = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    liver = document["systems"]["mine"]["structures"]["liver"]
    # Shifted by one voxel of 2.5 mm: the sides that face the shift are that far away, the others are not.
    assert liver["nsd"]["mean"] < 0.9
    assert liver["nsd_3mm"]["mean"] == 1
    assert document["rules"]["further_mm"] == [3.0]
    scores = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8")
    assert scores.splitlines()[0].endswith(",nsd_3mm")
    assert "nsd_at" not in scores
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Further tolerances" in report


def test_another_grid_is_refused_in_one_line(
    textseg: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(np.ones((26, 32, 22), np.uint8), moved), tmp_path / "mine" / "b.nii.gz")
    result = textseg("score", *folders, "--workers", 1)
    assert result.exit_code == 2
    assert "b.nii.gz is" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    resampled = textseg("score", *folders, "--workers", 1, "--resample")
    assert resampled.exit_code == 0
    assert "Note: mine: b: resampled to the grid of the reference." in resampled.stderr


def test_labels_that_are_drawn_in_part_are_left_out(textseg: Run, folders: tuple[Path, Path]) -> None:
    predicted, reference = folders
    annotated = {"a": {"complete": ["liver"], "partial": ["liver tumor"]}}
    (reference / "annotated.json").write_text(json.dumps(annotated), encoding="utf-8")
    for pair in (folders, (predicted / "a.nii.gz", reference / "a.nii.gz")):
        result = textseg("score", *pair, "--workers", 1)
        assert result.exit_code == 0, result.output
        assert "a: drawn in part in the reference, and so not scored: liver tumor." in result.stderr
    assert "liver tumor" not in result.stdout  # of the one case alone


def test_quiet_says_nothing(textseg: Run, folders: tuple[Path, Path]) -> None:
    result = textseg("score", *folders, "--quiet", "--workers", 1)
    assert (result.exit_code, result.output) == (0, "")


def test_what_predict_writes_can_be_scored(
    predict: Run, textseg: Run, stub: object, scan_voxels: np.ndarray, out: Path, tmp_path: Path
) -> None:
    stub.presences = [0.9, 0.1]  # type: ignore[attr-defined]
    assert predict("liver", "spleen").exit_code == 0
    labels = np.where(scan_voxels == 900, 4, 0).astype(np.uint8)
    (tmp_path / "truth").mkdir()
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "truth" / "scan.nii.gz")
    (tmp_path / "names.json").write_text('{"liver": 4, "spleen": 7}', encoding="utf-8")
    names = ("--names", tmp_path / "names.json")
    result = textseg("score", out, tmp_path / "truth", *names, "-o", tmp_path / "scores", "--workers", 1)
    assert result.exit_code == 0, result.output
    presence = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))["systems"][
        "out"
    ]["presence"]
    assert (presence["found"], presence["denied"], presence["auroc"]) == (1, 1, 1.0)
    assert (tmp_path / "scores" / "calibration.png").is_file()
