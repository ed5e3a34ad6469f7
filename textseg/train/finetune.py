"""From a trained model to one's own labels and words: what is trained, how fast, and what stays as it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from textseg.dataset import Dataset
from textseg.embeddings.encoder import TextEncoder
from textseg.network.build import TextPromptedNetwork
from textseg.plan import Plan
from textseg.train.labelled import MIXTURE, common_group
from textseg.train.loop import Beginning, groups_of

LORA_RANK = 8
# Each stage further from the masks learns this much slower: what early stages know fits most scans already.
LAYER_DECAY = 0.8
# AdamW's learning rate in fine-tuning, of that in training.
GENTLER = 0.2
# Steps between two validations; a shorter run is validated at its end alone.
SHORTEST_INTERVAL = 100
# Two prompts whose vectors are nearer than this can't be told apart by a network.
TOO_NEAR = 0.97


class Tuned(StrEnum):
    """What of a network is trained."""

    EVERYTHING = "everything"
    DECODER = "decoder"
    LORA = "lora"


class LowRank(nn.Module):
    """A weight plus a product of two thin matrices, which starts at zero (Hu et al. 2021, LoRA)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        rank = min(rank, rows, columns)
        self.into = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.out = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.out @ self.into).reshape(weight.shape)


def tuned_from(
    trained: Callable[[], TextPromptedNetwork], tuned: Tuned, rank: int = LORA_RANK
) -> Callable[[Plan], Beginning]:
    """The beginning of a run that goes on from trained weights.

    Args:
        trained: loads the network that is gone on from.
        tuned: everything, with a lower learning rate for stages further from the masks; the decoder alone; or
            low-rank additions to the text side (the queries' transformer, and the way from words to kernels)
            and the coarsest stage, which are few and forget little.
        rank: of the low-rank additions.
    """

    def begin(plan: Plan) -> Beginning:
        torch.manual_seed(plan.training.seed)
        network = trained()
        if tuned is Tuned.LORA:
            return Beginning(network, groups_of(add_low_rank(network, rank), plan))
        if tuned is Tuned.DECODER:
            return Beginning(network, groups_of(_of(*_of_prompts(network)), plan))
        return Beginning(network, list(_by_depth(network, plan)))

    return begin


def add_low_rank(network: TextPromptedNetwork, rank: int) -> list[nn.Parameter]:
    """Put low-rank additions onto the text side and the coarsest stage; gives their parameters."""
    added: list[nn.Parameter] = []
    kernels = [scale.get_submodule("kernel") for scale in network.decoder.scales]
    for part in (network.fusion, *kernels, network.encoder.stages[-1]):
        for module in list(part.modules()):
            if isinstance(module, nn.Linear | nn.Conv3d):
                addition = LowRank(module.weight, rank)
                parametrize.register_parametrization(module, "weight", addition)
                added += addition.parameters()
    return added


def merge_low_rank(network: TextPromptedNetwork) -> TextPromptedNetwork:
    """The same network with its low-rank additions inside its plain weights, in place."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return network


def finetune_plan(
    plan: Plan,
    dataset: Dataset,
    steps: int,
    *,
    tuned: Tuned = Tuned.EVERYTHING,
    rehearse: float = 0.0,
    learning_rate: float | None = None,
) -> Plan:
    """A trained model's plan with the recipe for going on with one's own data.

    Muon goes on at its own learning rate: with 10 labelled hippocampi 100 steps gave a Dice of 0.855 and
    0.835 for their parts, where AdamW at a fifth of the rate gave 0.847 and 0.832 in 200 (41 cases).
    Low-rank additions are no maps between features and learn by AdamW.

    Patches stay as large as they were: the norms of a network know the size that it was trained on, and on
    smaller ones, which would just hold the hippocampus crops, the first Dice fell from 0.77 to below 0.6.

    What a dataset labels is trained at one voxel size, that of most of its labels, and so it is looked for at
    that size too, words that the lexicon does not know included.

    Args:
        tuned: as for `tuned_from`.
        rehearse: the share of steps that still see synthetic torsos, so that old words are not forgotten.
        learning_rate: where it is None the one that the model was trained with, for AdamW a fifth of it.
    """
    optimiser = "adamw" if tuned is Tuned.LORA else plan.training.optimiser
    usual = plan.training.learning_rate * (GENTLER if optimiser == "adamw" else 1.0)
    mixture = {MIXTURE: 1.0 - rehearse} | ({"phantom": rehearse} if rehearse else {})
    recipe = plan.training.model_copy(
        update={
            "steps": steps,
            "warmup_steps": min(plan.training.warmup_steps, steps // 10),
            "learning_rate": learning_rate or usual,
            "mixture": mixture,
            "core": (),
            "full_scale_fraction": 1.0,
            "optimiser": optimiser,
            # Twenty times in a long run: a validation costs nine steps at most.
            "validate_every": plan.training.validate_every or max(SHORTEST_INTERVAL, steps // 20),
        }
    )
    common = common_group(dataset, plan)
    labelled = {label.group for label in dataset.labels.values() if label.group is not None}
    groups = dict(plan.groups) | dict.fromkeys(labelled, plan.groups[common])
    changed = {"training": recipe, "groups": groups, "default_group": common}
    return plan.for_other_weights().model_copy(update=changed)


def confusable(
    words: Mapping[str, str], encoder: TextEncoder, limit: float = TOO_NEAR
) -> list[tuple[str, str, float]]:
    """Pairs of names whose words' cosine is above the limit, nearest first; no network tells them apart."""
    names = list(words)
    vectors = nn.functional.normalize(encoder.embed(list(words.values())).float(), dim=1)
    cosines = vectors @ vectors.T
    near = [
        (names[i], names[j], float(cosines[i, j]))
        for i, j in itertools.combinations(range(len(names)), 2)
        if cosines[i, j] > limit
    ]
    return sorted(near, key=lambda pair: -pair[2])


def _by_depth(network: TextPromptedNetwork, plan: Plan) -> Iterator[dict[str, Any]]:
    """Groups with smaller shares of the learning rate for stages further from the masks."""
    stages = list(network.encoder.stages)
    depths: list[tuple[int, list[nn.Module]]] = [(0, _of_prompts(network)), (1, [network.trunk])]
    depths += [(1 + len(stages) - i, [stage]) for i, stage in enumerate(stages)]
    depths.append((2 + len(stages), [network.encoder.stem]))
    for depth, modules in depths:
        yield from groups_of(_of(*modules), plan, LAYER_DECAY**depth)


def _of_prompts(network: TextPromptedNetwork) -> list[nn.Module]:
    """The parts that a prompt goes through, its marks included where the network looks under them."""
    marks = [] if network.marks is None else [network.marks]
    return [network.decoder, network.fusion, *marks]


def _of(*modules: nn.Module) -> Iterator[nn.Parameter]:
    for module in modules:
        yield from module.parameters()
