"""The command line with a VoxTell folder: predict, models show, convert."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.voxtell.tiny_folder import Tiny, write_folder
from textseg.scan import read_label_map


@pytest.fixture(scope="session")
def voxtell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "voxtell_v1.1", Tiny())


def test_predict_takes_a_voxtell_folder_and_says_what_it_asked(
    predict: Run, voxtell: Path, out: Path
) -> None:
    result = predict("Liver", "lt. kidney", "--write-empty", model=voxtell)
    assert result.exit_code in (0, 3), result.output
    assert result.stderr.splitlines() == [
        "Note: 'lt. kidney' is asked as 'left kidney', which this model knows."
    ]
    record = json.loads((out / "scan_liver_lt_kidney_record.json").read_text(encoding="utf-8"))
    assert record["model"]["name"] == "voxtell_v1.1"
    assert record["model"]["licence"] == "CC BY-NC-SA"
    assert (out / "scan_liver.nii.gz").is_file()


def test_a_prompt_that_has_no_vector_is_bad_input(predict: Run, voxtell: Path, out: Path) -> None:
    result = predict("left kidneys of some size", model=voxtell)
    assert result.exit_code == 2
    assert 'Try "left kidney"' in result.stderr
    assert not out.exists() or not any(out.iterdir())


def test_a_converted_folder_gives_the_same_files(
    textseg: Run, predict: Run, voxtell: Path, out: Path, tmp_path: Path
) -> None:
    result = textseg("convert", voxtell, tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert "network.safetensors" in result.stdout
    assert "CC BY-NC-SA" in result.stdout
    predict("liver", "--write-empty", model=voxtell)
    predict("liver", "--write-empty", model=tmp_path / "small", out=tmp_path / "again")
    before, after = (read_label_map(path / "scan_liver.nii.gz").labels for path in (out, tmp_path / "again"))
    assert before.any()
    assert np.array_equal(before, after)
    assert textseg("convert", voxtell, tmp_path / "small").exit_code == 2
    assert textseg("convert", voxtell, tmp_path / "small", "--overwrite").exit_code == 0


def test_our_own_models_are_not_converted(textseg: Run, tiny_model: Path, tmp_path: Path) -> None:
    result = textseg("convert", tiny_model, tmp_path / "small")
    assert result.exit_code == 2
    assert "is a model of textseg" in result.stderr


def test_show_tells_licence_and_bank(textseg: Run, voxtell: Path) -> None:
    shown = textseg("models", "show", voxtell).stdout
    assert "CC BY-NC-SA" in shown
    assert "16 × 24 × 16 voxels" in shown
    assert "5 with ready text vectors" in shown
    assert (
        "  a small cyst in the right kidney"
        in textseg("models", "show", voxtell, "--structures").stdout.splitlines()
    )
