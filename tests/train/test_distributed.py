"""Who is who among the processes of a training; two real ones train in test_processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textseg.errors import DeviceError, PlanError
from textseg.train.distributed import ALONE, World, joined

CPU = torch.device("cpu")


def test_one_process_is_its_own_world(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined(CPU) as world:
        assert world == ALONE
        assert world.is_first
        lesson, values = nn.Linear(2, 2), torch.tensor([1.0, 3.0])
        assert world.learning(lesson) is lesson
        assert torch.equal(world.mean(values), values)
        assert (world.agrees(True), world.agrees(False)) == (True, False)
        world.wait()
        with world.first_goes_first():
            pass
    assert not torch.distributed.is_initialized()


def test_a_cluster_that_only_counts_its_processes_is_no_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with joined(CPU) as world:
        assert world.size == 1


@pytest.mark.parametrize(("batch", "size", "share"), [(4, 1, 4), (4, 2, 2), (6, 3, 2)])
def test_a_batch_is_shared_out_evenly(batch, size, share):
    assert World(0, size).share_of(batch) == share


def test_a_batch_that_leaves_a_rest_is_refused():
    with pytest.raises(PlanError, match=r"4 samples.*3.*multiple of 3"):
        World(1, 3).share_of(4)


def test_only_the_first_process_reports():
    assert [World(rank, 3).is_first for rank in range(3)] == [True, False, False]


def test_batch_norms_are_joined_on_cuda_alone():
    def norms(device):
        network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
        before = set(network.state_dict())
        World(0, 2, torch.device(device)).join_norms(network)
        assert set(network.state_dict()) == before
        return type(network[1])

    assert norms("cpu") is nn.BatchNorm3d
    assert norms("cuda") is nn.SyncBatchNorm


def test_a_process_without_a_gpu_of_its_own_is_told(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"process 2 is on a machine with 1"), joined(torch.device("cuda")):
        pass
