"""What lies under a mark becomes part of the query, for the prompt that it belongs to and no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.network.conftest import SHAPE, lived_in
from textseg.network.build import build_network
from textseg.network.spatial_prompts import CHANNELS, NOT_POINT, POINT, PREVIOUS, SpatialQuery, pyramid_of


@pytest.fixture
def marked_plan(plan):
    network = plan.network.model_copy(update={"marks_in_query": True, "spatial_channels": CHANNELS})
    return plan.model_copy(update={"network": network})


@pytest.fixture
def network(marked_plan):
    torch.manual_seed(2)
    network = build_network(marked_plan)
    for layer in (*network.marks.project, *(scale.kernel.by_sight for scale in network.decoder.scales)):
        nn.init.normal_(layer.weight)
    return lived_in(network)


@pytest.fixture
def query(marked_plan):
    torch.manual_seed(3)
    query = SpatialQuery(marked_plan.network)
    for layer in query.project:
        nn.init.normal_(layer.weight)
    return query


def maps_with(channel, voxel=(9, 17, 5)):
    maps = torch.zeros(2, 3, CHANNELS, *SHAPE)
    maps[(0, 1, channel, *voxel)] = 1
    return maps


def trunk_of(network, image):
    return network.encode(image).trunk


@torch.no_grad()
def test_only_what_lies_under_the_mark_counts(network, query, image, marked_plan):
    pyramid = pyramid_of(maps_with(POINT), marked_plan.network.strides)
    trunk = list(trunk_of(network, image))
    before = query(trunk, pyramid)
    elsewhere = [features.clone() for features in trunk]
    for features in elsewhere:
        features[:, :, : features.shape[2] // 2] += 1
    assert torch.equal(query(elsewhere, pyramid), before)
    here = [features + 1 for features in trunk]
    assert not torch.allclose(query(here, pyramid)[0, 1], before[0, 1])


@torch.no_grad()
def test_this_and_not_this_are_told_apart(network, query, image, marked_plan):
    trunk, strides = trunk_of(network, image), marked_plan.network.strides
    this = query(trunk, pyramid_of(maps_with(POINT), strides))
    other = query(trunk, pyramid_of(maps_with(NOT_POINT), strides))
    assert not torch.allclose(this[0, 1], other[0, 1])


@torch.no_grad()
def test_prompts_without_marks_get_nothing_and_a_previous_mask_is_no_mark(network, query, image, marked_plan):
    trunk, strides = trunk_of(network, image), marked_plan.network.strides
    marked = query(trunk, pyramid_of(maps_with(POINT), strides))
    assert marked[0, 1].abs().max() > 0
    marked[0, 1] = 0
    assert marked.abs().max() == 0
    assert query(trunk, pyramid_of(maps_with(PREVIOUS), strides)).abs().max() == 0


@torch.no_grad()
def test_a_mark_changes_its_prompts_mask_through_the_query(network, image, text):
    before = network(image, text[:3])
    after = network(image, text[:3], maps_with(POINT))
    change = (after.logits[0] - before.logits[0]).abs().amax(dim=(2, 3, 4))
    assert change[0, 1] > 1e-4
    change[0, 1] = 0
    assert change.max() == 0


@torch.no_grad()
def test_untrained_marks_change_nothing(marked_plan, image, text):
    network = lived_in(build_network(marked_plan))
    before, after = network(image, text[:3]), network(image, text[:3], maps_with(POINT))
    assert torch.equal(before.logits[0], after.logits[0])


def test_marks_learn(network, image, text):
    network(image, text[:3], maps_with(POINT)).logits[0].square().mean().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in network.marks.project)
