"""A scan in memory: voxels, where they lie, and what its file should look like when a mask goes back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textseg.errors import ScanError
from textseg.geometry import Geometry

Modality = Literal["ct", "mr", "pet"]
FileFormat = Literal["nii.gz", "nii", "mgz", "nrrd", "nhdr", "mha", "mhd", "dicom"]

# A scan holding air in Hounsfield units goes far below this; MR after filtering may be a little below zero.
LOWEST_MR_VALUE = -500.0


@dataclass(frozen=True)
class ScanFile:
    """Where a scan came from and what a mask needs to be written as that file would be.

    Args:
        paths: the files, one a channel (a DICOM series counts as one: its folder or file).
        format: of the first file.
        header: the reader's own header object (a nibabel header, for instance), kept for its codes and units.
        details: facts that go into the record, such as the DICOM series, in words and numbers.
    """

    paths: tuple[Path, ...]
    format: FileFormat
    header: Any = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The name of the scan without its folder and ending: "scan" for scan.nii.gz."""
        name = self.paths[0].name
        for ending in (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"):
            if name.lower().endswith(ending):
                return name[: -len(ending)]
        return name


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels (channels, x, y, z) on the scan's own grid, in the file's own axis order and its own values.

    CT is in Hounsfield units, PET in whatever the file holds (SUV where it was converted), MR arbitrary.

    Raises:
        ScanError: the voxels' shape does not fit the geometry.
    """

    voxels: NDArray[Any]
    geometry: Geometry
    file: ScanFile | None = None
    modality: Modality | None = None

    def __post_init__(self) -> None:
        if self.voxels.ndim == 3:
            object.__setattr__(self, "voxels", self.voxels[None])
        if self.voxels.ndim != 4 or self.voxels.shape[1:] != self.geometry.shape:
            raise ScanError(
                f"Voxels must be (x, y, z) or (channels, x, y, z) on a grid of {self.geometry.shape}, "
                f"got shape {self.voxels.shape}."
            )

    @property
    def channels(self) -> int:
        return int(self.voxels.shape[0])

    def canonical(self) -> Volume:
        """The same scan with its axes permuted and flipped to be as close to RAS+ as they can be."""
        order = self.geometry.canonical_order()
        return replace(self, voxels=order.apply(self.voxels), geometry=self.geometry.reordered(order))


def guess_modality(voxels: NDArray[Any]) -> Modality:
    """CT where the values reach air in Hounsfield units, else MR; PET can't be told from MR by its values."""
    return "ct" if float(np.min(voxels)) <= LOWEST_MR_VALUE else "mr"
