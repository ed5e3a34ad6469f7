"""A complete model that is made in a second: random weights, so what it marks means nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from textseg.embeddings.tower import TextTower, save_tower
from textseg.embeddings.vocabulary import build_vocabulary, save_vocabulary
from textseg.models import CARD_FILE, plans_folder
from textseg.network.build import build_network
from textseg.network.weights import save_network
from textseg.plan import PLAN_FILE, Plan, read_plan, write_plan
from textseg.prompts import default_lexicon

TEXT_WIDTH = 32


def write_tiny_model(folder: Path, *, presence: float = 0.0) -> Path:
    """Write a whole model: plan, network, text tower, vocabulary and card; gives the folder.

    Args:
        presence: the score below which nothing is reported; by default everything is "found".
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = tiny_plan(presence)
    torch.manual_seed(3)
    network = build_network(plan)
    # Fresh networks mark nothing: that start is right for training only.
    torch.nn.init.zeros_(network.decoder.scales[-1].kernel.by_words.bias)
    write_plan(plan, folder / PLAN_FILE)
    save_network(network, folder, {})
    save_tower(TextTower(plan.text), folder, {})
    save_vocabulary(build_vocabulary(default_lexicon().names(), plan.text.vocabulary_size), folder)
    (folder / CARD_FILE).write_text("# Tiny\n\nRandom weights, for tests only.\n", encoding="utf-8")
    return folder


def tiny_plan(presence: float = 0.0) -> Plan:
    """The default plan with everything made small."""
    plan = read_plan(plans_folder() / "default")
    network = plan.network.model_copy(
        update={
            "width": 8,
            "width_ratios": (1, 1, 2),
            "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
            "blocks_per_stage": (1, 1, 1),
            "text_width": TEXT_WIDTH,
            "query_ratio": 4,
            "query_layers": 1,
            "query_heads": 4,
            "prompt_channels": (4, 4, 4),
            "trunk_blocks": (0, 1),
        }
    )
    text = plan.text.model_copy(
        update={
            "vocabulary_size": 400,
            "width": 32,
            "layers": 1,
            "heads": 2,
            "hidden": 32,
            "vector_width": TEXT_WIDTH,
        }
    )
    changes = {
        "name": "tiny",
        "summary": "Random weights, for tests only.",
        "network": network,
        "text": text,
        "windows": plan.windows.model_copy(update={"size_voxels": (32, 32, 32)}),
        "masks": plan.masks.model_copy(update={"presence": presence}),
        "training": plan.training.model_copy(
            update={
                "patch_voxels": (16, 16, 16),
                "deep_supervision": (1.0, 0.5, 0.25),
                "sharing_scales": (1.0, 0.5, 0.25),
            }
        ),
    }
    return Plan.model_validate(plan.model_copy(update=changes).model_dump())
