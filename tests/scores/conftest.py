"""Masks whose scores are known, on grids with three different sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.core.conftest import tilted_affine
from textseg.geometry import Geometry

Bools = NDArray[np.bool_]
Write = Callable[..., Path]


@pytest.fixture
def grid() -> Geometry:
    """An oblique grid of 0.8 × 1.1 × 2.5 mm."""
    return Geometry((30, 26, 18), tilted_affine())


@pytest.fixture
def write(tmp_path: Path, grid: Geometry) -> Write:
    """Writes labels on the oblique grid under the tests' folder: write("ref/case.nii.gz", labels)."""

    def run(name: str, labels: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(labels.astype(np.uint8), grid.affine if affine is None else affine)
        nib.save(image, path)
        return path

    return run


def block(shape: tuple[int, int, int], start: tuple[int, int, int], stop: tuple[int, int, int]) -> Bools:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def write_ct_series(folder: Path, shape: tuple[int, int, int]) -> Path:
    """A CT as a DICOM series on the oblique grid, a file a slice, each of one value; gives the folder."""
    folder.mkdir()
    columns, rows, slices = shape
    affine = np.diag([-1.0, -1, 1, 1]) @ tilted_affine()
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    study, series, place = generate_uid(), generate_uid(), generate_uid()
    for z in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, place
        image.PatientName = image.PatientID = image.StudyID = "none"
        image.PatientBirthDate = image.PatientSex = image.AccessionNumber = ""
        image.StudyDate = image.StudyTime = image.ReferringPhysicianName = ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, z + 1
        image.ImageOrientationPatient = [f"{n:.9f}" for n in (affine[:3, :2] / steps[:2]).T.ravel()]
        image.ImagePositionPatient = [f"{n:.6f}" for n in affine[:3] @ (0, 0, z, 1)]
        image.PixelSpacing = [f"{steps[1]:.6f}", f"{steps[0]:.6f}"]
        image.SliceThickness, image.RescaleSlope, image.RescaleIntercept = f"{steps[2]:.6f}", 1, 0
        image.Columns, image.Rows = columns, rows
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelData = np.full((rows, columns), z, np.int16).tobytes()
        image.save_as(folder / f"{z:03d}.dcm", enforce_file_format=True)
    return folder
