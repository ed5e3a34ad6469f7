"""How good a network is while it learns: Dice on a fixed and small part of the held-back cases."""

from __future__ import annotations

import math
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.device import Compute
from textseg.geometry import Box, Shape
from textseg.masks import above_threshold
from textseg.network.build import PromptableNetwork
from textseg.plan import Plan
from textseg.prompts import Lexicon
from textseg.scores.overlap import dice
from textseg.sliding import segment_windows
from textseg.train.cases import FEWEST_VOXELS, Case, CaseFacts, Place, Target, read_index, read_place
from textseg.train.evaluate import case_image, modalities_of
from textseg.train.words import canonical_words
from textseg.volume import Modality
from textseg.windows import place_windows, window_shape

# A window with eight prompts took 0.18 of a training step with two samples of the default plan (bfloat16, one
# thread): a validation is worth nine steps at most.
MOST_WINDOWS = 48
MOST_REGIONS = 16
MOST_PROMPTS = 8
MOST_EXAMPLES = 6
# A region is this many windows long where its case is: its middle is seen by several windows, as in a scan.
WINDOWS_A_SIDE = 1.5

Asked = tuple[Target, tuple[int, ...]]
Pixels = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """A box of a held-back case as it is scored: its labels, its image (channels, x, y, z) float32.

    asked: targets with the label values that show them; one that the region does not show comes last.
    """

    case: Case
    modalities: tuple[Modality, ...]
    image: Tensor
    asked: tuple[Asked, ...]

    @property
    def shape(self) -> Shape:
        x, y, z = self.image.shape[1:]
        return x, y, z

    @property
    def known(self) -> Bools:
        """Voxels (x, y, z) that somebody labelled, if only as background."""
        return self.case.known

    def shows(self, number: int) -> Bools:
        """Where what is asked as this number is, (x, y, z)."""
        return np.isin(np.asarray(self.case.labels), self.asked[number][1])


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt on one region, in the axial plane that shows most of it.

    image (x, y) is the first channel, normalised; reference and predicted (x, y); dice is None for what is
    not there, and marked says whether the model gives a mask at all.
    """

    case: str
    prompt: str
    spacing_mm: tuple[float, float]
    image: Pixels
    reference: Bools
    predicted: Bools
    dice: float | None
    marked: bool


@dataclass(frozen=True, eq=False)
class Verdict:
    """The mean Dice over all prompts for what the regions show, and some of them to look at.

    Dice is that of the mask a user gets: none, and so 0, where presence is below the plan's threshold.
    """

    dice: float
    examples: tuple[Example, ...]


class HeldBack:
    """The regions that every validation of a run scores, always the same ones.

    Whole scans with all their prompts would take longer than the training between two validations. So this
    scores boxes of up to 1.5 windows a side around structures of the held-back cases, in turn from each kind
    of image, with sliding windows just as a scan is segmented: up to 48 windows in all, and up to 8 prompts
    each. A case as small as a window is scored whole. What a box does not contain can't be confused with it,
    so Dice is somewhat higher than over whole scans; the card's figures are those of `evaluate`.
    """

    def __init__(
        self, arrays: Path, vectors: Mapping[Target, Tensor], plan: Plan, lexicon: Lexicon, compute: Compute
    ) -> None:
        """Args:
        arrays: from `textseg.train.gather`; their held-back cases whose mixture the plan trains on are used.
        vectors: for each target (n, text width), of which the first, the canonical words, is used.
        """
        self.vectors, self.plan, self.lexicon, self.compute = vectors, plan, lexicon, compute
        self.regions = list(_regions(arrays, vectors, plan))

    def __call__(self, network: PromptableNetwork) -> Verdict:
        """Score a network, which is in evaluation mode and on the device."""
        values: list[float] = []
        examples: list[Example] = []
        for number, region in enumerate(self.regions):
            text = torch.stack([self.vectors[target][0] for target, _ in region.asked])
            answer = segment_windows(network, region.image, text, self.plan, self.compute)
            predicted = above_threshold(answer.logits, self.plan.masks.threshold).numpy() & region.known
            predicted &= (answer.presence.numpy() >= self.plan.masks.presence)[:, None, None, None]
            scores = [_dice(region.shows(i), mask) for i, mask in enumerate(predicted)]
            values += [score for score in scores if score is not None]
            if number < MOST_EXAMPLES:
                # Each region shows another one of its prompts, the same one each time.
                i = number % len(region.asked)
                examples.append(self._example(region, i, predicted[i], scores[i]))
        return Verdict(float(np.mean(values)), tuple(examples))

    def _example(self, region: Region, number: int, predicted: Bools, score: float | None) -> Example:
        facts, reference = region.case.facts, region.shows(number)
        looked_at = reference if score is not None else predicted
        plane = int(looked_at.sum(axis=(0, 1)).argmax()) if looked_at.any() else region.shape[2] // 2
        return Example(
            f"{facts.name}, {region.modalities[0].upper()}",
            canonical_words(region.asked[number][0], self.lexicon),
            facts.spacing_mm[:2],
            region.image[0, :, :, plane].numpy(),
            reference[:, :, plane],
            predicted[:, :, plane],
            score,
            bool(predicted.any()),
        )


def is_due(step: int, plan: Plan) -> bool:
    """Whether a run is validated after so many steps: every now and then, and at the end."""
    every = plan.training.validate_every
    return every > 0 and (step % every == 0 or step == plan.training.steps)


def _dice(reference: Bools, predicted: Bools) -> float | None:
    return dice(predicted, reference) if reference.sum() >= FEWEST_VOXELS else None


def _regions(arrays: Path, known: Container[Target], plan: Plan) -> Iterator[Region]:
    """Regions, from each kind of image in turn, until they are enough."""
    windows = regions = 0
    for facts, modalities in _in_turn(arrays, plan):
        region = _region(read_place(facts, arrays), modalities, known, plan)
        if region is None:
            continue
        window = window_shape(region.shape, plan)
        windows += len(place_windows(region.shape, window, plan.windows.overlap))
        regions += 1
        if regions > 1 and windows > MOST_WINDOWS:
            return
        yield region
        if regions == MOST_REGIONS:
            return


def _in_turn(arrays: Path, plan: Plan) -> list[tuple[CaseFacts, tuple[Modality, ...]]]:
    """Held-back cases of the plan's mixture and what they are seen as, one of each kind before the second."""
    kinds: dict[tuple[str, tuple[Modality, ...]], list[CaseFacts]] = {}
    for facts in read_index(arrays):
        if facts.split == "validation" and plan.training.mixture.get(facts.mixture, 0.0) > 0:
            for modalities in modalities_of(facts, plan):
                kinds.setdefault((facts.mixture, modalities), []).append(facts)
    rounds = zip_longest(*([(facts, kind[1]) for facts in members] for kind, members in kinds.items()))
    return [entry for each in rounds for entry in each if entry is not None]


def _region(
    place: Place, modalities: tuple[Modality, ...], known: Container[Target], plan: Plan
) -> Region | None:
    """The box around one structure of a case, drawn by the case's name; None where it shows nothing known."""
    facts = place.case.facts
    random = np.random.default_rng(zlib.crc32(facts.name.encode()))
    targets = [entry for entry in facts.targets if entry[0] in known]
    around = [target for target, _ in targets if target in place.centres]
    if not around:
        return None
    wanted = around[int(random.integers(len(around)))]
    centre = place.centres[wanted][int(random.integers(len(place.centres[wanted])))]
    box = _box(place.case.labels.shape, centre, plan.windows.size_voxels).slices
    images = tuple(np.asarray(image[box]) for image in place.case.images)
    case = replace(place.case, labels=np.asarray(place.case.labels[box]), images=images)
    asked = _asked(case, targets, random)
    return Region(case, modalities, case_image(case, modalities, plan), asked) if asked else None


def _asked(case: Case, targets: Sequence[Asked], random: np.random.Generator) -> tuple[Asked, ...]:
    """Some of what a region shows, drawn evenly, and one target that is known to be absent, if any is."""
    counts = np.bincount(np.asarray(case.labels).ravel())
    voxels = [sum(int(counts[v]) for v in values if v < len(counts)) for _, values in targets]
    shown = [entry for entry, n in zip(targets, voxels, strict=True) if n >= FEWEST_VOXELS]
    if not shown:
        return ()
    chosen = [shown[i] for i in sorted(random.permutation(len(shown))[: MOST_PROMPTS - 1])]
    absent = [entry for entry, n in zip(targets, voxels, strict=True) if n == 0]
    if absent and case.known.all():
        chosen.append(absent[int(random.integers(len(absent)))])
    return tuple(chosen)


def _box(shape: Sequence[int], centre: NDArray[np.integer], window: Sequence[int]) -> Box:
    """A box of up to 1.5 windows a side around a voxel, moved to lie inside the case."""
    sides = [min(n, math.ceil(WINDOWS_A_SIDE * size)) for n, size in zip(shape, window, strict=True)]
    x, y, z = (
        min(max(int(at) - side // 2, 0), n - side) for at, side, n in zip(centre, sides, shape, strict=True)
    )
    return Box((x, y, z), (x + sides[0], y + sides[1], z + sides[2]))
