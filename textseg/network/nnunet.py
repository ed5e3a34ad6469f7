"""Trained nnU-Nets as models: their labels asked for in words, in nnU-Net's own steps.

Preprocessing, windows, mirroring and export are nnunetv2's own code, so a mask is to the voxel what
`nnUNetv2_predict` writes. Three things are ours: the checkpoint is read without running anything in it, a
plan may name only network classes, and the scan comes from any reader.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.device import Compute
from textseg.embeddings.extras import import_extra
from textseg.errors import ModelError, ScanError
from textseg.network.nnunet_folder import read_nnunet_folder
from textseg.prompts import Prompt
from textseg.safe_loading import Checkpoint, check_fit, load_checkpoint, network_weights
from textseg.sliding import MaskAnswer
from textseg.volume import Volume

# A plan is data, and these are the classes that it may call by name.
NETWORKS = re.compile(r"dynamic_network_architectures\.architectures\.\w+\.[A-Z]\w*")
PARTS = re.compile(
    r"(torch\.nn|torch\.nn\.modules\.\w+|dynamic_network_architectures\.building_blocks\.\w+)\.[A-Z]\w*"
)
# Readers that keep the file's axes, and those that turn the scan to RAS+ first.
READERS = {
    "SimpleITKIO": False,
    "NibabelIO": False,
    "SimpleITKIOWithReorient": True,
    "NibabelIOWithReorient": True,
}


class NnunetModel:
    """A trained folder of nnU-Net v2; all of its folds vote.

    Args:
        folder: `<trainer>__<plans>__<configuration>`.
        device: where the network lies.

    Raises:
        ModelError: nnunetv2 is not installed, or the folder is damaged, unsafe, or of a kind that can't be
            run alone (the second stage of a cascade, natural images).
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = read_nnunet_folder(folder)
        self._reorients = _reader(self.folder.plans, folder)
        checkpoints = [load_checkpoint(path) for path in self.folder.checkpoints]
        _refuse_foreign_code(self.folder.plans, folder)
        with _silence():
            self._predictor = _predictor(device)
            plans = _nnunet("utilities.plans_handling.plans_handler").PlansManager(dict(self.folder.plans))
            configuration = plans.get_configuration(_configuration_name(checkpoints[0], folder))
            _refuse_cascade(configuration, folder)
            self._labels = plans.get_label_manager(dict(self.folder.dataset))
            network = _nnunet("utilities.get_network_from_plans").get_network_from_plans(
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
                len(self.folder.channels),
                self._labels.num_segmentation_heads,
                allow_init=False,
                deep_supervision=False,
            )
            weights = []
            for checkpoint in checkpoints:
                found = network_weights(checkpoint)
                check_fit(network.state_dict(), found, checkpoint.path)
                weights.append(found)
            network.load_state_dict(weights[0])
            self._predictor.manual_initialization(
                network,
                plans,
                configuration,
                weights,
                dict(self.folder.dataset),
                str(checkpoints[0].facts.get("trainer_name")),
                _mirrored_axes(checkpoints[0]),
            )

    def __call__(
        self,
        volume: Volume,
        prompts: Sequence[Prompt],
        compute: Compute,
        progress: Callable[[str, int, int], None],
    ) -> MaskAnswer:
        """Masks for prompts; the label that each was taken for is in the answer.

        nnU-Net has no presence score: it is 1 where there is a mask and 0 where there is none.

        Raises:
            PromptError: a prompt names none of the labels.
            ScanError: the scan has another number of channels.
        """
        asked = [self.folder.label_for(prompt) for prompt in prompts]
        if volume.channels != len(self.folder.channels):
            raise ScanError(
                f"This nnU-Net takes {len(self.folder.channels)} channel(s) "
                f"({', '.join(self.folder.channels)}), got {volume.channels}. Give one file a channel."
            )
        progress("segmenting", 0, 1)
        order = volume.geometry.canonical_order() if self._reorients else None
        seen = volume.canonical() if self._reorients else volume
        masks = self._masks(seen, asked)
        if order is not None:
            masks = order.inverse().apply(masks)
        present = np.array([float(mask.any()) for mask in masks])
        return MaskAnswer(np.ascontiguousarray(masks), present, tuple(asked))

    def _masks(self, volume: Volume, labels: Sequence[str]) -> NDArray[np.bool_]:
        """Masks (labels, x, y, z) on the volume's grid; nnU-Net's arrays are (z, y, x)."""
        image = np.ascontiguousarray(volume.voxels.transpose(0, 3, 2, 1), np.float32)
        properties = {"spacing": [float(mm) for mm in volume.geometry.spacing_mm[::-1]]}
        regions = bool(self._labels.has_regions)
        with _silence():
            answer = self._predictor.predict_single_npy_array(image, properties, None, None, regions)
        if not regions:
            return np.stack([answer.transpose(2, 1, 0) == self.folder.labels[each][0] for each in labels])
        # Regions overlap, so one label map can't hold them; their probabilities, one a head, can.
        heads = list(self.folder.labels)
        probabilities = answer[1]
        return np.stack([probabilities[heads.index(each)].transpose(2, 1, 0) > 0.5 for each in labels])


def _predictor(device: torch.device) -> Any:
    return _nnunet("inference.predict_from_raw_data").nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=True,
        perform_everything_on_device=device.type == "cuda",
        device=device,
        allow_tqdm=False,
    )


def _nnunet(module: str) -> Any:
    import_extra("nnunetv2", "train", "A trained nnU-Net")
    return import_module(f"nnunetv2.{module}")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """nnunetv2 prints, about folders for training that predicting does not need and much else."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _configuration_name(checkpoint: Checkpoint, folder: Path) -> str:
    arguments = checkpoint.facts.get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, dict) else None
    return str(name or folder.resolve().name.rpartition("__")[2])


def _mirrored_axes(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    axes = checkpoint.facts.get("inference_allowed_mirroring_axes")
    return tuple(axes) if axes else None


def _reader(plans: Any, folder: Path) -> bool:
    """Whether scans are turned to RAS+ before this network sees them."""
    name = str(plans.get("image_reader_writer", "SimpleITKIO"))
    if name not in READERS:
        raise ModelError(
            f"Scans come to an nnU-Net by {', '.join(READERS)}, but {folder} was trained with {name}."
        )
    return READERS[name]


def _refuse_cascade(configuration: Any, folder: Path) -> None:
    if configuration.previous_stage_name is not None:
        raise ModelError(
            f"The second stage of a cascade needs the masks of the first, so {folder} can't be run alone. "
            "Choose the 3d_fullres or 3d_lowres folder beside it."
        )


def _refuse_foreign_code(plans: Any, folder: Path) -> None:
    """nnunetv2 imports and calls whatever a plan names as its network or a part of it."""
    for configuration in dict(plans.get("configurations", {})).values():
        architecture = configuration.get("architecture") if isinstance(configuration, dict) else None
        if not isinstance(architecture, dict):
            continue
        name = str(architecture.get("network_class_name", ""))
        arguments = architecture.get("arch_kwargs") or {}
        parts = [arguments.get(key) for key in architecture.get("_kw_requires_import") or ()]
        wrong = [name] if not NETWORKS.fullmatch(name) else []
        wrong += [str(part) for part in parts if part is not None and not PARTS.fullmatch(str(part))]
        if wrong:
            raise ModelError(
                "A plan of nnU-Net may name networks of dynamic_network_architectures and parts of torch.nn, "
                f"but {folder} asks for {', '.join(map(repr, wrong[:3]))}, so nothing of it was run."
            )
