"""A complete tiny model for PET/CT: two channels, each with the rule of its own modality."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny_model import write_tiny_model
from textseg.network.build import build_network
from textseg.network.weights import save_network
from textseg.plan import PLAN_FILE, Plan, read_plan, write_plan


def pet_ct(plan: Plan) -> Plan:
    """The plan for a CT and a PET of one patient."""
    changes = {"channels": ("CT", "PET"), "channel_modalities": ("ct", "pet")}
    return Plan.model_validate(plan.model_copy(update=changes).model_dump())


def write_pet_ct_model(folder: Path) -> Path:
    """Write a tiny model with random weights that takes CT and PET; gives the folder."""
    write_tiny_model(folder)
    plan = pet_ct(read_plan(folder))
    torch.manual_seed(7)
    network = build_network(plan)
    torch.nn.init.zeros_(network.decoder.scales[-1].kernel.by_words.bias)
    write_plan(plan, folder / PLAN_FILE)
    save_network(network, folder, {})
    return folder
