"""A run's files of weights: the state to go on from, and the best average so far; each whole or not there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from textseg.atomic import written_whole
from textseg.errors import ModelError
from textseg.safe_loading import load_fitting
from textseg.safe_saving import save_tensors

STATE_FILE = "state.pt"
BEST_FILE = "best.safetensors"


@dataclass(frozen=True, eq=False)
class Learner:
    """What changes from step to step: the network, the running average of its weights, and the optimiser."""

    network: nn.Module
    averaged: nn.Module
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True)
class Reached:
    """How far a run is: steps done, seconds they took in all pieces, and the smoothed loss (NaN at first)."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan


@dataclass(frozen=True)
class Best:
    """The step whose average did best on the held-back regions, and its mean Dice there."""

    step: int
    dice: float


def save_state(run: Path, reached: Reached, learner: Learner) -> None:
    """Write all that the next step depends on.

    No state of a random generator is among it: samples and whatever else is drawn depend on the step's number
    alone. Nor is the best so far, which is a file of its own that knows its step.

    Raises:
        OSError: the folder can't be written, or the disk is full; the last state stays as it was.
    """
    state = {
        "step": reached.step,
        "seconds": reached.seconds,
        "loss": reached.loss,
        "network": learner.network.state_dict(),
        "averaged": learner.averaged.state_dict(),
        "optimiser": learner.optimiser.state_dict(),
    }
    with written_whole(run / STATE_FILE) as unfinished:
        torch.save(state, unfinished)


def load_state(run: Path, learner: Learner, device: torch.device) -> Reached:
    """Put the run's last state into a learner; one that has none stays as it is, at step 0.

    Raises:
        ModelError: the file is damaged, or of another network.
    """
    path = run / STATE_FILE
    if not path.is_file():
        return Reached()
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        learner.network.load_state_dict(state["network"])
        learner.averaged.load_state_dict(state["averaged"])
        learner.optimiser.load_state_dict(state["optimiser"])
    except Exception as error:
        # A damaged pickle can raise anything at all.
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"A run goes on from a whole state of its own network, but {path} is not one ({reason}). "
            "Was the run begun with other options? Give a new run folder."
        ) from error
    # States written before it was kept have no smoothed loss.
    return Reached(int(state["step"]), float(state["seconds"]), float(state.get("loss", math.nan)))


def tidy(run: Path, start: int) -> None:
    """Remove what a killed process left half-written and, where a run begins anew, the best of an older one.

    Args:
        start: the step that the run goes on from.
    """
    for left in run.glob(".*.part"):
        left.unlink(missing_ok=True)
    if start == 0:
        (run / BEST_FILE).unlink(missing_ok=True)


def keep_if_best(run: Path, averaged: nn.Module, best: Best) -> None:
    """Write the averaged weights, in float32, with their step and Dice, unless earlier ones did better.

    Raises:
        OSError: the folder can't be written, or the disk is full; the best before stays as it was.
    """
    before = find_best(run)
    # A later one of equals has seen more; so too the same step again, after a kill before its state.
    if before is not None and before.dice > best.dice:
        return
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in averaged.state_dict().items()}
    save_tensors(weights, {"step": str(best.step), "dice": repr(best.dice)}, run / BEST_FILE)


def find_best(run: Path) -> Best | None:
    """What the run's best weights reached; None before the first validation.

    Raises:
        ModelError: the file is damaged.
    """
    path = run / BEST_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        return Best(int(facts["step"]), float(facts["dice"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"A run's best weights know their step and Dice, but {path} can't be read ({error}). "
            "Without this file the run goes on, and the next validation writes it again."
        ) from error


def load_best(run: Path, averaged: nn.Module) -> Best | None:
    """Put the run's best weights into its averaged network; one without any stays as it is.

    Raises:
        ModelError: the file is damaged, or of another network.
    """
    best = find_best(run)
    if best is not None:
        averaged.load_state_dict(load_fitting(run / BEST_FILE, averaged.state_dict()))
    return best
