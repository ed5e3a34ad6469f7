"""The whole flow on one page: a scan and sentences in, masks on the scan's own grid out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.backend import Backend, BackendChoice
from textseg.device import Compute, DeviceChoice, choose_compute, deterministic, tried
from textseg.early_exit import EarlyExit, with_early_exit
from textseg.embeddings.choice import load_text_encoder
from textseg.embeddings.encoder import TextEncoder
from textseg.errors import ModelError, PlanError, PromptError, ScanError
from textseg.finishing import MaskFinisher, empty_masks, finish_slabs
from textseg.geometry import Shape
from textseg.masks import FEWEST_WORKING_VOXELS, fill_holes, largest_component, logit_of
from textseg.memory import Footprint, Task, choose_batches, footprint
from textseg.mirrored import Mirrored, in_a_mirror, with_mirror_images
from textseg.models import ModelFolder, find_model
from textseg.network.build import PromptableNetwork, for_inference
from textseg.network.nnunet import NnunetModel
from textseg.network.voxtell.model import VoxTellModel
from textseg.network.weights import load_network
from textseg.packed import PackedMasks, within
from textseg.plan import Millimetres, Plan
from textseg.prepare import ChannelSource, Prepared, join_channels, prepare
from textseg.prompts import Prompt, understand
from textseg.prompts.pieces import is_one_piece
from textseg.result import NO_MASK, Found, ModalitySource, Segmentation, describe_within
from textseg.scan import check_voxels, read_scan
from textseg.sliding import (
    Batches,
    MaskAnswer,
    MemoryFacts,
    Shortcuts,
    Wanted,
    segment_windows,
    windows_of,
)
from textseg.stray import drop_stray_parts
from textseg.volume import Modality, Volume, guess_modality
from textseg.window_sources import ScanWindows, scan_windows
from textseg.windows import window_shape
from textseg.zoom import FACTOR, worth_a_look

OneScan = str | Path | Volume
ScanLike = OneScan | Sequence[OneScan]
Progress = Callable[[str, int, int], None]


class ForeignModel(Protocol):
    """A model of another project, which goes through a scan in its own way."""

    def __call__(
        self, volume: Volume, prompts: Sequence[Prompt], compute: Compute, progress: Progress
    ) -> MaskAnswer: ...


def segment(
    scan: ScanLike,
    prompts: str | Sequence[str],
    *,
    model: str | Path = "default",
    device: DeviceChoice = "auto",
    modality: Modality | None = None,
) -> Segmentation:
    """Masks for prompts in a scan; load a `Segmenter` instead to ask more than once.

    Args:
        scan: a file, a DICOM folder or a `Volume`; for a model of several channels one of these for each, in
            the order of its plan. Masks lie on the first one's grid.
        prompts: sentences such as "left kidney tumor".
        model: "default", another shipped model, or a model's folder: ours, or one of VoxTell or nnU-Net.
        device: "auto", "cpu" or "cuda".
        modality: "ct", "mr" or "pet"; None takes the scan's own word for it, else judges by its values.

    Returns:
        masks (prompts, x, y, z) on the scan's own grid with what was found of each prompt.

    Raises:
        ScanError, PromptError, ModelError, DeviceError: see `textseg.errors`.
    """
    return Segmenter(model, device=device)(scan, prompts, modality=modality)


class Segmenter:
    """A model that stays loaded and segments one scan after another.

    Models of other projects compute in float32 on processors, so that their masks are what their own code
    gives; our own take the processor's fastest type.

    Args:
        model: "default", another shipped model, or a model's folder: ours, or one of VoxTell or nnU-Net.
        device: "auto", "cpu" or "cuda".
        threads: processor threads; None for torch's own choice.
        text_encoder: another encoder in place of the model's own, of the same width; for VoxTell, one for the
            prompts that its bank of ready vectors lacks.
        memory: bytes that a scan may take at its peak, of the GPU where one computes, else of this process;
            None for what is free. Models of other projects take what they need.
        deterministic: the same masks bit for bit each time, on one machine.
        backend, compile: what runs the image encoder, see `textseg.backend.Backend`.
        zoom_above: look only where a look at half the resolution gives a logit above this, approximately; see
            `textseg.zoom`. None to look everywhere.
        exit_below: give a prompt up in windows whose coarse logits are nowhere above this, approximately; see
            `textseg.early_exit`. None where the plan says so, minus infinity for never.
        mirrored: the mean of every window and its mirror image, with the sides swapped in words, in twice the
            time; see `textseg.mirrored`. None where the plan says so.

    Raises:
        ModelError: there is no such model, or a shortcut or mirroring was asked of another project's.
        DeviceError: see `textseg.errors`.
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        device: DeviceChoice = "auto",
        threads: int | None = None,
        text_encoder: TextEncoder | None = None,
        memory: int | None = None,
        deterministic: bool = False,
        backend: BackendChoice = "torch",
        compile: bool = False,
        zoom_above: float | None = None,
        exit_below: float | None = None,
        mirrored: bool | None = None,
    ) -> None:
        self.compute = choose_compute(device, threads)
        self.memory, self.deterministic, self.mirrored = memory, deterministic, mirrored
        self.zoom_above = zoom_above
        self._footprints: dict[tuple[Shape, torch.dtype, bool], Footprint] = {}
        self.model: ModelFolder = find_model(model)
        self._foreign: ForeignModel | None = None
        if self.model.kind != "textseg" and (zoom_above, exit_below, mirrored) != (None, None, None):
            raise ModelError(
                f"Zoom, early exit and mirroring are for textseg's own models, got {self.model.name!r} of "
                f"{self.model.kind}. Leave them out."
            )
        if self.model.kind != "textseg" and self.compute.device.type == "cpu":
            # As their own projects compute on processors: faster types move a mask's border here and there.
            self.compute = replace(self.compute, dtype=torch.float32)
        if self.model.kind == "voxtell":
            self._foreign = VoxTellModel(self.model.path, self.compute.device, text_encoder)
            return
        if self.model.kind == "nnunet":
            self._foreign = NnunetModel(self.model.path, self.compute.device)
            return
        self.plan = self.model.plan
        chosen_exit = self.plan.windows.exit_below if exit_below is None else exit_below
        self.exit_below = None if chosen_exit == -math.inf else chosen_exit
        network = load_network(self.model.path, self.plan)
        self.network = for_inference(network, self.compute.device)
        # A trial would choose now this and now that.
        chosen = "torch" if deterministic and backend == "auto" else backend
        self._backend = Backend(chosen, self.network, self.compute, compile=compile)
        self.text = text_encoder or load_text_encoder(self.model.path, self.plan.text, self.compute.device)

    def __call__(
        self,
        scan: ScanLike,
        prompts: str | Sequence[str],
        *,
        modality: Modality | None = None,
        clean_up: bool | None = None,
        progress: Progress = lambda stage, done, of: None,
    ) -> Segmentation:
        """Segment one scan.

        Args:
            scan, prompts, modality: as for `segment`.
            clean_up: keep only the largest connected part of each mask and fill its holes. None drops what
                the plan calls stray: small parts of structures that are one piece; False leaves masks as
                they are.
            progress: called with the stage in words, the steps done and all steps.

        Raises:
            PlanError: there are more or fewer scans than the plan has channels, or one of them is of another
                modality than its channel.
            ScanError, PromptError: see `textseg.errors`.
            NotEnoughMemoryError: the scan does not fit into the memory that it may take.
        """
        with deterministic(self.deterministic):
            return self._segment(scan, prompts, modality, clean_up, progress)

    def _segment(
        self,
        scan: ScanLike,
        prompts: str | Sequence[str],
        modality: Modality | None,
        clean_up: bool | None,
        progress: Progress,
    ) -> Segmentation:
        began = time.monotonic()
        understood = self.model.read_prompts(_texts(prompts))
        progress("reading", 0, 1)
        given = read_input(scan, modality, self.plan if self._foreign is None else None)
        if self._foreign is None:
            answer = self._own_answer(given.volume, understood, given.modality, progress)
        else:
            answer = self._foreign(given.volume, understood, self.compute, progress)
        masks = answer.masks
        stray: dict[int, int] = {}
        if clean_up:
            masks = _cleaned_up(masks, self.compute.device)
        elif clean_up is None and isinstance(masks, PackedMasks) and self._foreign is None:
            stray = self._without_stray_parts(masks, understood, given.volume)
        return Segmentation(
            masks=masks,
            found=self._found(given.volume, understood, masks, answer, stray),
            volume=given.volume,
            modality=given.modality,
            modality_from=given.modality_from,
            model=self.model,
            compute=str(self.compute),
            seconds=time.monotonic() - began,
            clean_up=bool(clean_up),
            channels=given.channels,
            memory=answer.memory,
            shortcuts=answer.shortcuts,
            averaged=answer.averaged,
        )

    def _own_answer(
        self, volume: Volume, understood: Sequence[Prompt], modality: Modality, progress: Progress
    ) -> MaskAnswer:
        """What our own network says, spacing after spacing."""
        masks = empty_masks(len(understood), volume.geometry)
        presence = np.zeros(len(understood))
        memory: list[MemoryFacts] = []
        counts: list[tuple[int, ...]] = []
        averaged = np.zeros(len(understood), bool)
        for (spacing_mm, mirrored), members in self._by_look(understood).items():
            progress("preparing", 0, 1)
            prepared = self._prepared(volume, modality, spacing_mm)
            images = self._images(volume, prepared)
            text = self.text.embed([understood[i].canonical for i in members])
            batches, facts = self._batches(prepared, len(members), mirrored)
            memory.append(facts)
            air = prepared.air if self.plan.windows.skip_air else None
            wanted = self._wanted(prepared, text, batches, air, progress)
            network = self._network_for(prepared)
            if self.exit_below is not None:
                network = with_early_exit(network, self.network, self.exit_below)
            looking: PromptableNetwork = network
            if mirrored:
                others = self.text.embed(in_a_mirror([understood[i] for i in members]))
                looking, text = Mirrored(network), with_mirror_images(text, others)
            answer = segment_windows(
                looking,
                images,
                text,
                self.plan,
                self.compute,
                partial(progress, f"segmenting at {spacing_mm[0]:g} mm"),
                batches,
                air,
                wanted,
            )
            threshold = logit_of(self.plan.masks.threshold)
            finisher = MaskFinisher(masks, members, prepared.geometry, prepared.scan, threshold)
            finish_slabs(answer.slabs(), finisher, beside=self.compute.device.type == "cuda")
            presence[members] = answer.presence.numpy()
            averaged[members] = mirrored
            counts.append(self._counts(prepared, len(members), wanted, network, mirrored))
        for index in np.flatnonzero(presence < self.plan.masks.presence):
            # Known only when the last window was looked at.
            masks.clear(int(index))
        asked = tuple(prompt.canonical for prompt in understood)
        largest = max(memory, key=lambda facts: facts.predicted_peak_bytes)
        return MaskAnswer(masks, presence, asked, largest, self._shortcuts(counts), tuple(averaged.tolist()))

    def _prepared(self, volume: Volume, modality: Modality, spacing_mm: Millimetres) -> Prepared:
        """By the GPU where there is one: a processor would resample longer than the GPU does all the rest."""
        task = volume, self.plan, modality, spacing_mm
        # A budget of the GPU's memory is for the windows.
        if self.compute.device.type == "cuda" and self.memory is None:
            found = tried(lambda: prepare(*task, self.compute.device))
            if found is not None:
                return found
        return prepare(*task)

    def _images(self, volume: Volume, prepared: Prepared) -> Tensor | ScanWindows:
        """The prepared image, or what gathers its windows on a GPU from the scan itself."""
        window = window_shape(prepared.geometry.shape, self.plan)
        is_large = all(n >= side for n, side in zip(prepared.geometry.shape, window, strict=True))
        if not (prepared.image.is_cuda and is_large and self.compute.dtype != torch.float32):
            return prepared.image
        return tried(lambda: scan_windows(volume, prepared, self.compute.device)) or prepared.image

    def _wanted(
        self, prepared: Prepared, text: Tensor, batches: Batches, air: float | None, progress: Progress
    ) -> Wanted | None:
        """Which windows are to be looked at for which prompts, where a coarse look tells."""
        if self.zoom_above is None:
            return None
        looking = partial(progress, f"looking at {FACTOR * prepared.geometry.spacing_mm[0]:g} mm")
        # By the network as it is: another backend's may know windows of one size only.
        network, plan = self.network, self.plan
        return worth_a_look(
            network, prepared.image, text, plan, self.compute, looking, batches, air, above=self.zoom_above
        )

    def _counts(
        self,
        prepared: Prepared,
        prompts: int,
        wanted: Wanted | None,
        network: PromptableNetwork,
        mirrored: bool,
    ) -> tuple[int, ...]:
        """Windows, those that were looked at, pairs of a window and a prompt, and those that were decoded."""
        windows = len(windows_of(prepared.geometry.shape, self.plan))
        looked = windows if wanted is None else int(wanted.any(axis=1).sum())
        decoded = windows * prompts if wanted is None else int(wanted.sum())
        given_up = network.given_up // (1 + mirrored) if isinstance(network, EarlyExit) else 0
        return windows, looked, windows * prompts, decoded - given_up

    def _shortcuts(self, counts: Sequence[tuple[int, ...]]) -> Shortcuts | None:
        if self.zoom_above is None and self.exit_below is None:
            return None
        windows, looked, pairs, decoded = (sum(each) for each in zip(*counts, strict=True))
        return Shortcuts(self.zoom_above, self.exit_below, looked / windows, decoded / pairs)

    def _network_for(self, prepared: Prepared) -> PromptableNetwork:
        shape = prepared.geometry.shape
        windows = len(windows_of(shape, self.plan))
        window = window_shape(shape, self.plan)
        return self._backend.network_for(window, len(self.plan.channels), windows) or self.network

    def _batches(self, prepared: Prepared, prompts: int, mirrored: bool) -> tuple[Batches, MemoryFacts]:
        """What to compute together for a prepared scan, and the peak of memory that this comes to."""
        shape, dtype = prepared.geometry.shape, self.compute.dtype
        window = window_shape(shape, self.plan)
        key = window, dtype, mirrored
        if key not in self._footprints:
            self._footprints[key] = footprint(self.plan, window, self.compute, mirrored)
        x, y, z = (max(sides) for sides in zip(shape, window, strict=True))
        task = Task((len(self.plan.channels), x, y, z), window, prepared.scan.shape, prompts)
        # What is free differs from run to run.
        room = 2**60 if self.deterministic and self.memory is None else self.memory
        batches, facts = choose_batches(task, self._footprints[key], self.compute, room)
        return batches, replace(facts, budget_bytes=self.memory)

    def _by_look(self, prompts: Sequence[Prompt]) -> dict[tuple[Millimetres, bool], list[int]]:
        """Which prompts share a working spacing, and whether windows are mirrored too, so that the image is
        prepared and encoded once for them."""
        shared: dict[tuple[Millimetres, bool], list[int]] = {}
        for index, prompt in enumerate(prompts):
            group = self.plan.group_for(prompt.group)
            mirrored = group.mirrored if self.mirrored is None else self.mirrored
            shared.setdefault((group.spacing_mm, mirrored), []).append(index)
        return shared

    def _without_stray_parts(
        self, masks: PackedMasks, prompts: Sequence[Prompt], volume: Volume
    ) -> dict[int, int]:
        """Drop the stray parts of masks that should be one piece; gives how many voxels each of them lost."""
        least = self.plan.masks.smallest_part
        voxel_mm = volume.geometry.canonical().spacing_mm
        dropped = {}
        for index, prompt in enumerate(prompts):
            if least and is_one_piece(prompt):
                seen_mm = self.plan.spacing_for(prompt.group)
                cell = [max(1, round(s / v)) for s, v in zip(seen_mm, voxel_mm, strict=True)]
                dropped[index] = drop_stray_parts(masks, index, cell, least)
        return dropped

    def _found(
        self,
        volume: Volume,
        prompts: Sequence[Prompt],
        masks: NDArray[np.bool_] | PackedMasks,
        answer: MaskAnswer,
        stray: Mapping[int, int],
    ) -> tuple[Found, ...]:
        """What was found of each prompt; masks of a few voxels are emptied.

        Args:
            stray: the voxels that some masks lost as stray parts.
        """
        found = []
        for index, prompt in enumerate(prompts):
            place, too_small_ml = within(masks, index), None
            facts = NO_MASK if place is None else describe_within(*place, volume.geometry)
            if 0 < facts.volume_ml < self._least_ml(prompt):
                assert isinstance(masks, PackedMasks)
                masks.clear(index)
                facts, too_small_ml = NO_MASK, facts.volume_ml
            score, asked = float(answer.presence[index]), answer.asked[index]
            stray_ml = stray.get(index, 0) * volume.geometry.voxel_volume_mm3 / 1000
            found.append(Found(prompt, score, facts, asked, too_small_ml, stray_ml))
        return tuple(found)

    def _least_ml(self, prompt: Prompt) -> float:
        """The volume that a mask must have to be reported; models of other projects decide for themselves."""
        if self._foreign is not None:
            return 0.0
        return FEWEST_WORKING_VOXELS * math.prod(self.plan.spacing_for(prompt.group)) / 1000


def _cleaned_up(masks: NDArray[np.bool_] | PackedMasks, device: torch.device) -> PackedMasks:
    """Of each mask the largest part, its holes filled."""
    _, x, y, z = masks.shape
    cleaned = PackedMasks(len(masks), (x, y, z))
    for index, mask in enumerate(masks):
        cleaned.replace(index, fill_holes(largest_component(mask, device)))
    return cleaned


@dataclass(frozen=True)
class Input:
    """A scan with all of its channels and where they came from; the first one's modality and who told it."""

    volume: Volume
    modality: Modality
    modality_from: ModalitySource
    channels: tuple[ChannelSource, ...]


def read_input(scan: ScanLike, modality: Modality | None, plan: Plan | None) -> Input:
    """What a model is given: files are read, channels joined on the first one's grid, and the modality found.

    Args:
        modality: as the caller says; None where the plan, the header or the values are to tell.
        plan: of the model that is to see it; None for another project's, which checks for itself.

    Raises:
        ScanError: a file can't be read, or its channels do not overlap.
        PlanError: there are too few or too many channels for the plan, or they are of other modalities.
    """
    scans = [_read(one) for one in _each(scan)]
    if plan is not None:
        plan.check_channels(sum(one.channels for one in scans))
        _refuse_other_modalities(scans, modality, plan)
    volume, channels = join_channels(scans)
    used, told_by = _modality(volume, modality, plan)
    return Input(volume, used, told_by, channels)


def _each(scan: ScanLike) -> list[OneScan]:
    scans = [scan] if isinstance(scan, str | Path | Volume) else list(scan)
    if not scans:
        raise ScanError("A scan needs at least one file, got none.")
    return scans


def _read(scan: OneScan) -> Volume:
    if not isinstance(scan, Volume):
        return read_scan(scan)
    check_voxels(scan)
    return scan


def _refuse_other_modalities(scans: Sequence[Volume], asked: Modality | None, plan: Plan) -> None:
    """Where the plan says what each channel is, neither caller nor header may say another thing."""
    meant = plan.channel_modalities
    if meant is None:
        return
    told = [scan.modality for scan in scans for _ in range(scan.channels)]
    for name, planned, said in zip(plan.channels, meant, (asked or told[0], *told[1:]), strict=True):
        if said not in (None, planned):
            raise PlanError(
                f"The model {plan.name!r} takes {' and '.join(meant)}, in this order, but for the channel "
                f"{name!r} it got {said}. Give the scans in the order of its channels "
                f"({', '.join(plan.channels)})."
            )


def _modality(volume: Volume, asked: Modality | None, plan: Plan | None) -> tuple[Modality, ModalitySource]:
    """Of the first channel, by which the others go too unless the plan tells each one's."""
    if plan is not None and plan.channel_modalities is not None:
        return plan.channel_modalities[0], "plan"
    if asked is not None:
        return asked, "user"
    if volume.modality is not None:
        return volume.modality, "header"
    return guess_modality(volume.voxels[0]), "values"


def understand_all(prompts: str | Sequence[str]) -> list[Prompt]:
    """Every prompt understood.

    Raises:
        PromptError: there is none, or one of them can't be a prompt.
    """
    return [understand(text) for text in _texts(prompts)]


def _texts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise PromptError('At least one prompt is needed, got none. Try "liver".')
    return texts
