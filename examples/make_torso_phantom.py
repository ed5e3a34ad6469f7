"""Draw the bundled example scan: a torso without a patient, with a tumour in its left kidney.

    python examples/make_torso_phantom.py examples/torso_phantom.nii.gz

The scan is a CT in HU at 3 mm, stored as scanners store them: axes towards left, posterior, superior.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from textseg.geometry import AxisOrder, Geometry
from textseg.train.lesions import paint_ball
from textseg.train.phantom import LEGEND, VALUES, torso_phantom
from textseg.train.synth import synthesise

SEED = 7
SHAPE = (116, 92, 150)
SPACING_MM = 3.0


def draw_scan() -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Voxels in HU (x, y, z) int16, their labels, and where they lie, axes L, P, S."""
    random = np.random.default_rng(SEED)
    canonical = Geometry(SHAPE, np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]))
    labels = torso_phantom(random, canonical)
    image = synthesise(torch.from_numpy(labels.astype(np.int64)), LEGEND, "ct", random)
    kidney = np.argwhere(labels == VALUES["left kidney"])
    tumour_centre = kidney[kidney[:, 2].argsort()[len(kidney) // 4]]
    image = paint_ball(image, tuple(tumour_centre), radius_voxels=4.5, shift=-60.0)
    scanner = AxisOrder((0, 1, 2), (True, True, False))
    voxels = scanner.apply(image.numpy().round().astype(np.int16))
    return np.ascontiguousarray(voxels), scanner.apply(labels), canonical.reordered(scanner)


def main(path: Path) -> None:
    voxels, _, geometry = draw_scan()
    scan = nib.Nifti1Image(voxels, geometry.affine)
    scan.header.set_xyzt_units("mm")
    scan.header["descrip"] = b"textseg torso phantom, no patient"
    nib.save(scan, path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/torso_phantom.nii.gz"))
