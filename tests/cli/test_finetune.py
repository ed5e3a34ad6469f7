"""`textseg finetune`: from a dataset to a model that predicts its labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Stub
from tests.train.test_labelled import write_dataset
from textseg.models import ModelFolder
from textseg.network.weights import NETWORK_FILE


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take longer to start than these cases to prepare."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder: Path = write_dataset(tmp_path / "set", cases=("a", "b", "c"))
    return folder


@pytest.mark.parametrize("what", ["everything", "decoder", "lora"])
def test_finetune_leaves_a_model_that_predicts(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path, scan: Path, stub: Stub, what: str
) -> None:
    new = tmp_path / "new"
    options = ("--from", tiny_model, "-o", new, "--steps", "2", "--what", what, "--hold-back", "3")
    result = textseg("finetune", dataset, *options, "--device", "cpu", "--rehearse", "0.2")
    assert result.exit_code == 0, result.output
    assert "Step 2 of 2" in result.stdout
    assert (new / NETWORK_FILE).read_bytes() != (tiny_model / NETWORK_FILE).read_bytes()
    card = (new / "card.md").read_text(encoding="utf-8")
    assert "| left kidney |" in card
    assert "| odd thing |" in card
    assert textseg("predict", scan, "odd thing", "--model", new, "-o", tmp_path).exit_code == 0


def test_finetune_goes_on_where_it_stopped(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path
) -> None:
    options = ("--from", tiny_model, "-o", tmp_path / "new", "--steps", "2", "--device", "cpu")
    first = textseg("finetune", dataset, *options, "--minutes", "0")
    assert "Step 1 of 2" in first.stdout, first.output
    second = textseg("finetune", dataset, *options)
    assert "Step 2 of 2" in second.stdout, second.output


def test_a_run_of_another_recipe_is_not_gone_on_with(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path
) -> None:
    options = ("--from", tiny_model, "-o", tmp_path / "new", "--device", "cpu", "--minutes", "0")
    assert textseg("finetune", dataset, *options, "--steps", "2").exit_code == 0
    other = textseg("finetune", dataset, *options, "--steps", "3")
    assert other.exit_code == 2
    assert "another one" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_a_broken_dataset_is_refused_before_anything_is_prepared(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "imagesTr" / "a_0000.nii.gz").unlink()
    result = textseg("finetune", dataset, "--from", tiny_model, "-o", tmp_path / "new")
    assert result.exit_code == 2
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.run").exists()


def test_labels_that_can_not_be_told_apart_are_warned_of(
    textseg: Run, tiny_model: Path, tmp_path: Path
) -> None:
    labels = {"background": 0, "odd thing": 1, "odd  thing": 2}
    dataset = write_dataset(tmp_path / "alike", labels=labels)
    options = (
        "--from",
        tiny_model,
        "-o",
        tmp_path / "new",
        "--device",
        "cpu",
        "--minutes",
        "0",
        "--steps",
        "2",
    )
    result = textseg("finetune", dataset, *options)
    assert "nearly the same vector" in result.stderr


def test_a_place_that_can_not_be_written_to_is_refused_before_anything_is_prepared(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    run = ("--run", tmp_path / "run")
    result = textseg("finetune", dataset, "--from", tiny_model, "-o", tmp_path / "file" / "new", *run)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "can't be written" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_there_is_not_replaced_unasked(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "new")
    options = ("--from", tiny_model, "-o", copy, "--steps", "2", "--device", "cpu", "--minutes", "0")
    refused = textseg("finetune", dataset, *options)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "--overwrite" in refused.stderr
    assert (copy / NETWORK_FILE).read_bytes() == (tiny_model / NETWORK_FILE).read_bytes()
    assert textseg("finetune", dataset, *options, "--overwrite").exit_code == 0
    assert "Step 2 of 2" in textseg("finetune", dataset, *options).stdout


def test_the_licence_goes_from_the_weights_to_those_that_were_made_of_them(
    textseg: Run, tiny_model: Path, dataset: Path, tmp_path: Path
) -> None:
    options = ("--steps", "1", "--device", "cpu", "--hold-back", "3")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    asked = ("--licence", "CC BY 4.0")
    assert textseg("finetune", dataset, "--from", tiny_model, "-o", first, *options).exit_code == 0
    assert ModelFolder("first", first).licence is None
    assert textseg("finetune", dataset, "--from", first, "-o", second, *options, *asked).exit_code == 0
    assert ModelFolder("second", second).licence == "CC BY 4.0"
    assert textseg("finetune", dataset, "--from", second, "-o", third, *options).exit_code == 0
    assert ModelFolder("third", third).licence == "CC BY 4.0"
    exported = tmp_path / "exported"
    assert textseg("export", tmp_path / "third.run", "-o", exported, "--float32").exit_code == 0
    assert ModelFolder("exported", exported).licence == "CC BY 4.0"
