"""Fingerprints made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from textseg.fingerprint import CaseFingerprint, Fingerprint, Intensities, LabelFingerprint
from textseg.geometry import Shape, Spacing
from textseg.volume import Modality


def make_fingerprint(cases: Sequence[tuple[Shape, Spacing]], modality: Modality = "mr") -> Fingerprint:
    """One channel and one label, the liver; shapes in voxels and spacings in mm, axes (x, y, z)."""
    inside = Intensities(
        channel="scan",
        modality=modality,
        cases=len(cases),
        mean=104.5,
        sd=39.25,
        median=106.0,
        low=-41.0,
        high=199.5,
    )
    return Fingerprint(
        format="textseg-fingerprint-1",
        key="0",
        dataset="Dataset900_Test",
        layout="nnunet",
        channels=("scan",),
        labels={
            "liver": LabelFingerprint(group="torso", cases=len(cases), median_ml=1400.0, smallest_ml=900.0)
        },
        intensities=(inside,),
        cases=tuple(
            CaseFingerprint(
                id=f"case_{number}",
                shape_voxels=shape,
                cropped_voxels=shape,
                spacing_mm=spacing,
                modalities=(modality,),
                voxels={"liver": 1000},
            )
            for number, (shape, spacing) in enumerate(cases)
        ),
    )
