"""SAM as the engine of a session: a slice is segmented by its marks and the mask walks to its neighbours.

For people with weights of SAM (Kirillov et al. 2023) or MedSAM (Ma et al. 2024), which see one slice at a
time. A slice with a mark is asked with its box and points; each neighbour is then asked with the box of the
mask before it and a point deep inside that, until the mask vanishes. Words need a text engine: its mask gives
the box on every slice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.embeddings.extras import import_extra
from textseg.errors import ModelError, PromptError
from textseg.geometry import Geometry
from textseg.interactive.engine import Engine, Outcome, Progress, Turn
from textseg.interactive.kept import PackedMask
from textseg.interactive.marks import Mark, drawn, voxels_of
from textseg.volume import Modality, Volume

SamKind = Literal["vit_b", "vit_l", "vit_h"]
# By the width of its image encoder.
KIND_OF_WIDTH: dict[int, SamKind] = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
Slice = NDArray[np.bool_]
# The window that MedSAM was trained with for CT, in HU; other scans are cut at these percentiles.
CT_WINDOW_HU = (-160.0, 240.0)
PERCENTILES = (0.5, 99.5)
# A mask has vanished below so many pixels, or where it shares less than this with that of the slice before.
FEWEST_PIXELS = 4
LEAST_OVERLAP = 0.25
# Slices whose image was encoded that stay in memory, 4 MB each.
SLICES_KEPT = 256
# Of a scribble no more points than this: SAM was trained with few.
MOST_POINTS = 10


def load_sam(checkpoint: str | Path, kind: SamKind | None = None, device: str = "cpu") -> Any:
    """A predictor with SAM's or MedSAM's weights.

    Args:
        checkpoint: a file of weights as its authors publish it; no pickled objects in it are run.
        kind: the size of the model; None asks the weights.
        device: of torch.

    Raises:
        ModelError: the file is missing or damaged, or segment-anything can't be imported.
    """
    package = import_extra("segment_anything", "sam", "SAM")
    if kind is not None and kind not in package.sam_model_registry:
        raise ModelError(f"SAM comes as vit_b, vit_l or vit_h, got {kind!r}.")
    if not Path(checkpoint).is_file():
        raise ModelError(f"SAM needs a file of weights, but there is no {checkpoint}. Is the path right?")
    torch = import_extra("torch", "sam", "SAM")
    try:
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
        kind = kind or KIND_OF_WIDTH[weights["image_encoder.pos_embed"].shape[-1]]
        model = package.sam_model_registry[kind]()
        model.load_state_dict(weights)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise ModelError(
            f"{checkpoint} does not hold the weights of SAM or MedSAM ({reason}). Take the file that its "
            "authors publish."
        ) from error
    return package.SamPredictor(model.to(device).eval())


@dataclass(frozen=True, eq=False)
class SliceMarks:
    """What is marked on one slice, in its pixels (row, column): a box, first and last of each, and points."""

    box: tuple[int, int, int, int] | None
    points: NDArray[np.int64]
    positive: NDArray[np.bool_]


class SamEngine:
    """Answers turns slice by slice.

    Args:
        predictor: of segment-anything, from `load_sam`, or anything with its `set_image` and `predict`.
        text: what answers words; without it, words are refused.
    """

    name = "sam"

    def __init__(self, predictor: Any, text: Engine | None = None) -> None:
        self.predictor = predictor
        self.text = text
        self._images: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()

    def set_scan(self, volume: Volume, modality: Modality) -> None:
        self._geometry = volume.geometry
        self._grey = as_grey(np.asarray(volume.voxels[0]), modality)
        self._images.clear()
        if self.text is not None:
            self.text.set_scan(volume, modality)

    def look(self, turn: Turn, progress: Progress) -> Outcome:
        axis = slice_axis(turn.marks, self._geometry)
        mask, presence = np.zeros(self._geometry.shape, bool), None
        if turn.prompt is not None:
            said = self._said(turn, progress)
            mask, presence = self._along(said.mask.unpack(), axis, progress), said.presence
        marked = self._marked(turn.marks, axis)
        if marked:
            self._walk(mask, marked, axis, progress)
        return Outcome(PackedMask.pack(mask), presence, None, self._geometry.whole)

    def _said(self, turn: Turn, progress: Progress) -> Outcome:
        if self.text is None:
            raise PromptError("SAM takes no words: give it a text engine, or draw a point or a box.")
        return self.text.look(Turn(turn.prompt, (), None, None), progress)

    def _along(self, found: NDArray[np.bool_], axis: int, progress: Progress) -> NDArray[np.bool_]:
        """SAM's mask in the box of a mask (x, y, z), slice by slice."""
        mask = np.zeros_like(found)
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(found.any(axis=others))
        for done, index in enumerate(filled, start=1):
            box = _box_of(np.take(found, index, axis))
            nothing = SliceMarks(box, np.zeros((0, 2), np.int64), np.zeros(0, bool))
            mask[_at(axis, int(index))] = self._ask(axis, int(index), nothing)
            progress("asking SAM", done, len(filled))
        return mask

    def _marked(self, marks: Iterable[Mark], axis: int) -> dict[int, SliceMarks]:
        """What is marked on each slice along an axis."""
        boxes: dict[int, tuple[int, int, int, int]] = {}
        points: dict[int, list[tuple[NDArray[np.int64], bool]]] = {}
        others = [other for other in range(3) if other != axis]
        for mark in marks:
            voxels = voxels_of(drawn(mark, self._geometry, self._geometry), self._geometry.shape)
            if len(voxels) == 0:
                continue
            if mark.kind in ("box", "lasso") and mark.positive:
                low, high = voxels.min(axis=0), voxels.max(axis=0)
                (a, b), (c, d) = low[others], high[others]
                boxes |= {i: (int(a), int(b), int(c), int(d)) for i in range(low[axis], high[axis] + 1)}
                continue
            for index in np.unique(voxels[:, axis]):
                here = voxels[voxels[:, axis] == index][:, others]
                here = here[:: -(-len(here) // MOST_POINTS)]
                points.setdefault(int(index), []).extend((place, mark.positive) for place in here)
        marked = {}
        for index in sorted(boxes.keys() | points.keys()):
            here_too = points.get(index, [])
            places = np.array([place for place, _ in here_too], np.int64).reshape(-1, 2)
            marked[index] = SliceMarks(boxes.get(index), places, np.array([p for _, p in here_too], bool))
        return marked

    def _walk(
        self, mask: NDArray[np.bool_], marked: dict[int, SliceMarks], axis: int, progress: Progress
    ) -> None:
        """Put the masks of marked slices and of their neighbours into a mask (x, y, z)."""
        boxed = [index for index, marks in marked.items() if marks.box is not None]
        meant = [index for index, marks in marked.items() if marks.box is not None or marks.positive.any()]
        for index, marks in marked.items():
            before = mask[_at(axis, index)]
            # On a slice that words or a neighbour filled, "not this" is asked within what is there.
            if index not in meant and before.any():
                marks = SliceMarks(_box_of(before), marks.points, marks.positive)
            if index in meant or before.any():
                mask[_at(axis, index)] = self._ask(axis, index, marks)
        first, last = 0, mask.shape[axis] - 1
        if len(boxed) > 1:
            # A box in space says where the object ends.
            first, last = min(boxed), max(boxed)
        for seed in meant:
            for step in (-1, 1):
                self._walk_from(mask, seed, step, range(first, last + 1), marked, axis, progress)

    def _walk_from(
        self,
        mask: NDArray[np.bool_],
        seed: int,
        step: int,
        within: range,
        marked: dict[int, SliceMarks],
        axis: int,
        progress: Progress,
    ) -> None:
        before, index = mask[_at(axis, seed)].copy(), seed + step
        while index in within and not (index in marked and marked[index].positive.any()):
            if before.sum() < FEWEST_PIXELS:
                return
            marks = _from_neighbour(before, marked.get(index))
            found = self._ask(axis, index, marks)
            if not _goes_on(before, found):
                return
            mask[_at(axis, index)] |= found
            progress("asking SAM", abs(index - seed), len(within))
            before, index = found, index + step

    def _ask(self, axis: int, index: int, marks: SliceMarks) -> Slice:
        """SAM's mask (rows, columns) of a slice."""
        self._show(axis, index)
        points = marks.points[:, ::-1].astype(np.float32) if len(marks.points) else None
        box = None
        if marks.box is not None:
            a, b, c, d = marks.box
            # SAM's pixels are (x, y), which is (column, row), and its boxes end at the far side of the last.
            box = np.array([b, a, d + 1, c + 1], np.float32)
        masks, _, _ = self.predictor.predict(
            point_coords=points,
            point_labels=None if points is None else marks.positive.astype(np.int64),
            box=box,
            multimask_output=False,
        )
        return np.asarray(masks[0], bool)

    def _show(self, axis: int, index: int) -> None:
        """Encode a slice, or take it from memory."""
        key = (axis, index)
        if key not in self._images:
            grey = np.take(self._grey, index, axis)
            self.predictor.set_image(np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2)))
            state = ("features", "original_size", "input_size", "is_image_set", "orig_h", "orig_w", "input_h")
            self._images[key] = {
                name: vars(self.predictor)[name] for name in state if name in vars(self.predictor)
            }
            while len(self._images) > SLICES_KEPT:
                self._images.popitem(last=False)
        self._images.move_to_end(key)
        vars(self.predictor).update(self._images[key])


def as_grey(voxels: NDArray[Any], modality: Modality) -> NDArray[np.uint8]:
    """Voxels (x, y, z) as grey values: CT in MedSAM's window, others between two percentiles."""
    low, high = CT_WINDOW_HU if modality == "ct" else np.percentile(voxels, PERCENTILES)
    grey = (voxels.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.asarray(np.clip(grey, 0, 1) * 255, np.uint8)


def slice_axis(marks: Iterable[Mark], scan: Geometry) -> int:
    """Across which axis of the array slices are cut: that of a mark on a slice, else that of thick slices.

    Where slices are as thick as their pixels are wide, it is the axis that runs most nearly along the body.
    """
    for mark in marks:
        points = np.array(mark.points)
        extent = points.max(axis=0) - points.min(axis=0)
        if mark.kind != "point" and len(points) > 1 and extent.min() <= 1 < np.median(extent):
            return int(extent.argmin())
    spacing = np.array(scan.spacing_mm)
    if spacing.max() > 1.5 * spacing.min():
        return int(spacing.argmax())
    return int(np.abs(scan.directions[2]).argmax())


def _from_neighbour(before: Slice, marks: SliceMarks | None) -> SliceMarks:
    """The box of a neighbour's mask and its deepest pixel, with what is marked as "not this" here."""
    depth = ndimage.distance_transform_edt(np.pad(before, 1))[1:-1, 1:-1]
    deepest = np.array(np.unravel_index(int(depth.argmax()), depth.shape), np.int64)[None]
    if marks is None:
        return SliceMarks(_box_of(before), deepest, np.array([True]))
    points = np.concatenate([deepest, marks.points])
    return SliceMarks(_box_of(before), points, np.append(True, marks.positive))


def _goes_on(before: Slice, found: Slice) -> bool:
    together = int((before & found).sum())
    return int(found.sum()) >= FEWEST_PIXELS and together >= LEAST_OVERLAP * int((before | found).sum())


def _box_of(flat: Slice) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(flat)
    return int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())


def _at(axis: int, index: int) -> tuple[slice | int, ...]:
    return tuple(index if other == axis else slice(None) for other in range(3))
