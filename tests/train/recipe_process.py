"""A training as a process of its own, for tests that kill it or start several: MODEL ARRAYS RUN."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from textseg.plan import read_plan
from textseg.prompts import default_lexicon
from textseg.train import loop
from textseg.train.deterministic import deterministic
from textseg.train.distributed import joined
from textseg.train.recipe import run_recipe

CPU = torch.device("cpu")
# A state every few steps: whoever kills this process meets it before, between and in them.
SAVE_EVERY_S = 0.2


def train_recipe(model: Path, arrays: Path, run: Path) -> loop.Trained:
    """Train the plan in a model's folder from where the run stands, in deterministic mode."""
    loop.SAVE_EVERY_S = SAVE_EVERY_S
    with deterministic(), joined(CPU):
        return run_recipe(read_plan(model), model, arrays, run, default_lexicon(), CPU, workers=0)


if __name__ == "__main__":
    train_recipe(*map(Path, sys.argv[1:]))
