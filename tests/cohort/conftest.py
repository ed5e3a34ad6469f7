"""Small cohorts for a tiny model: good scans, DICOM series of a named patient, and ten kinds of bad files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.tiny_model import write_tiny_model
from textseg.cohort.folders import RESULT_FILE
from textseg.cohort.jobs import Job, Settings
from textseg.cohort.privacy import Pseudonyms
from textseg.cohort.request import Naming, Request, find_jobs
from textseg.cohort.task import Outcome, Task
from textseg.cohort.worker import Worker

# Three different sides, a tilt, and something off the centre.
AFFINE = np.array([[-2.0, 0.2, 0, 30], [0.2, 2.5, 0, -20], [0, 0, 3.0, 400], [0, 0, 0, 1]])
SHAPE = (22, 26, 18)
PATIENT, PATIENT_ID, BIRTHDAY = "Quixote^Dulcinea", "MRN-7741-X", "19470611"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("TEXTSEG_DEBUG", raising=False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def noise() -> Callable[[int], NDArray[np.int16]]:
    """A body of noise in air with a bright box, in Hounsfield units; another one for every number."""

    def make(number: int) -> NDArray[np.int16]:
        voxels = np.full(SHAPE, -1000, np.int16)
        voxels[2:-3, 3:-2, 1:-1] = np.random.default_rng(number).integers(-80, 80, (17, 21, 16))
        voxels[6:12, 14:20, 8:14] = 900
        return voxels

    return make


@pytest.fixture
def write_scan(noise: Callable[[int], NDArray[np.int16]]) -> Callable[[Path, int], Path]:
    """Writes scan number N to a NIfTI file; gives the path."""

    def write(path: Path, number: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(noise(number), AFFINE), path)
        return path

    return write


@pytest.fixture
def scans(tmp_path: Path, write_scan: Callable[[Path, int], Path]) -> Path:
    """A folder of three scans, one of them in a folder of its own."""
    for number, name in enumerate(("a.nii.gz", "b.nii", "later/c.nii.gz")):
        write_scan(tmp_path / "scans" / name, number)
    return tmp_path / "scans"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def jobs_of(tiny_model: Path) -> Callable[..., tuple[Job, ...]]:
    """The jobs of a source, asked for a liver with the tiny model unless it is said otherwise."""

    def find(*sources: Path | str, ids: Any = "hash", **asked: Any) -> tuple[Job, ...]:
        asked = {"prompts": ("liver",), "model": str(tiny_model), **asked}
        naming = Naming(Pseudonyms(ids, b"salt"), lambda handle: 1)
        return find_jobs(Request(tuple(map(str, sources)), **asked), naming).jobs

    return find


class Here:
    """A worker in the process of the tests, one task at a time: what a worker process does, but no start.

    before: called with each task first; may give another outcome than the real one.
    """

    capacity = 2

    def __init__(self, before: Callable[[Task], Outcome | None] = lambda task: None) -> None:
        self.worker, self.before = Worker(), before
        self.tasks: list[Task] = []
        self.is_winding_down = False

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.tasks.append(task)
        instead = Outcome(task.id, "released") if self.is_winding_down else self.before(task)
        future.set_result(instead or self.worker.run(task, lambda stage: None))
        return future

    def wind_down(self) -> None:
        self.is_winding_down = True

    def close(self) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture
def plain() -> Settings:
    """Without previews, which take longest on such small scans."""
    return Settings(preview=False)


@pytest.fixture
def write_series(noise: Callable[[int], NDArray[np.int16]]) -> Callable[..., Path]:
    """Writes a CT as a DICOM series of a named patient; its files are named after her too."""

    def write(folder: Path, number: int = 0, **changes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        voxels, study, series = noise(number), generate_uid(), generate_uid()
        for z in range(voxels.shape[2]):
            image = _slice(voxels[..., z], z)
            image.StudyInstanceUID, image.SeriesInstanceUID, image.SeriesNumber = study, series, number
            for name, value in changes.items():
                setattr(image, name, value)
            image.save_as(folder / f"Dulcinea_{number}_{z:02d}", enforce_file_format=True)
        return folder

    return write


def _slice(pixels: NDArray[np.int16], z: int) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.PatientName, image.PatientID, image.PatientBirthDate = PATIENT, PATIENT_ID, BIRTHDAY
    image.StudyDate, image.AccessionNumber, image.StudyDescription = "20190417", "ACC-99120", "Follow-up"
    image.Modality, image.SeriesDescription = "CT", "Thorax of Mrs Quixote"
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient = [-30, -40, 3 * z]
    image.PixelSpacing, image.SliceThickness = [2.5, 2], 3
    image.Columns, image.Rows = pixels.shape
    image.RescaleSlope, image.RescaleIntercept = 1, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    return image


@pytest.fixture
def broken(tmp_path: Path, write_scan: Callable[[Path, int], Path]) -> Path:
    """A folder with ten files that look like scans by their names, each bad in its own way."""
    folder = tmp_path / "broken"
    whole = write_scan(tmp_path / "whole.nii.gz", 77).read_bytes()
    plain_file = gzip.decompress(whole)
    folder.mkdir()
    contents = {
        "empty.nii.gz": b"",
        "truncated.nii.gz": whole[: len(whole) // 2],
        "text.nii.gz": b"<html>404 Not Found</html>",
        "zipped_text.nii.gz": gzip.compress(b"hello" * 200),
        "wrong_header.nii": plain_file[:40] + b"\xff" * 16 + plain_file[56:],
        "short.nii": plain_file[: len(plain_file) * 2 // 3],
        "damaged.nrrd": b"NRRD0004\ntype: int16\ndimension: three\n\n" + plain_file[352:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    not_finite = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    not_finite[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(not_finite, AFFINE), folder / "nan.nii.gz")
    nib.save(nib.Nifti1Image(not_finite[:, :, 0], AFFINE), folder / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 7, np.int16), AFFINE), folder / "constant.nii.gz")
    return folder


@pytest.fixture
def tree_of() -> Callable[[Path], dict[str, bytes]]:
    """Every file of every job's folder, byte for byte."""

    def read(out: Path) -> dict[str, bytes]:
        folders = [record.parent for record in out.glob(f"*/{RESULT_FILE}")]
        files = [path for folder in folders for path in sorted(folder.iterdir())]
        return {str(path.relative_to(out)): path.read_bytes() for path in files}

    return read


def record_of(out: Path, job: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / job / RESULT_FILE).read_text(encoding="utf-8"))
    return record
