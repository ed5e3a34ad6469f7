"""The optimiser with orthogonal steps: what it does to matrices, and what it leaves to AdamW."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.tiny_model import tiny_plan
from textseg.network.build import build_network
from textseg.network.mask_decoder import DynamicKernel
from textseg.train.loop import groups_of
from textseg.train.muon import ENTRY, MOMENTUM, Muon, orthogonal, split


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (24, 48), (16, 432)])
def test_all_directions_get_about_the_same_size(shape):
    steep = draw(*shape) * torch.logspace(0, -1, shape[1])
    values = torch.linalg.svdvals(orthogonal(steep))
    assert values.min() > 0.5
    assert values.max() < 1.25


def test_directions_stay_where_they_are():
    """U S Vᵀ becomes about U Vᵀ, so its product with the matrix is symmetric and positive."""
    matrix = draw(6, 30)
    product = orthogonal(matrix) @ matrix.T
    torch.testing.assert_close(product, product.T, atol=1e-4, rtol=1e-4)
    assert torch.linalg.eigvalsh(product).min() > 0


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonal(torch.zeros(4, 9)).any()


def test_the_steps_of_a_kernel_have_the_size_of_those_of_adamw():
    kernel = nn.Parameter(draw(16, 8, 3, 3, 3))
    before = kernel.detach().clone()
    optimiser = Muon([{"params": [kernel], "weight_decay": 0.0, "orthogonal": True}], lr=0.01)
    kernel.grad = 1e-6 * draw(16, 8, 3, 3, 3, seed=2)
    optimiser.step()
    # An orthogonal matrix of 16 rows and 216 columns has 16 directions of size 1 among 16 · 216 entries.
    wanted = 0.01 * ENTRY * math.sqrt(216) * math.sqrt(16 / (16 * 216))
    assert (kernel.detach() - before).square().mean().sqrt() == pytest.approx(wanted, rel=0.3)


def test_momentum_turns_a_step_towards_earlier_gradients():
    weight = nn.Parameter(torch.zeros(8, 8))
    optimiser = Muon([{"params": [weight], "weight_decay": 0.0, "orthogonal": True}], lr=1.0)
    first, second = draw(8, 8), draw(8, 8, seed=2)
    for gradient in (first, second):
        weight.grad = gradient.clone()
        before = weight.detach().clone()
        optimiser.step()
    mean = (1 - MOMENTUM) * (MOMENTUM * first + second)
    ahead = (1 - MOMENTUM) * second + MOMENTUM * mean
    moved = orthogonal(ahead) * ENTRY * math.sqrt(8)
    torch.testing.assert_close(before - weight, moved, atol=1e-4, rtol=1e-3)


def test_weights_decay_by_the_learning_rate():
    weight = nn.Parameter(torch.ones(8, 8))
    optimiser = Muon([{"params": [weight], "weight_decay": 0.5, "orthogonal": True}], lr=0.1)
    weight.grad = torch.zeros(8, 8)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full((8, 8), 0.95))


def test_what_it_does_not_turn_moves_as_with_adamw():
    ours, theirs = (nn.Parameter(draw(5, 4)) for _ in range(2))
    group = {"weight_decay": 0.01}
    muon = Muon([{"params": [ours], **group}], lr=0.02)
    adamw = torch.optim.AdamW([{"params": [theirs], **group}], lr=0.02)
    for seed in range(3):
        for weight, optimiser in ((ours, muon), (theirs, adamw)):
            weight.grad = draw(5, 4, seed=seed)
            optimiser.step()
    assert torch.equal(ours, theirs)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    """At a step without the finest scale its weights have none, and no momentum drags them on."""
    weight = nn.Parameter(draw(8, 8))
    optimiser = Muon([{"params": [weight], "weight_decay": 0.5, "orthogonal": True}], lr=0.1)
    weight.grad = draw(8, 8, seed=2)
    optimiser.step()
    before = weight.detach().clone()
    optimiser.step()
    assert torch.equal(weight, before)


def test_it_goes_on_from_its_state():
    def fresh():
        weight = nn.Parameter(draw(8, 8))
        return weight, Muon([{"params": [weight], "weight_decay": 0.0, "orthogonal": True}], lr=0.1)

    def move(weight, optimiser, seed):
        weight.grad = draw(8, 8, seed=seed)
        optimiser.step()

    whole, optimiser = fresh()
    move(whole, optimiser, 2)
    kept, halfway = copy.deepcopy(optimiser.state_dict()), whole.detach().clone()
    again, other = fresh()
    again.data.copy_(halfway)
    other.load_state_dict(kept)
    move(whole, optimiser, 3)
    move(again, other, 3)
    assert torch.equal(whole, again)


def test_it_takes_no_closure():
    optimiser = Muon([{"params": [nn.Parameter(draw(2, 2))]}], lr=0.1)
    with pytest.raises(ValueError, match="no closure"):
        optimiser.step(lambda: 0.0)


def test_heads_norms_and_the_first_convolution_stay_with_adamw():
    plan = tiny_plan()
    network = build_network(plan)
    groups = split(groups_of(network.parameters(), plan, share=0.5), network)
    turned = {id(p) for group in groups if group["orthogonal"] for p in group["params"]}
    assert all(group["share"] == 0.5 for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert id(network.encoder.stem.conv.weight) not in turned
    assert id(network.fusion.no_text) not in turned
    kernels = [m for m in network.modules() if isinstance(m, DynamicKernel)]
    assert kernels
    assert not any(id(p) in turned for kernel in kernels for p in kernel.parameters())
    between = [network.fusion.layers[0].to_key.weight, network.encoder.stages[-1][0].conv.weight]
    assert all(id(p) in turned for p in between)
