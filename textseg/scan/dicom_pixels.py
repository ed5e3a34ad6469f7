"""DICOM pixel data to numbers, whatever its compression."""

# Neither pydicom nor SimpleITK is typed throughout.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813  # its own documentation calls it so
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    generate_uid,
)

from textseg.errors import ScanError

# All that a decoder needs to know; without rescaling, so that nothing but stored numbers can come out.
PIXEL_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)


def stored_frames(path: Path) -> NDArray[Any]:
    """The numbers that a file stores, before rescaling: (frames, rows, columns), whole numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            _name_transfer_syntax(dataset)
            pixels = dataset.pixel_array if _has_decoder(dataset) else _decoded_by_gdcm(dataset)
    # Decoders raise whatever they like on damaged data.
    except Exception as error:
        raise ScanError(
            f"A DICOM image must have whole pixel data, but that of {path} can't be decoded: "
            f"{_short(error)}. Export it again, best without compression."
        ) from error
    return _stored_bits(pixels.reshape(-1, dataset.Rows, dataset.Columns), dataset)


def stored_type(header: Dataset) -> np.dtype[Any]:
    return np.dtype(f"{'i' if header.get('PixelRepresentation') else 'u'}{int(header.BitsAllocated) // 8}")


def _has_decoder(dataset: Dataset) -> bool:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _name_transfer_syntax(dataset: Dataset) -> None:
    """Old files lack the header that names it; pydicom has seen what it is, and it is never compressed."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        )


def _decoded_by_gdcm(dataset: Dataset) -> NDArray[Any]:
    """(frames, rows, columns) by the GDCM within SimpleITK, which knows JPEG, JPEG-LS and JPEG 2000.

    GDCM would rescale, sort and place the frames by its own rules; so it is given a copy with pixels alone.
    """
    copy = Dataset()
    for name in PIXEL_TAGS:
        if name in dataset:
            copy[name] = dataset[name]
    many = int(dataset.get("NumberOfFrames") or 1) > 1
    copy.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage if many else CTImageStorage
    copy.SOPInstanceUID = generate_uid()
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory(prefix="textseg-") as folder:
        file = Path(folder) / "pixels.dcm"
        copy.save_as(file, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        return np.asarray(sitk.GetArrayFromImage(reader.Execute()))


def _stored_bits(pixels: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Only the bits that belong to the pixel: old files keep overlays in the bits above (PS3.5, 8.1.1)."""
    kind = stored_type(dataset)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or dataset.BitsAllocated)
    if stored >= allocated or allocated not in (8, 16, 32):
        return pixels.astype(kind, copy=False)
    above = allocated - 1 - int(dataset.get("HighBit", stored - 1))
    # Up to the top and back down: the sign, if there is one, follows.
    raised = np.left_shift(pixels.astype(kind.str.replace("i", "u"), copy=False), above)
    return np.asarray(np.right_shift(raised.view(kind), allocated - stored))


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
