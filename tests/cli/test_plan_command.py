"""`textseg plan`: check a dataset, plan for it, show the plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.dataset.small_dataset import image, save, write_label_maps, write_small_dataset
from textseg.models import plans_folder
from textseg.plan import read_plan


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_small_dataset(tmp_path / "Dataset007_Kidney")


def test_check_lists_all_problems_and_fails(textseg: Run, dataset: Path) -> None:
    voxels = image(3).astype(np.float32)
    voxels[2, 3, 4] = np.nan
    save(voxels, dataset / "imagesTr" / "a_0000.nii.gz")
    (dataset / "labelsTr" / "b.nii.gz").unlink()
    result = textseg("plan", "check", dataset, "--workers", 1)
    assert result.exit_code == 2
    for words in ("NaN", "missing label map", "number of cases"):
        assert words in result.stdout
    assert "Dataset007_Kidney: 3 cases, 4 labels, CT: 2 errors, 1 warning" in result.stdout


def test_check_of_a_good_dataset_succeeds(textseg: Run, dataset: Path) -> None:
    result = textseg("plan", "check", dataset, "--workers", 1)
    assert (result.exit_code, "0 errors, 0 warnings" in result.stdout) == (0, True)


def test_check_of_label_maps(textseg: Run, tmp_path: Path) -> None:
    result = textseg("plan", "check", write_label_maps(tmp_path / "maps"), "--workers", 1)
    assert result.exit_code == 0
    assert "label maps without images" in result.stdout


def test_a_folder_that_is_no_dataset_is_one_sentence(textseg: Run, tmp_path: Path) -> None:
    result = textseg("plan", tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "dataset.json" in result.stderr


def test_a_faulty_dataset_is_not_planned(textseg: Run, dataset: Path, tmp_path: Path) -> None:
    (dataset / "labelsTr" / "b.nii.gz").unlink()
    result = textseg("plan", dataset, "-o", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 2
    assert "missing label map" in result.stdout
    assert "this one has 1 error" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_size_of_memory_is_told_before_anything_is_read(textseg: Run, tmp_path: Path) -> None:
    result = textseg("plan", tmp_path / "nowhere", "--memory", "lots")
    assert result.exit_code == 2
    assert "a number and a unit" in result.stderr


def test_plan_writes_a_plan_and_says_why(textseg: Run, dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="Needs the extra textseg[train].")
    out = tmp_path / "out"
    options = ("--memory", "2GB", "-o", out, "--workers", 1, "--device", "cpu")
    result = textseg("plan", dataset, *options)
    assert result.exit_code == 0, result.output
    plan = read_plan(out)
    assert plan.name == "dataset007_kidney"
    assert list(plan.intensity) == ["ct"]
    assert sorted(path.name for path in out.iterdir()) == ["fingerprint.json", "plan.json", "planning.json"]
    for words in ("kidney tumor", "Intensities inside labels", "The median of 3 cases", "of 2.00 GB"):
        assert words in result.stdout

    again = textseg("plan", "make", dataset, *options)
    assert again.exit_code == 2
    assert "already holds plan.json" in again.stderr
    replaced = textseg("plan", "make", dataset, *options, "--overwrite")
    assert replaced.exit_code == 0
    assert "it is used again" in replaced.stderr

    shown = textseg("plan", "show", out / "plan.json")
    assert shown.exit_code == 0
    assert "The median of 3 cases" in shown.stdout
    assert "Smallest (ml)" in shown.stdout


def test_measured_memory_stands_beside_the_estimate(
    textseg: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nnunetv2", reason="Needs the extra textseg[train].")
    monkeypatch.setattr("textseg.train.memory.measure_training_memory", lambda plan, device: 21 * 10**8)
    out = tmp_path / "out"
    result = textseg("plan", dataset, "-o", out, "--memory", "2GB", "--workers", 1, "--measure")
    assert result.exit_code == 0, result.output
    assert "2.10 GB of 2.00 GB" in result.stdout
    assert "over the budget" in result.stdout
    assert "plan for a little less" in result.stderr
    assert json.loads((out / "planning.json").read_text(encoding="utf-8"))["measured_bytes"] == 21 * 10**8


@pytest.mark.slow
def test_plan_measures_a_real_step(textseg: Run, dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="Needs the extra textseg[train].")
    out = tmp_path / "out"
    options = ("--memory", "1GB", "--width", 8, "--workers", 1, "--device", "cpu", "--measure")
    result = textseg("plan", dataset, "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert read_plan(out).network.width == 8
    assert "8 was asked for" in " ".join(result.stdout.split())
    assert "memory, measured" in result.stdout
    document = json.loads((out / "planning.json").read_text(encoding="utf-8"))
    assert 0.3 * document["estimated_bytes"] < document["measured_bytes"] < 2 * document["estimated_bytes"]


@pytest.mark.parametrize("width", [12, 40])
def test_a_wrong_width_is_told_before_anything_is_read(textseg: Run, tmp_path: Path, width: int) -> None:
    result = textseg("plan", tmp_path / "nowhere", "--width", width)
    assert result.exit_code == 2
    assert "nowhere" not in result.stderr
    assert "32" in result.stderr


def test_a_wrong_spacing_is_told_before_the_dataset_is_read(textseg: Run, tmp_path: Path) -> None:
    result = textseg("plan", tmp_path / "nowhere", "--spacing", "3mm")
    assert result.exit_code == 2
    assert "nowhere" not in result.stderr
    assert "such as 3 or 1,1,5, got '3mm'" in " ".join(result.stderr.split())


def test_show_of_a_plan_written_by_hand(textseg: Run) -> None:
    result = textseg("plan", "show", plans_folder() / "default")
    assert result.exit_code == 0
    assert "hippocampus 1 × 1 × 1" in result.stdout
    assert "Reasons" not in result.stdout


def test_help_names_the_commands(textseg: Run) -> None:
    result = textseg("plan", "--help")
    assert result.exit_code == 0
    for command in ("make", "show", "check"):
        assert command in result.stdout
    assert "--memory" in textseg("plan", "make", "--help").stdout
