"""The training loop, from arrays to weights; it can be stopped anywhere and goes on from its last state."""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from textseg.device import Compute, fastest_type
from textseg.errors import TextsegError
from textseg.network.build import Decoded, TextPromptedNetwork, build_network
from textseg.plan import Plan, TrainingPlan
from textseg.train.cases import Target
from textseg.train.losses import prompt_loss, sharing_loss
from textseg.train.sampling import PatchSampler

STATE_FILE = "state.pt"
LOG_FILE = "log.csv"
SAVE_EVERY_S = 300.0


@dataclass(frozen=True)
class Step:
    """One step's report: its number, the smoothed loss, the learning rate and seconds a step."""

    number: int
    of: int
    loss: float
    learning_rate: float
    seconds: float


class Question(NamedTuple):
    """What one step asks of a patch; in a batch every entry has one more axis in front.

    image (channels, x, y, z); text (prompts, width) and masks (prompts, x, y, z) of the decoded prompts;
    sharing_text (structures, width), asked (structures,) bool and shares (x, y, z) of those that share out
    the voxels; valid (x, y, z) bool, False in voxels that nobody labelled, None for all of them known.
    """

    image: Tensor
    text: Tensor
    masks: Tensor
    sharing_text: Tensor
    asked: Tensor
    shares: Tensor
    valid: Tensor | None = None

    def to(self, device: torch.device) -> Question:
        """The same question on a device."""
        parts = [None if part is None else part.to(device, non_blocking=True) for part in self]
        return Question._make(parts)


@dataclass(frozen=True)
class Trained:
    """Averaged weights in evaluation mode, and what they took; `seconds` are those of all pieces together."""

    network: TextPromptedNetwork
    steps: int
    seconds: float


class SampleStream(Dataset[Question]):
    """Sample i of the stream is always the same, whichever process draws it."""

    def __init__(
        self, sampler: PatchSampler, vectors: Mapping[Target, Tensor], seed: int, length: int
    ) -> None:
        self.sampler = sampler
        self.vectors = vectors
        self.seed = seed
        self.length = length
        self.first = 0

    def __len__(self) -> int:
        return self.length - self.first

    def __getitem__(self, index: int) -> Question:
        random = np.random.default_rng([self.seed, self.first + index])
        sample = self.sampler.draw(random)
        text = torch.stack([self._words(target, random) for target in sample.targets])
        sharing_text = text.new_zeros(self.sampler.plan.training.sharing_prompts, text.shape[-1])
        for place, target in enumerate(sample.sharing):
            sharing_text[place] = self._words(target, random)
        asked = torch.arange(len(sharing_text)) < len(sample.sharing)
        return Question(sample.image, text, sample.masks, sharing_text, asked, sample.shares, sample.valid)

    def _words(self, target: Target, random: np.random.Generator) -> Tensor:
        """The canonical words half of the time, since that is what most prompts become."""
        choices = self.vectors[target]
        return choices[0] if random.random() < 0.5 else choices[int(random.integers(len(choices)))]


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a run begins with: a network, and its parameters in groups for the optimiser.

    Each group has `params`, `weight_decay` and `share`, the part of the plan's learning rate that it gets.
    Parameters in no group stay as they are.
    """

    network: TextPromptedNetwork
    groups: list[dict[str, Any]]


def fresh(plan: Plan) -> Beginning:
    """Random weights from the plan's seed, and the whole learning rate for all of them."""
    torch.manual_seed(plan.training.seed)
    network = build_network(plan)
    return Beginning(network, groups_of(network.parameters(), plan))


def groups_of(parameters: Iterable[nn.Parameter], plan: Plan, share: float = 1.0) -> list[dict[str, Any]]:
    """Parameters in two groups: weight decay is for matrices, not for biases and norms."""
    every = list(parameters)
    decay = plan.training.weight_decay
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": decay, "share": share},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0, "share": share},
    ]


def train(
    plan: Plan,
    stream: SampleStream,
    run: Path,
    device: torch.device,
    *,
    begin: Callable[[Plan], Beginning] = fresh,
    minutes: float = math.inf,
    workers: int = 1,
    report: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train the plan's network, or go on from the state in `run`; one that has ended just gives its weights.

    Args:
        stream: where samples come from.
        run: folder of the state and the log.
        begin: gives the network of step 0; the same one each time, since a state only fits its own network.
        minutes: stop after this long and keep the state, to go on in another piece.
        report: called after every step.

    Raises:
        TextsegError: the loss is no longer a number.
    """
    run.mkdir(parents=True, exist_ok=True)
    recipe = plan.training
    beginning = begin(plan)
    network = beginning.network.to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = _optimiser(beginning, recipe)
    start, spent = _resume(run, network, averaged, optimiser, device)
    if start >= recipe.steps:
        return Trained(averaged.eval(), start, spent)
    stream.first = start * recipe.batch
    batches = iter(_loader(stream, recipe.batch, workers, device))
    began = saved = time.monotonic()
    smooth = math.nan
    done = start
    for number in range(start, recipe.steps):
        step_began = time.monotonic()
        rate = learning_rate(number, recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["share"]
        _set_mode(network, frozen=number >= recipe.steps * (1 - recipe.frozen_norm_fraction))
        loss = training_step(network, optimiser, next(batches), plan, device)
        if not math.isfinite(loss):
            raise TextsegError(
                f"Training needs a finite loss, got {loss} at step {number}. Try a lower learning rate."
            )
        _average(averaged, network, recipe.ema, number)
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        done = number + 1
        report(Step(done, recipe.steps, smooth, rate, time.monotonic() - step_began))
        now = time.monotonic()
        out_of_time = now - began > minutes * 60
        if now - saved > SAVE_EVERY_S or out_of_time or done == recipe.steps:
            _save(run, done, spent + now - began, network, averaged, optimiser)
            _log(run, done, smooth, rate)
            saved = now
        if out_of_time:
            break
    return Trained(averaged.eval(), done, spent + time.monotonic() - began)


def learning_rate(step: int, recipe: TrainingPlan) -> float:
    """A linear warm-up, then half a cosine down to a hundredth."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def training_step(
    network: TextPromptedNetwork,
    optimiser: torch.optim.Optimizer,
    batch: Question,
    plan: Plan,
    device: torch.device,
) -> float:
    """Learn from one batch of questions; gives their loss."""
    question = batch.to(device)
    with Compute(device, fastest_type(device)).autocast():
        answers = answer(network, question, plan)
    loss = loss_of(answers, question, plan)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), plan.training.gradient_norm)
    optimiser.step()
    return float(loss.detach())


def answer(network: TextPromptedNetwork, question: Question, plan: Plan) -> tuple[Decoded, Decoded]:
    """What a network says to a batch of questions: of the prompts that are decoded, and of all that share."""
    features = network.encode(question.image.to(memory_format=torch.channels_last_3d))
    stages = range(1, 1 + len(plan.training.sharing_scales))
    decoded = network.decode(features, question.text)
    return decoded, network.share(features, question.sharing_text, stages)


def loss_of(answers: tuple[Decoded, Decoded], question: Question, plan: Plan) -> Tensor:
    """The loss of a network's answers to a batch of questions, a scalar."""
    decoded, shared = answers
    recipe = plan.training
    asked = prompt_loss(
        decoded, question.masks, recipe.deep_supervision, recipe.presence_weight, question.valid
    )
    sharing = sharing_loss(
        shared,
        question.shares,
        question.asked,
        recipe.sharing_scales,
        recipe.presence_weight,
        question.valid,
    )
    return asked + sharing


def _set_mode(network: nn.Module, *, frozen: bool) -> None:
    """In the last part batch norm keeps its running statistics: training then sees just what inference will.

    Batches are small and hold brains beside torsos, so a batch's own statistics are a poor guide at the end.
    """
    network.train()
    if frozen:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()


def _optimiser(beginning: Beginning, recipe: TrainingPlan) -> torch.optim.Optimizer:
    beginning.network.requires_grad_(False)
    for group in beginning.groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    return torch.optim.AdamW([g for g in beginning.groups if g["params"]], lr=recipe.learning_rate)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, keep: float, step: int) -> None:
    """The exponential mean of the weights, quicker at the start, so the first random ones are forgotten."""
    keep = min(keep, (1 + step) / (10 + step))
    for mean, new in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(new, 1 - keep)
    for kept, current in zip(averaged.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def _loader(stream: SampleStream, batch: int, workers: int, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        stream,
        batch_size=batch,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_one_thread,
        drop_last=True,
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _save(
    run: Path,
    step: int,
    seconds: float,
    network: nn.Module,
    averaged: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    torch.save(state, run / f"{STATE_FILE}.part")
    os.replace(run / f"{STATE_FILE}.part", run / STATE_FILE)


def _resume(
    run: Path, network: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> tuple[int, float]:
    """The step to go on from, and the seconds spent so far."""
    if not (run / STATE_FILE).is_file():
        return 0, 0.0
    state = torch.load(run / STATE_FILE, map_location=device, weights_only=True)
    network.load_state_dict(state["network"])
    averaged.load_state_dict(state["averaged"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])


def _log(run: Path, step: int, loss: float, rate: float) -> None:
    path = run / LOG_FILE
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "loss", "learning_rate"])
        writer.writerow([step, f"{loss:.5f}", f"{rate:.6g}"])
