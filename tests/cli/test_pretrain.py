"""`textseg pretrain`: from a folder of scans to an encoder that fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.cli.conftest import AFFINE, Run
from tests.train.test_labelled import write_dataset
from textseg.errors import TextsegError
from textseg.plan import Plan
from textseg.safe_loading import load_safetensors
from textseg.train.loop import Beginning
from textseg.train.start import ENCODER_FILE, REPORT_FILE, read_encoder_weights


@pytest.fixture
def folder(tmp_path: Path, scan_voxels: NDArray[np.int16]) -> Path:
    inner = tmp_path / "data" / "inner"
    inner.mkdir(parents=True)
    for number in range(2):
        nib.save(nib.Nifti1Image(np.roll(scan_voxels, number, 1), AFFINE), inner / f"scan_{number}.nii.gz")
    return tmp_path / "data"


def test_pretrain_leaves_an_encoder_and_a_picture(
    textseg: Run, tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "notes.nii.gz").write_text("no scan")
    options = ("--plan", tiny_model, "--steps", "2", "--device", "cpu")
    result = textseg("pretrain", folder, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "Step 2 of 2 on 2 scans" in result.stdout
    assert "held-back" in result.stdout
    assert "notes.nii.gz is left out" in result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {ENCODER_FILE, "plan.json", "reconstructions.png"}
    assert read_encoder_weights(tmp_path / "out").kind == "textseg"
    # And on from there, in a run of its own.
    options = (*options, "--encoder", tmp_path / "out")
    result = textseg("pretrain", folder, "-o", tmp_path / "more", *options)
    assert result.exit_code == 0, result.output
    assert "(100% of" in result.stderr
    assert (tmp_path / "more.run" / REPORT_FILE).is_file()


def test_pretrain_goes_on_where_it_stopped(
    textseg: Run, tiny_model: Path, folder: Path, tmp_path: Path
) -> None:
    options = ("-o", tmp_path / "out", "--plan", tiny_model, "--steps", "2", "--device", "cpu")
    first = textseg("pretrain", folder, *options, "--minutes", "0")
    assert "Step 1 of 2" in first.stdout, first.output
    second = textseg("pretrain", folder, *options)
    assert "Step 2 of 2" in second.stdout, second.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--group", "knee"), "has the groups"),
        (("--plan", "nowhere"), "nowhere"),
        (("--encoder", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_end_in_one_sentence(
    options: tuple[str, str], message: str, textseg: Run, folder: Path, tmp_path: Path
) -> None:
    result = textseg("pretrain", folder, "-o", tmp_path / "out", *options, "--device", "cpu")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_run_begins_with_the_encoder_that_is_named(
    command: str,
    textseg: Run,
    tiny_model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--plan", tiny_model, "--steps", "1", "--device", "cpu")
    assert textseg("pretrain", folder, "-o", tmp_path / "start", *options).exit_code == 0
    begun: list[Beginning] = []

    def stand_in(dataset: object, split: object, plan: Plan, *rest: object, **options: Any) -> None:
        begun.append(options["begin"](plan))
        raise TextsegError("That is all that this test wants.")

    monkeypatch.setattr("textseg.train.own.train_on_dataset", stand_in)
    monkeypatch.setattr("textseg.train.own.check_once", lambda *_: ())
    dataset = write_dataset(tmp_path / "set", cases=("a", "b", "c"))
    source = {"train": ("--plan", tiny_model, "--text", tiny_model), "finetune": ("--from", tiny_model)}
    options = (*source[command], "--encoder", tmp_path / "start", "--device", "cpu")
    result = textseg(command, dataset, "-o", tmp_path / "new", *options)
    assert "all that this test wants" in result.stderr, result.output
    theirs = load_safetensors(tmp_path / "start" / ENCODER_FILE)
    ours = begun[0].network.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert "(100% of" in result.stderr
    assert (tmp_path / "new.run" / REPORT_FILE).is_file()


def test_a_dicom_series_is_a_scan(
    textseg: Run, tiny_model: Path, write_series: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_series("series", number=1)
    options = ("--plan", tiny_model, "--steps", "1", "--device", "cpu")
    result = textseg("pretrain", folder.parent, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "on 1 scans" in result.stdout
