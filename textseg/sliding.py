"""Running the network over an image window by window and blending what the windows say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.device import Compute, NotEnoughMemoryError, forget_freed, tried
from textseg.geometry import Box, Shape
from textseg.network.build import Features, PromptableNetwork
from textseg.overlap import ahead
from textseg.packed import PackedMasks
from textseg.plan import Plan
from textseg.prepare import OUTSIDE_LOGIT
from textseg.quick_layers import quick_layers
from textseg.slabs import Slab, SlabBlender, Tables, rows_of
from textseg.window_sources import ImageWindows, WindowSource
from textseg.windows import blend_weights, place_windows, placed, window_shape

Progress = Callable[[int, int], None]
Wanted = NDArray[np.bool_]
# Prompts that are decoded together; more only cost memory, since each prompt's part is thin.
PROMPTS_AT_ONCE = 8


@dataclass(frozen=True)
class Batches:
    """How much is computed together: less needs less memory and gives the same masks.

    windows: encoded together.
    prompts: decoded together.
    a_pass: prompts whose sums are kept while all windows go by; more passes encode each window again. None
        for all.
    sums_on_cpu: sums are kept in the processor's memory, whatever computes.
    """

    windows: int = 1
    prompts: int = PROMPTS_AT_ONCE
    a_pass: int | None = None
    sums_on_cpu: bool = False


@dataclass(frozen=True)
class MemoryFacts:
    """For the record: the predicted peak and the budget of the device that computes, and how that was met."""

    predicted_peak_bytes: int
    budget_bytes: int | None
    windows_at_once: int
    prompts_at_once: int
    prompts_a_pass: int
    sums_on_cpu: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Shortcuts:
    """For the record: what was left out of looking at every window for every prompt, which is approximate.

    zoom_above, exit_below: the logits that decided, see `textseg.zoom` and `textseg.early_exit`; None where
    the shortcut was not asked for.
    windows: of all windows the share that was looked at at the working spacing.
    prompts: of all pairs of a window and a prompt those that were decoded at every scale.
    """

    zoom_above: float | None
    exit_below: float | None
    windows: float
    prompts: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Answer:
    """logits (prompts, x, y, z) float32 on the image's grid and presence (prompts,) in 0 to 1."""

    logits: Tensor
    presence: Tensor

    def slabs(self) -> Iterator[Slab]:
        """All of the logits as one slab."""
        yield Slab(0, self.logits, range(len(self.logits)))


@dataclass(frozen=True, eq=False)
class MaskAnswer:
    """What a model says of a scan: masks (prompts, x, y, z) bool on the scan's own grid, presence (prompts,)
    in 0 to 1, the words that the network was asked for each prompt, what memory was predicted, the
    shortcuts that were taken, and for each prompt whether it is the mean with the mirror image; empty for
    none."""

    masks: NDArray[np.bool_] | PackedMasks
    presence: NDArray[np.float64]
    asked: tuple[str, ...]
    memory: MemoryFacts | None = None
    shortcuts: Shortcuts | None = None
    averaged: tuple[bool, ...] = ()


def segment_windows(
    network: PromptableNetwork,
    image: Tensor | WindowSource,
    text: Tensor,
    plan: Plan,
    compute: Compute,
    progress: Progress = lambda done, of: None,
    batches: Batches | None = None,
    air: float | None = None,
    wanted: Wanted | None = None,
) -> WindowRun:
    """Logits of every prompt over a whole image: each window is encoded once and decoded for all prompts.

    Logits of overlapping windows are averaged with Gaussian weights. A prompt is present in the scan as far
    as it is in the window that is surest of it. Nothing is computed before it is asked for: `logits` gives
    all of them at once, `slabs()` one finished slab after the other, which needs less memory.

    Args:
        image: (channels, x, y, z) float32, normalised, of any size; or what gives windows of one.
        text: (prompts, text width) float32.
        progress: called with the windows done and all windows.
        batches: None for one window and a few prompts at a time.
        air: windows whose first channel is nowhere above this are not looked at and hold nothing; None looks
            at all.
        wanted: (windows, prompts) for `windows_of` the image: which prompts a window is looked at for, and it
            holds nothing of the others. Windows that are computed together are looked at for what one of them
            is. None for all.
    """
    shape = _shape(image) if isinstance(image, Tensor) else image.shape
    window = window_shape(shape, plan)
    return WindowRun(
        network,
        padded(image, window) if isinstance(image, Tensor) else image,
        text,
        windows_of(shape, plan),
        blend_weights(window, plan.windows),
        compute,
        placed(shape, window),
        progress,
        batches or Batches(),
        air,
        wanted,
    )


def windows_of(shape: Shape, plan: Plan) -> list[Box]:
    """The windows that an image (x, y, z) is looked at in, in their order."""
    return place_windows(shape, window_shape(shape, plan), plan.windows.overlap)


class WindowRun:
    """A network's way over the windows of an image; it begins when `slabs` or `logits` are asked for.

    Where memory does not suffice, fewer prompts, then fewer windows are computed together, then sums are kept
    on the CPU, then fewer prompts summed in one pass; `batches` tells what it came to.

    Args:
        image: (channels, x, y, z) float32, in which all windows lie, or what gives windows of one.
        text: (prompts, text width) float32.
        boxes: the windows, x slowest.
        tables: how much a window's voxels count along x, y and z.
        whole: the part of the image that slabs are of.
        progress, batches, air, wanted: as for `segment_windows`.
    """

    def __init__(
        self,
        network: PromptableNetwork,
        image: Tensor | WindowSource,
        text: Tensor,
        boxes: Sequence[Box],
        tables: Tables,
        compute: Compute,
        whole: Box,
        progress: Progress,
        batches: Batches,
        air: float | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self.batches = batches
        self._network, self._compute = network, compute
        self._images = ImageWindows(image, compute) if isinstance(image, Tensor) else image
        self._text = text.to(compute.device)
        self._boxes, self._tables, self._whole = boxes, tables, whole
        self._progress, self._air = progress, air
        self._wanted = None if wanted is None else dict(zip(boxes, wanted, strict=True))
        self._presence = torch.zeros(len(text), device=compute.device)
        self._done = 0
        self._is_through = False

    @property
    def presence(self) -> Tensor:
        """(prompts,) in 0 to 1, on the CPU, once all windows were looked at."""
        if not self._is_through:
            self.logits  # noqa: B018
        return self._presence.cpu()

    @cached_property
    def logits(self) -> Tensor:
        """(prompts, x, y, z) float32 on the CPU."""
        whole = torch.empty((len(self._text), *self._whole.shape))
        for slab in self.slabs():
            whole[slab.prompts.start : slab.prompts.stop, slab.start : slab.stop] = slab.logits
        return whole

    @torch.inference_mode()
    def slabs(self) -> Iterator[Slab]:
        """Finished logits with x ascending, for all prompts or for one group of them after the other."""
        self._presence.zero_()
        self._done = 0
        first = 0
        while first < len(self._text):
            prompts, blender = self._make_room(first)
            yield from self._pass(prompts, blender)
            first = prompts.stop
        self._is_through = True

    def _make_room(self, first: int) -> tuple[range, SlabBlender]:
        """Sums for the next prompts, as many as there is memory for."""
        while True:
            most = self.batches.a_pass or len(self._text)
            prompts = range(first, min(first + most, len(self._text)))
            device = torch.device("cpu") if self.batches.sums_on_cpu else self._compute.device
            place = self._images.shape, self._boxes, self._tables, device
            blender = tried(partial(SlabBlender, len(prompts), *place))
            if blender is not None:
                return prompts, blender
            if device.type != "cpu":
                self.batches = replace(self.batches, sums_on_cpu=True)
            elif len(prompts) > 1:
                self.batches = replace(self.batches, a_pass=-(-len(prompts) // 2))
            else:
                raise _too_little(self._compute, "the sums of one prompt")

    def _pass(self, prompts: range, blender: SlabBlender) -> Iterator[Slab]:
        rows = rows_of(self._boxes, self._images.shape[0])
        with closing(ahead(self._load([row for _, _, row in rows], prompts))) as loaded:
            for start, stop, row in rows:
                if start > 0:
                    blender.move_to(start)
                seen = 0
                while seen < len(row):
                    boxes, images = next(loaded)
                    if images is None:
                        self._fill(boxes, prompts, prompts, blender)
                    else:
                        self._look(boxes, images, prompts, blender)
                    seen += len(boxes)
                    self._tell(len(boxes), prompts)
                slab = self._cut(blender.finish(stop), start, stop, prompts)
                if slab is not None:
                    yield slab

    def _load(
        self, rows: Sequence[Sequence[Box]], prompts: range
    ) -> Iterator[tuple[list[Box], Tensor | None]]:
        """Windows in their order, some at a time: where they lie, and (windows, channels, x, y, z).

        There is no image of a window that need not be looked at.
        """
        for row in rows:
            waiting: list[Box] = []
            for box in row:
                if self._is_air(box) or not self._wanted_in([box], prompts):
                    if waiting:
                        yield waiting, self._images.crop(waiting)
                    yield [box], None
                    waiting = []
                    continue
                waiting.append(box)
                if len(waiting) >= self.batches.windows:
                    yield waiting, self._images.crop(waiting)
                    waiting = []
            if waiting:
                yield waiting, self._images.crop(waiting)

    def _wanted_in(self, boxes: Sequence[Box], prompts: range) -> list[int]:
        """Which of the prompts are looked for in one of these windows."""
        wanted = self._wanted
        if wanted is None:
            return list(prompts)
        return [prompt for prompt in prompts if any(wanted[box][prompt] for box in boxes)]

    def _is_air(self, box: Box) -> bool:
        return self._air is not None and self._images.brightest(box) <= self._air

    def _look(self, boxes: list[Box], images: Tensor, prompts: range, blender: SlabBlender) -> None:
        """Encode windows, decode prompts over them and add what they say, in parts that fit into memory."""
        wanted = self._wanted_in(boxes, prompts)
        self._fill(boxes, sorted(set(prompts) - set(wanted)), prompts, blender)
        waiting = [(boxes, images, wanted)]
        while waiting:
            boxes, images, left = waiting.pop()
            features = tried(partial(self._encode, images))
            while features is not None and left:
                several = left[: self.batches.prompts]
                decoded = tried(partial(self._decode, features, several))
                if decoded is not None:
                    self._add(boxes, *decoded, several, prompts, blender)
                    left = left[len(several) :]
                elif len(several) > 1:
                    self.batches = replace(self.batches, prompts=len(several) // 2)
                else:
                    features = None
            if features is not None:
                continue
            if len(boxes) > 1:
                half = len(boxes) // 2
                self.batches = replace(self.batches, windows=half)
                waiting += [(boxes[half:], images[half:], left), (boxes[:half], images[:half], left)]
            else:
                self._sum_on_cpu(blender, "one window and one prompt")
                waiting.append((boxes, images, left))

    def _encode(self, images: Tensor) -> Features:
        with self._compute.autocast(), quick_layers(self._compute):
            return self._network.encode(images)

    def _decode(self, features: Features, prompts: list[int]) -> tuple[Tensor, Tensor]:
        """Logits (windows, prompts, x, y, z) and presence (windows, prompts)."""
        with self._compute.autocast(), quick_layers(self._compute):
            decoded = self._network.decode(features, self._text[prompts])
        return decoded.logits[0], decoded.presence.float().sigmoid()

    def _add(
        self,
        boxes: Sequence[Box],
        logits: Tensor,
        presence: Tensor,
        several: list[int],
        prompts: range,
        blender: SlabBlender,
    ) -> None:
        self._presence[several] = torch.maximum(self._presence[several], presence.amax(dim=0))
        for run in _runs(several):
            first = several.index(run.start)
            for box, window in zip(boxes, logits[:, first : first + len(run)], strict=True):
                add = partial(self._added, blender, box, window, run.start - prompts.start)
                while tried(add) is None:
                    self._sum_on_cpu(blender, "adding one window up")

    @staticmethod
    def _added(blender: SlabBlender, box: Box, logits: Tensor, first: int) -> bool:
        blender.add(box, logits, first)
        return True

    def _fill(
        self, boxes: Sequence[Box], absent: Sequence[int], prompts: range, blender: SlabBlender
    ) -> None:
        """Windows that some prompts are not looked for in, such as those of air: they are not there."""
        if not absent:
            return
        nothing = torch.full((1, *boxes[0].shape), OUTSIDE_LOGIT, device=blender.sums.device)
        for box in boxes:
            for prompt in absent:
                blender.add(box, nothing, prompt - prompts.start)

    def _sum_on_cpu(self, blender: SlabBlender, what: str) -> None:
        if blender.sums.device.type == "cpu":
            raise _too_little(self._compute, what)
        blender.move_to_cpu()
        self.batches = replace(self.batches, sums_on_cpu=True)
        forget_freed(self._compute.device)

    def _cut(self, logits: Tensor, start: int, stop: int, prompts: range) -> Slab | None:
        """What of finished planes belongs to the image rather than to what it was padded with."""
        x, y, z = self._whole.slices
        first, last = max(start, x.start), min(stop, x.stop)
        if last <= first:
            return None
        return Slab(first - x.start, logits[:, first - start : last - start, y, z], prompts)

    def _tell(self, windows: int, prompts: range) -> None:
        self._done += windows
        rest = len(self._text) - prompts.stop
        passes_to_come = -(-rest // (self.batches.a_pass or len(self._text)))
        in_this = len(self._boxes) - (self._done - 1) % len(self._boxes) - 1
        self._progress(self._done, self._done + in_this + passes_to_come * len(self._boxes))


def _runs(numbers: Sequence[int]) -> list[range]:
    """Ascending numbers as ranges of those that follow each other."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def _too_little(compute: Compute, what: str) -> NotEnoughMemoryError:
    other = ", or compute on the CPU with --device cpu" if compute.device.type == "cuda" else ""
    return NotEnoughMemoryError(
        f"The memory of the {compute.device.type} must hold at least {what}, but it does not. Close what "
        f"else needs it, take a smaller model{other}."
    )


def padded(image: Tensor, window: Shape, beyond: float | None = None) -> Tensor:
    """The image, grown to the window where it is smaller; it lies in there as `textseg.windows.placed` says.

    Args:
        beyond: the value around it; None for each channel's own darkest one, which is air.
    """
    shape = _shape(image)
    before = placed(shape, window).start
    behind = [max(0, size - n - first) for n, size, first in zip(shape, window, before, strict=True)]
    if not any(behind):
        return image
    pads = [pad for axis in (2, 1, 0) for pad in (before[axis], behind[axis])]
    values = [float(channel.min()) if beyond is None else beyond for channel in image]
    grown = [nn.functional.pad(channel, pads, value=v) for channel, v in zip(image, values, strict=True)]
    return torch.stack(grown)


def window_weight(window: Shape, plan: Plan) -> Tensor:
    x, y, z = (torch.from_numpy(table) for table in blend_weights(window, plan.windows))
    return x[:, None, None] * y[None, :, None] * z[None, None, :]


def _shape(image: Tensor) -> Shape:
    _, x, y, z = image.shape
    return x, y, z
