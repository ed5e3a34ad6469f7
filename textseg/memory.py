"""How much memory a scan takes at its peak, said before its windows start, and what to compute together.

What the network holds is found by running it on tensors without memory and adding up those that are alive at
once; what is kept of the scan follows from shapes.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textseg.atomic import write_bytes
from textseg.device import Compute, NotEnoughMemoryError, find_gpu
from textseg.embeddings.files import user_cache
from textseg.geometry import Shape
from textseg.mirrored import Mirrored
from textseg.network.build import build_network, fold_batch_norm
from textseg.plan import Plan
from textseg.sliding import PROMPTS_AT_ONCE, Batches, MemoryFacts

# What libraries take when they first run: threads, compiled convolutions, packed weights.
LIBRARIES = 60_000_000
# Beside a slab, the scan's voxels that are finished at once need their logits about three times.
FINISHED_AT_ONCE = 2**24
FINISHING_COPIES = 3
# A mask that is written or described is unpacked, turned and compressed.
COPIES_OF_A_MASK = 4
# Of the memory that is free when nobody sets a budget: other programs need some too.
SHARE_OF_FREE = 0.85
MOST_WINDOWS = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes that a network holds at its peak, beside its weights, for windows of one size.

    features: of one encoded window; encoding: at the peak of encoding one, with the window itself.
    decoding, a_prompt: at the peak of decoding, features included, without prompts and more for each.
    """

    features: int
    encoding: int
    decoding: int
    a_prompt: int

    def peak(self, windows: int, prompts: int) -> int:
        return windows * max(self.encoding, self.decoding + prompts * self.a_prompt)


@dataclass(frozen=True)
class Demand:
    """What a scan asks of memory, in bytes at the peak.

    host: in the processor's memory, with all that the process holds already; device: on the GPU, 0 without.
    """

    host: int
    device: int

    def fits(self, budget: Demand) -> bool:
        return self.host <= budget.host and self.device <= budget.device


@dataclass(frozen=True)
class Task:
    """A prepared scan and its prompts, as far as memory depends on them.

    image: (channels, x, y, z), at least as large as a window; scan: voxels of its own grid.
    """

    image: tuple[int, int, int, int]
    window: Shape
    scan: Shape
    prompts: int


def footprint(plan: Plan, window: Shape, compute: Compute, mirrored: bool = False) -> Footprint:
    """What a plan's network holds while it looks at one window, or at it and its mirror image; nothing is
    computed.

    It is found out once and kept on disk: a second or two would be most of what a small scan takes.
    """
    facts = (
        plan.network.model_dump_json(),
        len(plan.channels),
        window,
        str(compute.dtype),
        mirrored,
        torch.__version__,
    )
    path = user_cache() / "footprints" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    try:
        return Footprint(
            **{name: int(size) for name, size in json.loads(path.read_text(encoding="utf-8")).items()}
        )
    except (OSError, ValueError, AttributeError, TypeError):
        found = _footprint(plan, window, compute, mirrored)
    with suppress(OSError):
        write_bytes(path, json.dumps(asdict(found)).encode())
    return found


def _footprint(plan: Plan, window: Shape, compute: Compute, mirrored: bool) -> Footprint:
    """By running it on torch's meta device, whose tensors have shapes and no memory."""
    with torch.device("meta"), torch.inference_mode():
        network = fold_batch_norm(build_network(plan))
        image = torch.empty((1, len(plan.channels), *window), dtype=compute.dtype)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        # As it is run: where a layer wants the other layout there is a copy.
        network.to(compute.dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        looking = Mirrored(network) if mirrored else network
        width = plan.network.text_width * (2 if mirrored else 1)
        with _Living() as living:
            features = looking.encode(image)
            encoding, kept = living.peak, living.now
            peaks = []
            for prompts in (1, 3):
                living.peak = living.now
                looking.decode(features, torch.empty((prompts, width), dtype=compute.dtype))
                peaks.append(living.peak)
    own = image.numel() * 4
    a_prompt = (peaks[1] - peaks[0]) // 2
    # A window's logits are weighted before they are added.
    weighted = prod(window) * 4 * (1 if compute.dtype == torch.float32 else 2)
    return Footprint(kept, encoding + own, peaks[0] - a_prompt + own, a_prompt + weighted)


def demand(task: Task, network: Footprint, batches: Batches, compute: Compute) -> Demand:
    """The peak of looking through a prepared scan; what is in memory now is part of it."""
    on_gpu = compute.device.type == "cuda"
    prompts = min(batches.a_pass or task.prompts, task.prompts)
    plane = prod(task.image[2:]) * 4
    sums = prompts * task.window[0] * plane
    looking = network.peak(batches.windows, min(batches.prompts, prompts))
    masks = task.prompts * prod(task.scan) // 8
    joined = task.window[0] * plane * 2
    finishing = joined + FINISHING_COPIES * 4 * min(FINISHED_AT_ONCE, prod(task.scan))
    kept = prompts * plane * 2
    mask = COPIES_OF_A_MASK * prod(task.scan)
    if not on_gpu:
        busiest = max(sums + max(looking, finishing + kept), mask)
        return Demand(_resident_bytes() + LIBRARIES + masks + busiest, 0)
    held = torch.cuda.memory_allocated(compute.device)
    sums_here, sums_there = (sums, 0) if batches.sums_on_cpu else (0, sums)
    # Slabs are copied to be finished beside the network.
    finishing += 2 * sums
    finishing_here, finishing_there = (finishing, 0) if batches.sums_on_cpu else (0, finishing + kept)
    host = _resident_bytes() + LIBRARIES + masks + max(sums_here + finishing_here, mask)
    return Demand(host, held + sums_there + max(looking, finishing_there))


def choose_batches(
    task: Task, network: Footprint, compute: Compute, budget: int | None
) -> tuple[Batches, MemoryFacts]:
    """The quickest way to look through a scan that fits into memory.

    Args:
        budget: bytes, of the GPU where one computes, else of this process; None for most of what is free.

    Raises:
        NotEnoughMemoryError: a budget was given and even one prompt at a time needs more.
    """
    room = _room(compute, budget)
    smallest: Demand | None = None
    for batches in _ways(task.prompts, compute):
        needed = demand(task, network, batches, compute)
        if needed.fits(room):
            return batches, _facts(task, batches, needed, budget, compute)
        smallest = needed
    assert smallest is not None
    if budget is not None:
        least = smallest.device or smallest.host
        raise NotEnoughMemoryError(
            f"One prompt at a time here takes {least / 1e9:.2f} GB, so {budget / 1e9:.2f} GB of memory "
            "do not suffice. Allow more, or crop the scan."
        )
    # Free memory is a guess, and other programs may end: try with the least.
    return batches, _facts(task, batches, smallest, budget, compute)


def _ways(prompts: int, compute: Compute) -> Iterator[Batches]:
    """From the quickest to the leanest: more passes encode every window again, so they come last."""
    on_gpu = compute.device.type == "cuda"
    first = Batches(windows=MOST_WINDOWS if on_gpu else 1, prompts=min(PROMPTS_AT_ONCE, prompts))
    batches = first
    yield batches
    while batches.windows > 1:
        batches = replace(batches, windows=batches.windows // 2)
        yield batches
    while batches.prompts > 1:
        batches = replace(batches, prompts=batches.prompts // 2)
        yield batches
    if on_gpu:
        batches = replace(batches, sums_on_cpu=True)
        yield replace(first, sums_on_cpu=True)
        yield batches
    a_pass = prompts
    while a_pass > 1:
        a_pass = -(-a_pass // 2)
        together = min(PROMPTS_AT_ONCE, a_pass)
        while together >= 1:
            yield replace(batches, prompts=together, a_pass=a_pass)
            together //= 2


def _facts(task: Task, batches: Batches, needed: Demand, budget: int | None, compute: Compute) -> MemoryFacts:
    peak = needed.device if compute.device.type == "cuda" else needed.host
    a_pass = min(batches.a_pass or task.prompts, task.prompts)
    return MemoryFacts(peak, budget, batches.windows, batches.prompts, a_pass, batches.sums_on_cpu)


def _room(compute: Compute, budget: int | None) -> Demand:
    free = _resident_bytes() + int(SHARE_OF_FREE * _free_bytes())
    gpu = find_gpu() if compute.device.type == "cuda" else None
    if gpu is None:
        return Demand(free if budget is None else budget, 0)
    on_device = torch.cuda.memory_allocated(compute.device) + int(SHARE_OF_FREE * gpu.free_bytes)
    return Demand(free, on_device if budget is None else budget)


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive at once: `now`, and the `peak` of it, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in given | self._seen:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _resident_bytes() -> int:
    """What this process holds now; 0 where the system does not tell."""
    return _from_proc("/proc/self/status", "VmRSS")


def _free_bytes() -> int:
    """What the machine has free; a lot where the system does not tell."""
    return _from_proc("/proc/meminfo", "MemAvailable") or 2**50


def _from_proc(path: str, name: str) -> int:
    if not Path(path).is_file():
        return 0
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
