"""Which device and number type to compute with; the only module that asks for CUDA."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from textseg.errors import DeviceError, says_out_of_memory

DeviceChoice = Literal["auto", "cpu", "cuda"]
Result = TypeVar("Result")


class NotEnoughMemoryError(DeviceError, MemoryError):
    """The device has too little memory, even for the smallest part that can be computed alone."""


@dataclass(frozen=True)
class Compute:
    """A device and the number type of its convolutions."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which convolutions and matrix products run in `dtype`."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def bring(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; a copy from the CPU runs beside what is computed there."""
        if self.device.type != "cuda" or tensor.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"


def choose_compute(choice: DeviceChoice = "auto", threads: int | None = None) -> Compute:
    """The device to compute on: CUDA where there is one, unless the CPU is asked for.

    Args:
        threads: processor threads for torch; None leaves torch's own choice.

    Raises:
        DeviceError: CUDA was asked for and there is none, or the choice is none of the three.
    """
    if choice not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"A device is auto, cpu or cuda, got {choice!r}.")
    if threads is not None:
        if threads < 1:
            raise DeviceError(f"The number of threads is at least 1, got {threads}.")
        torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise DeviceError(
            "The device cuda needs an NVIDIA GPU, a driver and a CUDA build of torch, but torch sees none. "
            "Try --device cpu, or see `textseg doctor`."
        )
    device = torch.device("cuda" if available and choice != "cpu" else "cpu")
    return Compute(device, fastest_type(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is missing, so that less at once might do."""
    return says_out_of_memory(error) and not isinstance(error, NotEnoughMemoryError)


def tried(function: Callable[[], Result]) -> Result | None:
    """What a function gives; None where there was not enough memory for it."""
    try:
        return function()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Here the error is gone, and with it what its traceback held on to.
    forget_freed()
    return None


def forget_freed(device: torch.device | None = None) -> None:
    """Give back what torch keeps of freed GPU memory, so that larger pieces fit."""
    if (device is None or device.type == "cuda") and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """A context in which two runs on one machine give the same values bit for bit; slower on GPUs.

    Args:
        on: with False the context changes nothing.
    """
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    tries = torch.backends.cudnn.benchmark
    # cuBLAS reads it once, when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tries
        torch.use_deterministic_algorithms(before, warn_only=warned)


@dataclass(frozen=True)
class Gpu:
    """The CUDA device that would be used, and its memory in bytes."""

    name: str
    free_bytes: int
    total_bytes: int


def find_gpu() -> Gpu | None:
    """The first CUDA device; None where torch sees none."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Gpu(torch.cuda.get_device_name(), free, total)


def fastest_type(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes faster in it, else float32.

    Emulated bfloat16 is three times slower, and Intel's AVX-512 without AMX takes twice as long in it as in
    float32 (3D convolutions of 16 to 128 channels).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    by_tiles = torch.cpu._is_amx_tile_supported()
    by_vectors = torch.cpu._is_avx512_bf16_supported() and processor_maker() == "AuthenticAMD"
    return torch.bfloat16 if by_tiles or by_vectors else torch.float32


@cache
def processor_maker() -> str:
    """As processors name it, "GenuineIntel" or "AuthenticAMD"; empty where the system does not tell."""
    return _told_by_the_system("vendor_id") or platform.processor().rpartition(" ")[2]


def describe_device(device: torch.device) -> str:
    """The device in words, for a record of a training: "NVIDIA H200" or "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    told = _told_by_the_system("model name")
    return told or platform.processor() or platform.machine() or "an unknown processor"


def _told_by_the_system(field: str) -> str:
    """A field of Linux's list of processors, of the first one; empty where there is none."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
