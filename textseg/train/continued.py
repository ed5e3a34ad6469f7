"""From a trained model to a further round of its own recipe: what of its weights fits, and what they saw.

The state of a run is too large to keep with a model. A later round begins with the model's weights, a fresh
optimiser, and a new descent of the learning rate; the model remembers the rounds behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from textseg.atomic import write_bytes
from textseg.errors import ModelError
from textseg.network.blocks import instance_normed
from textseg.network.weights import NETWORK_FILE, file_hash
from textseg.plan import Plan
from textseg.safe_loading import load_safetensors
from textseg.train.checkpoint import STATE_FILE
from textseg.train.loop import Beginning, fresh, groups_of

# In a model's folder: the rounds of training behind its weights.
ROUNDS_FILE = "rounds.json"
# In a run's folder: the weights that it began with, and the rounds behind them.
BEGAN_WEIGHTS = "began_with.safetensors"
BEGAN_FILE = "began_with.json"
# The root mean square that a normed convolution's weights begin a round with. Muon's and AdamW's steps have
# entries of about 0.2 learning rates: at one of 0.001 a step turns the weights by half a per cent.
WEIGHT_SIZE = 0.04


@dataclass(frozen=True)
class Round:
    """One training from its first step to its last: steps, hours, what it ran on, the day of its end
    (ISO 8601), and which part of the network's numbers (0 to 1) were those of the round before."""

    steps: int
    hours: float
    device: str
    date: str
    kept: float = 0.0


def continued(run: Path) -> Callable[[Plan], Beginning]:
    """The beginning of a run that goes on from the weights that `keep_beginning` put into its folder.

    Tensors of another shape than the plan's, or that those weights have none of, begin at random as in a
    fresh run.

    Raises:
        ModelError: the weights are missing or damaged, or none of their encoder's convolutions fits.
    """

    def begin(plan: Plan) -> Beginning:
        network = fresh(plan).network
        take_over(run / BEGAN_WEIGHTS, network)
        loosen(network)
        return Beginning(network, groups_of(network.parameters(), plan))

    return begin


@torch.no_grad()
def take_over(weights: Path, network: nn.Module) -> float:
    """Give a network the tensors of a safetensors file that fit it; returns the part of its numbers they are.

    Raises:
        ModelError: as for `continued`.
    """
    theirs = load_safetensors(weights)
    taken = whole = convolutions = 0
    for name, ours in network.state_dict().items():
        whole += ours.numel()
        found = theirs.get(name)
        if found is not None and found.shape == ours.shape:
            ours.copy_(found)
            taken += ours.numel()
            convolutions += ours.ndim == 5 and name.startswith("encoder.")
    if not convolutions:
        raise ModelError(
            "A round goes on from weights of a network like its own, but no convolution of the encoder in "
            f"{weights} fits the plan. Train without --begin-with, or by the plan beside those weights."
        )
    return taken / whole


@torch.no_grad()
def loosen(network: nn.Module) -> None:
    """Bring the weights of convolutions before an instance norm to one size; the network says the same.

    The norm takes away the scale of what it is given, so nothing holds it, and it grows from step to step
    while the steps keep their size: each turns the weights by less, as if the learning rate sank (van
    Laarhoven 2017, arXiv 1706.05350). After 18,000 steps of the default weights a step turned them by a
    fifteenth of what it had at first.
    """
    for conv in instance_normed(network):
        conv.weight.mul_(WEIGHT_SIZE / conv.weight.square().mean().sqrt().clamp_min(1e-12))


def keep_beginning(model: Path, plan: Plan, run: Path) -> float:
    """Copy a model's weights into the folder of a run that begins with them; gives the part that fits.

    A run that goes on keeps what it began with: the model may since hold what this run wrote.

    Raises:
        ModelError: the run has a state and began without other weights, or the weights can't be read or do
            not fit the plan.
    """
    path = run / BEGAN_FILE
    if path.is_file():
        return float(json.loads(path.read_text(encoding="utf-8"))["kept"])
    if (run / STATE_FILE).is_file():
        raise ModelError(
            f"A run goes on as it was begun, and {run} was begun with random weights, not with those of "
            f"{model}. Give a new run folder."
        )
    kept = take_over(model / NETWORK_FILE, fresh(plan).network)
    document = {
        "sha256": file_hash(model / NETWORK_FILE),
        "kept": round(kept, 3),
        "rounds": [asdict(one) for one in read_rounds(model)],
    }
    write_bytes(run / BEGAN_WEIGHTS, (model / NETWORK_FILE).read_bytes())
    write_bytes(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    return kept


def read_rounds(model: Path) -> tuple[Round, ...]:
    """The rounds of training behind a model's weights, the first one first; none where it does not say.

    Raises:
        ModelError: the file is there and can't be read.
    """
    path = model / ROUNDS_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(Round(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["rounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} lists how a model was trained, but it can't be read ({error}).") from error


def write_rounds(rounds: Sequence[Round], model: Path) -> None:
    """Write the rounds behind a model's weights into its folder, a line each."""
    lines = ",\n  ".join(json.dumps(asdict(one), ensure_ascii=False) for one in rounds)
    write_bytes(model / ROUNDS_FILE, f'{{\n "rounds": [\n  {lines}\n ]\n}}\n'.encode())


def rounds_of(run: Path, last: Round) -> tuple[Round, ...]:
    """The rounds behind the weights of a run: those that it began with, and its own."""
    path = run / BEGAN_FILE
    if not path.is_file():
        return (last,)
    begun = json.loads(path.read_text(encoding="utf-8"))
    return (*(Round(**entry) for entry in begun["rounds"]), replace(last, kept=float(begun["kept"])))


def rounds_in_words(rounds: Sequence[Round]) -> str:
    """A Markdown table of rounds, for the card."""
    lines = ["| round | steps | hours | on | ended | of the weights before it |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {number} | {one.steps} | {one.hours:.1f} | {one.device} | {one.date} | {one.kept:.0%} |"
        for number, one in enumerate(rounds, start=1)
    ]
    return "\n".join(lines)
