"""A trained nnU-Net folder with random weights, small enough to run in a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

LABELS = {"background": 0, "kidney_left": 1, "Kidney Right": 2, "liver": 3, "thing": 4}
REGIONS = {"background": 0, "kidney": [1, 2], "kidney_tumor": [2], "ignore": 3}


def plans(reader: str = "SimpleITKIO") -> dict[str, object]:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        # (z, y, x)
        "patch_size": [8, 16, 12],
        "median_image_size_in_voxels": [14, 20, 17],
        "spacing": [3.0, 2.0, 2.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [6, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [1, 2, 2]],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 2.0, 2.0],
        "original_median_shape_after_transp": [14, 20, 17],
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": fullres},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
    }


def dataset(labels: dict[str, object], channels: int = 1) -> dict[str, object]:
    document: dict[str, object] = {
        "channel_names": {str(n): f"channel {n}" for n in range(channels)},
        "labels": labels,
        "file_ending": ".nii.gz",
        "numTraining": 2,
        "licence": "CC0-1.0",
    }
    if any(isinstance(value, list) for value in labels.values()):
        document["regions_class_order"] = [1, 2]
    return document


def plans_of_2023(reader: str = "SimpleITKIO") -> dict[str, object]:
    """The same network as nnU-Net v2 described it at first, and as TotalSegmentator's folders still do."""
    document = plans(reader)
    configuration = document["configurations"]["3d_fullres"]  # type: ignore[index]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": arguments["features_per_stage"][0],
        "unet_max_num_features": arguments["features_per_stage"][-1],
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [0, 1, 1],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    return document


def train(network: torch.nn.Module, steps: int = 60) -> None:
    """Teach a network that what is far brighter than the rest is label 1, and what is far darker label 3."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(9)
    for _ in range(steps):
        image = torch.randn((2, 1, 8, 16, 12), generator=generator) * 0.3
        target = torch.zeros((2, 8, 16, 12), dtype=torch.int64)
        for case in range(2):
            for label, shift in ((1, 3.0), (3, -3.0)):
                z, y, x = (int(torch.randint(0, n, (1,), generator=generator)) for n in (5, 10, 7))
                place = (case, slice(z, z + 3), slice(y, y + 5), slice(x, x + 5))
                target[place] = label
                image[place[0], 0, *place[1:]] = shift
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(image)[0], target)
        loss.backward()
        optimizer.step()


def write_nnunet(
    folder: Path,
    *,
    labels: dict[str, object] | None = None,
    folds: int = 2,
    reader: str = "SimpleITKIO",
    channels: int = 1,
    mirrored: tuple[int, ...] | None = (0, 2),
    old_plans: bool = False,
    trained: bool = False,
) -> Path:
    """A trained folder; its networks are made by nnunetv2, so the test needs the extra train.

    Args:
        old_plans: as `plans_of_2023` has them.
        trained: by `train`; else weights are random and large, so that every label is somewhere.
    """
    building = pytest.importorskip(
        "nnunetv2.utilities.get_network_from_plans", reason="Needs the extra train."
    )
    labels = dict(LABELS) if labels is None else labels
    folder = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    described, dataset_json = plans(reader), dataset(labels, channels)
    written = plans_of_2023(reader) if old_plans else described
    (folder / "plans.json").write_text(json.dumps(written))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    architecture = described["configurations"]["3d_fullres"]["architecture"]  # type: ignore[index]
    heads = len([name for name in labels if name != "ignore"]) - ("regions_class_order" in dataset_json)
    for fold in range(folds):
        torch.manual_seed(40 + fold)
        network = building.get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            channels,
            heads,
            deep_supervision=True,
        )
        if trained:
            train(network)
        else:
            for parameter in network.parameters():
                # Fresh weights mark nearly nothing.
                torch.nn.init.normal_(parameter, std=0.5)
        if "regions_class_order" in dataset_json:
            # Large enough to overlap.
            torch.nn.init.constant_(network.decoder.seg_layers[-1].bias, 0.4)
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 2,
            "init_args": {
                "plans": written,
                "configuration": "3d_fullres",
                "fold": fold,
                "dataset_json": dataset_json,
                "device": torch.device("cuda"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirrored,
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder
