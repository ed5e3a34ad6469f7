"""The training loop, from arrays to weights; it can be stopped anywhere and goes on from its last state."""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from textseg.device import Compute, fastest_type
from textseg.errors import DatasetError, TextsegError
from textseg.network.build import TextPromptedNetwork, build_network
from textseg.plan import Plan, TrainingPlan
from textseg.train.cases import Target
from textseg.train.losses import prompt_loss
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


class SampleStream(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Sample i of the stream is always the same, whichever process draws it: (image, text vectors, masks)."""

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

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng([self.seed, self.first + index])
        sample = self.sampler.draw(random, (self.first + index) // self.sampler.plan.training.batch)
        text = torch.stack([self._words(target, random) for target in sample.targets])
        return sample.image, text, sample.masks

    def _words(self, target: Target, random: np.random.Generator) -> Tensor:
        """The canonical words half of the time, since that is what most prompts become."""
        choices = self.vectors[target]
        return choices[0] if random.random() < 0.5 else choices[int(random.integers(len(choices)))]


def train(
    plan: Plan,
    stream: SampleStream,
    run: Path,
    device: torch.device,
    *,
    minutes: float = math.inf,
    workers: int = 1,
    report: Callable[[Step], None] = lambda step: None,
) -> TextPromptedNetwork:
    """Train the plan's network, or go on from the state in `run`; gives the averaged weights so far.

    Args:
        stream: where samples come from.
        run: folder of the state and the log.
        minutes: stop after this long and keep the state, to go on in another piece.
        report: called after every step.

    Raises:
        TextsegError: the loss is no longer a number.
    """
    run.mkdir(parents=True, exist_ok=True)
    recipe = plan.training
    torch.manual_seed(recipe.seed)
    network = build_network(plan).to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = _optimiser(network, recipe)
    start = _resume(run, network, averaged, optimiser, device)
    stream.first = start * recipe.batch
    batches = iter(_loader(stream, recipe.batch, workers, device))
    began = saved = time.monotonic()
    smooth = math.nan
    for number in range(start, recipe.steps):
        step_began = time.monotonic()
        rate = learning_rate(number, recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate
        _set_mode(network, frozen=number >= recipe.steps * (1 - recipe.frozen_norm_fraction))
        loss = _step(network, optimiser, next(batches), plan, device)
        if not math.isfinite(loss):
            raise TextsegError(
                f"Training needs a finite loss, got {loss} at step {number}. Try a lower learning rate."
            )
        _average(averaged, network, recipe.ema, number)
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        report(Step(number + 1, recipe.steps, smooth, rate, time.monotonic() - step_began))
        now = time.monotonic()
        out_of_time = now - began > minutes * 60
        if now - saved > SAVE_EVERY_S or out_of_time or number + 1 == recipe.steps:
            _save(run, number + 1, network, averaged, optimiser)
            _log(run, number + 1, smooth, rate)
            saved = now
        if out_of_time:
            break
    return averaged.eval()


def learning_rate(step: int, recipe: TrainingPlan) -> float:
    """A linear warm-up, then half a cosine down to a hundredth."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor, Tensor],
    plan: Plan,
    device: torch.device,
) -> float:
    image, text, masks = (part.to(device, non_blocking=True) for part in batch)
    image = image.to(memory_format=torch.channels_last_3d)
    with Compute(device, fastest_type(device)).autocast():
        decoded = network(image, text)
    recipe = plan.training
    loss: Tensor = prompt_loss(decoded, masks, recipe.deep_supervision, recipe.presence_weight)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_norm)
    optimiser.step()
    return float(loss.detach())


def _set_mode(network: nn.Module, *, frozen: bool) -> None:
    """In the last part batch norm keeps its running statistics: training then sees just what inference will.

    Batches are small and hold brains beside torsos, so a batch's own statistics are a poor guide at the end.
    """
    network.train()
    if frozen:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()


def _optimiser(network: nn.Module, recipe: TrainingPlan) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, keep: float, step: int) -> None:
    """The exponential mean of the weights, quicker at the start, so the first random ones are forgotten."""
    keep = min(keep, (1 + step) / (10 + step))
    for mean, new in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(new, 1 - keep)
    for kept, current in zip(averaged.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def _loader(stream: SampleStream, batch: int, workers: int, device: torch.device) -> DataLoader[Any]:
    if len(stream) < batch:
        raise DatasetError("This training run has already ended: its state is at the plan's last step.")
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
    run: Path, step: int, network: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    state = {
        "step": step,
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    torch.save(state, run / f"{STATE_FILE}.part")
    os.replace(run / f"{STATE_FILE}.part", run / STATE_FILE)


def _resume(
    run: Path, network: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> int:
    if not (run / STATE_FILE).is_file():
        return 0
    state = torch.load(run / STATE_FILE, map_location=device, weights_only=True)
    network.load_state_dict(state["network"])
    averaged.load_state_dict(state["averaged"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _log(run: Path, step: int, loss: float, rate: float) -> None:
    path = run / LOG_FILE
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "loss", "learning_rate"])
        writer.writerow([step, f"{loss:.5f}", f"{rate:.6g}"])
