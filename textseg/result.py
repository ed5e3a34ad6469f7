"""What segmenting gives: masks, what was found of each prompt in words and numbers, and files on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textseg.atomic import write_bytes
from textseg.destination import Destination
from textseg.dicom_output import DicomKind, write_dicom_masks
from textseg.errors import OutputError
from textseg.geometry import Box, Geometry, bounding_box
from textseg.masks import combine
from textseg.models import ModelFolder
from textseg.packed import PackedMasks
from textseg.prepare import ChannelSource
from textseg.prompts import Prompt
from textseg.report.preview import render_preview
from textseg.scan import write_label_map, write_mask
from textseg.sides import SideCheck
from textseg.sliding import MemoryFacts, Shortcuts
from textseg.version import __version__
from textseg.volume import Modality, Volume

RECORD_FORMAT = "textseg-record-1"
ModalitySource = Literal["user", "header", "values", "plan"]


@dataclass(frozen=True)
class MaskFacts:
    """Where a mask lies, in world millimetres RAS+; None where it is empty.

    The box is that of the voxels' centres: a single voxel has a box without extent.
    """

    voxels: int
    volume_ml: float
    centroid_mm: tuple[float, float, float] | None
    box_mm: tuple[tuple[float, float, float], tuple[float, float, float]] | None


NO_MASK = MaskFacts(0, 0.0, None, None)


@dataclass(frozen=True)
class Found:
    """One prompt's outcome: what was understood, how sure the network is that it is there, where it lies.

    asked: the words or the label that the network was asked for; None for those that were understood.
    too_small_ml: the volume of a mask of so few voxels that it was emptied; None where it was not.
    stray_ml: the volume of parts that lay apart from an organ that is one piece, and were dropped.
    """

    prompt: Prompt
    presence: float
    mask: MaskFacts
    asked: str | None = None
    too_small_ml: float | None = None
    stray_ml: float = 0.0

    @property
    def is_there(self) -> bool:
        return self.mask.voxels > 0

    def __str__(self) -> str:
        if not self.is_there:
            crumb = f", {self.too_small_ml:.2g} ml are too little" if self.too_small_ml else ""
            return f"not found: {self.prompt.text!r} (presence {self.presence:.2f}{crumb})"
        return f"{self.prompt.text}: {self.mask.volume_ml:.1f} ml (presence {self.presence:.2f})"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Masks (prompts, x, y, z) bool on the scan's own grid, and one `Found` a prompt.

    Masks may be packed: they read like an array, and `masks[0]` unpacks one of them. The scan is `volume`; of
    several channels it has the first one's grid, and `channels` tells where each of them came from. `memory`
    is what the peak was predicted to be, where that can be told; `shortcuts` are those that were taken.
    `averaged` says of each prompt whether its mask is the mean with the mirror image; empty for none.
    `sides` are the checks against the mirrored scan, one a prompt, where they were made
    (`textseg.sides.check_sides`).
    """

    masks: NDArray[np.bool_] | PackedMasks
    found: tuple[Found, ...]
    volume: Volume
    modality: Modality
    modality_from: ModalitySource
    model: ModelFolder
    compute: str
    seconds: float
    clean_up: bool = False
    channels: tuple[ChannelSource, ...] = ()
    memory: MemoryFacts | None = None
    shortcuts: Shortcuts | None = None
    averaged: tuple[bool, ...] = ()
    sides: tuple[SideCheck, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The scan's own grid, on which the masks lie."""
        return self.volume.geometry

    @property
    def presence(self) -> NDArray[np.float64]:
        """How sure the network is that each prompt is in the scan, (prompts,) from 0 to 1."""
        return np.array([found.presence for found in self.found])

    @cached_property
    def labels(self) -> NDArray[np.uint16]:
        """All masks as one label map (x, y, z); where they overlap the smaller structure wins."""
        return combine(self.masks)

    @property
    def legend(self) -> dict[int, str]:
        return {index: found.prompt.text for index, found in enumerate(self.found, start=1)}

    def save(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        ending: str | None = None,
        combined: bool = False,
        preview: bool = False,
        write_empty: bool = False,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write masks, the JSON record and, if asked, a preview; gives the paths written, the record last.

        All of them or none: nothing stays in the folder if one of them can't be written.

        Args:
            folder, name, ending, combined, preview, write_empty, overwrite: see `Destination`.

        Raises:
            OutputError: a file is already there, or can't be written.
        """
        return self.write(Destination(Path(folder), name, ending, combined, preview, write_empty, overwrite))

    def write(self, to: Destination) -> list[Path]:
        """As `save`, to a destination that can be checked before there is anything to save."""
        prompts = [found.prompt.text for found in self.found]
        names = to.names(self.volume, prompts)
        to.check_names(self.volume, prompts)
        masks = {i: names.masks[i] for i, found in enumerate(self.found) if found.is_there or to.write_empty}
        with to.all_or_nothing() as unfinished:
            if to.dicom_kind:
                if masks:
                    self._write_dicom(unfinished / names.masks[0], to.dicom_kind, list(masks))
            elif to.combined and masks:
                write_label_map(unfinished / names.masks[0], self.labels, self.legend, self.volume)
            elif not to.combined:
                for index, name in masks.items():
                    write_mask(unfinished / name, self.masks[index], self.volume)
            if names.preview:
                self.save_preview(unfinished / names.preview)
            _write_json(unfinished / names.record, self.record(masks))
        not_written = set(names.masks) - set(masks.values())
        for name in not_written:
            # An older mask of what is not found now would pass for this run's.
            (to.folder / name).unlink(missing_ok=True)
        return [to.folder / name for name in names.all if name not in not_written]

    def _write_dicom(self, path: Path, kind: DicomKind, shown: list[int]) -> None:
        prompts = [self.found[index].prompt for index in shown]
        write_dicom_masks(path, kind, self.masks[shown], prompts, self.volume, model=self.model.name)

    def save_preview(self, path: str | Path) -> None:
        """A PNG with axial, coronal and sagittal planes through the masks, radiological convention."""
        shown = [i for i, found in enumerate(self.found) if found.is_there] or list(range(len(self.found)))
        title = self.volume.file.paths[0].name if self.volume.file else "scan"
        render_preview(
            np.asarray(self.volume.voxels[0], np.float32),
            self.masks[shown],
            self.geometry,
            title,
            Path(path),
            names=[str(self.found[i]) for i in shown],
        )

    def record(self, files: Mapping[int, str] | None = None) -> dict[str, Any]:
        """What was done, as a JSON document: model and hashes, prompts as understood, what was found.

        Args:
            files: the names of the files that masks were written to, by the index of their prompt.
        """
        return {
            "format": RECORD_FORMAT,
            "textseg": __version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "device": self.compute,
            "memory": self.memory.as_json() if self.memory else None,
            "shortcuts": self.shortcuts.as_json() if self.shortcuts else None,
            "scan": _scan_facts(self.volume, self.modality, self.modality_from) | self._channel_facts(),
            "model": {
                "name": self.model.name,
                "kind": self.model.kind,
                "plan": self.model.plan_name,
                "licence": self.model.licence,
                "sha256": self.model.sha256,
            },
            "clean_up": self.clean_up,
            "prompts": [
                _prompt_facts(found, (files or {}).get(i))
                | {"mirror_averaged": bool(self.averaged and self.averaged[i])}
                | self._side_facts(i)
                for i, found in enumerate(self.found)
            ],
        }

    def _side_facts(self, index: int) -> dict[str, Any]:
        """What the mirrored scan said to a prompt, where it was asked."""
        return {"mirrored": self.sides[index].as_json()} if self.sides else {}

    def _channel_facts(self) -> dict[str, Any]:
        """Of each channel, where there are several: its name, modality and files, and its grid if another."""
        if len(self.channels) < 2:
            return {}
        plan = self.model.plan if self.model.kind == "textseg" else None
        modalities = plan.modalities(self.modality) if plan else [self.modality] * len(self.channels)
        facts = zip(self.model.channels, modalities, self.channels, strict=True)
        return {"channels": [_channel_fact(name, modality, source) for name, modality, source in facts]}


def describe_mask(mask: NDArray[np.bool_], geometry: Geometry) -> MaskFacts:
    """Volume, centroid and axis-parallel box, in the world, of a mask (x, y, z)."""
    box = bounding_box(mask)
    return NO_MASK if box is None else describe_within(box, mask[box.slices], geometry)


def describe_within(box: Box, inside: NDArray[np.bool_], geometry: Geometry) -> MaskFacts:
    """The same of a mask that is known in a box (x, y, z) alone; at least one voxel of it is set."""
    columns = np.count_nonzero(inside, axis=2)
    planes = np.count_nonzero(inside, axis=(0, 1))
    voxels = int(planes.sum())
    middle = [
        float(np.average(np.arange(len(counts)) + start, weights=counts))
        for counts, start in zip((columns.sum(axis=1), columns.sum(axis=0), planes), box.start, strict=True)
    ]
    low, high = _world_extent(box, inside, columns > 0, geometry)
    volume_ml = voxels * geometry.voxel_volume_mm3 / 1000
    return MaskFacts(voxels, volume_ml, _rounded(geometry.to_world(middle)), (_rounded(low), _rounded(high)))


def _world_extent(
    box: Box, inside: NDArray[np.bool_], filled: NDArray[np.bool_], geometry: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and highest world position of the mask's voxel centres.

    Along each column of voxels one of its two ends lies lowest, whatever the grid's direction.

    Args:
        filled: (x, y) the columns along the last axis that hold a voxel of the mask.
    """
    x, y = np.nonzero(filled)
    first = inside.argmax(axis=2)[x, y]
    last = inside.shape[2] - 1 - inside[..., ::-1].argmax(axis=2)[x, y]
    ends = np.concatenate([np.stack([x, y, z], axis=1) for z in (first, last)])
    world = geometry.to_world(ends + box.start)
    return world.min(axis=0), world.max(axis=0)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    try:
        write_bytes(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}.") from error


def _scan_facts(volume: Volume, modality: Modality, modality_from: ModalitySource) -> dict[str, Any]:
    return {
        "files": [str(path) for path in volume.file.paths] if volume.file else [],
        "format": volume.file.format if volume.file else None,
        "details": volume.file.details if volume.file else {},
        "modality": modality,
        "modality_from": modality_from,
        **_grid_facts(volume.geometry),
    }


def _channel_fact(name: str, modality: Modality, source: ChannelSource) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "modality": modality,
        "files": [str(path) for path in source.files],
        "regridded": source.regridded,
    }
    if source.regridded:
        facts |= {"covered": round(source.covered, 4), "own_grid": _grid_facts(source.geometry)}
    return facts


def _grid_facts(geometry: Geometry) -> dict[str, Any]:
    return {
        "shape": list(geometry.shape),
        "spacing_mm": [round(mm, 6) for mm in geometry.spacing_mm],
        "orientation": geometry.orientation,
        "affine": geometry.affine.tolist(),
    }


def _prompt_facts(found: Found, file: str | None) -> dict[str, Any]:
    prompt, mask = found.prompt, found.mask
    return {
        "prompt": prompt.text,
        "understood_as": prompt.canonical,
        "asked": found.asked or prompt.canonical,
        "structure": prompt.structure.id if prompt.structure else None,
        "finding": prompt.finding.id if prompt.finding else None,
        "side": prompt.side,
        "known": prompt.known,
        "snomed": prompt.snomed,
        "presence": round(found.presence, 4),
        "found": found.is_there,
        "too_small_ml": None if found.too_small_ml is None else round(found.too_small_ml, 4),
        "stray_ml": round(found.stray_ml, 4),
        "voxels": mask.voxels,
        "volume_ml": round(mask.volume_ml, 3),
        "centroid_mm": mask.centroid_mm,
        "box_mm": mask.box_mm,
        "file": file,
    }


def _rounded(point: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(mm), 3) for mm in point)
    return x, y, z
