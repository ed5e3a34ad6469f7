"""Spacing, patch, strides and kernels of a dataset, by the rules of nnU-Net's residual encoder planner.

Isensee et al. 2021 and 2024; through nnunetv2's own topology function and dynamic-network-architectures'
count of feature maps, so that they stay nnU-Net's.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from textseg.errors import PlanError
from textseg.fingerprint import CaseFingerprint
from textseg.geometry import Shape, Spacing
from textseg.plan import Kernel, KernelEdge, Triple

# nnU-Net's numbers (nnunetv2 2.8, ResEncUNetPlanner): what 8 GB is worth in feature map voxels, the shortest
# edge at the coarsest stage, blocks a stage, the first width, the widest.
FEATURE_VOXELS_PER_GB = 680e6 / 8
SHORTEST_EDGE = 4
BLOCKS_PER_STAGE = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6)
FIRST_WIDTH, WIDEST = 32, 320
ANISOTROPIC_ABOVE = 3.0
# A patch is sought from one as large as this cube.
LARGEST_EDGE = 256


class Topology(NamedTuple):
    """A patch and how the network steps down from it, axes (x, y, z)."""

    patch: Shape
    strides: tuple[Triple, ...]
    kernels: tuple[Kernel, ...]


def working_spacing(cases: Sequence[CaseFingerprint]) -> tuple[Spacing, str]:
    """The spacing in mm (x, y, z) to train at, and why.

    nnU-Net's rule: the median along every axis; where one axis is more than three times as coarse and holds
    less than a third of the voxels, its tenth percentile, so that finer scans are not thinned to coarse ones.
    """
    spacings = np.array([case.spacing_mm for case in cases])
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile([case.cropped_voxels for case in cases], 50, axis=0)
    # In nnU-Net's order of the axes, which decides between equal ones.
    coarse = max(reversed(range(3)), key=lambda axis: target[axis])
    others = [axis for axis in range(3) if axis != coarse]
    coarser = target[coarse] > ANISOTROPIC_ABOVE * max(target[others])
    fewer = size[coarse] * ANISOTROPIC_ABOVE < min(size[others])
    why = f"The median of {len(cases)} cases."
    if coarser and fewer:
        tenth = float(np.percentile(spacings[:, coarse], 10))
        finest = float(max(target[others]))
        target[coarse] = finest + 1e-5 if tenth < finest else tenth
        why = (
            f"The median of {len(cases)} cases; {'xyz'[coarse]} is over three times as coarse, so its tenth "
            "percentile is taken there (nnU-Net's rule for anisotropic data)."
        )
    x, y, z = (float(mm) for mm in target)
    return (x, y, z), why


def median_shape(cases: Sequence[CaseFingerprint], spacing_mm: Spacing) -> Spacing:
    """The median number of voxels (x, y, z) of the cropped cases at this spacing; may have halves."""
    resampled = [
        [
            round(n * old / new)
            for n, old, new in zip(case.cropped_voxels, case.spacing_mm, spacing_mm, strict=True)
        ]
        for case in cases
    ]
    x, y, z = (float(n) for n in np.median(resampled, axis=0))
    return x, y, z


def choose_patch(
    spacing_mm: Spacing, shape: Sequence[float], memory_gb: float, channels: int = 1, labels: int = 1
) -> tuple[Topology, str]:
    """The patch of nnU-Net's residual encoder planner for a budget, and why it is as large as it is.

    It starts with the spacing's aspect and the volume of a 256³ cube, within the median shape, and shortens
    the axis that is largest for that shape until nnU-Net's own network would fit into the budget.

    Args:
        shape: the median shape (x, y, z) at this spacing.
        channels, labels: of the dataset, the labels without the background; they count in nnU-Net's network.

    Raises:
        PlanError: nnunetv2 is not installed, or no patch is small enough.
    """
    budget = FEATURE_VOXELS_PER_GB * memory_gb
    topology = topology_of(_largest_patch(spacing_mm, shape), spacing_mm)
    first = topology.patch
    while _feature_voxels(topology, channels, labels) > budget:
        topology = shortened(topology, spacing_mm, shape)
    if topology.patch == first:
        why = "The median image at this spacing, rounded up to the strides; memory did not limit it."
        if any(n > size for n, size in zip(shape, first, strict=True)):
            why = "As large as patches get; memory did not limit it."
    else:
        why = (
            f"The median image is {times(shape, '.0f')} voxels; shortened from {times(first)}, always "
            "along the axis that is largest for the image, until nnU-Net's residual network would take "
            f"{memory_gb:g} GB."
        )
    return topology, why


def topology_of(patch: Sequence[float], spacing_mm: Spacing) -> Topology:
    """nnU-Net's strides and kernels for a patch (x, y, z), which is rounded up to what they divide."""
    order = _nnunet_order(spacing_mm)
    pool_and_conv = _nnunet_topology()
    _, strides, kernels, padded, _ = pool_and_conv(
        [spacing_mm[axis] for axis in order], [patch[axis] for axis in order], SHORTEST_EDGE, 999999
    )
    return Topology(
        _three(_canonical(padded, order)),
        tuple(_three(_canonical(stride, order)) for stride in strides),
        tuple(_kernel(_canonical(kernel, order)) for kernel in kernels),
    )


def shortened(topology: Topology, spacing_mm: Spacing, shape: Sequence[float]) -> Topology:
    """The next smaller patch: nnU-Net shortens the axis that is largest in relation to the median shape.

    Raises:
        PlanError: the patch is as small as it can be.
    """
    order = _nnunet_order(spacing_mm)
    relative = [topology.patch[axis] / shape[axis] for axis in order]
    axis = order[int(np.argsort(relative)[-1])]
    # By as much as the smaller patch must be divisible by, or valid sizes would be left out.
    patch: list[float] = list(topology.patch)
    step = _total_stride(topology)[axis]
    if patch[axis] - step < SHORTEST_EDGE:
        raise PlanError(
            f"A training step needs a patch, but the budget is too small for one of {times(topology.patch)} "
            "voxels. Plan for more --memory."
        )
    patch[axis] -= step
    step = _total_stride(topology_of(patch, spacing_mm))[axis]
    patch = list(topology.patch)
    patch[axis] -= step
    return topology_of(patch, spacing_mm)


def _largest_patch(spacing_mm: Spacing, shape: Sequence[float]) -> list[float]:
    aspect = 1 / np.array(spacing_mm)
    patch = [round(edge) for edge in aspect * (LARGEST_EDGE**3 / aspect.prod()) ** (1 / 3)]
    # Halves of voxels in a median shape are rounded up with the strides.
    return [min(edge, n) for edge, n in zip(patch, shape, strict=True)]


def _feature_voxels(topology: Topology, channels: int, labels: int) -> float:
    """Voxels of all feature maps of nnU-Net's own residual U-Net, its measure of memory."""
    with _quietly():
        import torch
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

        stages = len(topology.strides)
        with torch.device("meta"):
            network = ResidualEncoderUNet(
                input_channels=channels,
                n_stages=stages,
                features_per_stage=[min(WIDEST, FIRST_WIDTH * 2**stage) for stage in range(stages)],
                conv_op=torch.nn.Conv3d,
                kernel_sizes=topology.kernels,
                strides=topology.strides,
                n_blocks_per_stage=BLOCKS_PER_STAGE[:stages],
                num_classes=labels + 1,
                n_conv_per_stage_decoder=(1,) * (stages - 1),
                conv_bias=True,
                norm_op=torch.nn.InstanceNorm3d,
                norm_op_kwargs={"eps": 1e-5, "affine": True},
                nonlin=torch.nn.LeakyReLU,
                nonlin_kwargs={"inplace": True},
            )
        return float(network.compute_conv_feature_map_size(topology.patch))


def _nnunet_order(spacing_mm: Spacing) -> tuple[int, int, int]:
    """Our axes in nnU-Net's order: (z, y, x) as ITK gives arrays, the coarsest axis first.

    Ties between equal axes are broken by their order, so patches agree only if the order does.
    """
    coarse = max((2, 1, 0), key=lambda axis: spacing_mm[axis])
    first, second, third = coarse, *(axis for axis in (2, 1, 0) if axis != coarse)
    return first, second, third


def _canonical(values: Sequence[int], order: Sequence[int]) -> list[int]:
    return [int(values[order.index(axis)]) for axis in range(3)]


def _total_stride(topology: Topology) -> Shape:
    return _three(np.prod(topology.strides, axis=0))


def _nnunet_topology() -> Callable[..., Any]:
    try:
        with _quietly():
            from nnunetv2.experiment_planning.experiment_planners.network_topology import (
                get_pool_and_conv_props,
            )
    except ImportError as error:
        raise PlanError(
            f"Planning uses nnU-Net's rules, but {error.name or 'nnunetv2'} can't be imported. "
            'Install them with: pip install "textseg[train]".'
        ) from error
    return get_pool_and_conv_props  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """nnunetv2 prints and logs that its folders are not set when it is imported; planning needs none."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def times(values: Sequence[float], form: str = "") -> str:
    """A size as people write it: "3 × 3 × 1"."""
    return " × ".join(format(value, form) for value in values)


def _kernel(values: Sequence[int]) -> Kernel:
    x, y, z = values
    return _edge(x), _edge(y), _edge(z)


def _edge(value: int) -> KernelEdge:
    return 1 if value == 1 else 3


def _three(values: Any) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
