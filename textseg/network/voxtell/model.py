"""VoxTell as a model among ours: a scan and prompts in, masks on the scan's own grid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from textseg.device import Compute
from textseg.embeddings.encoder import TextEncoder
from textseg.network.voxtell.flow import segment_like_voxtell
from textseg.network.voxtell.folder import load_voxtell
from textseg.network.voxtell.text import find_text_model, load_text
from textseg.prompts import Prompt
from textseg.sliding import MaskAnswer
from textseg.volume import Volume


class VoxTellModel:
    """The network and the text vectors of a folder in VoxTell's format.

    Args:
        folder: as released or as `convert` writes it.
        device: where the network lies.
        encoder: gives Qwen3-Embedding-4B's vectors for prompts that are not in the folder's bank; None for
            the one on this machine, if there is one.

    Raises:
        PlanError, ModelError: see `load_voxtell` and `load_text`.
    """

    def __init__(self, folder: Path, device: torch.device, encoder: TextEncoder | None = None) -> None:
        network = load_voxtell(folder).to(device)
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.text = load_text(folder, network.text_width, encoder or find_text_model(device))

    def __call__(
        self,
        volume: Volume,
        prompts: Sequence[Prompt],
        compute: Compute,
        progress: Callable[[str, int, int], None],
    ) -> MaskAnswer:
        """Masks for prompts; what each was asked as is in the answer.

        Raises:
            PromptError: no text vector can be had for a prompt.
            ScanError: the scan has several channels.
        """
        asked = [self.text.wording(prompt) for prompt in prompts]
        progress("reading the prompts", 0, 1)
        vectors = self.text.embed(asked)
        masks, presence = segment_like_voxtell(
            volume, self.network, vectors, compute, partial(progress, "segmenting")
        )
        return MaskAnswer(masks, presence, tuple(asked))
