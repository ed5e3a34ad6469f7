"""From folders, globs, lists, BIDS datasets, DICOM archives and manifests to jobs."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from pydicom.uid import generate_uid

from textseg.cohort.content import job_key, scan_content
from textseg.cohort.jobs import JOURNAL_FILE, CohortError, Job, Settings, safe_id
from textseg.cohort.links import as_folder
from textseg.cohort.privacy import Pseudonyms
from textseg.cohort.reading import channels_of
from textseg.cohort.request import FoundJobs, Naming, Request, find_jobs
from textseg.cohort.task import task_of
from textseg.scan import read_scan
from textseg.volume import Volume

Find = Callable[..., tuple[Job, ...]]
WriteScan = Callable[[Path, int], Path]
WriteSeries = Callable[..., Path]


class Remembered(dict[str, str]):
    """Hashes of files that have not changed, and how often one was not known."""

    missed = 0

    def recall(self, signature: str) -> str | None:
        self.missed += signature not in self
        return self.get(signature)

    def remember(self, signature: str, content: str) -> None:
        self[signature] = content


def found_in(source: Path, **asked: Any) -> FoundJobs:
    naming = Naming(Pseudonyms("hash", b"salt"), lambda handle: 1)
    return find_jobs(Request((str(source),), ("liver",), **asked), naming, source / "cohort")


def ids(jobs: tuple[Job, ...]) -> list[str]:
    return [job.id for job in jobs]


def test_a_folder_is_searched_to_the_bottom(scans: Path, write_scan: WriteScan) -> None:
    (scans / "notes.txt").write_text("no scan")
    write_scan(scans / ".hidden" / "x.nii.gz", 5)
    # The output of this cohort and of another one are no scans.
    write_scan(scans / "cohort" / "a" / "mask_liver.nii.gz", 6)
    write_scan(scans / "other" / "a" / "mask_liver.nii.gz", 6)
    (scans / "other" / JOURNAL_FILE).touch()
    assert ids(found_in(scans).jobs) == ["a", "b", "later_c"]
    assert ids(found_in(scans, match="*c*").jobs) == ["later_c"]


def test_folders_that_are_links_are_searched_once(tmp_path: Path, scans: Path, write_scan: WriteScan) -> None:
    write_scan(tmp_path / "disk" / "d.nii.gz", 7)
    (scans / "linked").symlink_to(tmp_path / "disk")
    (scans / "later" / "again").symlink_to(tmp_path / "disk")
    (scans / "later" / "round").symlink_to(scans)
    assert ids(found_in(scans).jobs) == ["a", "b", "later_c", "later_again_d"]


def test_globs_and_lists_name_scans(scans: Path, tmp_path: Path, jobs_of: Find) -> None:
    assert ids(jobs_of(f"{scans}/**/*.nii.gz")) == ["a", "later_c"]
    listed = tmp_path / "list.txt"
    listed.write_text("# two scans\nscans/b.nii\n\nscans/later\nscans/gone.nii.gz\n")
    assert sorted(ids(jobs_of(listed))) == ["c", "scans_b", "scans_gone"]
    assert ids(jobs_of(scans / "a.nii.gz", scans / "b.nii")) == ["a", "b"]


def test_scans_of_one_name_are_told_apart_whatever_else_is_there(
    tmp_path: Path, jobs_of: Find, write_scan: WriteScan
) -> None:
    write_scan(tmp_path / "x" / "one" / "Scan.nii.gz", 1)
    write_scan(tmp_path / "x" / "one_scan.nii", 2)
    before = ids(jobs_of(tmp_path / "x"))
    assert len({name.casefold() for name in before}) == 2
    write_scan(tmp_path / "x" / "summary.csv.nii.gz", 3)
    after = ids(jobs_of(tmp_path / "x"))
    assert set(before) < set(after)
    assert "summary.csv" not in after


def test_names_fit_every_disk() -> None:
    assert safe_id("Kopf/Müller: (1)..") == "Kopf_Muller_1"
    assert safe_id("..") == "scan"
    assert len(safe_id("x" * 500)) == 100


def test_bids_scans_come_with_their_entities_and_participants(
    tmp_path: Path, jobs_of: Find, write_scan: WriteScan
) -> None:
    root = tmp_path / "bids"
    for inner in (
        *("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold"),
        *(
            "sub-02/anat/sub-02_acq-fast_FLAIR",
            "sub-02/anat/sub-02_label-liver_mask",
            "sub-02/pet/sub-02_pet",
        ),
        *("derivatives/x/sub-01/anat/sub-01_T1w", "sourcedata/sub-01/anat/sub-01_T1w"),
    ):
        write_scan(root / f"{inner}.nii.gz", 1)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t44\tF\nsub-02\t\tM\n")
    jobs = {job.id: job for job in jobs_of(root)}
    notes = [problem.what for problem in found_in(root).problems]
    assert notes == ["Passed over: 1 × image in a func folder", "Passed over: 1 × mask"]
    assert sorted(jobs) == ["sub-01_ses-a_T1w", "sub-02_acq-fast_FLAIR", "sub-02_pet"]
    assert dict(jobs["sub-01_ses-a_T1w"].extra) == {
        **{"subject": "01", "session": "a", "suffix": "T1w"},
        **{"age": "44", "sex": "F"},
    }
    assert (jobs["sub-02_acq-fast_FLAIR"].modality, jobs["sub-02_pet"].modality) == ("mr", "pet")


def test_an_archive_is_sorted_by_headers_not_by_names(
    tmp_path: Path, write_series: WriteSeries, noise: Callable[[int], Any]
) -> None:
    archive = tmp_path / "archive"
    write_series(tmp_path / "one", 1)
    write_series(tmp_path / "two", 2)
    write_series(tmp_path / "three", 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "four", 4, Modality="SR")
    # All in one folder, without endings, in no order.
    archive.mkdir()
    for number, path in enumerate(sorted(tmp_path.glob("*/Dulcinea*"), key=lambda path: path.name[::-1])):
        shutil.copy(path, archive / f"IM{number:05d}")
    (archive / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    (archive / "README").write_text("not DICOM")
    found = found_in(archive)
    assert [len(job.slices) for job in found.jobs] == [18, 18]
    notes = {problem.what for problem in found.problems}
    assert {"Passed over: 1 × scout view", "Passed over: 1 × series of SR"} <= notes
    assert len(notes) == 3, notes
    read = [volume_of(job) for job in found.jobs]
    assert sorted(int(volume.voxels.sum()) for volume in read) == sorted(int(noise(n).sum()) for n in (1, 2))


def test_slices_of_a_glob_without_quotes_are_one_scan(
    tmp_path: Path, scans: Path, jobs_of: Find, write_series: WriteSeries
) -> None:
    slices = sorted(write_series(tmp_path / "p" / "one", 1).iterdir())
    slices += sorted(write_series(tmp_path / "p" / "two", 2).iterdir())
    jobs = jobs_of(slices[0], scans / "a.nii.gz", *slices[1:])
    assert sorted(len(job.slices) for job in jobs) == [0, 18, 18]
    assert {"one", "two"} <= {name for job in jobs for name in job.hidden}


def volume_of(job: Job) -> Volume:
    with as_folder(job.slices) as folder:
        return read_scan(folder)


CSV = """scan,prompts,id,model,modality,age,site
scans/a.nii.gz,liver; left kidney,case 1,,CT,44,Bern
scans/later/c.nii.gz,,,,,,
"""
ROWS = [
    {
        "scan": "scans/a.nii.gz",
        "prompts": ["liver", "left kidney"],
        "id": "case 1",
        "modality": "ct",
        "age": 44,
    },
    {"scan": "scans/later/c.nii.gz"},
]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "parquet"])
def test_manifests_say_what_is_asked_of_each_scan(
    scans: Path, tmp_path: Path, jobs_of: Find, ending: str
) -> None:
    path = tmp_path / f"manifest.{ending}"
    if ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="Needs pyarrow.")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif ending == "json":
        path.write_text(json.dumps({"scans": ROWS}))
    else:
        path.write_text(CSV if ending == "csv" else CSV.replace(",", "\t"))
    first, second = jobs_of(path)
    assert (first.id, first.prompts, first.modality) == ("case_1", ("liver", "left kidney"), "ct")
    assert first.extra["age"] in (44, "44")
    assert (second.id, second.prompts, second.scan) == ("c", ("liver",), (scans / "later" / "c.nii.gz",))


def test_a_cell_may_hold_lines(scans: Path, tmp_path: Path, jobs_of: Find) -> None:
    (tmp_path / "m.csv").write_bytes(
        b'scan,prompts,note\r\nscans/a.nii.gz,"liver\nspleen","first\nsecond"\r\n\r\nscans/b.nii,liver,\r\n'
    )
    first, second = jobs_of(tmp_path / "m.csv")
    assert (first.prompts, dict(first.extra)) == (("liver", "spleen"), {"note": "first\nsecond"})
    assert (second.prompts, dict(second.extra)) == (("liver",), {"note": ""})


def test_any_column_of_a_parquet_table_comes_through(scans: Path, tmp_path: Path, jobs_of: Find) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Needs pyarrow.")
    parquet = pytest.importorskip("pyarrow.parquet", reason="Needs pyarrow.")
    table = pyarrow.table(
        {
            "scan": pyarrow.array(["scans/a.nii.gz", "scans/b.nii"]).dictionary_encode(),
            "prompts": pyarrow.array([["liver", "spleen"], None], pyarrow.list_(pyarrow.string())),
            "id": pyarrow.array([7, None]),
            "age": pyarrow.array([44, None], pyarrow.int8()),
            "weight": pyarrow.array([71.5, float("nan")]),
            "smoker": pyarrow.array([True, None]),
            "day": pyarrow.array([datetime.date(2026, 3, 4), None]),
            "dose": pyarrow.array([Decimal("1.50"), None]),
            "huge": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
            "sites": pyarrow.array([["Bern", "Basel"], None], pyarrow.list_(pyarrow.string())),
            # What pandas writes beside the columns.
            "__index_level_0__": pyarrow.array([0, 1]),
        }
    )
    parquet.write_table(table, tmp_path / "m.parquet")
    first, second = jobs_of(tmp_path / "m.parquet")
    assert (first.id, first.prompts, second.id, second.prompts) == ("7", ("liver", "spleen"), "b", ("liver",))
    assert dict(first.extra) == {
        **{"age": 44, "weight": 71.5, "smoker": True, "day": "2026-03-04", "dose": "1.50"},
        **{"huge": 2**64 - 1, "sites": "Bern; Basel"},
    }
    assert set(second.extra.values()) == {None}


def test_a_row_may_mean_a_series_or_several_channels(
    scans: Path, tmp_path: Path, jobs_of: Find, write_series: WriteSeries
) -> None:
    write_series(tmp_path / "study" / "x", 1)
    write_series(tmp_path / "study" / "y", 2)
    path = tmp_path / "manifest.csv"
    path.write_text(
        "scan,id,series,volume\nstudy,second,2,\nscans/a.nii.gz|scans/b.nii,both,,0\nstudy,unclear,,\n"
    )
    second, both, unclear = jobs_of(path)
    assert {slice_.parent.name for slice_ in second.slices} == {"y"}
    assert (both.scan, both.volume) == ((scans / "a.nii.gz", scans / "b.nii"), 0)
    assert (unclear.slices, unclear.is_dicom) == ((), True)


def test_a_series_number_wins_over_the_end_of_another_ones_uid(
    tmp_path: Path, jobs_of: Find, write_series: WriteSeries
) -> None:
    write_series(tmp_path / "study" / "x", 1, SeriesInstanceUID="1.2.826.0.1.32")
    write_series(tmp_path / "study" / "y", 2, SeriesInstanceUID="1.2.826.0.1.31")
    path = tmp_path / "manifest.csv"
    path.write_text("scan,id,series\nstudy,second,2\n")
    (second,) = jobs_of(path)
    assert {slice_.parent.name for slice_ in second.slices} == {"y"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,prompts\nx.nii.gz,liver\n", 'column "scan"'),
        ("scan\n", "at least one row"),
        ("scan,modality\nx.nii.gz,ultrasound\n", "row 1: modality must be"),
        ("scan,volume\nx.nii.gz,first\n,\n,2\n", "row 1: volume .* row 2: no scan"),
        ("scan,prompts\nx.nii.gz,liver,spleen\n", "more cells"),
        ("scan,prompts\nscans/a.nii.gz,liver\nscans/a.nii.gz,liver\n", "there twice"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_rows(
    scans: Path, tmp_path: Path, jobs_of: Find, text: str, words: str
) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(CohortError, match=words):
        jobs_of(tmp_path / "manifest.csv")


def test_a_cohort_needs_scans_and_prompts(tmp_path: Path, scans: Path, jobs_of: Find) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(CohortError, match="holds none"):
        jobs_of(tmp_path / "none")
    with pytest.raises(CohortError, match="no file or folder"):
        jobs_of(tmp_path / "gone")
    with pytest.raises(CohortError, match="needs a prompt"):
        jobs_of(scans, prompts=())


# ---- what a job is ----


def test_content_does_not_depend_on_names(
    scans: Path, tmp_path: Path, jobs_of: Find, write_series: WriteSeries
) -> None:
    memory = Remembered()
    (job,) = jobs_of(scans / "a.nii.gz")
    shutil.copy(scans / "a.nii.gz", tmp_path / "renamed.nii.gz")
    (copy,) = jobs_of(tmp_path / "renamed.nii.gz")
    assert scan_content(job, memory) == scan_content(copy, memory)
    (series,) = jobs_of(write_series(tmp_path / "dicom", 1))
    (tmp_path / "shuffled").mkdir()
    for number, path in enumerate(reversed(series.slices)):
        shutil.copy(path, tmp_path / "shuffled" / f"{number}.dcm")
    (shuffled,) = jobs_of(tmp_path / "shuffled")
    assert scan_content(series, memory) == scan_content(shuffled, memory)


def test_content_is_worked_out_again_when_a_file_changes(
    scans: Path, jobs_of: Find, write_scan: WriteScan
) -> None:
    memory = Remembered()
    (job,) = jobs_of(scans / "a.nii.gz")
    first = scan_content(job, memory)
    assert scan_content(job, memory) == first
    assert memory.missed == 1
    write_scan(scans / "a.nii.gz", 9)
    assert scan_content(job, memory) != first


def test_a_detached_header_counts_with_its_voxels(scans: Path, tmp_path: Path, jobs_of: Find) -> None:
    voxels = nib.load(scans / "b.nii").get_fdata().astype("<i2")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 22 26 18\nElementType = MET_SHORT\n"
    (tmp_path / "x.mhd").write_text(f"{header}ElementDataFile = x.raw\n")
    (tmp_path / "x.raw").write_bytes(voxels.tobytes(order="F"))
    (job,) = jobs_of(tmp_path / "x.mhd")
    first = scan_content(job, Remembered())
    (tmp_path / "x.raw").write_bytes((voxels + 1).astype("<i2").tobytes(order="F"))
    assert scan_content(job, Remembered()) != first


def test_the_key_changes_with_all_that_decides_the_outputs(scans: Path, jobs_of: Find) -> None:
    (job,) = jobs_of(scans / "a.nii.gz")
    (other,) = jobs_of(scans / "a.nii.gz", prompts=("spleen",))
    model = {"network": "1"}
    keys = {
        job_key(job, "scan", model, Settings()),
        job_key(job, "another", model, Settings()),
        job_key(job, "scan", {"network": "2"}, Settings()),
        job_key(other, "scan", model, Settings()),
        job_key(job, "scan", model, Settings(clean_up=True)),
        job_key(job, "scan", model, Settings(formats=("nrrd",))),
    }
    assert len(keys) == 6
    assert job_key(job, "scan", model, Settings(ids="keep")) in keys
    assert job_key(job, "scan", model, Settings(backend="openvino")) not in keys
    # As it was before a backend could be chosen: cohorts of then are still done.
    kept = {"formats": (), "clean_up": False, "write_empty": False, "preview": True}
    asked = ["scan", model, job.prompts, None, None, None, kept]
    old = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    assert job_key(job, "scan", model, Settings.from_json({**kept, "ids": "hash"})) == old


def test_a_worker_takes_the_larger_stack_of_a_series(
    tmp_path: Path, jobs_of: Find, write_series: WriteSeries
) -> None:
    uid = generate_uid()
    folder = write_series(tmp_path / "series", 1, SeriesInstanceUID=uid)
    write_series(tmp_path / "series", 2, SeriesInstanceUID=uid, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for path in sorted(folder.glob("Dulcinea_2_*"))[4:]:
        path.unlink()
    (job,) = jobs_of(folder)
    assert len(job.slices) == 22
    task = task_of(job, "key", Settings(), Path("model"), tmp_path, "")
    # A check reads the job as a worker reads its task.
    for source in (job, task):
        with channels_of(source, "hash") as (scan,):
            assert scan.geometry.shape == (22, 26, 18)
            assert scan.file.details["warnings"] == [
                "The images of the series lie in 2 ways; 4 of them were left out."
            ]
