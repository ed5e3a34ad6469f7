"""The command line on a tiny model, and on a stub in place of its network that gives a known answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from textseg_cli.main import app
from torch import Tensor
from typer.testing import CliRunner

from tests.tiny_model import write_tiny_model
from textseg.sliding import Answer

Run = Callable[..., Any]

# What the scan shows: a bright box off the centre, on a grid with three different sides and spacings.
BOX = (slice(6, 14), slice(14, 24), slice(8, 16))
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2.5, 0, -20], [0, 0, 3.0, 400], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("TEXTSEG_DEBUG", raising=False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reports whatever it is at least half sure of."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", presence=0.5)


@pytest.fixture(scope="session")
def scan_voxels() -> NDArray[np.int16]:
    """A body of noise in air, with the box in it, in Hounsfield units."""
    voxels = np.full((26, 32, 22), -1000, np.int16)
    voxels[2:-3, 3:-2, 1:-1] = np.random.default_rng(5).integers(-80, 80, (21, 27, 20))
    voxels[BOX] = 900
    return voxels


@pytest.fixture
def scan(tmp_path: Path, scan_voxels: NDArray[np.int16]) -> Path:
    nib.save(nib.Nifti1Image(scan_voxels, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder for masks; the command makes it."""
    return tmp_path / "out"


@dataclass
class Stub:
    """In place of the windows: the bright box, as present as `presences` say, prompt after prompt."""

    presences: list[float] = field(default_factory=list)
    error: BaseException | None = None
    calls: int = 0

    def __call__(self, network: Any, image: Tensor, text: Tensor, *rest: Any) -> Answer:
        self.calls += 1
        if self.error is not None:
            raise self.error
        logits = torch.where(image[0] > 1.5, 10.0, -10.0).expand(len(text), *image.shape[1:])
        presence = [self.presences.pop(0) if self.presences else 0.9 for _ in text]
        return Answer(logits, torch.tensor(presence))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setattr("textseg.inference.segment_windows", stub)
    return stub


@pytest.fixture
def textseg() -> Run:
    """Runs a command in this process: textseg("predict", scan, "liver")."""

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def predict(textseg: Run, scan: Path, out: Path, tiny_model: Path) -> Run:
    """Runs `textseg predict` on the scan with the tiny model into `out`; `scan=` and others replace these."""

    def run(*prompts_and_options: object, **instead: object) -> Any:
        where = {"scan": scan, "model": tiny_model, "out": out, **instead}
        options = ("--model", where["model"], "--out", where["out"])
        return textseg("predict", where["scan"], *prompts_and_options, *options)

    return run


@pytest.fixture
def folder_of(out: Path) -> Callable[[], list[str]]:
    """Names of all that lies in the output folder, hidden files too."""

    def names() -> list[str]:
        return sorted(path.name for path in out.rglob("*")) if out.exists() else []

    return names


@pytest.fixture
def write_series(tmp_path: Path, scan_voxels: NDArray[np.int16]) -> Callable[..., Path]:
    """Writes the scan as a DICOM series of its own into a folder, which may hold others; gives the folder."""

    def write(name: str, *, number: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        series = generate_uid()
        for z in range(scan_voxels.shape[2]):
            image = Dataset()
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.SeriesInstanceUID, image.SeriesNumber, image.Modality = series, number, "CT"
            image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            image.ImagePositionPatient = [-30, -40, 3 * z]
            image.PixelSpacing = [2.5, 2]
            image.Columns, image.Rows = scan_voxels.shape[:2]
            image.RescaleSlope, image.RescaleIntercept = 1, 0
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
            image.PixelData = np.ascontiguousarray(scan_voxels[..., z].T).tobytes()
            image.save_as(folder / f"{number}_{z:02d}.dcm", enforce_file_format=True)
        return folder

    return write
