"""How good a model is on held-back cases: Dice by structure, and whether absent things are denied."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textseg.device import Compute
from textseg.masks import above_threshold
from textseg.mirrored import Mirrored, with_mirror_images
from textseg.network.build import PromptableNetwork
from textseg.normalise import normalise
from textseg.plan import Plan
from textseg.scores.overlap import dice
from textseg.sliding import segment_windows
from textseg.train.cases import (
    FEWEST_VOXELS,
    Case,
    CaseFacts,
    Split,
    Target,
    read_case,
    read_index,
)
from textseg.train.synth import synthesise
from textseg.volume import Modality


@dataclass(frozen=True)
class Score:
    """One prompt on one case: Dice where the thing is there, and the presence score in any case."""

    case: str
    kind: str
    target: Target
    voxels: int
    dice: float | None
    presence: float
    predicted_voxels: int


def evaluate(
    network: PromptableNetwork,
    vectors: Mapping[Target, Tensor],
    arrays: Path,
    plan: Plan,
    compute: Compute,
    *,
    split: Split = "validation",
    mixtures: Iterable[str] | None = None,
    mirrored: Mapping[Target, Target] | None = None,
) -> Iterator[Score]:
    """Score every known target of the held-back cases on the working grid.

    Label maps are drawn as an image with a seed of the case's name, so that every model sees the same image.
    Targets that a case's own labels name but do not show are scored for presence only. Voxels that nobody
    labelled do not count, and what a case shows in none of the others, since it may lie there, is not scored.

    Args:
        vectors: for each target (n, text width), of which the first, the canonical words, is used.
        mirrored: what targets are in a mirror image, where not themselves; vectors hold these too. Groups
            that the plan looks at mirrored are scored so.
    """
    for facts in read_index(arrays):
        if facts.split != split or (mixtures is not None and facts.mixture not in mixtures):
            continue
        case = _in_memory(read_case(facts, arrays))
        for modalities in modalities_of(facts, plan):
            image = case_image(case, modalities, plan)
            yield from _scores(network, vectors, case, modalities, image, plan, compute, mirrored or {})


def _scores(
    network: PromptableNetwork,
    vectors: Mapping[Target, Tensor],
    case: Case,
    modalities: Sequence[Modality],
    image: Tensor,
    plan: Plan,
    compute: Compute,
    mirrored: Mapping[Target, Target],
) -> Iterator[Score]:
    targets = [(target, values) for target, values in case.facts.targets if target in vectors]
    if not targets:
        return
    text = torch.stack([vectors[target][0] for target, _ in targets])
    if plan.group_for(case.facts.group).mirrored:
        others = torch.stack([vectors[mirrored.get(target, target)][0] for target, _ in targets])
        network, text = Mirrored(network), with_mirror_images(text, others)
    answer = segment_windows(network, image, text, plan, compute)
    named = " + ".join(dict.fromkeys(modalities))
    kind = f"{case.facts.mixture} {named}" + ("" if case.images else " (synthesised)")
    labels, known = np.asarray(case.labels), case.known
    for (target, values), logits, presence in zip(
        targets, answer.logits, answer.presence.tolist(), strict=True
    ):
        reference = np.isin(labels, values)
        voxels = int(reference.sum())
        if voxels == 0 and not known.all():
            continue
        predicted = above_threshold(logits, plan.masks.threshold).numpy() & known
        score = dice(predicted, reference) if voxels >= FEWEST_VOXELS else None
        yield Score(case.facts.name, kind, target, voxels, score, presence, int(predicted.sum()))


def _in_memory(case: Case) -> Case:
    images = tuple(np.asarray(image) for image in case.images)
    return replace(case, labels=np.asarray(case.labels), images=images)


def modalities_of(facts: CaseFacts, plan: Plan) -> list[tuple[Modality, ...]]:
    """Of all channels, once for each image that a case is seen as: a label map as CT and as MR."""
    if facts.modality is not None or plan.channel_modalities is not None:
        return [plan.modalities(facts.modality or "mr")]
    seen_as: tuple[Modality, ...] = ("mr",) if facts.group == "brain" else ("ct", "mr")
    return [plan.modalities(modality) for modality in seen_as]


def case_image(case: Case, modalities: Sequence[Modality], plan: Plan) -> Tensor:
    """(channels, x, y, z) float32, normalised; a label map's channels drawn one after the other."""
    if case.images:
        return torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in case.images]))
    random = np.random.default_rng([zlib.crc32(case.facts.name.encode()), modalities[0] == "ct"])
    labels = torch.from_numpy(np.asarray(case.labels, np.int64))
    drawn = [synthesise(labels, case.facts.tissues, modality, random) for modality in modalities]
    return torch.stack(
        [normalise(image, plan.intensity[m]) for image, m in zip(drawn, modalities, strict=True)]
    )
