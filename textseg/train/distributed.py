"""Several processes that train one network, as torchrun starts them: who is who, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from textseg.errors import DeviceError, PlanError

# The first process prepares cases and scores while the others wait; a dead one is torchrun's to notice.
LONGEST_WAIT = timedelta(days=2)


@dataclass(frozen=True)
class World:
    """The processes of one training: which of them this is, and how many there are.

    Only the first one reports and writes; all of them read the run's folder. What is asked of the world is
    asked in every process at the same place, and alone it is answered at once.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, batch: int) -> int:
        """How many samples of a batch this process learns from.

        Raises:
            PlanError: the batch can't be shared out evenly.
        """
        if batch % self.size:
            raise PlanError(
                f"A batch is shared out evenly among the processes, but {batch} samples can't be among "
                f"{self.size}. Start fewer processes, or set training.batch to a multiple of {self.size}."
            )
        return batch // self.size

    def join_norms(self, network: nn.Module) -> None:
        """Make batch norms see the whole batch where the device can, CUDA; parameters keep their names.

        On CPUs each process normalises by its own share, and the running statistics are the first one's; with
        instance norm there is no such difference.
        """
        if self.size > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]

    def learning(self, lesson: nn.Module) -> nn.Module:
        """A module whose gradients become the mean over all processes."""
        if self.size == 1:
            return lesson
        # A step without spatial prompts leaves their weights alone.
        return nn.parallel.DistributedDataParallel(lesson, find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same in each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def agrees(self, said: bool) -> bool:
        """What the first process says."""
        if self.size == 1:
            return said
        word = torch.tensor(int(said), device=self.device)
        dist.broadcast(word, src=0)
        return bool(word)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """For work that leaves files: the first process does it, then the others, who find it done."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def here(device: torch.device) -> World:
    """The world that this process has joined; alone in one where it has joined none."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(device=device)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world of the processes that torchrun started, or of this one alone; over gloo on CPUs, else nccl.

    On CUDA each process takes the GPU of its number on its machine, and "cuda" means that one from then on.

    Raises:
        DeviceError: there are more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield here(device)
    finally:
        dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    there = torch.cuda.device_count()
    if number >= there:
        raise DeviceError(
            f"Each process needs a GPU of its own, but process {number + 1} is on a machine with {there}: "
            "give torchrun a smaller --nproc-per-node, or --device cpu to textseg."
        )
    torch.cuda.set_device(number)
