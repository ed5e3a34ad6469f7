"""Whether left and right hold: a scan mirrored left to right must swap them, and nothing else.

In the mirror image of a scan what is called the right kidney lies where the left kidney was. So the mirrored
scan, asked for the other side, must give the mirror image of the mask, and asked for the same side must not.
A network that learnt where a side lies in the picture, or that does not hear the word, is found out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from textseg.errors import PromptError
from textseg.masks import Mask
from textseg.prompts import Lexicon, Prompt, canonical_name, default_lexicon, understand
from textseg.prompts.cleaning import SIDES, side_of, token
from textseg.scores.overlap import dice
from textseg.volume import Volume

if TYPE_CHECKING:
    from textseg.inference import Segmenter
    from textseg.result import Segmentation

# Of the mask and the mirrored scan's: below it a side is not to be relied on.
LEAST_DICE = 0.8
# From here on the other side's mask is the same place.
SAME_PLACE = 0.5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SideCheck:
    """One prompt in the scan and its mirror image.

    Args:
        prompt: as it was asked.
        asked: of the mirrored scan; the prompt itself where no side in it can be swapped.
        dice: of the mask, and the mirrored scan's mirrored back; None where both are empty.
        same_words_dice: the same for the prompt as it was asked; it should be near 0. None for a prompt whose
            side can't be swapped, and where both are empty.
        presence, volume_ml: what the mirrored scan gave for `asked`.
    """

    prompt: str
    asked: str
    dice: float | None
    same_words_dice: float | None
    presence: float
    volume_ml: float

    @property
    def sided(self) -> bool:
        return self.asked != self.prompt

    @property
    def warning(self) -> str | None:
        """What is wrong with the side, in a sentence; None where nothing is."""
        if not self.sided:
            return None
        agreement, same_words = self.dice, self.same_words_dice
        if same_words is not None and same_words >= SAME_PLACE:
            if agreement is None or same_words > agreement:
                return (
                    f"Left and right may be swapped for {self.prompt!r}: in the mirrored scan the same "
                    f"words, not {self.asked!r}, mark this place (Dice {same_words:.2f})."
                )
            return (
                f"Left and right are not told apart for {self.prompt!r}: in the mirrored scan the same words "
                f"and {self.asked!r} both mark this place (Dice {same_words:.2f} and {agreement:.2f})."
            )
        if agreement is not None and agreement < LEAST_DICE:
            return (
                f"The side of {self.prompt!r} is not to be relied on: a mirrored scan must agree with Dice "
                f"{LEAST_DICE} or more when it is asked for {self.asked!r}, got {agreement:.2f}."
            )
        return None

    def __str__(self) -> str:
        asked = f"asked for {self.asked!r}" if self.sided else "asked the same"
        agreement = "nothing is found in either" if self.dice is None else f"Dice {self.dice:.2f}"
        return f"{self.prompt}: mirrored scan {asked}, {agreement}"

    def as_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "dice": _rounded(self.dice),
            "same_words_dice": _rounded(self.same_words_dice),
            "presence": round(self.presence, 4),
            "volume_ml": round(self.volume_ml, 3),
            "warning": self.warning,
        }


def check_sides(
    segmentation: Segmentation, segmenter: Segmenter, progress: Progress = lambda stage, done, of: None
) -> Segmentation:
    """The segmentation with its `sides`: the mirrored scan is segmented as well and compared.

    Takes as long as segmenting once more; prompts with a side are asked of the mirrored scan twice, with the
    side swapped and as they are.

    Args:
        segmenter: which made the segmentation.

    Raises:
        PromptError: a model of another project does not take a prompt with its side swapped.
    """
    swapped = [with_side_swapped(found.prompt) for found in segmentation.found]
    texts = [found.prompt.text for found in segmentation.found]
    asked = list(dict.fromkeys([*swapped, *(t for t, s in zip(texts, swapped, strict=True) if t != s)]))
    mirrored = segmenter(
        # Channels may each have a modality, which is the plan's to tell.
        replace(mirror(segmentation.volume), modality=None),
        asked,
        modality=segmentation.modality,
        clean_up=segmentation.clean_up,
        progress=lambda stage, done, of: progress(f"mirrored scan: {stage}", done, of),
    )
    axis = left_right_axis(segmentation.volume)

    def compared(mask: Mask, text: str) -> float | None:
        value = dice(mask, np.flip(mirrored.masks[asked.index(text)], axis))
        return None if math.isnan(value) else value

    checks = [
        SideCheck(
            prompt=text,
            asked=other,
            dice=compared(mask, other),
            same_words_dice=compared(mask, text) if other != text else None,
            presence=mirrored.found[asked.index(other)].presence,
            volume_ml=mirrored.found[asked.index(other)].mask.volume_ml,
        )
        for text, other, mask in zip(texts, swapped, segmentation.masks, strict=True)
    ]
    return replace(segmentation, sides=tuple(checks))


def mirror(volume: Volume) -> Volume:
    """The scan with the patient's left and right exchanged, on the same grid.

    Voxels are flipped along the array's own axis that runs nearest to left-right; on an oblique grid that is
    a mirror image that is turned a little, too.
    """
    return replace(volume, voxels=np.flip(volume.voxels, 1 + left_right_axis(volume)))


def left_right_axis(volume: Volume) -> int:
    """Which of a mask's axes (x, y, z), in the file's own order, runs nearest to the patient's left-right."""
    return volume.geometry.canonical_order().axes[0]


def with_side_swapped(prompt: Prompt, lexicon: Lexicon | None = None) -> str:
    """The prompt about the other side; itself where it says none, or one that is a name.

    Chambers of the heart and lobes of the liver are called left and right also in a mirrored body.
    """
    lexicon = lexicon or default_lexicon()
    place = prompt.structure
    if place is None or place.side is None:
        return _side_words_swapped(prompt.text)
    other = lexicon.mirrored(place)
    if other is place:
        return prompt.text
    text = _side_words_swapped(prompt.text)
    # Not every side is a word of its own: "LK".
    return text if _means(text, other.id, prompt, lexicon) else canonical_name(other, prompt.finding)


def _means(text: str, structure: str, prompt: Prompt, lexicon: Lexicon) -> bool:
    try:
        understood = understand(text, lexicon)
    except PromptError:
        return False
    named = understood.structure.id if understood.structure else None
    return named == structure and understood.finding is prompt.finding


def _side_words_swapped(text: str) -> str:
    """The text with "left" for "right" and the other way round; words of other languages become English."""
    others: dict[str, str] = dict(zip(SIDES, reversed(SIDES), strict=True))

    def swapped(found: re.Match[str]) -> str:
        side = side_of(token(found[0]))
        return others[side] if side is not None else found[0]

    return re.sub(r"[^\W\d_]+", swapped, text)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
