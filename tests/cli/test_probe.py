"""`textseg probe`: a model and a dataset in, one table and one page out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.conftest import AFFINE, BOX, Run, Stub
from tests.voxtell.tiny_folder import Tiny, write_folder


@pytest.fixture
def dataset(tmp_path: Path, scan_voxels: NDArray[np.int16]) -> Path:
    """Two cases with the bright box in them, called the liver, and a spleen that is nowhere."""
    folder = tmp_path / "Dataset007_Boxes"
    labels = np.zeros(scan_voxels.shape, np.uint8)
    labels[BOX] = 1
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in ("a", "b"):
        nib.save(nib.Nifti1Image(scan_voxels, AFFINE), folder / "imagesTr" / f"{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, AFFINE), folder / "labelsTr" / f"{case}.nii.gz")
    names = {"background": 0, "liver": 1, "spleen": 2}
    document = {"channel_names": {"0": "CT"}, "labels": names, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture
def probe(textseg: Run, tiny_model: Path, dataset: Path, out: Path) -> Run:
    """Runs `textseg probe` in words alone with the tiny model; more options may follow."""

    def run(*options: object, suites: str = "paraphrases,absent,sentences") -> object:
        return textseg("probe", tiny_model, dataset, "--suites", suites, "-o", out, *options)

    return run


def test_a_probe_writes_one_table_and_one_page(probe: Run, stub: Stub, out: Path) -> None:
    result = probe("--prompts", 1)
    assert result.exit_code == 0, result.output
    assert "typing error" in result.stdout
    assert "Written to" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Note: case 1 of 2 (a): done; about ")
    with (out / "robustness.csv").open(encoding="utf-8") as file:
        rows = {(row["suite"], row["test"]): row for row in csv.DictReader(file)}
    # The stub marks the box whatever it is asked: right for every name of the liver, wrong for the spleen.
    assert float(rows["paraphrases", "all"]["canonical_dice"]) > 0.5
    assert rows["paraphrases", "all"]["drop"] == "0"
    assert rows["absent", "labelled elsewhere"]["drop"] == "1"
    assert rows["absent", "labelled elsewhere"]["cases"] == "2"
    # Of a case one call for all words of the torso, and one at the brain's spacing, which is another.
    assert stub.calls == 2 * 2
    assert (out / "robustness.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in (out / "cases").iterdir()) == ["a.json", "b.json"]


def test_a_report_is_kept_and_its_answers_serve_again(probe: Run, stub: Stub, out: Path) -> None:
    assert probe().exit_code == 0
    calls = stub.calls
    again = probe()
    assert (again.exit_code, stub.calls) == (2, calls)
    assert "--overwrite" in again.stderr
    assert probe("--overwrite").exit_code == 0
    assert stub.calls == calls
    assert probe("--overwrite", suites="paraphrases,crops").exit_code == 0
    assert stub.calls > calls
    assert "crops" in (out / "robustness.csv").read_text(encoding="utf-8")


def test_changed_scans_are_probed_too(probe: Run, stub: Stub, out: Path) -> None:
    result = probe("--cases", 1, "--case", "b", suites="crops,orientation")
    assert result.exit_code == 0, result.output
    with (out / "observations.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert {row["case"] for row in found} == {"b"}
    turned = [row for row in found if row["suite"] == "orientation"]
    assert len(turned) == 47
    assert {row["same"] for row in turned} == {"1"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--suites", "paraphrases,typos"), "There are paraphrases, laterality, absent"),
        (("--suites", ","), "There are paraphrases"),
        (("--case", "nobody"), "is called 'nobody'"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    textseg: Run, tiny_model: Path, dataset: Path, out: Path, options: tuple[str, str], sentence: str
) -> None:
    result = textseg("probe", tiny_model, dataset, "-o", out, *options)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


def test_a_stop_leaves_no_half_written_file(probe: Run, stub: Stub, out: Path) -> None:
    stub.error = KeyboardInterrupt()
    stopped = probe()
    assert stopped.exit_code == 130
    assert not out.exists() or list(out.rglob("*")) == []
    stub.error = None
    assert probe().exit_code == 0


def test_quiet_says_nothing_and_no_folder_writes_nothing(
    textseg: Run, tiny_model: Path, dataset: Path, stub: Stub, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = textseg("probe", tiny_model, dataset, "--suites", "absent", "--cases", 1, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_models_of_other_projects_are_asked_too_and_may_refuse_words(
    textseg: Run, dataset: Path, out: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "voxtell", Tiny())
    options = ("--suites", "paraphrases", "--prompts", 4, "--cases", 1, "-o", out)
    result = textseg("probe", folder, dataset, *options)
    assert result.exit_code == 0, result.output
    with (out / "observations.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    refused = {row["prompt"] for row in found if row["refused"] == "True"}
    # Names that the lexicon knows are asked by the label's; a word that it can't mend names no label.
    assert refused
    assert {row["test"] for row in found if row["prompt"] in refused} == {"typing error"}
    assert {row["dice"] for row in found if row["prompt"] in refused} == {"0"}
    assert len(refused) < len(found)
