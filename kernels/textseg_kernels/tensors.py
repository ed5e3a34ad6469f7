"""The kernels as functions of torch tensors: CUDA through CuPy where it is installed, else plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textseg_kernels.results import Labels, Masks

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]
# Labels are int16.
MOST_LABELS = 2**15 - 1


def gather(
    scan: Tensor,
    maps: ArrayLike,
    out: Tensor,
    channel: int,
    *,
    lowest: float,
    highest: float,
    mean: float,
    sd: float,
    padding: float,
) -> None:
    """Fill one channel of the network's patches from a scan's own voxels: resampled, clipped, normalised.

    Interpolation is trilinear without averaging, so a scan much finer than the patches should be averaged
    down first. Positions are rounded to 2^-17 voxel. A voxel reaches half a voxel to each side of its centre;
    patch voxels whose centre lies beyond that, and those where the scan says NaN, get `padding`.

    Args:
        scan: (x, y, z) int16 or float32.
        maps: (batch, 3, 4) on the host: for each patch, position in scan voxels =
            map[:, :3] @ index + map[:, 3] for an index (x, y, z) of the patch.
        out: (batch, x, y, z, channels) float16, contiguous: the network's channels-last memory. A tensor
            (batch, channels, x, y, z) in `torch.channels_last_3d` gives it with `permute(0, 2, 3, 4, 1)`.
        channel: which channel to fill.
        lowest, highest: intensities are clipped to these.
        mean, sd: then (intensity - mean) / sd.
        padding: as it is written, so already normalised.

    Raises:
        ValueError: shapes, types, devices or numbers that do not fit.
    """
    _check("scan", scan, 3, ("int16", "float32"))
    _check("out", out, 5, ("float16",), like=scan)
    transforms = np.array(maps, np.float64, order="C")
    if transforms.shape != (len(out), 3, 4):
        raise ValueError(
            f"Maps are (batch, 3, 4), one for each of {len(out)} patches, got {transforms.shape}."
        )
    if not 0 <= channel < out.shape[4]:
        raise ValueError(f"The channel is one of {out.shape[4]}, counted from 0, got {channel}.")
    if not 0 < sd < math.inf:
        raise ValueError(f"A standard deviation is above zero and finite, got {sd}. Is the scan constant?")
    if not (math.isfinite(mean) and math.isfinite(padding)):
        raise ValueError(f"Mean and padding are finite, got {mean} and {padding}.")
    if not lowest <= highest:
        raise ValueError(f"The lowest intensity is at most the highest, got {lowest} and {highest}.")
    _check_not_empty("scan", scan.shape)
    numbers = {"lowest": lowest, "highest": highest, "mean": mean, "sd": sd, "padding": padding}
    if _through_cupy(scan):
        from textseg_kernels import compile, on_gpu

        on_gpu.gather(compile.launch, scan, transforms, out, channel, **numbers)
    else:
        from textseg_kernels import in_torch

        in_torch.gather(scan, transforms, out, channel, **numbers)


def blend(
    logits: Tensor, starts: Sequence[Sequence[int]], tables: tuple[Tensor, Tensor, Tensor], slab: Tensor
) -> None:
    """Add windows of logits to a slab, each voxel times the product of three weights.

    Windows may overlap, and are added in their order, so the sum is the same in every run. What of a window
    lies outside of the slab is left out.

    Args:
        logits: (windows, prompts, x, y, z) float16 or float32, contiguous.
        starts: (windows, 3) on the host: the slab voxel of each window's first; may be negative.
        tables: the weights along a window's x, y and z, float32, as `textseg.windows.blend_weights` gives.
        slab: (prompts, x, y, z) float32, contiguous; added to in place.

    Raises:
        ValueError: shapes, types or devices that do not fit.
    """
    _check("logits", logits, 5, ("float16", "float32"))
    _check("slab", slab, 4, ("float32",), like=logits)
    firsts = np.array(starts, np.int64, order="C").reshape(-1, 3)
    if len(firsts) != len(logits):
        raise ValueError(f"Each window has a start, got {len(firsts)} starts for {len(logits)} windows.")
    if len(slab) != logits.shape[1]:
        raise ValueError(f"Logits and slab have as many prompts, got {logits.shape[1]} and {len(slab)}.")
    _check_tables(tables, tuple(logits.shape[2:]), like=slab)
    if _through_cupy(slab):
        from textseg_kernels import compile, on_gpu

        on_gpu.blend(compile.launch, logits, firsts, tables, slab)
    else:
        from textseg_kernels import in_torch

        in_torch.blend(logits, firsts, tables, slab)


def summed_weights(starts: Sequence[int], table: ArrayLike, size: int) -> NDArray[np.float32]:
    """(size,) float32: the weights of all windows along one axis of a slab, for `finalise`.

    Where windows lie on a grid, every start along x with every one along y and z, as
    `textseg.windows.place_windows` puts them, the sum of their weights is the product of three such tables.

    Args:
        starts: the windows' first slab voxels along this axis, each once.
        table: a window's weights along it.
        size: the slab's voxels along it.
    """
    weights = np.asarray(table, np.float64)
    total = np.zeros(size)
    for start in starts:
        low, stop = max(0, start), max(0, start, min(size, start + len(weights)))
        total[low:stop] += weights[low - start : stop - start]
    return total.astype(np.float32)


def finalise(
    slab: Tensor,
    weights: Tensor | tuple[Tensor, Tensor, Tensor],
    map: ArrayLike,
    shape: Shape,
    threshold: float,
) -> Masks[Tensor]:
    """Masks on the scan's grid from a slab of summed logits, with counts, boxes and centroid sums.

    Logits are divided by their weights and interpolated trilinearly as in `gather`; a voxel is in the mask
    where that is above the threshold. Voxels outside of the slab, and those that no window weighed, are not.

    Args:
        slab: (prompts, x, y, z) float32, contiguous: what `blend` summed.
        weights: what divides it: three tables (`summed_weights`) or one tensor (x, y, z), float32.
        map: (3, 4) on the host: position in slab voxels = map[:, :3] @ index + map[:, 3] for an index
            (x, y, z) of the scan, or of the box of it that is asked for.
        shape: that grid's size.
        threshold: of the logit; 0 is a probability of 0.5.

    Raises:
        ValueError: shapes, types or devices that do not fit.
    """
    transform = _check_finalise(slab, weights, map, shape)
    if _through_cupy(slab):
        from textseg_kernels import compile, on_gpu

        return on_gpu.finalise(compile.launch, slab, weights, transform, shape, threshold)
    from textseg_kernels import in_torch

    return in_torch.finalise(slab, weights, transform, shape, threshold)


def finalise_labels(
    slab: Tensor,
    weights: Tensor | tuple[Tensor, Tensor, Tensor],
    map: ArrayLike,
    shape: Shape,
    threshold: float,
) -> Labels[Tensor]:
    """One label map on the scan's grid: of the prompts above the threshold the highest, the first of equals.

    Arguments as for `finalise`.

    Raises:
        ValueError: shapes, types or devices that do not fit, or more prompts than labels.
    """
    transform = _check_finalise(slab, weights, map, shape)
    if len(slab) > MOST_LABELS:
        raise ValueError(f"A label map has at most {MOST_LABELS} labels, got {len(slab)} prompts.")
    if _through_cupy(slab):
        from textseg_kernels import compile, on_gpu

        return on_gpu.finalise_labels(compile.launch, slab, weights, transform, shape, threshold)
    from textseg_kernels import in_torch

    return in_torch.finalise_labels(slab, weights, transform, shape, threshold)


def keep_components(mask: Tensor, least: int, depth: int | None = None) -> Tensor:
    """The parts of a mask that have at least so many voxels, joined across faces, edges and corners.

    The work needs 16 bytes a voxel, so crop a mask to its box before.

    Args:
        mask: (x, y, z) bool, or with `depth` (x, y, bytes) uint8, packed as in `Masks`.
        least: voxels that a part needs.
        depth: voxels along z of a packed mask.

    Returns:
        A new mask in the format of the old one.

    Raises:
        ValueError: a mask of another type or shape.
    """
    _check_mask(mask, depth)
    if _through_cupy(mask):
        from textseg_kernels import compile, on_gpu

        return on_gpu.keep_components(compile.launch, mask, least, depth)
    from textseg_kernels import in_torch

    return in_torch.keep_components(mask, least, depth)


def keep_largest_component(mask: Tensor, depth: int | None = None) -> Tensor:
    """The largest part of a mask; of equals the one whose first voxel comes first, x slowest.

    Arguments, memory, result and errors as for `keep_components`.
    """
    _check_mask(mask, depth)
    if _through_cupy(mask):
        from textseg_kernels import compile, on_gpu

        return on_gpu.keep_largest_component(compile.launch, mask, depth)
    from textseg_kernels import in_torch

    return in_torch.keep_largest_component(mask, depth)


def _through_cupy(tensor: Tensor) -> bool:
    return tensor.is_cuda and _cupy_is_there()


@cache
def _cupy_is_there() -> bool:
    # Imported, not looked for: CuPy may be installed for another CUDA version than the driver's.
    try:
        import cupy  # noqa: F401
    except ImportError:
        return False
    return True


def _check_finalise(
    slab: Tensor, weights: Tensor | tuple[Tensor, Tensor, Tensor], map: ArrayLike, shape: Shape
) -> NDArray[np.float64]:
    _check("slab", slab, 4, ("float32",))
    _check_not_empty("slab", slab.shape[1:])
    if isinstance(weights, tuple):
        _check_tables(weights, tuple(slab.shape[1:]), like=slab)
    else:
        _check("weights", weights, 3, ("float32",), like=slab)
        if weights.shape != slab.shape[1:]:
            raise ValueError(
                f"Weights have the slab's shape {tuple(slab.shape[1:])}, got {tuple(weights.shape)}."
            )
    if len(shape) != 3 or min(shape) < 0:
        raise ValueError(f"A grid has three sizes, none below zero, got {shape}.")
    transform = np.array(map, np.float64, order="C")
    if transform.shape != (3, 4):
        raise ValueError(f"A map from the scan's voxels to the slab's is (3, 4), got {transform.shape}.")
    return transform


def _check_mask(mask: Tensor, depth: int | None) -> None:
    if depth is None:
        _check("mask", mask, 3, ("bool",))
        return
    _check("mask", mask, 3, ("uint8",))
    if mask.shape[2] != -(-depth // 8):
        raise ValueError(f"{depth} voxels along z are packed in {-(-depth // 8)} bytes, got {mask.shape[2]}.")


def _check_tables(tables: tuple[Tensor, Tensor, Tensor], shape: tuple[int, ...], like: Tensor) -> None:
    for table in tables:
        _check("table of weights", table, 1, ("float32",), like=like)
    lengths = tuple(len(table) for table in tables)
    if lengths != shape:
        raise ValueError(f"Weights along x, y and z are as many as voxels, {shape}, got {lengths}.")


def _check(name: str, tensor: Tensor, axes: int, types: tuple[str, ...], like: Tensor | None = None) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.ndim != axes or dtype not in types:
        raise ValueError(
            f"The {name} is a tensor of {axes} axes and type {' or '.join(types)}, "
            f"got {tensor.ndim} axes and {dtype}."
        )
    if not tensor.is_contiguous():
        raise ValueError(f"The {name} is contiguous, got strides {tensor.stride()}. Try .contiguous().")
    if like is not None and tensor.device != like.device:
        raise ValueError(
            f"All tensors are on one device, got {like.device} and, the {name}, {tensor.device}."
        )


def _check_not_empty(name: str, shape: Sequence[int]) -> None:
    if min(shape) < 1:
        raise ValueError(f"A {name} has at least one voxel along each axis, got {tuple(shape)}.")
