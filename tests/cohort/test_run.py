"""Running a cohort: everything that can go wrong with a scan, a worker or a disk, and the others go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cohort.conftest import Here, record_of
from textseg.cohort.jobs import Job, Settings
from textseg.cohort.run import entries_of, run_cohort

Find = Callable[..., tuple[Job, ...]]


def test_each_scan_gets_a_folder_with_masks_measures_and_record(
    scans: Path, out: Path, jobs_of: Find, here: Here
) -> None:
    jobs = jobs_of(scans, prompts=("liver", "left kidney"))
    end = run_cohort(jobs, out, Settings(), here)
    assert (end.done, end.failed, end.pending, end.stopped) == (3, 0, 0, None)
    assert [entry.state for entry in entries_of(out)] == ["done"] * 3
    assert sorted(path.name for path in (out / "later_c").iterdir()) == [
        "mask_left_kidney.nii.gz",
        "mask_liver.nii.gz",
        "measures.json",
        "preview.png",
        "result.json",
    ]
    record = record_of(out, "b")
    assert [prompt["file"] for prompt in record["prompts"]] == ["mask_liver.nii", "mask_left_kidney.nii"]
    assert record["scan"]["files"] == [str(scans / "b.nii")]


def test_a_bad_scan_never_stops_the_rest(
    scans: Path, broken: Path, out: Path, jobs_of: Find, here: Here, plain: Settings
) -> None:
    sentences: list[str] = []
    end = run_cohort(jobs_of(scans, broken), out, plain, here, failed=sentences.append)
    assert (end.done, end.failed, end.pending) == (3, 10, 0)
    assert len(sentences) == 10
    failed = {entry.id: entry.reason for entry in entries_of(out) if entry.state == "failed"}
    assert set(failed) == {path.name.partition(".")[0] for path in broken.iterdir()}
    assert all(failed.values())
    assert not any("Something failed" in reason for reason in failed.values()), failed
    assert not any((out / job).exists() for job in failed)
