"""Identifiers of patients: nowhere in what a cohort writes, unless they are asked for."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from tests.cohort.conftest import BIRTHDAY, PATIENT_ID, Here, record_of
from tests.dataset.two_channel_model import write_pet_ct_model
from textseg.cohort.export import export_cohort
from textseg.cohort.jobs import SECRET_FILE, CohortError, Settings
from textseg.cohort.privacy import (
    HIDDEN,
    Pseudonyms,
    hide,
    identifiers_in,
    names_on,
    read_or_make_salt,
)
from textseg.cohort.request import Request
from textseg.cohort.run import entries_of, run_cohort
from textseg.cohort.start import start_cohort, what_was_asked
from textseg.cohort.summary import summary_rows, write_tables
from textseg.report.cohort_page import write_cohort_report

Series = Callable[..., Path]


@pytest.fixture
def archive(tmp_path: Path, write_series: Series) -> Path:
    """Two good series and a bad one of a patient, in folders that are named after her."""
    folder = tmp_path / "archive"
    write_series(folder / "Quixote_Dulcinea" / "CT1", 1)
    write_series(folder / "Quixote_Dulcinea" / "CT2", 2)
    write_series(folder / "Quixote_Dulcinea" / "gap", 3)
    (folder / "Quixote_Dulcinea" / "gap" / "Dulcinea_3_07").unlink()
    (folder / "Quixote_Dulcinea" / "gap" / "Dulcinea_3_08").unlink()
    return folder


def run_here(archive: Path, out: Path, model: Path, **choices: Any) -> dict[str, str]:
    """Runs the archive; gives the state of every job and writes all tables."""
    settings = Settings(**choices)
    found = start_cohort(Request((str(archive),), ("liver",), str(model)), settings, out)
    run_cohort(found.jobs, out, settings, Here())
    rows = summary_rows(out, entries_of(out))
    write_tables(out, rows)
    write_cohort_report(out, rows)
    return {entry.id: entry.state for entry in entries_of(out)}


def secrets_of(archive: Path) -> Iterator[bytes]:
    """All that must not be found: names, numbers, days, descriptions and UIDs."""
    yield from (b"quixote", b"dulcinea", b"mrn-7741", BIRTHDAY.encode(), b"19470611", b"1947-06-11")
    yield from (b"20190417", b"2019-04-17", b"acc-99120", b"follow-up", b"thorax of mrs")
    for path in archive.rglob("Dulcinea*"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        yield from (
            str(header[name].value).encode()
            for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
        )


def places_of(secret: bytes, folder: Path) -> list[str]:
    """Files whose name or content holds a secret, what is compressed looked into as well."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path)
        for path in files
        if secret in str(path.relative_to(folder)).lower().encode() or secret in content_of(path).lower()
    ]


def content_of(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix == ".parquet":
        return repr(pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()).encode()
    return content


@pytest.mark.parametrize("ids", ["hash", "drop"])
def test_no_identifier_is_anywhere_in_the_output(
    archive: Path, out: Path, tiny_model: Path, ids: str
) -> None:
    states = run_here(archive, out, tiny_model, ids=ids)
    assert sorted(states.values()) == ["done", "done", "failed"]
    assert {secret: places for secret in secrets_of(archive) if (places := places_of(secret, out))} == {}
    assert what_was_asked(out)[0].sources == (str(archive),)


def test_identifiers_are_kept_when_they_are_asked_for(archive: Path, out: Path, tiny_model: Path) -> None:
    states = run_here(archive, out, tiny_model, ids="keep")
    job = f"{PATIENT_ID}_1_Thorax_of_Mrs_Quixote"
    assert states[job] == "done"
    assert record_of(out, job)["scan"]["details"]["series_description"] == "Thorax of Mrs Quixote"


def test_hashes_tell_patients_apart_and_numbers_do_not(
    archive: Path, out: Path, tmp_path: Path, tiny_model: Path, write_series: Series
) -> None:
    write_series(archive / "other", 4, PatientID="MRN-1")
    hashed = run_here(archive, out, tiny_model, ids="hash", preview=False)
    assert len({job.partition("_")[0] for job in hashed}) == 2
    assert set(run_here(archive, out, tiny_model, ids="hash", preview=False)) == set(hashed)
    salted_anew = run_here(archive, tmp_path / "elsewhere", tiny_model, ids="hash", preview=False)
    assert not set(salted_anew) & set(hashed)
    dropped = run_here(archive, tmp_path / "dropped", tiny_model, ids="drop", preview=False)
    assert sorted(dropped) == ["scan0001", "scan0002", "scan0003", "scan0004"]


def test_dropped_names_stay_when_series_are_added(
    archive: Path,
    out: Path,
    tiny_model: Path,
    write_series: Series,
    tree_of: Callable[[Path], dict[str, bytes]],
) -> None:
    run_here(archive, out, tiny_model, ids="drop", preview=False)
    before = tree_of(out)
    for number in (5, 6):
        write_series(archive / f"more{number}", number)
    run_here(archive, out, tiny_model, ids="drop", preview=False)
    after = tree_of(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)


@pytest.mark.parametrize("name", ["Quixote_Dulcinea", "ct_Quixote_2019", "dulcineaq"])
def test_sources_named_after_the_patient_are_not_kept(
    tmp_path: Path, out: Path, tiny_model: Path, write_series: Series, name: str
) -> None:
    source = write_series(tmp_path / name, 1)
    run_here(source, out, tiny_model, preview=False)
    assert places_of(b"quixote", out) == places_of(b"dulcinea", out) == []
    with pytest.raises(CohortError, match=r"sources .* were not kept"):
        what_was_asked(out)


def test_dicom_objects_are_left_out_of_exports_unless_asked_for(
    archive: Path, out: Path, tmp_path: Path, tiny_model: Path
) -> None:
    pytest.importorskip("highdicom", reason="Needs highdicom, of the extra dicom.")
    run_here(archive, out, tiny_model, formats=("nrrd", "dicom-seg", "rtstruct"), preview=False)
    assert len(list(out.glob("*/masks_seg.dcm"))) == len(list(out.glob("*/masks_rtstruct.dcm"))) == 2
    export_cohort(out, entries_of(out), tmp_path / "without")
    assert places_of(b"quixote", tmp_path / "without") == []
    assert len(list((tmp_path / "without").rglob("*.nrrd"))) == 2
    export_cohort(out, entries_of(out), tmp_path / "with", with_dicom=True)
    assert len(places_of(b"quixote", tmp_path / "with")) == 4


def test_a_manifest_may_not_name_a_scan_after_its_patient(
    archive: Path, tmp_path: Path, out: Path, tiny_model: Path
) -> None:
    manifest = tmp_path / "table.csv"
    series = archive / "Quixote_Dulcinea" / "CT1"
    manifest.write_text(f"scan,id,note\n{series},case_7,seen by Dr {PATIENT_ID}\n")
    run_here(manifest, out, tiny_model, preview=False)
    (row,) = summary_rows(out, entries_of(out))
    assert (row["id"], row["note"]) == ("case_7", f"seen by Dr {HIDDEN}")
    for name in (PATIENT_ID, f"pat_{PATIENT_ID}_a"):
        manifest.write_text(f"scan,id\n{series},{name}\n")
        with pytest.raises(CohortError, match=r"Row 1 .* identifier"):
            run_here(manifest, out, tiny_model)
    # What was scanned tells nothing of whom.
    manifest.write_text(f"scan,id\n{series},follow-up_7\n")
    run_here(manifest, out, tiny_model, preview=False)
    assert "follow-up_7" in {entry.id for entry in entries_of(out)}


def test_the_salt_is_kept_for_its_owner_alone(out: Path) -> None:
    out.mkdir()
    salt = read_or_make_salt(out)
    assert read_or_make_salt(out) == salt
    assert stat.S_IMODE((out / SECRET_FILE).stat().st_mode) == 0o600
    assert Pseudonyms("hash", salt).of("patient", "1") != Pseudonyms("hash", b"other").of("patient", "1")
    (out / SECRET_FILE).write_text("{}")
    with pytest.raises(CohortError, match="salt"):
        read_or_make_salt(out)


def test_names_are_hidden_however_they_are_written() -> None:
    header = pydicom.Dataset()
    header.PatientName, header.PatientID, header.StudyDate = "Li^Wei Min", "42", "20200131"
    header.SOPInstanceUID, header.SOPClassUID = "1.2.3.4.5.6.7", "1.2.840.10008.5.1.4.1.1.2"
    secrets = identifiers_in(header)
    text = "LI^WEI MIN (li, Wei) on 2020-01-31: 1.2.3.4.5.6.7 and 2.16.840.1.113 of the liver in 42 slices"
    assert hide(text, secrets) == (
        f"{HIDDEN} ({HIDDEN}, {HIDDEN}) on {HIDDEN}: {HIDDEN} and {HIDDEN} of the liver in 42 slices"
    )


def test_names_are_hidden_as_people_join_them_to_others() -> None:
    header = pydicom.Dataset()
    header.PatientName, header.PatientID = "Quixote^Li", "MRN-7"
    secrets = identifiers_in(header)
    shown = {
        "CT_Quixote_03.dcm": f"CT_{HIDDEN}_03.dcm",
        "Anna2019Quixote": f"Anna2019{HIDDEN}",
        "li01_MRN-7_b": f"{HIDDEN}01_{HIDDEN}_b",
        "liver, MRN-71": "liver, MRN-71",
    }
    assert {text: hide(text, secrets) for text in shown} == shown


def test_folders_are_hidden_unless_their_names_tell_of_nobody(tmp_path: Path) -> None:
    files = [tmp_path / "Quixote" / "Series" / "1.dcm", tmp_path / "series" / "MRN-7" / "2.dcm"]
    assert names_on(files, tmp_path) == {"Quixote", "MRN-7"}


@pytest.mark.parametrize("ids", ["hash", "drop", "keep"])
def test_reasons_name_files_by_their_number_or_as_they_are(
    archive: Path, tmp_path: Path, out: Path, tiny_model: Path, ids: str
) -> None:
    damaged = sorted((archive / "Quixote_Dulcinea" / "CT1").iterdir())[5]
    damaged.write_bytes(damaged.read_bytes()[:-500])
    for place in (out, tmp_path / "again"):
        run_here(archive, place, tiny_model, ids=ids, preview=False)
    reasons, again = (
        {entry.reason.replace(entry.id, "ID") for entry in entries_of(place)}
        for place in (out, tmp_path / "again")
    )
    name = str(damaged) if ids == "keep" else "ID/000005.dcm"
    assert any(f"that of {name} can't be decoded" in reason for reason in reasons), reasons
    # No name of a folder for a moment is in them either.
    assert reasons == again


def test_channels_that_can_not_be_read_keep_their_names(
    archive: Path, tmp_path: Path, out: Path, write_series: Series
) -> None:
    write_pet_ct_model(tmp_path / "two")
    patient = archive / "Quixote_Dulcinea"
    damaged = sorted(write_series(patient / "PET", 1, PixelSpacing=[2.5, 2.5], Modality="PT").iterdir())[5]
    damaged.write_bytes(damaged.read_bytes()[:-500])
    manifest = tmp_path / "table.csv"
    manifest.write_text(f"scan\n{patient / 'CT1'};{patient / 'PET'}\n")
    assert run_here(manifest, out, tmp_path / "two", preview=False) == {"row0001": "failed"}
    assert {secret: places for secret in secrets_of(archive) if (places := places_of(secret, out))} == {}


def test_a_folder_with_names_takes_no_run_without(archive: Path, out: Path, tiny_model: Path) -> None:
    run_here(archive, out, tiny_model, ids="keep", preview=False)
    with pytest.raises(CohortError, match=r"--ids keep, .* another folder"):
        run_here(archive, out, tiny_model, ids="hash", preview=False)
    run_here(archive, out, tiny_model, ids="keep", preview=False)


def test_channels_from_dicom_folders_are_nameless_too(
    archive: Path, tmp_path: Path, out: Path, write_series: Series
) -> None:
    write_pet_ct_model(tmp_path / "two")
    patient = archive / "Quixote_Dulcinea"
    write_series(patient / "PET", 1, PixelSpacing=[2.5, 2.5], Modality="PT")
    manifest = tmp_path / "table.csv"
    manifest.write_text(f"scan\n{patient / 'CT1'};{patient / 'PET'}\n")
    assert run_here(manifest, out, tmp_path / "two", preview=False) == {"row0001": "done"}
    channels = record_of(out, "row0001")["scan"]["channels"]
    assert [channel["regridded"] for channel in channels] == [False, True]
    assert {secret: places for secret in secrets_of(archive) if (places := places_of(secret, out))} == {}
