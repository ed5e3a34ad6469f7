"""The files of a run's weights: there and back, the better one stays, and nothing half-written is left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from textseg.errors import ModelError
from textseg.train.checkpoint import (
    BEST_FILE,
    STATE_FILE,
    Best,
    Learner,
    Reached,
    find_best,
    keep_if_best,
    load_best,
    load_state,
    save_state,
)

CPU = torch.device("cpu")


def learner(seed, width=3):
    """A network that has learnt one step, so that the optimiser remembers something."""
    torch.manual_seed(seed)
    network, averaged = (nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width)) for _ in range(2))
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1 * seed)
    network(torch.randn(4, 2)).square().sum().backward()
    optimiser.step()
    return Learner(network, averaged, optimiser)


def weights(module):
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_state_comes_back_whole(tmp_path):
    kept, other = learner(1), learner(2)
    reached = Reached(17, 123.5, 0.625)
    save_state(tmp_path, reached, kept)
    assert load_state(tmp_path, other, CPU) == reached
    assert same(weights(kept.network), weights(other.network))
    assert same(weights(kept.averaged), weights(other.averaged))
    one, two = kept.optimiser.state_dict(), other.optimiser.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert same(*([value for s in each["state"].values() for value in s.values()] for each in (one, two)))
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_without_a_state_a_run_begins(tmp_path):
    fresh = learner(1)
    before = weights(fresh.network)
    reached = load_state(tmp_path, fresh, CPU)
    assert (reached.step, reached.seconds) == (0, 0.0)
    assert math.isnan(reached.loss)
    assert same(weights(fresh.network), before)


def test_a_state_from_before_the_loss_was_kept_still_loads(tmp_path):
    save_state(tmp_path, Reached(3, 1.0, 0.5), learner(1))
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    del state["loss"]
    torch.save(state, tmp_path / STATE_FILE)
    reached = load_state(tmp_path, learner(2), CPU)
    assert reached.step == 3
    assert math.isnan(reached.loss)


def test_a_state_that_can_not_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    save_state(tmp_path, Reached(3, 1.0, 0.5), learner(1))
    before = (tmp_path / STATE_FILE).read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="space"):
        save_state(tmp_path, Reached(4, 2.0, 0.4), learner(1))
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_state_of_another_network_is_refused(tmp_path):
    save_state(tmp_path, Reached(3, 1.0, 0.5), learner(1))
    with pytest.raises(ModelError, match="other options"):
        load_state(tmp_path, learner(1, width=4), CPU)


def test_the_better_average_stays_and_of_equals_the_later(tmp_path):
    first, second = learner(1).averaged, learner(2).averaged
    assert find_best(tmp_path) is None
    keep_if_best(tmp_path, first, Best(5, 1 / 3))
    keep_if_best(tmp_path, second, Best(10, 0.25))
    assert find_best(tmp_path) == Best(5, 1 / 3)
    keep_if_best(tmp_path, second, Best(15, 1 / 3))
    target = learner(3).averaged
    assert load_best(tmp_path, target) == Best(15, 1 / 3)
    assert same(weights(target), weights(second))
    assert [path.name for path in tmp_path.iterdir()] == [BEST_FILE]


def test_best_weights_that_are_not_in_memory_order_are_kept(tmp_path):
    """As those of a network in channels-last order are not."""
    network = nn.Conv3d(2, 3, 3).to(memory_format=torch.channels_last_3d)
    assert not network.weight.is_contiguous()
    keep_if_best(tmp_path, network, Best(1, 0.5))
    target = nn.Conv3d(2, 3, 3)
    load_best(tmp_path, target)
    assert torch.equal(target.weight, network.weight)


@pytest.mark.parametrize("size", [0, 100])
def test_best_weights_that_are_damaged_are_told(tmp_path, size):
    keep_if_best(tmp_path, learner(1).averaged, Best(5, 0.5))
    (tmp_path / BEST_FILE).write_bytes((tmp_path / BEST_FILE).read_bytes()[:size])
    with pytest.raises(ModelError, match="best weights"):
        find_best(tmp_path)


def test_best_weights_of_another_network_are_refused(tmp_path):
    keep_if_best(tmp_path, learner(1).averaged, Best(5, 0.5))
    with pytest.raises(ModelError, match="fit"):
        load_best(tmp_path, learner(1, width=4).averaged)
