"""Running a cohort: everything that can go wrong with a scan, a worker or a disk, and the others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.cohort.conftest import Here, record_of
from textseg.cohort.jobs import JOURNAL_FILE, Job, Settings
from textseg.cohort.run import entries_of, run_cohort
from textseg.cohort.task import Outcome, Task

Find = Callable[..., tuple[Job, ...]]
Tree = Callable[[Path], dict[str, bytes]]


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


def test_what_is_done_is_not_done_again(
    scans: Path, out: Path, jobs_of: Find, here: Here, plain: Settings, tree_of: Tree
) -> None:
    run_cohort(jobs_of(scans), out, plain, here)
    before, again = tree_of(out), Here()
    end = run_cohort(jobs_of(scans), out, plain, again)
    assert (end.done, end.found_done, again.tasks) == (3, 3, [])
    assert tree_of(out) == before


def test_a_renamed_scan_takes_its_outputs_along(
    scans: Path, out: Path, jobs_of: Find, here: Here, plain: Settings, tree_of: Tree
) -> None:
    run_cohort(jobs_of(scans), out, plain, here)
    before = tree_of(out)
    (scans / "a.nii.gz").rename(scans / "z.nii.gz")
    again = Here()
    end = run_cohort(jobs_of(scans), out, plain, again)
    assert (end.done, end.found_done, again.tasks) == (3, 3, [])
    after = tree_of(out)
    assert not (out / "a").exists()
    assert after["z/mask_liver.nii.gz"] == before["a/mask_liver.nii.gz"]
    assert record_of(out, "z")["scan"]["files"] == [str(scans / "z.nii.gz")]


def test_a_copy_gets_outputs_of_its_own(
    scans: Path, out: Path, jobs_of: Find, here: Here, plain: Settings, tree_of: Tree
) -> None:
    run_cohort(jobs_of(scans), out, plain, here)
    (scans / "copy.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes())
    again = Here()
    end = run_cohort(jobs_of(scans), out, plain, again)
    assert (end.done, again.tasks) == (4, [])
    tree = tree_of(out)
    assert tree["copy/mask_liver.nii.gz"] == tree["a/mask_liver.nii.gz"]


def test_a_language_model_is_loaded_by_one_worker_first(
    scans: Path, out: Path, jobs_of: Find, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textseg.cohort.run._Run._reads_slowly", lambda run, model: True)
    with_worker: list[int] = []

    class Slow(Here):
        """Says how many tasks were out when each was done, and answers later than at once."""

        capacity = 3

        def submit(self, task: Task) -> Future[Outcome]:
            self.out = getattr(self, "out", 0) + 1
            with_worker.append(self.out)
            future = super().submit(task)
            later: Future[Outcome] = Future()

            def answer() -> None:
                self.out -= 1
                later.set_result(future.result())

            threading.Timer(0.3, answer).start()
            return later

    assert run_cohort(jobs_of(scans), out, plain, Slow()).done == 3
    assert with_worker == [1, 1, 2]


def test_only_what_changed_is_done_again(
    scans: Path,
    out: Path,
    jobs_of: Find,
    here: Here,
    plain: Settings,
    write_scan: Callable[[Path, int], Path],
) -> None:
    run_cohort(jobs_of(scans), out, plain, here)
    write_scan(scans / "b.nii", 50)
    again = Here()
    run_cohort(jobs_of(scans), out, plain, again)
    assert [task.id for task in again.tasks] == ["b"]
    other_prompts = Here()
    run_cohort(jobs_of(scans, prompts=("spleen",)), out, plain, other_prompts)
    assert len(other_prompts.tasks) == 3
    assert not (out / "a" / "mask_liver.nii.gz").exists()
    assert (out / "a" / "mask_spleen.nii.gz").exists()


def test_outputs_that_were_taken_away_or_damaged_are_made_again(
    scans: Path, out: Path, jobs_of: Find, here: Here, plain: Settings, tree_of: Tree
) -> None:
    run_cohort(jobs_of(scans), out, plain, here)
    before = tree_of(out)
    (out / "a" / "mask_liver.nii.gz").unlink()
    (out / "b" / "result.json").write_text("{")
    (out / JOURNAL_FILE).unlink()
    again = Here()
    end = run_cohort(jobs_of(scans), out, plain, again)
    assert sorted(task.id for task in again.tasks) == ["a", "b"]
    assert (end.done, tree_of(out)) == (3, before)


def test_what_failed_is_tried_again_when_it_changes_or_is_asked_for(
    scans: Path,
    out: Path,
    jobs_of: Find,
    here: Here,
    plain: Settings,
    write_scan: Callable[[Path, int], Path],
) -> None:
    bad = scans / "bad.nii.gz"
    bad.write_bytes(b"")
    run_cohort(jobs_of(scans), out, plain, here)
    same = Here()
    assert run_cohort(jobs_of(scans), out, plain, same).failed == 1
    assert same.tasks == []
    asked = Here()
    run_cohort(jobs_of(scans), out, plain, asked, only=["bad"], retry_failed=True)
    assert [task.id for task in asked.tasks] == ["bad"]
    write_scan(bad, 8)
    assert run_cohort(jobs_of(scans), out, plain, Here()).done == 4


def test_prompts_and_models_that_make_no_sense_fail_their_own_scans(
    scans: Path, out: Path, here: Here, plain: Settings, tiny_model: Path, tmp_path: Path, jobs_of: Find
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("scan,prompts,model\nscans/a.nii.gz,,\nscans/b.nii,?!,\nscans/later/c.nii.gz,,gone\n")
    end = run_cohort(jobs_of(manifest), out, plain, here)
    assert (end.done, end.failed) == (1, 2)
    reasons = {entry.id: entry.reason for entry in entries_of(out) if entry.state == "failed"}
    assert "prompt" in reasons["b"].lower()
    assert "gone" in reasons["c"]


def test_masks_come_in_the_formats_that_are_asked_for(
    scans: Path, out: Path, jobs_of: Find, here: Here
) -> None:
    settings = Settings(formats=("nrrd", "mha"), preview=False, clean_up=True, write_empty=True)
    run_cohort(jobs_of(scans / "a.nii.gz"), out, settings, here)
    made = {path.name for path in (out / "a").iterdir()}
    assert {"mask_liver.nrrd", "mask_liver.mha"} <= made
    assert record_of(out, "a")["clean_up"] is True


def test_a_model_of_a_task_is_loaded_once_and_texts_are_embedded_once(
    scans: Path, out: Path, jobs_of: Find, plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textseg.cohort import segmenters
    from textseg.embeddings.cache import CachedTextEncoder

    loaded, embedded = [], []
    load, embed = segmenters._loaded, CachedTextEncoder.embed

    def count_load(task: Task) -> Any:
        loaded.append(task.model)
        return load(task)

    def count_embed(self: CachedTextEncoder, texts: list[str]) -> Any:
        embedded.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(segmenters, "_loaded", count_load)
    monkeypatch.setattr(CachedTextEncoder, "embed", count_embed)
    run_cohort(jobs_of(scans, prompts=("liver", "left kidney")), out, plain, Here())
    assert len(loaded) == 1
    assert sorted(embedded) == ["left kidney", "liver"]


def test_the_backend_of_a_cohort_runs_the_encoder_of_every_scan(
    scans: Path, out: Path, tmp_path: Path, jobs_of: Find, plain: Settings, tree_of: Tree
) -> None:
    pytest.importorskip("openvino", reason="Needs openvino, of the extra openvino.")
    worker = Here()
    assert run_cohort(jobs_of(scans), out, replace(plain, backend="openvino"), worker).done == 3
    segmenter = worker.worker._segmenters.of(worker.tasks[0])
    assert segmenter._backend.choice == "openvino"
    # The same masks but for voxels at their borders, and told apart from torch's.
    run_cohort(jobs_of(scans), tmp_path / "torch", plain, Here())
    places = (out, tmp_path / "torch")
    for job in ("a", "later_c"):
        paths = [place / job / "mask_liver.nii.gz" for place in places]
        one, other = (np.asarray(nib.load(path).dataobj) for path in paths)
        assert np.count_nonzero(one != other) < 0.02 * np.count_nonzero(other)
    again = Here()
    run_cohort(jobs_of(scans), out, plain, again)
    assert len(again.tasks) == 3
