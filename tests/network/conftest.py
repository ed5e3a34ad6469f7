"""A small network with weights that do something, and an image with three different sides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_model import tiny_plan
from textseg.network.build import TextPromptedNetwork, build_network
from textseg.plan import Plan

SHAPE = (16, 24, 8)


@pytest.fixture
def plan() -> Plan:
    """Three stages with strides that differ by axis, and batch norm, which can be folded away."""
    tiny = tiny_plan()
    network = tiny.network.model_copy(update={"strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)), "norm": "batch"})
    return tiny.model_copy(update={"network": network})


@pytest.fixture
def sliced_plan(plan: Plan) -> Plan:
    """The same for scans with thick slices along z: no convolution mixes them before the coarsest stage."""
    kernels = ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    return plan.model_copy(update={"network": plan.network.model_copy(update={"kernels": kernels})})


@pytest.fixture
def network(plan: Plan) -> TextPromptedNetwork:
    """Ready to run, as if it had seen data: no norm has a mean of 0 and a spread of 1."""
    return lived_in(build_network(plan))


@pytest.fixture
def image() -> Tensor:
    return torch.randn((2, 1, *SHAPE), generator=torch.Generator().manual_seed(8))


@pytest.fixture
def text(plan: Plan) -> Tensor:
    vectors = torch.randn((5, plan.network.text_width), generator=torch.Generator().manual_seed(9))
    return nn.functional.normalize(vectors, dim=-1)


@torch.no_grad()
def lived_in(network: TextPromptedNetwork) -> TextPromptedNetwork:
    generator = torch.Generator().manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(std=0.3, generator=generator)
    return network.eval()
