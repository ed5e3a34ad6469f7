"""The training loop, from arrays to weights; it can be stopped anywhere and goes on from its last state."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from textseg.errors import TextsegError
from textseg.network.build import TextPromptedNetwork, build_network
from textseg.plan import Plan, TrainingPlan
from textseg.train.checkpoint import (
    STATE_FILE,
    Best,
    Learner,
    Reached,
    keep_if_best,
    load_best,
    load_state,
    save_state,
    tidy,
)
from textseg.train.distributed import ALONE, World
from textseg.train.lesson import Lesson, Question, together
from textseg.train.monitor import Monitor
from textseg.train.muon import Muon, split
from textseg.train.stream import SampleStream
from textseg.train.validation import Verdict, is_due

SAVE_EVERY_S = 300.0
# nnU-Net's exponent of the polynomial schedule.
POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class Step:
    """One step's report.

    Its number; its loss and the parts of it, of the decoded prompts and of those that share; the smoothed
    loss; the learning rate; the seconds it took, and those that are left at this pace; the Dice of the last
    validation, None before the first.
    """

    number: int
    of: int
    loss: float
    parts: tuple[float, float]
    smoothed: float
    learning_rate: float
    seconds: float
    left_s: float
    dice: float | None

    def __str__(self) -> str:
        """What a progress line says: "loss 0.412, Dice 0.81, 1 h 20 min left"."""
        dice = "" if self.dice is None else f", Dice {self.dice:.2f}"
        return f"loss {self.smoothed:.3f}{dice}, {_in_words(self.left_s)} left"


@dataclass(frozen=True)
class Trained:
    """Averaged weights in evaluation mode, and what they took; `seconds` are those of all pieces together.

    `best` tells of which step the weights are where the run was validated; without it they are those of the
    last of all `steps`.
    """

    network: TextPromptedNetwork
    steps: int
    seconds: float
    best: Best | None = None


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
    validate: Callable[[TextPromptedNetwork], Verdict] | None = None,
    world: World = ALONE,
    report: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train the plan's network, or go on from the state in `run`; one that has ended just gives its weights.

    A run that was killed goes on from its last state and ends with the very numbers of one that was not: all
    that a step depends on is in the state or follows from the step's number.

    Args:
        stream: where samples come from.
        run: folder of the state, the best weights, the log and its pictures.
        begin: gives the network of step 0; the same one each time, since a state only fits its own network.
        minutes: stop after this long and keep the state, to go on in another piece.
        validate: scores the averaged network whenever the plan says so; the best average is what comes out.
        world: the processes that train together; each learns from its share of the plan's batch.
        report: called after every step, in the first process.

    Raises:
        TextsegError: the loss or its gradient is no longer a number.
        PlanError: the batch can't be shared out among the processes.
        ModelError: the state is damaged, or of another network.
    """
    recipe = plan.training
    share = world.share_of(recipe.batch)
    run.mkdir(parents=True, exist_ok=True)
    beginning = begin(plan)
    network = beginning.network.to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    averaged = copy.deepcopy(network).requires_grad_(False).eval()
    world.join_norms(network)
    learner = Learner(network, averaged, optimiser_for(beginning, recipe))
    reached = start = load_state(run, learner, device)
    if start.step >= recipe.steps:
        return Trained(averaged, start.step, start.seconds, load_best(run, averaged))
    stream.first, stream.rank, stream.ranks = start.step * recipe.batch, world.rank, world.size
    batches = iter(_loader(stream, share, workers, device))
    lesson = world.learning(Lesson(network, plan))
    monitor = None
    if world.is_first:
        tidy(run, start.step)
        monitor = Monitor(run, start.step)
    began = saved = time.monotonic()
    smoothed, dice, done = start.loss, None, start.step
    for number in range(start.step, recipe.steps):
        step_began = time.monotonic()
        rate = learning_rate(number, recipe)
        for group in learner.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        _set_mode(network, frozen=number >= recipe.steps * (1 - recipe.frozen_norm_fraction))
        # Whatever a step draws depends on its number alone, so that a run can go on from any of them.
        torch.manual_seed(recipe.seed + number * world.size + world.rank)
        learnt = training_step(network, learner.optimiser, next(batches), plan, device, world, lesson)
        if not learnt.is_finite:
            raise TextsegError(_not_finite(learnt, number + 1, reached.step, run, recipe))
        _average(averaged, network, recipe.ema, number)
        smoothed = learnt.loss if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * learnt.loss
        done, seconds = number + 1, time.monotonic() - step_began
        out_of_time = world.agrees(time.monotonic() - began > minutes * 60)
        if monitor is not None:
            verdict = validate(averaged) if validate is not None and is_due(done, plan) else None
            if verdict is not None:
                dice = verdict.dice
                keep_if_best(run, averaged, Best(done, dice))
            left_s = (time.monotonic() - began) / (done - start.step) * (recipe.steps - done)
            step = Step(done, recipe.steps, learnt.loss, learnt.parts, smoothed, rate, seconds, left_s, dice)
            monitor.log(step, verdict)
            report(step)
            is_last = out_of_time or done == recipe.steps
            if is_last or verdict is not None or time.monotonic() - saved > SAVE_EVERY_S:
                saved = time.monotonic()
                reached = Reached(done, start.seconds + saved - began, smoothed)
                save_state(run, reached, learner)
                monitor.draw(plan.name)
        if out_of_time:
            break
    world.wait()  # until the first process has written the best weights
    return Trained(averaged, done, start.seconds + time.monotonic() - began, load_best(run, averaged))


def learning_rate(step: int, recipe: TrainingPlan) -> float:
    """A linear warm-up, then half a cosine down to a hundredth, or nnU-Net's polynomial down to nothing."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    if recipe.schedule == "poly":
        return recipe.learning_rate * math.pow(1 - progress, POLY_EXPONENT)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Learnt:
    """What a step gave: the parts of its loss, and the norm of its gradient before it was clipped."""

    parts: tuple[float, float]
    gradient: float

    @property
    def loss(self) -> float:
        return sum(self.parts)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient)


def training_step(
    network: TextPromptedNetwork,
    optimiser: torch.optim.Optimizer,
    batch: Question,
    plan: Plan,
    device: torch.device,
    world: World = ALONE,
    lesson: nn.Module | None = None,
) -> Learnt:
    """Learn from one batch of questions; weights only move where loss and gradient are finite.

    Args:
        world: the processes that learn together; the parts of the loss are the mean over all of them.
        lesson: the network's `Lesson` as the world wraps it; a plain one where it is None.
    """
    parts = (lesson or Lesson(network, plan))(batch.to(device))
    optimiser.zero_grad(set_to_none=True)
    parts.sum().backward()
    gradient = nn.utils.clip_grad_norm_(network.parameters(), plan.training.gradient_norm)
    prompts, sharing, norm = world.mean(torch.stack([*parts.detach(), gradient])).tolist()
    learnt = Learnt((prompts, sharing), norm)
    if learnt.is_finite:
        optimiser.step()
    return learnt


def _set_mode(network: nn.Module, *, frozen: bool) -> None:
    """In the last part batch norm keeps its running statistics: training then sees just what inference will.

    Batches are small and hold brains beside torsos, so a batch's own statistics are a poor guide at the end.
    """
    network.train()
    if frozen:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def optimiser_for(beginning: Beginning, recipe: TrainingPlan) -> torch.optim.Optimizer:
    """The recipe's optimiser for what the beginning names; all other parameters ask for no gradient."""
    beginning.network.requires_grad_(False)
    for group in beginning.groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    if recipe.optimiser == "muon":
        groups = split(beginning.groups, beginning.network)
        return Muon([g for g in groups if g["params"]], lr=recipe.learning_rate)
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
        collate_fn=together,
        drop_last=True,
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _not_finite(learnt: Learnt, step: int, kept: int, run: Path, recipe: TrainingPlan) -> str:
    where = f"{run / STATE_FILE} is of step {kept} and stays as it is" if kept else "No state was saved yet"
    return (
        f"Training needs a finite loss and gradient, got {learnt.loss:.4g} and {learnt.gradient:.4g} at step "
        f"{step}. {where}. Try a new run with a lower learning rate, such as {recipe.learning_rate / 3:.1g}, "
        "or --deterministic, which computes in float32."
    )


def _in_words(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
