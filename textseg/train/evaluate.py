"""How good a model is on held-back cases: Dice by structure, and whether absent things are denied."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textseg.device import Compute
from textseg.masks import above_threshold
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
) -> Iterator[Score]:
    """Score every known target of the held-back cases on the working grid.

    Label maps are drawn as an image with a seed of the case's name, so that every model sees the same image.
    Targets that a case's own labels name but do not show are scored for presence only.

    Args:
        vectors: for each target (n, text width), of which the first, the canonical words, is used.
    """
    for facts in read_index(arrays):
        if facts.split != split or (mixtures is not None and facts.mixture not in mixtures):
            continue
        case = _in_memory(read_case(facts, arrays))
        for modality in _modalities(facts):
            image = _image(case, modality, plan)
            yield from _scores(network, vectors, case, modality, image, plan, compute)


def _scores(
    network: PromptableNetwork,
    vectors: Mapping[Target, Tensor],
    case: Case,
    modality: Modality,
    image: Tensor,
    plan: Plan,
    compute: Compute,
) -> Iterator[Score]:
    targets = [(target, values) for target, values in case.facts.targets if target in vectors]
    if not targets:
        return
    text = torch.stack([vectors[target][0] for target, _ in targets])
    answer = segment_windows(network, image[None], text, plan, compute)
    kind = f"{case.facts.mixture} {modality}" + ("" if case.image is not None else " (synthesised)")
    for (target, values), logits, presence in zip(
        targets, answer.logits, answer.presence.tolist(), strict=True
    ):
        reference = np.isin(np.asarray(case.labels), values)
        predicted = above_threshold(logits, plan.masks.threshold).numpy()
        voxels = int(reference.sum())
        score = dice(predicted, reference) if voxels >= FEWEST_VOXELS else None
        yield Score(case.facts.name, kind, target, voxels, score, presence, int(predicted.sum()))


def _in_memory(case: Case) -> Case:
    return replace(
        case, labels=np.asarray(case.labels), image=None if case.image is None else np.asarray(case.image)
    )


def _modalities(facts: CaseFacts) -> tuple[Modality, ...]:
    if facts.modality is not None:
        return (facts.modality,)
    return ("mr",) if facts.group == "brain" else ("ct", "mr")


def _image(case: Case, modality: Modality, plan: Plan) -> Tensor:
    if case.image is not None:
        return torch.from_numpy(np.asarray(case.image, np.float32))
    random = np.random.default_rng([zlib.crc32(case.facts.name.encode()), modality == "ct"])
    labels = torch.from_numpy(np.asarray(case.labels, np.int64))
    return normalise(synthesise(labels, case.facts.tissues, modality, random), plan.intensity[modality])
