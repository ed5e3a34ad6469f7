"""A plan with everything made small, and two coarse phantoms to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from tests.tiny_model import TEXT_WIDTH, tiny_plan
from textseg.geometry import Geometry
from textseg.plan import Plan
from textseg.prompts import Lexicon, default_lexicon
from textseg.train.cases import Case, CaseFacts, Target
from textseg.train.gather import NOT_ASKED_FOR, named_targets
from textseg.train.phantom import LEGEND, torso_phantom

SPACING_MM = (10.0, 10.0, 10.0)


@pytest.fixture(scope="session")
def plan() -> Plan:
    return tiny_plan()


@pytest.fixture(scope="session")
def with_training(plan: Plan) -> Callable[..., Plan]:
    """The tiny plan with other numbers in its recipe: with_training(steps=3)."""

    def change(**numbers: object) -> Plan:
        return plan.model_copy(update={"training": plan.training.model_copy(update=numbers)})

    return change


@pytest.fixture(scope="session")
def lexicon() -> Lexicon:
    return default_lexicon()


@pytest.fixture(scope="session")
def phantom_cases(lexicon: Lexicon) -> list[Case]:
    """Two torsos so coarse that a patch of 16 voxels holds several organs; the second one is held back."""
    targets = named_targets({name: v for v, name in LEGEND.items() if name not in NOT_ASKED_FOR}, lexicon)
    grid = Geometry((35, 28, 44), np.diag([*SPACING_MM, 1.0]))
    return [
        Case(
            CaseFacts(f"torso_{split}", "torso", "phantom", split, SPACING_MM, None, targets, LEGEND),
            torso_phantom(np.random.default_rng(seed), grid),
        )
        for seed, split in enumerate(("train", "validation"))
    ]


@pytest.fixture(scope="session")
def any_vectors() -> Callable[[Iterable[Target]], dict[Target, torch.Tensor]]:
    """One random text vector a target, in place of a text tower's."""

    def draw(targets: Iterable[Target]) -> dict[Target, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return {target: torch.randn(1, TEXT_WIDTH, generator=generator) for target in targets}

    return draw
