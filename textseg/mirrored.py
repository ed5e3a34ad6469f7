"""Two opinions of every window: as it is, and mirrored left to right with the sides swapped in words.

nnU-Net (Isensee et al. 2021) averages over mirror images whatever is asked, so its networks must not know a
side. Ours is asked for the right kidney in a mirror image where the left one is meant, so left stays left.
A mirrored scan then gives the mirrored mask, exactly so where its windows lie as the scan's do; an odd voxel
of padding, or between windows, moves them by one. It needs a network that has learnt from mirrored patches;
a torso with the liver on the left is none that training showed, which is why the plan chooses by group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textseg.network.build import Decoded, Features, PromptableNetwork
from textseg.plan import Triple
from textseg.prompts import Prompt, understand
from textseg.sides import with_side_swapped

# Of windows (windows, channels, x, y, z), and of logits (windows, prompts, x, y, z).
LEFT_RIGHT = 2


class Mirrored:
    """A network that looks at windows twice, mirrored too, and says the mean of both; it takes twice as long.

    Args:
        network: of which windows' x axis runs between left and right.
    """

    def __init__(self, network: PromptableNetwork) -> None:
        self._network = network

    @property
    def total_stride(self) -> Triple:
        return self._network.total_stride

    def encode(self, image: Tensor) -> Features:
        """The windows as they are, and behind them all mirrored."""
        flipped = image.flip(LEFT_RIGHT).contiguous(memory_format=torch.channels_last_3d)
        # One after the other, as some encoders are compiled for a number of windows.
        seen = self._network.encode(image), self._network.encode(flipped)
        coarsest, *trunk = (
            torch.cat(both) for both in zip(*((each.coarsest, *each.trunk) for each in seen), strict=True)
        )
        return Features(coarsest, tuple(trunk))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        """Logits at the finest scale alone.

        Args:
            text: (prompts, 2 × text width) from `with_mirror_images`.

        Raises:
            ValueError: there is no text, or there are spatial prompts: marks are not mirrored.
        """
        if text is None or spatial is not None:
            raise ValueError("What is mirrored is asked by words alone.")
        windows = len(features.coarsest) // 2
        here, mirrored = (
            self._network.decode(
                Features(features.coarsest[part], tuple(each[part] for each in features.trunk)), words
            )
            for part, words in zip((slice(windows), slice(windows, None)), text.chunk(2, dim=-1), strict=True)
        )
        logits = (here.logits[0].float() + mirrored.logits[0].flip(LEFT_RIGHT)) / 2
        return Decoded((logits,), (here.presence + mirrored.presence) / 2)


def with_mirror_images(text: Tensor, others: Tensor) -> Tensor:
    """What `Mirrored` is asked, (prompts, 2 × text width): what prompts are here, and in a mirror image."""
    return torch.cat([text, others], dim=1)


def in_a_mirror(prompts: Sequence[Prompt]) -> list[str]:
    """The words that the text encoder gets for what each prompt is in a mirror image."""
    return [understand(with_side_swapped(prompt)).canonical for prompt in prompts]
