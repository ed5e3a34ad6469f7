"""`textseg cohort`: from a folder of scans to masks and tables, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.conftest import AFFINE, Run
from textseg.cohort.run import entries_of
from textseg.cohort.task import Outcome, Task
from textseg.cohort.worker import Worker

Cohort = Callable[..., Any]


@pytest.fixture
def scans(tmp_path: Path, scan_voxels: NDArray[np.int16]) -> Path:
    """Two scans and a text that is called like one."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(("one.nii.gz", "two.nii.gz")):
        nib.save(nib.Nifti1Image(scan_voxels + np.int16(number), AFFINE), folder / name)
    (folder / "bad.nii.gz").write_text("<html>")
    return folder


@pytest.fixture(autouse=True)
def _workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process, so that no test starts another Python with torch."""

    class Here:
        capacity = 1

        def __init__(self, places: Any, timeout_s: float | None = None) -> None:
            self.worker = Worker()

        def submit(self, task: Task) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            future.set_result(self.worker.run(task, lambda stage: None))
            return future

        def wind_down(self) -> None:
            self.worker.is_winding_down.set()

        def close(self) -> None: ...

        def kill(self) -> None: ...

    monkeypatch.setattr("textseg.cohort.workers.LocalWorkers", Here)


@pytest.fixture
def cohort(textseg: Run, scans: Path, out: Path, tiny_model: Path) -> Cohort:
    """Runs `textseg cohort run` on the scans."""

    def run(*words: object) -> Any:
        return textseg("cohort", "run", scans, "liver", *words, "--model", tiny_model, "-o", out)

    return run


def test_a_run_gives_masks_tables_and_a_report(cohort: Cohort, out: Path) -> None:
    result = cohort("left kidney", "--jobs", 1)
    assert result.exit_code == 1, result.output
    assert "2 done (0 of them before), 1 failed, 0 to do" in result.stdout
    assert "bad: A .nii.gz file must hold an image" in result.stderr
    for path in ("one/result.json", "two/measures.json", "one/preview.png", "summary.csv", "report.html"):
        assert (out / path).is_file(), path
    liver = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["liver"])
    assert "of 2" in liver


def test_a_second_run_goes_on_where_the_first_was(cohort: Cohort, scans: Path) -> None:
    cohort("--no-preview")
    (scans / "bad.nii.gz").unlink()
    result = cohort("--no-preview")
    assert result.exit_code == 0, result.output
    assert "2 done (2 of them before), 0 failed, 0 to do" in result.stdout


def test_status_tells_states_and_reasons(cohort: Cohort, textseg: Run, out: Path) -> None:
    cohort("--no-preview", "-q")
    result = textseg("cohort", "status", out)
    assert result.stdout.splitlines()[0] == "2 done, 0 running, 0 pending, 1 failed"
    assert "must hold an image" in result.stdout
    jobs = json.loads(textseg("cohort", "status", out, "--json").stdout)
    assert {job["id"]: job["state"] for job in jobs} == {"bad": "failed", "one": "done", "two": "done"}


def test_retry_does_what_failed_once_it_is_mended(
    cohort: Cohort, textseg: Run, scans: Path, out: Path
) -> None:
    cohort("--no-preview")
    assert textseg("cohort", "retry", out, "one").exit_code == 2
    (scans / "bad.nii.gz").write_bytes((scans / "one.nii.gz").read_bytes())
    result = textseg("cohort", "retry", out)
    assert result.exit_code == 0, result.output
    assert [entry.state for entry in entries_of(out)] == ["done"] * 3
    assert textseg("cohort", "retry", out).stdout == "Nothing failed.\n"


def test_summary_and_export_hand_results_on(cohort: Cohort, textseg: Run, out: Path, tmp_path: Path) -> None:
    cohort("--no-preview")
    (out / "summary.csv").unlink()
    assert textseg("cohort", "summary", out).exit_code == 0
    assert (out / "summary.csv").is_file()
    assert textseg("cohort", "export", out, tmp_path / "x.zip").exit_code == 0
    assert (tmp_path / "x.zip").is_file()
    assert textseg("cohort", "export", out, tmp_path / "x.zip").exit_code == 2


@pytest.mark.parametrize("is_new", [True, False])
def test_a_false_start_leaves_nothing_behind(
    textseg: Run, tiny_model: Path, scans: Path, tmp_path: Path, is_new: bool
) -> None:
    out, table = tmp_path / "out", tmp_path / "table.csv"
    if not is_new:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    table.write_text(f"scan,prompts\n{next(scans.glob('*.nii.gz'))},\n")
    result = textseg("cohort", "run", table, "--model", tiny_model, "-o", out)
    assert result.exit_code == 2
    assert "needs a prompt" in result.stderr
    assert out.exists() != is_new
    assert is_new or [path.name for path in out.iterdir()] == ["mine.txt"]


def test_check_shows_problems_and_an_estimate_and_writes_nothing(
    textseg: Run, scans: Path, out: Path, tiny_model: Path
) -> None:
    result = textseg("cohort", "check", scans, "left kidny", "--model", tiny_model, "-o", out, "--jobs", 1)
    assert result.exit_code == 2
    assert "2 of 3 scans can be segmented." in result.stdout
    assert "Time: about" in result.stdout
    assert "'left kidny' is understood as 'left kidney'" in result.stdout
    assert not out.exists()
    (scans / "bad.nii.gz").unlink()
    assert textseg("cohort", "check", scans, "liver", "--model", tiny_model, "--jobs", 1).exit_code == 0


def test_files_of_a_glob_without_quotes_are_scans(
    textseg: Run, scans: Path, out: Path, tiny_model: Path
) -> None:
    files = (scans / "one.nii.gz", scans / "two.nii.gz")
    result = textseg("cohort", "run", *files, "liver", "--model", tiny_model, "-o", out, "--no-preview")
    assert result.exit_code == 0, result.output
    assert [entry.prompts for entry in entries_of(out)] == [("liver",)] * 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "gone", "liver"), "no file or folder"),
        (("run", ".", "liver"), "holds none"),
        (("status", "."), "textseg cohort run"),
        (("run", "SCANS"), "needs a prompt"),
        (("run", "SCANS", "liver", "--cluster", "moon"), "local, slurm or an address"),
    ],
)
def test_bad_input_is_one_sentence(
    textseg: Run,
    scans: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    result = textseg("cohort", *(str(scans) if word == "SCANS" else word for word in words))
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stderr.startswith("Error: ")


def test_an_output_that_is_a_file_is_refused(textseg: Run, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = textseg("cohort", "run", scans, "liver", "-o", tmp_path / "file")
    assert result.exit_code == 2
    assert "can't be written to" in result.stderr


def test_choices_are_those_of_the_library() -> None:
    from typing import get_args

    from textseg_cli.cohort import CohortFormat, IdsChoice

    from textseg.cohort.jobs import Ids
    from textseg.dicom_output import DICOM_KINDS
    from textseg.scan.write import WRITERS

    assert {choice.value for choice in IdsChoice} == set(get_args(Ids))
    images = {choice.value for choice in CohortFormat} - set(DICOM_KINDS)
    assert {f".{ending}" for ending in images} <= set(WRITERS)
    assert set(DICOM_KINDS) < {choice.value for choice in CohortFormat}
