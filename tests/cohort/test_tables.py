"""What is said before a run and after it: problems, estimates, tables and exports."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage

from tests.cohort.conftest import Here
from textseg.cohort.check import Look, check_jobs, estimate, measure_speed
from textseg.cohort.export import export_cohort
from textseg.cohort.jobs import SECRET_FILE, CohortError, Job, Problem, Settings
from textseg.cohort.journal import Entry, Journal
from textseg.cohort.privacy import read_or_make_salt
from textseg.cohort.request import Request
from textseg.cohort.run import entries_of, run_cohort
from textseg.cohort.start import look_up_jobs
from textseg.cohort.summary import summary_rows, write_tables
from textseg.errors import ModelError, OutputError

Find = Callable[..., tuple[Job, ...]]
WriteScan = Callable[[Path, int], Path]


# ---- before ----


def test_a_check_names_every_bad_scan_and_writes_nothing(
    scans: Path, broken: Path, out: Path, jobs_of: Find
) -> None:
    looks = check_jobs(jobs_of(scans, broken), Settings())
    bad = {look.job: [problem.what for problem in look.problems] for look in looks if not look.voxels}
    assert set(bad) == {path.name.partition(".")[0] for path in broken.iterdir()}
    assert all(len(problems) == 1 for problems in bad.values())
    assert {look.job: look.voxels for look in looks if look.voxels} == dict.fromkeys(
        ["a", "b", "later_c"], 10296
    )
    assert not out.exists()


def test_a_check_tells_of_copies_prompts_models_and_modalities(
    scans: Path, tmp_path: Path, jobs_of: Find, write_scan: WriteScan
) -> None:
    write_scan(scans / "copy.nii.gz", 0)
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "scan,id,prompts,model\nscans/a.nii.gz,first,,\nscans/copy.nii.gz,second,,\nscans/b.nii,third,?!,\n"
        "scans/b.nii,fourth,,gone\nscans/a.nii.gz|scans/b.nii,fifth,,\n"
    )
    looks = {look.job: look.problems for look in check_jobs(jobs_of(manifest), Settings())}
    assert looks["first"] == ()
    assert looks["second"] == (Problem("second", "The same scan as first.", "note"),)
    assert [problem.level for job in ("third", "fourth", "fifth") for problem in looks[job]] == ["error"] * 3
    assert "takes 1 channel" in looks["fifth"][0].what
    assert len(looks["fifth"]) == 1


def test_a_check_tells_what_will_not_be_written(
    scans: Path, jobs_of: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(formats=("nrrd", "dicom-seg", "rtstruct"))
    (look,) = check_jobs(jobs_of(scans / "a.nii.gz"), settings)
    note = "It is no DICOM, so there will be no dicom-seg and no rtstruct."
    assert look.problems == (Problem("a", note, "note"),)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ModelError, match=r"textseg\[dicom\]"):
        look_up_jobs(Request((str(scans),), ("liver",)), settings)


def test_an_estimate_grows_with_voxels_prompts_and_fewer_workers(
    scans: Path, out: Path, jobs_of: Find
) -> None:
    jobs = jobs_of(scans, prompts=("liver", "spleen"))
    looks = [Look(job.id, (), 1_000_000 * (1 + n)) for n, job in enumerate(jobs)]
    one = estimate(looks, jobs, Settings(preview=False), out, 1, 1e-6)
    assert one.seconds == pytest.approx(6.0)
    assert estimate(looks, jobs, Settings(preview=False), out, 2, 1e-6).seconds == pytest.approx(3.0)
    assert estimate(looks, jobs, Settings(preview=False), out, 1, None).seconds is None
    assert one.disk_bytes < estimate(looks, jobs, Settings(), out, 1, 1e-6).disk_bytes
    two_formats = Settings(preview=False, formats=("nrrd", "mha"))
    assert one.disk_bytes < estimate(looks, jobs, two_formats, out, 1, 1e-6).disk_bytes
    assert one.free_bytes > 0


def test_the_speed_is_measured_on_a_scan(scans: Path, jobs_of: Find) -> None:
    jobs = jobs_of(scans)
    speed = measure_speed(check_jobs(jobs, Settings()), jobs, "cpu", 1)
    assert speed is not None
    assert speed > 0
    assert measure_speed([Look("a", ())], jobs, "cpu", 1) is None


# ---- after ----


@pytest.fixture
def finished(
    scans: Path, out: Path, tmp_path: Path, jobs_of: Find, here: Here, plain: Settings
) -> tuple[Path, list[Entry]]:
    """A cohort of three scans and an empty file, with two columns of its own; one is named like ours."""
    (scans / "bad.nii.gz").write_bytes(b"")
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "scan,age,state\nscans/a.nii.gz,44,x\nscans/b.nii,,y\nscans/later/c.nii.gz,7,z\nscans/bad.nii.gz,9,\n"
    )
    run_cohort(jobs_of(manifest, prompts=("liver", "left kidney")), out, plain, here)
    read_or_make_salt(out)
    return out, entries_of(out)


def test_the_tables_have_a_row_for_every_prompt_and_every_failure(finished: tuple[Path, list[Entry]]) -> None:
    out, entries = finished
    paths = write_tables(out, summary_rows(out, entries))
    with (out / "summary.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7
    assert [(row["id"], row["prompt"], row["age"]) for row in rows][:3] == [
        ("a", "liver", "44"),
        ("a", "left kidney", "44"),
        ("b", "liver", ""),
    ]
    failed = next(row for row in rows if row["id"] == "bad")
    assert (failed["state"], failed["prompt"], failed["age"]) == ("failed", "", "9")
    assert "empty" in failed["reason"]
    assert rows[0]["manifest_state"] == "x"
    assert float(rows[0]["volume_ml"]) == pytest.approx(
        int(rows[0]["voxels"]) * 2.02 * 2.51 * 3 / 1000, rel=0.02
    )
    assert rows[0]["file"] == "mask_liver.nii.gz"
    documents = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert [row["voxels"] for row in documents] == [
        int(row["voxels"]) if row["voxels"] else None for row in rows
    ]
    assert paths[-1].suffix in (".json", ".parquet")


def test_parquet_holds_the_same_table(finished: tuple[Path, list[Entry]]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Needs pyarrow.")
    out, entries = finished
    rows = summary_rows(out, entries)
    write_tables(out, rows)
    table = parquet.read_table(out / "summary.parquet").to_pylist()
    assert [row["volume_ml"] for row in table] == [row.get("volume_ml") for row in rows]


def test_pet_is_measured_in_suv_where_its_header_allows(
    tmp_path: Path,
    out: Path,
    jobs_of: Find,
    here: Here,
    plain: Settings,
    write_series: Callable[..., Path],
    noise: Callable[[int], NDArray[np.int16]],
) -> None:
    injected = Dataset()
    injected.RadionuclideTotalDose, injected.RadionuclideHalfLife = "370000000", "6586.2"
    pet: dict[str, object] = {"Modality": "PT", "SOPClassUID": PositronEmissionTomographyImageStorage}
    write_series(tmp_path / "pets" / "left_in_bqml", 1, **pet, Units="BQML")
    header = {"Units": "BQML", "PatientWeight": "74", "DecayCorrection": "ADMIN"}
    write_series(
        tmp_path / "pets" / "suv", 1, **pet, **header, RadiopharmaceuticalInformationSequence=[injected]
    )
    assert run_cohort(jobs_of(tmp_path / "pets"), out, plain, here).done == 2
    rows = summary_rows(out, entries_of(out))
    write_tables(out, rows)
    # 74 kg and 370 MBq: SUV 1 is 5 kBq/ml.
    for unit, activity in (("suv", 5000.0), ("bqml", 1.0)):
        (row,) = (row for row in rows if f"mean_{unit}" in row)
        mask = np.asarray(nib.load(out / str(row["id"]) / "mask_liver.nii.gz").dataobj) > 0
        values = noise(1)[mask] / activity
        expected = {"mean": values.mean(), "sd": values.std(), "min": values.min(), "max": values.max()}
        expected |= dict(zip(("p10", "median", "p90"), np.percentile(values, (10, 50, 90)), strict=True))
        assert {name: row[f"{name}_{unit}"] for name in expected} == pytest.approx(expected, rel=1e-5)
    with (out / "summary.csv").open(encoding="utf-8", newline="") as stream:
        assert {"mean_suv", "p90_suv", "mean_bqml"} <= set(next(csv.reader(stream)))


def test_numbers_beyond_64_bits_are_words_in_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Needs pyarrow.")
    write_tables(tmp_path, [{"id": "a", "huge": 10**20}, {"id": "b", "huge": 3}])
    assert parquet.read_table(tmp_path / "summary.parquet").column("huge").to_pylist() == [str(10**20), "3"]


def test_a_finished_scan_whose_folder_is_gone_is_said(finished: tuple[Path, list[Entry]]) -> None:
    out, entries = finished
    (out / "a" / "result.json").unlink()
    assert "not there any more" in str(summary_rows(out, entries)[0]["reason"])


def test_an_export_is_a_folder_or_a_zip_without_secrets(
    finished: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    out, entries = finished
    write_tables(out, summary_rows(out, entries))
    (out / "a" / "strange.txt").write_text("not ours")
    folder, archive = tmp_path / "new" / "folder", tmp_path / "cohort.zip"
    count = export_cohort(out, entries, folder)
    assert export_cohort(out, entries, archive) == count
    inside = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive) as opened:
        assert sorted(name.removeprefix("cohort/") for name in opened.namelist()) == inside
        assert opened.read("cohort/a/mask_liver.nii.gz") == (out / "a" / "mask_liver.nii.gz").read_bytes()
    assert {"summary.csv", "a/result.json", "a/mask_liver.nii.gz", "b/mask_liver.nii"} <= set(inside)
    assert not any(name.startswith((".", "cohort.")) or "strange" in name for name in inside)
    assert (out / SECRET_FILE).exists()


def test_an_export_replaces_nothing_and_needs_something(
    finished: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    out, entries = finished
    with pytest.raises(OutputError, match="never replaces"):
        export_cohort(out, entries, tmp_path)
    with pytest.raises(CohortError, match="at least one"):
        export_cohort(out, [entry for entry in entries if entry.state == "failed"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


# ---- the journal ----


def test_a_journal_is_only_opened_where_there_is_one_that_is_ours(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="textseg cohort run"):
        Journal(tmp_path / "cohort.sqlite")
    (tmp_path / "cohort.sqlite").write_text("no base of data at all, but long enough to be looked at" * 20)
    with pytest.raises(CohortError, match="can't be opened"):
        Journal(tmp_path / "cohort.sqlite")


def test_what_was_running_is_pending_when_a_run_begins(tmp_path: Path) -> None:
    entries = [Entry(name, "pending", "", "", "", "m", ("liver",), {}) for name in ("a", "b", "c")]
    journal = Journal(tmp_path / "cohort.sqlite", make=True)
    journal.register(entries)
    journal.start("a", "key of a")
    journal.start("b", "key of b")
    journal.finish("b", "key of b", 2.5)
    journal.close()
    journal = Journal(tmp_path / "cohort.sqlite", make=True)
    journal.register(entries[:2])
    known = {entry.id: entry for entry in journal.entries()}
    assert {name: entry.state for name, entry in known.items()} == {"a": "pending", "b": "done"}
    assert known["b"].seconds == 2.5
    assert journal.done_under("key of b") == ["b"]
    assert journal.counts() == {"pending": 1, "running": 0, "done": 1, "failed": 0}
    journal.close()
