"""How much memory one training step of a plan takes: counted beforehand, and measured.

What a step needs is mostly what autograd keeps from the forward pass for the backward pass. That is counted
exactly, by running the step on torch's meta device, whose tensors have shapes and no memory, and adding up
the storages that are saved. Weights with their gradients, the optimiser's moments and the running average are
known; the backward pass's own working space is a few times the largest map. nnU-Net (Isensee et al. 2021)
counts the voxels of all feature maps for the same purpose and leaves the rest to a constant.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from textseg.device import choose_compute, fastest_type
from textseg.errors import PlanError
from textseg.network.build import build_network
from textseg.plan import Plan
from textseg.train.lesson import Question, answer, loss_of
from textseg.train.loop import fresh, optimiser_for, training_step
from textseg.train.muon import turned

DeviceName = Literal["cpu", "cuda"]

# Weights, gradients, Adam's two moments and the running average, all in float32. Muon needs one moment of
# what it turns; autocast keeps one copy more.
COPIES_OF_WEIGHTS = 5
# What the backward pass of a layer holds beside that: maps as large as the largest that is kept, two of them
# in the convolutions' type and one in float32; and what libraries take when they are first used. Fitted to
# twelve plans of width 8 to 32 and patches of 64 × 48 × 32 to 96³ on a CPU with torch 2.13, half of them in
# bfloat16: measured / estimated was 0.88 to 1.07. Kernels need no constant of their own: two plans for slices
# of 5 mm, with 3 × 3 × 1 in the finest stages, gave 0.93 and 0.96.
WORKING_MAPS = 2
WORKING_MAPS_FLOAT32 = 1
LIBRARIES = 280_000_000


@dataclass(frozen=True)
class TrainingMemory:
    """The bytes of one training step, by what they are for."""

    weights: int
    kept_by_network: int
    kept_by_loss: int
    working: int
    libraries: int

    @property
    def total(self) -> int:
        return self.weights + self.kept_by_network + self.kept_by_loss + self.working + self.libraries


def estimate_training_memory(plan: Plan, bytes_per_value: int) -> TrainingMemory:
    """What a step of this plan's training takes at its peak, without taking it.

    Python itself (about 0.4 GB) and the processes that load data, or a GPU's context, come on top.

    Args:
        bytes_per_value: of a feature map: 2 where convolutions run in bfloat16, else 4.
    """
    with torch.device("meta"):
        network = build_network(plan)
        inputs = _inputs(plan)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        kept = _Kept(weights)
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            answers = answer(network, inputs, plan)
            by_network = kept.bytes
            loss_of(answers, inputs, plan)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    copies = COPIES_OF_WEIGHTS * parameters
    if plan.training.optimiser == "muon":
        copies -= sum(parameter.numel() for parameter in turned(network))
    return TrainingMemory(
        weights=4 * copies + (bytes_per_value if bytes_per_value < 4 else 0) * parameters,
        kept_by_network=by_network * bytes_per_value // 4,
        kept_by_loss=kept.bytes - by_network,
        working=kept.largest * (WORKING_MAPS * bytes_per_value + WORKING_MAPS_FLOAT32 * 4) // 4,
        libraries=LIBRARIES,
    )


def bytes_per_value(device: torch.device | str) -> int:
    """Of a feature map on this kind of device: 2 for bfloat16, 4 for float32.

    A GPU that is not here is taken to compute in bfloat16, as all since 2020 do.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        return 2
    return torch.empty(0, dtype=fastest_type(device)).element_size()


def measure_training_memory(plan: Plan, device: DeviceName = "cpu") -> int:
    """Bytes that two training steps of this plan really take at their peak, in a process of their own.

    On a CPU the growth of the process's resident memory, on a GPU torch's peak of allocated memory.

    Raises:
        DeviceError: there is no such device.
        PlanError: the steps do not fit into the memory that there is.
    """
    choose_compute(device)
    # A process of its own: the peak of this one may lie in its past.
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, device], input=plan.model_dump_json(), capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        raise PlanError(
            f"A plan must fit into memory to be measured, but a step of {plan.name!r} failed: {reason}. "
            "Plan for less --memory."
        )
    return int(done.stdout.split()[-1])


_MEASURE = """
import sys
from textseg.train.memory import peak_of_two_steps
sys.stdout.write(str(peak_of_two_steps(sys.stdin.read(), sys.argv[1])))
"""


def peak_of_two_steps(plan_json: str, device_name: DeviceName) -> int:
    """Run two training steps in this process and give the growth of its peak memory in bytes.

    Two, because the optimiser's moments exist from the first on and add to the peak of the second.
    """
    plan = Plan.model_validate_json(plan_json)
    # The peak is that of the steps that run the finest scale.
    training = plan.training.model_copy(update={"full_scale_fraction": 1.0})
    plan = plan.model_copy(update={"training": training})
    device = torch.device(device_name)
    before = 0 if device.type == "cuda" else _resident_bytes()
    beginning = fresh(plan)
    network = beginning.network.to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = optimiser_for(beginning, plan.training)
    with torch.device(device):
        inputs = _inputs(plan)
    for _ in range(2):
        training_step(network, optimiser, inputs, plan, device)
    del averaged
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _peak_resident_bytes() - before


def _inputs(plan: Plan) -> Question:
    """A batch of noise on torch's current default device."""
    recipe = plan.training
    batch, prompts, shape = recipe.batch, recipe.prompts_per_sample, recipe.patch_voxels
    image = torch.randn(batch, len(plan.channels), *shape)
    return Question(
        image=image.to(memory_format=torch.channels_last_3d),
        text=torch.randn(batch, prompts, plan.network.text_width),
        masks=(torch.rand(batch, prompts, *shape) > 0.9).float(),
        sharing_text=torch.randn(batch, recipe.sharing_prompts, plan.network.text_width),
        asked=torch.ones(batch, recipe.sharing_prompts, dtype=torch.bool),
        shares=torch.randint(0, 1 + recipe.sharing_prompts, (batch, *shape)),
    )


class _Kept:
    """Adds up the storages that autograd saves, each once, without those of the weights."""

    def __init__(self, weights: set[int]) -> None:
        self.seen = weights
        self.alive: list[Any] = []
        self.bytes = 0
        self.largest = 0

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            # A storage that is freed may lend its address to the next one.
            self.alive.append(storage)
            self.bytes += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor


def _resident_bytes() -> int:
    return _from_proc("VmRSS") or _from_getrusage()


def _peak_resident_bytes() -> int:
    # Not getrusage where it can be helped: on Linux a child inherits the peak of its parent.
    return _from_proc("VmHWM") or _from_getrusage()


def _from_proc(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _from_getrusage() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
