"""Training that gives the same weights bit for bit each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A sum of floats depends on how many threads share it; one is the number that every machine has.
THREADS = 1


@contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """A context in which torch takes deterministic algorithms and one thread, and training float32.

    Two runs of one plan on one kind of processor then agree bit for bit. On CUDA they may still differ: torch
    has no deterministic gradient of the decoder's trilinear resizing there, and warns of it.

    Args:
        on: with False the context changes nothing.
    """
    if not on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    # cuBLAS reads it once, when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before, warn_only=warned)
