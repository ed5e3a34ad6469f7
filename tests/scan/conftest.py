"""Phantoms on tilted and sheared grids, and DICOM series made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from textseg.geometry import Geometry

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
ENHANCED_STORAGE = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    """(7, 9, 5) values of a CT: noise, and a bright corner piece off the centre."""
    noise = np.random.default_rng(3).integers(-900, 900, (7, 9, 5)).astype(np.int16)
    noise[1:3, 5:8, 3:] = 1200
    return noise


@pytest.fixture
def tilted() -> NDArray[np.float64]:
    """A right-angled affine, oblique to all axes, of three different spacings."""
    return tilted_affine()


@pytest.fixture
def sheared() -> NDArray[np.float64]:
    """The tilted affine with its slices shifted against each other, as a tilted gantry leaves them."""
    affine = tilted_affine()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    return affine


def tilted_affine() -> NDArray[np.float64]:
    a, b, c = np.radians((11, -17, 23))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag([0.8, 1.1, 2.5])
    affine[:3, 3] = (-31.25, 17.5, 402.125)
    return affine


@pytest.fixture
def world_values() -> Callable[[NDArray[Any], Geometry], NDArray[Any]]:
    """What a scan says about the patient in any axis order: sorted rows of x, y, z in mm and value."""

    def rows(values: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
        indices = np.moveaxis(np.indices(values.shape), 0, -1).reshape(-1, 3)
        table = np.column_stack([geometry.to_world(indices), values.reshape(-1)])
        return table[np.lexsort(np.round(table, 2).T)]

    return rows


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes a classic series, a file a slice: write_series(values, affine, name=…, tags={…}, slices=[…])."""

    def write(
        values: NDArray[Any],
        affine: NDArray[np.float64],
        *,
        name: str = "series",
        modality: str = "CT",
        uid: str | None = None,
        tags: dict[str, Any] | None = None,
        tags_of_slice: Callable[[int], dict[str, Any]] = lambda z: {},
        slices: Sequence[float] | None = None,
        rescale: Callable[[int], tuple[float, float]] = lambda z: (1, 0),
        first_file: int = 0,
    ) -> list[Path]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        uid = uid or generate_uid()
        paths = []
        for z in range(values.shape[2]):
            dataset = _slice(
                values[..., z], affine, z if slices is None else slices[z], modality, *rescale(z)
            )
            dataset.SeriesInstanceUID = uid
            dataset.SeriesDescription = name
            dataset.InstanceNumber = z + 1
            for keyword, value in ({**(tags or {}), **tags_of_slice(z)}).items():
                setattr(dataset, keyword, value)
            # Names that sort neither forwards nor backwards.
            path = folder / f"IM{(first_file + z) * 7 % 101:04d}"
            dataset.save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def write_enhanced(tmp_path: Path) -> Callable[..., Path]:
    """Writes one multi-frame file; `order` is the z of each frame, `times` its temporal position."""

    def write(
        values: NDArray[Any],
        affine: NDArray[np.float64],
        *,
        modality: str = "CT",
        order: Sequence[int] | None = None,
        times: Sequence[int] | None = None,
        rescale: tuple[float, float] = (1, 0),
        name: str = "enhanced.dcm",
    ) -> Path:
        order = order if order is not None else range(values.shape[2])
        dataset = _slice(values[..., 0], affine, 0, modality, 1, 0)
        for keyword in ("ImagePositionPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
            delattr(dataset, keyword)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ENHANCED_STORAGE[modality]
        dataset.SeriesInstanceUID = generate_uid()
        dataset.NumberOfFrames = len(order)
        shared, orientation, measures, values_group = Dataset(), Dataset(), Dataset(), Dataset()
        orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
        del dataset.ImageOrientationPatient
        measures.PixelSpacing = _decimals(_spacing(affine)[[1, 0]])
        values_group.RescaleSlope, values_group.RescaleIntercept = rescale
        shared.PlaneOrientationSequence = [orientation]
        shared.PixelMeasuresSequence = [measures]
        shared.PixelValueTransformationSequence = [values_group]
        dataset.SharedFunctionalGroupsSequence = [shared]
        groups = []
        for number, z in enumerate(order):
            group, position, content = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = _decimals(_lps(affine)[:3] @ (0, 0, z, 1))
            content.TemporalPositionIndex = 1 if times is None else times[number]
            group.PlanePositionSequence = [position]
            group.FrameContentSequence = [content]
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = groups
        frames = values if values.shape[2] == len(order) and times is not None else values[..., list(order)]
        dataset.PixelData = np.ascontiguousarray(frames.T).tobytes()
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def _slice(
    values: NDArray[Any], affine: NDArray[Any], z: float, modality: str, slope: float, intercept: float
) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = STORAGE[modality]
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    lps = _lps(affine)
    dataset.ImageOrientationPatient = _decimals(
        np.concatenate([(lps[:3, :2] / _spacing(affine)[:2]).T.ravel()])
    )
    dataset.ImagePositionPatient = _decimals(lps[:3] @ (0, 0, z, 1))
    dataset.PixelSpacing = _decimals(_spacing(affine)[[1, 0]])
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.Columns, dataset.Rows = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(values.T).tobytes()
    return dataset


def _lps(affine: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _spacing(affine: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _decimals(numbers: NDArray[Any]) -> list[Any]:
    """As DICOM's decimal strings, which hold 16 characters."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]


@pytest.fixture
def change_tags() -> Callable[..., None]:
    """Rewrites a DICOM file with other values: change_tags(path, Modality="SEG")."""

    def change(path: Path, **tags: Any) -> None:
        dataset = pydicom.dcmread(path)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path, enforce_file_format=True)

    return change
