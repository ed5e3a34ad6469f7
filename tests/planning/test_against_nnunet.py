"""Spacing and patch against nnU-Net's own residual encoder planner, on three kinds of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.planning.conftest import make_fingerprint
from textseg.fingerprint import Fingerprint
from textseg.topology import choose_patch, median_shape, topology_of, working_spacing

pytest.importorskip("nnunetv2", reason="Needs the extra textseg[train].")

HIPPOCAMPUS = make_fingerprint(
    [((35, 51, 35), (1, 1, 1)), ((34, 52, 35), (1, 1, 1)), ((37, 49, 33), (1, 1, 1))]
)
CT = make_fingerprint(
    [
        ((270, 240, 180), (1.5, 1.5, 1.5)),
        ((300, 260, 210), (1.5, 1.5, 1.5)),
        ((255, 233, 305), (1.5, 1.5, 1.5)),
        ((310, 280, 260), (1.4, 1.4, 1.5)),
    ],
    modality="ct",
)
THICK_MR = make_fingerprint(
    [
        ((256, 240, 28), (1, 1, 5)),
        ((224, 256, 30), (1, 1, 5)),
        ((300, 280, 24), (0.9, 0.9, 6)),
        ((240, 220, 42), (1, 1, 3.3)),
    ]
)
BUDGETS_GB = (8.0, 3.0)


@pytest.mark.parametrize("budget_gb", BUDGETS_GB)
@pytest.mark.parametrize(
    "fingerprint", [HIPPOCAMPUS, CT, THICK_MR], ids=["hippocampus", "ct_1.5_mm", "mr_1x1x5_mm"]
)
def test_spacing_patch_strides_and_kernels_are_nnunets(
    fingerprint: Fingerprint, budget_gb: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = nnunet_plan(fingerprint, budget_gb, tmp_path, monkeypatch)
    spacing, _ = working_spacing(fingerprint.cases)
    shape = median_shape(fingerprint.cases, spacing)
    ours, _ = choose_patch(spacing, shape, budget_gb, channels=1, labels=1)
    assert spacing == pytest.approx(theirs["spacing"])
    assert ours.patch == theirs["patch"]
    assert list(ours.strides) == theirs["strides"]
    assert list(ours.kernels) == theirs["kernels"]


def test_the_three_kinds_really_differ() -> None:
    """Or agreement on them would show little: limited by the images, by memory, and anisotropic."""
    patches, kernels = [], []
    for fingerprint in (HIPPOCAMPUS, CT, THICK_MR):
        spacing, _ = working_spacing(fingerprint.cases)
        topology, _ = choose_patch(spacing, median_shape(fingerprint.cases, spacing), 8.0)
        patches.append(topology.patch)
        kernels.append(topology.kernels[0])
    assert patches[0] == (40, 56, 40)
    assert max(patches[1]) < 256
    assert kernels == [(3, 3, 3), (3, 3, 3), (3, 3, 1)]


def test_a_coarse_axis_counts_wherever_it_lies() -> None:
    """The same scans with their axes exchanged get the same plan with its axes exchanged."""
    spacing, _ = working_spacing(THICK_MR.cases)
    turned = make_fingerprint(
        [
            ((n[2], n[0], n[1]), (mm[2], mm[0], mm[1]))
            for n, mm in ((case.cropped_voxels, case.spacing_mm) for case in THICK_MR.cases)
        ]
    )
    other, _ = working_spacing(turned.cases)
    assert other == pytest.approx((spacing[2], spacing[0], spacing[1]))
    first = topology_of((128, 160, 32), spacing)
    second = topology_of((32, 128, 160), other)
    assert [(z, x, y) for x, y, z in first.strides] == list(second.strides)


def nnunet_plan(
    fingerprint: Fingerprint, budget_gb: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What nnunetv2's own planner makes of the same numbers, in our axes (x, y, z)."""
    raw, preprocessed = folder / "raw" / "Dataset900_Test", folder / "preprocessed" / "Dataset900_Test"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    preprocessed.mkdir(parents=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(folder / variable.removeprefix("nnUNet_")))
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "thing": 1},
        "numTraining": len(fingerprint.cases),
        "file_ending": ".nii.gz",
        "dataset": {},
    }
    (raw / "dataset.json").write_text(json.dumps(document))
    # ITK's arrays are (z, y, x).
    theirs: dict[str, Any] = {
        "spacings": [case.spacing_mm[::-1] for case in fingerprint.cases],
        "shapes_after_crop": [case.cropped_voxels[::-1] for case in fingerprint.cases],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(theirs))
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as planners,
    )

    monkeypatch.setattr(planners.nnUNetPlannerResEncM, "determine_reader_writer", lambda self: str)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *rest, **more: None)
        planner = planners.nnUNetPlannerResEncM("Dataset900_Test", gpu_memory_target_in_gb=budget_gb)
    # The cascade's coarse and the 2D configuration are not what is compared, and take a minute.
    spacing = planner.determine_fullres_target_spacing()
    forward, _ = planner.determine_transpose()
    shapes = [
        np.round(np.array(shape) * old / spacing)
        for shape, old in zip(theirs["shapes_after_crop"], theirs["spacings"], strict=True)
    ]
    plan = planner.get_plans_for_configuration(
        spacing[forward], np.median(shapes, 0)[forward], "test", 1e9, {}
    )
    order = [2 - axis for axis in forward]

    def ours(values: Any) -> tuple[Any, ...]:
        return tuple(values[order.index(axis)] for axis in range(3))

    kinds = plan["architecture"]["arch_kwargs"]
    return {
        "spacing": ours([float(mm) for mm in plan["spacing"]]),
        "patch": ours([int(n) for n in plan["patch_size"]]),
        "strides": [ours(stride) for stride in kinds["strides"]],
        "kernels": [ours(kernel) for kernel in kinds["kernel_sizes"]],
    }
