"""GPU kernels for whole-scan work around the network, with NumPy twins that define them.

Gathering patches from a scan, blending windows of logits, finalising them to masks on the scan's grid, and
cleaning masks by their connected parts. Functions take torch tensors; on CUDA devices they run the `.cu`
sources through CuPy where it is installed, else plain torch.
"""

from __future__ import annotations

from textseg_kernels.results import Labels, Masks
from textseg_kernels.tensors import (
    blend,
    finalise,
    finalise_labels,
    gather,
    keep_components,
    keep_largest_component,
    summed_weights,
)

__all__ = [
    "Labels",
    "Masks",
    "blend",
    "finalise",
    "finalise_labels",
    "gather",
    "keep_components",
    "keep_largest_component",
    "summed_weights",
]
