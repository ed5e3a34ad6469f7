"""Models that stay loaded in a worker, and texts that are read once."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from textseg.cohort.task import Task
from textseg.embeddings.encoder import TextEncoder
from textseg.inference import Segmenter
from textseg.packed import joined
from textseg.result import Segmentation
from textseg.volume import Volume

# A cohort asks one model as a rule; two, where a manifest takes turns between them.
MOST_LOADED = 2


class RememberedTexts:
    """A `TextEncoder` that asks another one for each text once, and keeps the vectors in memory."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._vectors: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def width(self) -> int:
        return self._encoder.width

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors (texts, width), float32 on the CPU."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= zip(new, self._encoder.embed(new), strict=True)
        return torch.stack([self._vectors[text] for text in texts])


class Segmenters:
    """The models of a worker, the one used last kept longest."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[str, str, str], Segmenter] = OrderedDict()

    def of(self, task: Task) -> Segmenter:
        """The model that a task asks, loaded if it is not.

        Raises:
            ModelError, DeviceError: it can't be.
        """
        key = (task.model, task.device, task.settings.backend)
        if key not in self._loaded:
            while len(self._loaded) >= MOST_LOADED:
                self._loaded.popitem(last=False)
            self._loaded[key] = _loaded(task)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def forget(self) -> None:
        """Let all models go, after a scan that found no memory left."""
        self._loaded.clear()
        gc.collect()
        # Does nothing where CUDA was not used.
        torch.cuda.empty_cache()


def segment_task(segmenter: Segmenter, channels: list[Volume], task: Task) -> Segmentation:
    """A task's prompts in its scan, as many at once as it says; masks (prompts, x, y, z) on the scan's grid.

    A network decodes prompts one by one, so parts give the same masks as all at once, up to rounding.
    """
    step = task.prompts_at_once or len(task.prompts)
    parts = [
        segmenter(
            channels, task.prompts[i : i + step], modality=task.modality, clean_up=task.settings.clean_up
        )
        for i in range(0, len(task.prompts), step)
    ]
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        masks=joined([part.masks for part in parts]),
        found=tuple(found for part in parts for found in part.found),
        averaged=tuple(averaged for part in parts for averaged in part.averaged),
        seconds=sum(part.seconds for part in parts),
    )


def _loaded(task: Task) -> Segmenter:
    segmenter = Segmenter(
        Path(task.model), device=task.device, threads=task.threads, backend=task.settings.backend
    )
    if segmenter.model.kind == "textseg":
        segmenter.text = RememberedTexts(segmenter.text)
    return segmenter
