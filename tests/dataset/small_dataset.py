"""Small datasets on disk: a body of noise with boxes off its centre, on a tilted grid with unequal sides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (20, 26, 14)
# Turned by about 10° about z, unequal spacings, the first axis to the patient's left.
AFFINE = np.array([[-1.97, 0.26, 0, 30], [0.35, 1.48, 0, -20], [0, 0, 3.0, 400], [0, 0, 0, 1.0]])
LEFT, RIGHT, TUMOR = 1, 2, 3
LABELS: dict[str, Any] = {
    "background": 0,
    "left kidney": LEFT,
    "right_kidney": RIGHT,
    "kidney tumor": TUMOR,
    "left kidney with tumor": [LEFT, TUMOR],
}


def label_map() -> NDArray[np.uint8]:
    """Two kidneys, and two tumours in the left one: a larger and a smaller."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 5:15, 3:9] = LEFT
    labels[12:17, 6:15, 3:8] = RIGHT
    labels[3:6, 6:9, 4:7] = TUMOR
    labels[4:5, 12:14, 5:6] = TUMOR
    return labels


def image(seed: int) -> NDArray[np.int16]:
    """In Hounsfield units, with air around."""
    random = np.random.default_rng(seed)
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[1:-1, 2:-2, 1:-1] = random.integers(
        -60, 60, tuple(n - m for n, m in zip(SHAPE, (2, 4, 2), strict=True))
    )
    return voxels + np.int16(150) * (label_map() > 0)


def save(voxels: NDArray[Any], path: Path, affine: NDArray[np.float64] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)  # type: ignore[no-untyped-call]
    return path


def write_small_dataset(
    folder: Path, cases: Sequence[str] = ("a", "b", "c"), channels: Sequence[str] = ("CT",)
) -> Path:
    """nnU-Net's raw layout without any fault; gives the folder."""
    for number, case in enumerate(cases):
        for channel in range(len(channels)):
            save(image(10 * number + channel), folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        save(label_map(), folder / "labelsTr" / f"{case}.nii.gz")
    document = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": LABELS,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    write_json(document, folder / "dataset.json")
    return folder


def write_label_maps(folder: Path) -> Path:
    """Two label maps without images, each with names of its own; gives the folder."""
    save(label_map(), folder / "one.nii.gz")
    save(label_map(), folder / "two.nii.gz")
    names = {
        "one.nii.gz": {"labels": {"background": 0, "left kidney": 1, "right kidney": 2, "kidney tumor": 3}},
        "two.nii.gz": {"labels": {"background": 0, "spleen": 1, "liver": 2, "right kidney": 3}},
    }
    write_json(names, folder / "names.json")
    return folder


def write_json(document: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
