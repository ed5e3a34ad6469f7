"""The kernels' sources, and CuPy's compiler and launcher for them on torch's tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

Extent = tuple[int, ...]
Argument = Tensor | int | float | np.generic

# No fused multiply-add: results are then those of the NumPy twins to the last bit, and memory, not
# arithmetic, is what these kernels wait for.
OPTIONS = ("--std=c++17", "--fmad=false")


@cache
def source(name: str) -> str:
    """The text of a source file with the files it includes, since the compiler at run time sees no folder."""
    text = files("textseg_kernels").joinpath(name).read_text(encoding="utf-8")
    return re.sub(r'#include "([\w.]+)"', lambda found: source(found[1]), text)


@cache
def _module(name: str, device: int) -> Any:
    """The compiled source, once for each device; CuPy also keeps it on disk from one process to the next."""
    import cupy

    with cupy.cuda.Device(device):
        return cupy.RawModule(code=source(name), options=OPTIONS, backend="nvrtc")


def launch(name: str, kernel: str, grid: Extent, block: Extent, arguments: Sequence[Argument]) -> None:
    """Start a kernel on torch's current stream of the device that its tensors are on.

    Args:
        name: the source file.
        kernel: the function in it.
        grid, block: blocks and threads along x, y, z.
        arguments: in the kernel's order: contiguous tensors, passed without a copy, whole numbers as
            long long, floats as double, NumPy scalars as they are.
    """
    import cupy

    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    with cupy.cuda.Device(device.index), _current_stream(device):
        function = _module(name, device.index).get_function(kernel)
        function(grid, block, tuple(_for_cupy(argument) for argument in arguments))


@dataclass(frozen=True)
class _TorchStream:
    """A stream of torch's by the CUDA stream protocol, which torch itself speaks only lately."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _current_stream(device: torch.device) -> Any:
    import cupy

    pointer = torch.cuda.current_stream(device).cuda_stream
    # CuPy 13 has only the first of the two, and 14 warns of it.
    if not hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.ExternalStream(pointer, device.index)
    return cupy.cuda.Stream.from_external(_TorchStream(pointer))


def _for_cupy(argument: Argument) -> object:
    if not isinstance(argument, Tensor):
        return argument
    import cupy

    # DLPack has had bool only lately, and takes no tensor that autograd follows.
    plain = argument.detach()
    return cupy.from_dlpack(plain.view(torch.uint8) if plain.dtype == torch.bool else plain)
