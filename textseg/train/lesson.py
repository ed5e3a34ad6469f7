"""One step's questions, what a network answers to them, and what it learns from that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from textseg.device import Compute, fastest_type
from textseg.network.build import Decoded, Features, TextPromptedNetwork
from textseg.network.mask_decoder import upsampled
from textseg.plan import Plan
from textseg.train.losses import prompt_loss, sharing_loss
from textseg.train.marked import next_marks, unpacked


class Question(NamedTuple):
    """What one step asks of a patch; in a batch every entry has one more axis in front.

    image (channels, x, y, z); text (prompts, width) and masks (prompts, x, y, z) of the decoded prompts;
    sharing_text (structures, width), asked (structures,) bool and shares (x, y, z) of those that share out
    the voxels; valid (x, y, z) bool, False in voxels that nobody labelled, None for all of them known; marks
    (prompts, 7, x, y, z) uint8, maps of what is drawn on the decoded prompts' things, and worded (prompts,)
    bool, False where the marks stand without the text, both None where a plan trains on text alone.
    """

    image: Tensor
    text: Tensor
    masks: Tensor
    sharing_text: Tensor
    asked: Tensor
    shares: Tensor
    valid: Tensor | None = None
    marks: Tensor | None = None
    worded: Tensor | None = None

    def to(self, device: torch.device) -> Question:
        """The same question on a device; a map of what is known says None there if that is everything."""
        # Asked here, where no GPU has to be waited for: without the map the losses are cheaper by a third.
        valid = None if self.valid is None or self.valid.all() else self.valid
        kept = self._replace(valid=valid)
        return Question._make([None if x is None else x.to(device, non_blocking=True) for x in kept])

    def part(self, samples: slice) -> Question:
        """The questions of some samples of a batch."""
        return Question._make([None if part is None else part[samples] for part in self])


def together(questions: Sequence[Question]) -> Question:
    """The questions of several samples as those of a batch."""
    parts = zip(*questions, strict=True)
    return Question._make([None if part[0] is None else torch.stack(part) for part in parts])


class Lesson(nn.Module):
    """From a batch of questions to the two parts of their loss.

    One forward pass for all of it, since that is what DistributedDataParallel can share out.
    """

    def __init__(self, network: TextPromptedNetwork, plan: Plan) -> None:
        super().__init__()
        self.network = network
        self.plan = plan

    def forward(self, question: Question) -> Tensor:
        device = question.image.device
        skipped = 0 if _happens(self.plan.training.full_scale_fraction) else 1
        with Compute(device, number_type(device)).autocast():
            features = look(self.network, question, skipped)
            decoded, shared = answers_from(self.network, features, question, self.plan)
        asked = _asked_loss(decoded, question, self.plan)
        sharing = _shared_loss(shared, question, self.plan)
        if question.marks is None or not _happens(self.plan.training.correction_fraction):
            return torch.stack([asked, sharing])
        random = np.random.default_rng(int(torch.randint(2**31, (1,))))
        marks = unpacked(question.marks)
        seen = decoded.logits[0]
        if skipped:
            seen = upsampled(seen, question.masks.shape[2:])
        marks = next_marks(seen, question.masks, marks, question.valid, random)
        with Compute(device, number_type(device)).autocast():
            again = self.network.decode(features, words_of(self.network, question), marks)
        return torch.stack([(asked + _asked_loss(again, question, self.plan)) / 2, sharing])


def answer(network: TextPromptedNetwork, question: Question, plan: Plan) -> tuple[Decoded, Decoded]:
    """What a network says to a batch of questions: of the prompts that are decoded, and of all that share."""
    return answers_from(network, look(network, question), question, plan)


def look(network: TextPromptedNetwork, question: Question, skipped: int = 0) -> Features:
    """The features of a batch's images, without the `skipped` finest scales."""
    return network.encode(question.image.to(memory_format=torch.channels_last_3d), skipped)


def answers_from(
    network: TextPromptedNetwork, features: Features, question: Question, plan: Plan
) -> tuple[Decoded, Decoded]:
    """What a network says to a batch of questions whose images it has seen."""
    marks = None if question.marks is None else unpacked(question.marks)
    decoded = network.decode(features, words_of(network, question), marks)
    return decoded, network.share(features, question.sharing_text, len(plan.training.sharing_scales))


def words_of(network: TextPromptedNetwork, question: Question) -> Tensor:
    """The prompts' text vectors, the learnt one in place of those that are asked by marks alone."""
    if question.worded is None:
        return question.text
    return torch.where(question.worded[..., None], question.text, network.fusion.no_text)


def loss_of(answers: tuple[Decoded, Decoded], question: Question, plan: Plan) -> Tensor:
    """The loss of a network's answers to a batch of questions, a scalar."""
    return loss_parts(answers, question, plan).sum()


def loss_parts(answers: tuple[Decoded, Decoded], question: Question, plan: Plan) -> Tensor:
    """The loss of the decoded prompts and of those that share, (2,): each the mean over the samples.

    Sample by sample, so that the mean over the processes that share a batch is that of the whole batch: over
    a batch, Dice would be a mean over its present prompts, of which each share has another number.
    """
    decoded, shared = answers
    return torch.stack([_asked_loss(decoded, question, plan), _shared_loss(shared, question, plan)])


def _asked_loss(decoded: Decoded, question: Question, plan: Plan) -> Tensor:
    recipe = plan.training
    weight = recipe.presence_weight
    scales = recipe.deep_supervision[len(plan.network.strides) - len(decoded.logits) :]
    each = [
        prompt_loss(said, one.masks, scales, weight, one.valid) for said, one in _samples(decoded, question)
    ]
    return torch.stack(each).mean()


def _shared_loss(shared: Decoded, question: Question, plan: Plan) -> Tensor:
    recipe = plan.training
    weight = recipe.presence_weight
    scales = recipe.sharing_scales[-len(shared.logits) :]
    each = [
        sharing_loss(said, one.shares, one.asked, scales, weight, one.valid)
        for said, one in _samples(shared, question)
    ]
    return torch.stack(each).mean()


def _samples(said: Decoded, question: Question) -> Iterator[tuple[Decoded, Question]]:
    """A batch's answers and questions, one sample after the other."""
    for sample in range(len(question.image)):
        one = slice(sample, sample + 1)
        yield Decoded(tuple(x[one] for x in said.logits), said.presence[one]), question.part(one)


def _happens(fraction: float) -> bool:
    """By torch's generator, which each step seeds with its number; without a draw where it is sure."""
    return fraction >= 1 or (fraction > 0 and float(torch.rand(())) < fraction)


def number_type(device: torch.device) -> torch.dtype:
    """The type that training computes in: the device's fastest, or float32 in deterministic mode."""
    return torch.float32 if torch.are_deterministic_algorithms_enabled() else fastest_type(device)
