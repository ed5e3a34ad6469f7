"""Our own network as the engine of a session: encoded once, decoded where a mark lies.

Words look at all windows of the working grid. A mark looks at the fewest windows that see it well; where the
mask then changed on the border of what was decoded, the neighbours follow, with what there is so far as their
previous mask. Where a mark alone, without words, grows through a whole window, a look at twice the spacing
finds the extent first, and windows at the working spacing refine it: a step of factor two after the zooms of
nnInteractive (Isensee et al. 2025), because our windows overlap by half and a coarser copy of the image is
cheap, while one window after the other towards a far border is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.errors import ModelError, PromptError
from textseg.geometry import Box, Geometry, Shape, bounding_box
from textseg.inference import Segmenter
from textseg.interactive.engine import Outcome, Progress, Turn
from textseg.interactive.feature_cache import FeatureCache
from textseg.interactive.heed import heed
from textseg.interactive.kept import STEPS_A_LOGIT, Field, PackedMask
from textseg.interactive.marks import Mark, drawn, extent_mm, voxels_of
from textseg.interactive.working import Canvas, WorkingGrid, empty_field
from textseg.masks import above_threshold
from textseg.network.build import Features
from textseg.network.spatial_prompts import Interaction, Lasso, Point, Region, Scribble, draw_maps
from textseg.plan import Millimetres
from textseg.prepare import prepare, restore_mask
from textseg.quick_layers import quick_layers
from textseg.resample import resample
from textseg.volume import Modality, Volume

# Marks alone are answered at a spacing at which what is drawn is at least so many voxels long.
LENGTH_VOXELS = 16
# What is coarser than this many times the working spacing shows hardly more than where the body ends.
COARSEST = 8


class WindowsEngine:
    """Answers turns with a model of textseg's own.

    Args:
        segmenter: the loaded model.
        cache_bytes: memory for encoded windows.

    Raises:
        ModelError: the model is another project's, which can't be asked window by window.
    """

    name = "textseg"

    def __init__(self, segmenter: Segmenter, cache_bytes: int) -> None:
        if segmenter.model.kind != "textseg":
            raise ModelError(
                f"A session needs a model of textseg's own, got {segmenter.model.name!r} of "
                f"{segmenter.model.kind}, which takes no marks. Use it with `textseg predict`, or choose "
                "another model."
            )
        self.segmenter = segmenter
        dtype = segmenter.compute.dtype
        self.cache = FeatureCache(cache_bytes, torch.float16 if dtype == torch.float32 else dtype)
        self.decoded_windows = 0
        self._volume: Volume | None = None
        self._modality: Modality = "ct"
        self._grids: dict[tuple[Millimetres, int], WorkingGrid] = {}
        self._latest: tuple[Field, NDArray[np.int8]] | None = None

    def set_scan(self, volume: Volume, modality: Modality) -> None:
        if volume is self._volume and modality == self._modality:
            # Another engine is given this one for words: what is encoded stays.
            return
        self._volume, self._modality = volume, modality
        self._grids.clear()
        self.cache.clear()
        self._latest = None

    @torch.inference_mode()
    def look(self, turn: Turn, progress: Progress) -> Outcome:
        progress("preparing", 0, 1)
        grid = self._grid(self._spacing(turn))
        text = None
        if turn.prompt is not None:
            text = self.segmenter.text.embed([turn.prompt.canonical]).to(self.segmenter.compute.device)
        if turn.newest is None:
            return self._look_everywhere(turn, grid, text, progress)
        return self._look_near(turn, turn.newest, grid, text, progress)

    # ---- where to look ----

    def _look_everywhere(
        self, turn: Turn, grid: WorkingGrid, text: Tensor | None, progress: Progress
    ) -> Outcome:
        canvas = self._canvas(grid, empty_field(grid.shape), turn, np.zeros((0, 3), np.int64))
        # Words that are new owe nothing to a mask, not even to that of the windows before.
        presence = self._decode_all(range(len(grid.boxes)), canvas, text, progress, None)
        says_there = any(mark.positive for mark in turn.marks)
        if presence < self.segmenter.plan.masks.presence and not says_there:
            box = Box((0, 0, 0), grid.shape)
            field = Field.keep(grid.spacing_mm, grid.shape, box, empty_field(grid.shape), None)
            return Outcome(
                PackedMask.pack(np.zeros(self._scan.shape, bool)), presence, field, self._scan.whole
            )
        mask = self._restored(canvas.logits(grid.geometry.whole), grid, grid.geometry.whole, self._scan.whole)
        field = Field.keep(
            grid.spacing_mm, grid.shape, grid.geometry.whole, canvas.steps(grid.geometry.whole), None
        )
        self._latest = (field, canvas.steps(grid.geometry.whole))
        return Outcome(PackedMask.pack(mask), presence, field, self._scan.whole)

    def _look_near(
        self, turn: Turn, newest: Mark, grid: WorkingGrid, text: Tensor | None, progress: Progress
    ) -> Outcome:
        places = voxels_of(drawn(newest, self._scan, grid.geometry), grid.shape)
        if len(places) == 0:
            raise PromptError(
                f"A {newest.kind} lies on the body or within {self.segmenter.plan.margin_mm:g} mm of it, got "
                "one in the air around it, where no mask is made."
            )
        field = self._field_before(turn, grid)
        canvas = self._canvas(grid, self._values(field, grid), turn, places)
        self._decode_all(grid.cover(places), canvas, text, progress, canvas.mask)
        if text is None and canvas.crosses_a_window() and grid.coarser < COARSEST:
            extent = self._extent(turn, places, grid, canvas.was, progress)
            canvas.restart(canvas.was | extent)
            found = np.concatenate([places, np.argwhere(extent)])
            self._decode_all(grid.cover(found), canvas, text, progress, canvas.mask)
        self._follow(canvas, text, progress)
        return self._updated(turn, grid, canvas, field)

    def _follow(self, canvas: Canvas, text: Tensor | None, progress: Progress) -> None:
        """Decode neighbours until the mask changes on no border of what was decoded."""
        while len(reached := canvas.reached()):
            more = canvas.grid.cover(reached, without=canvas.decoded)
            if not more:
                return
            self._decode_all(more, canvas, text, progress, canvas.mask)

    def _extent(
        self,
        turn: Turn,
        places: NDArray[np.int64],
        fine: WorkingGrid,
        was: NDArray[np.bool_],
        progress: Progress,
    ) -> NDArray[np.bool_]:
        """A coarse mask (x, y, z) on the fine grid of what marks alone mean, from as far off as it takes."""
        grid = self._zoomed_out(fine)
        before = resample(torch.from_numpy(was).float(), fine.geometry, grid.geometry) > 0.5
        near = np.floor(grid.geometry.to_voxels(fine.geometry.to_world(places)) + 0.5).astype(np.int64)
        near = np.clip(near, 0, np.array(grid.shape) - 1)
        canvas = self._canvas(grid, _as_field(before.numpy()), turn, near)
        self._decode_all(grid.cover(near), canvas, None, progress, canvas.mask)
        mask = canvas.mask
        if canvas.crosses_a_window() and grid.coarser < COARSEST:
            mask = self._extent(turn, near, grid, canvas.was, progress)
        return (resample(torch.from_numpy(mask).float(), grid.geometry, fine.geometry) > 0.5).numpy()

    # ---- looking ----

    def _decode_all(
        self,
        windows: list[int] | range,
        canvas: Canvas,
        text: Tensor | None,
        progress: Progress,
        previous: NDArray[np.bool_] | None,
    ) -> float:
        """Look through windows; gives the highest presence that one of them says.

        Args:
            previous: the mask (x, y, z) that windows are shown as the one before.
        """
        stage = f"looking at {canvas.grid.spacing_mm[0]:g} mm"
        presence = 0.0
        for done, index in enumerate(windows, start=1):
            here = _within(canvas.marks, canvas.grid.boxes[index])
            maps = self._maps(canvas.grid, index, here, previous)
            # The no-text vector takes its place from the maps.
            if maps is None and text is None:
                maps = torch.zeros((self._spatial_channels, *canvas.grid.window))
            logits, seen = self._decode(canvas.grid, index, text, maps, here)
            canvas.add(index, logits)
            presence = max(presence, seen)
            progress(stage, done, len(windows))
        return presence

    def _decode(
        self,
        grid: WorkingGrid,
        index: int,
        text: Tensor | None,
        maps: Tensor | None,
        marks: Sequence[Interaction],
    ) -> tuple[Tensor, float]:
        """A window's logits (x, y, z) and presence; `marks` are those in it, in its voxels."""
        compute = self.segmenter.compute
        spatial = None if maps is None else maps[None, None].to(compute.device)
        with compute.autocast(), quick_layers(compute):
            features = self.cache.get((grid.spacing_mm, grid.coarser, index), self._encoder(grid, index))
            if compute.dtype == torch.float32:
                features = Features(features.coarsest.float(), tuple(each.float() for each in features.trunk))
            decoded = self.segmenter.network.decode(features, text, spatial)
        self.decoded_windows += 1
        logits = decoded.logits[0][0, 0].float()
        # Far off only the extent is asked for: a mark there covers much more than was drawn.
        if grid.coarser == 1:
            logits = heed(logits, features.trunk[0][0], marks, grid.spacing_mm, self._above)
        return logits.cpu(), float(decoded.presence[0, 0].float().sigmoid())

    def _encoder(self, grid: WorkingGrid, index: int) -> Callable[[], Features]:
        def encode() -> Features:
            window = grid.image(index).to(self.segmenter.compute.device)
            return self.segmenter.network.encode(
                window[None].contiguous(memory_format=torch.channels_last_3d)
            )

        return encode

    def _maps(
        self, grid: WorkingGrid, index: int, here: Sequence[Interaction], previous: NDArray[np.bool_] | None
    ) -> Tensor | None:
        """The maps of one window with these marks; None without any, and without a mask before."""
        inside = grid.inside(index)
        if previous is None or not previous[inside.slices].any():
            return draw_maps(here, grid.window) if here else None
        before = torch.zeros(grid.window)
        before[grid.in_window(index)] = torch.from_numpy(previous[inside.slices]).float()
        return draw_maps(here, grid.window, before)

    # ---- grids and fields ----

    def _spacing(self, turn: Turn) -> Millimetres:
        """That of the text's group; of marks alone the one that they began at, or that fits their first.

        It is the plan's default group's, unless the scan or what was drawn is small: then the coarsest of the
        plan's at which the scan is as long as a window and a drawn box or lasso is `LENGTH_VOXELS` long.
        """
        plan = self.segmenter.plan
        if turn.prompt is not None:
            return plan.spacing_for(turn.prompt.group)
        if turn.before is not None and turn.before.field is not None:
            return turn.before.field.spacing_mm
        default = plan.spacing_for(None)
        spacings = {
            group.spacing_mm for group in plan.groups.values() if max(group.spacing_mm) <= max(default)
        }
        coarsest_first = sorted(spacings, key=lambda mm: -math.prod(mm))
        longest = max(n * mm for n, mm in zip(self._scan.shape, self._scan.spacing_mm, strict=True))
        length = extent_mm(turn.marks[0], self._scan) if turn.marks else 0.0
        for spacing in coarsest_first:
            sees_enough = longest / max(spacing) >= max(plan.windows.size_voxels)
            if sees_enough and (length == 0 or length / max(spacing) >= LENGTH_VOXELS):
                return spacing
        return coarsest_first[-1]

    def _grid(self, spacing_mm: Millimetres) -> WorkingGrid:
        key = (spacing_mm, 1)
        if key not in self._grids:
            assert self._volume is not None
            prepared = prepare(self._volume, self.segmenter.plan, self._modality, spacing_mm)
            self._grids[key] = WorkingGrid(prepared, self.segmenter.plan, spacing_mm)
        return self._grids[key]

    def _zoomed_out(self, grid: WorkingGrid) -> WorkingGrid:
        x, y, z = (mm / grid.coarser for mm in grid.spacing_mm)
        key = ((x, y, z), 2 * grid.coarser)
        if key not in self._grids:
            self._grids[key] = grid.zoomed_out()
        return self._grids[key]

    def _field_before(self, turn: Turn, grid: WorkingGrid) -> Field | None:
        """The field of the step before on this grid, or one made of its mask if it has none here."""
        before = turn.before
        if before is None:
            return None
        field = before.field
        if field is not None and field.shape == grid.shape and field.spacing_mm == grid.spacing_mm:
            return field
        mask = torch.from_numpy(before.mask.unpack()).float()
        brought = resample(mask, self._scan, grid.geometry) > 0.5
        return Field.keep(grid.spacing_mm, grid.shape, grid.geometry.whole, _as_field(brought.numpy()), None)

    def _canvas(
        self, grid: WorkingGrid, before: NDArray[np.int8], turn: Turn, newest: NDArray[np.int64]
    ) -> Canvas:
        marks = [drawn(mark, self._scan, grid.geometry) for mark in turn.marks]
        return Canvas(grid, before, self._above, marks, newest)

    def _values(self, field: Field | None, grid: WorkingGrid) -> NDArray[np.int8]:
        if field is None:
            return empty_field(grid.shape)
        if self._latest is None or self._latest[0] is not field:
            self._latest = (field, field.whole())
        return self._latest[1]

    # ---- back to the scan ----

    def _updated(self, turn: Turn, grid: WorkingGrid, canvas: Canvas, base: Field | None) -> Outcome:
        """The mask with what changed on the working grid brought to the scan, and nothing else touched."""
        box = canvas.box()
        values = canvas.steps(box)
        changed = bounding_box(values != canvas.before[box.slices])
        before = turn.before.mask if turn.before else PackedMask.pack(np.zeros(self._scan.shape, bool))
        presence = turn.before.presence if turn.before else None
        field = Field.keep(grid.spacing_mm, grid.shape, box, values, base)
        whole = canvas.before.copy()
        whole[box.slices] = values
        self._latest = (field, whole)
        if changed is None:
            return Outcome(before, presence, field, None)
        moved = changed.moved(box.start)
        target = _scan_box(moved, grid.geometry, self._scan)
        source = _working_box(target, self._scan, grid.geometry)
        mask = before.unpack()
        mask[target.slices] = self._restored(canvas.logits(source), grid, source, target)
        return Outcome(PackedMask.pack(mask), presence, field, target)

    def _restored(self, logits: Tensor, grid: WorkingGrid, source: Box, target: Box) -> NDArray[np.bool_]:
        """Logits (x, y, z) in a box of the working grid → the mask in a box of the scan's."""
        geometry, scan = grid.geometry.cropped(source), self._scan.cropped(target)
        prepared = replace(grid.prepared, geometry=geometry, scan=scan)
        return restore_mask(
            logits, prepared, lambda found: above_threshold(found, self.segmenter.plan.masks.threshold)
        )

    @property
    def _scan(self) -> Geometry:
        assert self._volume is not None
        return self._volume.geometry

    @property
    def _above(self) -> float:
        threshold = self.segmenter.plan.masks.threshold
        return math.log(threshold / (1 - threshold))

    @property
    def _spatial_channels(self) -> int:
        return self.segmenter.plan.network.spatial_channels


def _as_field(mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """A mask of which nothing but its voxels is known, as logits of one inside and minus one outside."""
    return np.where(mask, STEPS_A_LOGIT, -STEPS_A_LOGIT).astype(np.int8)


def _within(marks: Sequence[Interaction], window: Box) -> list[Interaction]:
    """The marks that lie in a window, in its voxels."""
    return [moved for mark in marks if (moved := _moved(mark, window)) is not None]


def _moved(mark: Interaction, window: Box) -> Interaction | None:
    """A mark of the image as one of a window (x, y, z), None where nothing of it lies in there."""
    shift, shape = np.array(window.start), np.array(window.shape)
    if isinstance(mark, Point):
        place = np.array(mark.position) - shift
        x, y, z = (float(value) for value in place)
        return replace(mark, position=(x, y, z)) if ((place >= 0) & (place < shape)).all() else None
    if isinstance(mark, Region):
        start, stop = np.array(mark.start) - shift, np.array(mark.stop) - shift
        if (np.minimum(stop, shape) <= np.maximum(start, 0)).any():
            return None
        return Region(_three(start), _three(stop), mark.positive)
    voxels = np.asarray(mark.voxels) - shift
    voxels = voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]
    if len(voxels) == 0:
        return None
    return Scribble(voxels, mark.positive) if isinstance(mark, Scribble) else Lasso(voxels, mark.positive)


def _scan_box(box: Box, working: Geometry, scan: Geometry) -> Box:
    """The voxels of the scan whose value depends on a box of the working grid."""
    reach = _reach(working, scan)
    low, high = np.array(box.start) - reach, np.array(box.stop) - 1 + reach
    return _around(low, high, working, scan, 0.0)


def _working_box(box: Box, scan: Geometry, working: Geometry) -> Box:
    """The voxels of the working grid that the values of a box of the scan depend on."""
    return _around(np.array(box.start), np.array(box.stop) - 1, scan, working, _reach(working, scan) + 1)


def _reach(working: Geometry, scan: Geometry) -> float:
    """How far, in voxels of the working grid, a voxel of the scan looks when it is interpolated."""
    return max(1.0, max(scan.spacing_mm) / min(working.spacing_mm))


def _around(
    low: NDArray[np.floating], high: NDArray[np.floating], here: Geometry, there: Geometry, margin: float
) -> Box:
    """The box of another grid around all voxel positions from low to high, with a margin."""
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    moved = there.to_voxels(here.to_world(corners))
    start = np.floor(moved.min(axis=0) - margin)
    stop = np.ceil(moved.max(axis=0) + margin) + 1
    return Box(_three(start), _three(stop)).within(there.shape)


def _three(values: NDArray[Any]) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
