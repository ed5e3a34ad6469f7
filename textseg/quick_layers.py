"""3D layers of any network on processors in float32: torch's values, in less time.

Where torch loses it, found by its profiler on nnU-Net's residual encoder U-Net (AMD EPYC, AVX2, one thread):
convolutions of small maps run in a loop of torch's own at 40 GFlop/s where oneDNN reaches 100; instance norm
copies channels-last maps twice, 52 ms instead of 4 for 16 × 64³; average pooling takes 19 ms instead of 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from textseg.device import Compute

CHANNELS_LAST = torch.channels_last_3d
# Numbers that are changed together: 4 MB of them.
CACHED = 2**20
Layer = Callable[..., Tensor | None]


@contextmanager
def quick_layers(compute: Compute) -> Iterator[None]:
    """A context in which networks run with quicker layers, where that is possible: on a CPU, in float32.

    Layers are taken as they are called, so any network of torch's modules or functions profits. What a
    layer here does not know (other types, sizes or options, gradients) is left to torch.
    """
    if compute.device.type != "cpu" or compute.dtype != torch.float32 or not _has_onednn():
        yield
        return
    with _QuickLayers():
        yield


class _QuickLayers(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        layer = LAYERS.get(function)
        if layer is not None and not torch.is_grad_enabled():
            found = layer(*args, **options)
            if found is not None:
                return found
        return function(*args, **options)


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """`torch.conv3d` by oneDNN, which torch does not take for small maps, channels-last."""
    if not _is_map(x) or weight.dtype != torch.float32 or isinstance(padding, str):
        return None
    x, weight = _channels_last(x), _channels_last(weight)
    return torch.mkldnn_convolution(
        x, weight, bias, _three(padding), _three(stride), _three(dilation), groups
    )


def instance_normed(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """`torch.nn.functional.instance_norm` of channels-last maps, one pass for the moments and one more."""
    if not _is_map(x) or running_mean is not None or not use_input_stats or prod(x.shape[2:]) < 2:
        return None
    x = x.contiguous(memory_format=CHANNELS_LAST)
    out = torch.empty_like(x)
    for image, normed in zip(x, out, strict=True):
        scale, shift = _scale_and_shift(*moments(image), weight, bias, eps)
        torch.addcmul(shift, _voxels(image), scale, out=_voxels(normed))
    return out


def norm_and_rectify(
    x: Tensor, norm: nn.InstanceNorm3d, slope: float | None, added: Tensor | None = None
) -> Tensor:
    """Instance norm, then what is to be added, then a leaky rectifier, in the memory of `x`.

    A few voxels after the other, which stay in a processor's cache meanwhile: for 16 × 64³ it takes 3.4 ms in
    place of 5, or 4.7 in place of 7 with something added.

    Args:
        x: (batch, channels, x, y, z) that nobody else needs.
        slope: below zero; None for no rectifier.
        added: like `x`.
    """
    # Whoever hooked the norm wants to be called.
    hooked = bool(norm._forward_pre_hooks or norm._forward_hooks)
    if not can_be_quick(x) or prod(x.shape[2:]) < 2 or norm.track_running_stats or hooked:
        x = norm(x)
        x = x if added is None else x + added
        return x if slope is None else F.leaky_relu_(x, slope)
    x = x.contiguous(memory_format=CHANNELS_LAST)
    more = None if added is None else added.contiguous(memory_format=CHANNELS_LAST)
    for index, image in enumerate(x):
        scale, shift = _scale_and_shift(*moments(image), norm.weight, norm.bias, norm.eps)
        some = max(1, CACHED // len(image))
        parts = _voxels(image).split(some)  # type: ignore[no-untyped-call]
        others = [None] * len(parts) if more is None else _voxels(more[index]).split(some)  # type: ignore
        for part, other in zip(parts, others, strict=True):
            torch.addcmul(shift, part, scale, out=part)
            if other is not None:
                part += other
            if slope is not None:
                F.leaky_relu_(part, slope)
    return x


def norm_rectify_and_mix(
    parts: Iterable[Tensor], norm: nn.InstanceNorm3d, slope: float, weights: Tensor
) -> Tensor:
    """Instance norm of a map in several parts, leaky rectifier, weighted sum of channels: (parts, x, y, z).

    Each part's moments are taken as soon as it is made, since it is in the processor's cache then.

    Args:
        parts: (channels, x, y, z) each, of one size, channels-last, float32 on the CPU.
        weights: (channels,).
    """
    kept, found = [], []
    for part in parts:
        kept.append(part)
        found.append(moments(part))
    means, variances = (torch.stack(each) for each in zip(*found, strict=True))
    mean = means.mean(dim=0)
    variance = (variances + (means - mean).square()).mean(dim=0)
    scale, shift = _scale_and_shift(mean, variance, norm.weight, norm.bias, norm.eps)
    mixed = torch.empty((len(kept), *kept[0].shape[1:]))
    for part, result in zip(kept, mixed, strict=True):
        some = max(1, CACHED // len(part))
        several = torch.split(_voxels(part), some), torch.split(result.view(-1), some)
        for voxels, sums in zip(*several, strict=True):
            torch.mv(F.leaky_relu_(torch.addcmul(shift, voxels, scale), slope), weights, out=sums)
    return mixed


def moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (channels,) of channels-last maps (channels, x, y, z).

    Of torch's sums those of batch norm are the quickest here (2 ms for 16 × 64³ where `var_mean` takes 28),
    but they add up in a row, which after a quarter of a million values is wrong by 5e-5. So each z has
    moments of its own, which fill a processor's vectors too, and these are joined: wrong by less than 1e-6.
    """
    channels, x, y, z = image.shape
    columns = image.permute(1, 2, 3, 0).reshape(1, x * y, 1, z * channels).permute(0, 3, 1, 2)
    means, variances = (m.view(z, channels) for m in torch.batch_norm_update_stats(columns, None, None, 0.0))
    mean = means.mean(dim=0)
    return mean, (variances + (means - mean).square()).mean(dim=0)


def average_pooled(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    """`torch.nn.functional.avg_pool3d` of windows that lie side by side, one axis after the other."""
    if not _is_map(x) or divisor_override is not None:
        return None
    kernel = _three(kernel_size)
    side_by_side = (not stride or _three(stride) == kernel) and _three(padding) == (0, 0, 0)
    if not side_by_side or any(n % size for n, size in zip(x.shape[2:], kernel, strict=True)):
        return None
    x = x.contiguous(memory_format=CHANNELS_LAST)
    for axis, size in enumerate(kernel, start=2):
        if size > 1:
            first, *others = (x[(slice(None),) * axis + (slice(i, None, size),)] for i in range(size))
            x = first + others[0]
            for other in others[1:]:
                x += other
    return x / prod(kernel)


def _scale_and_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """By which numbers (channels,) instance norm multiplies a map, and which it adds then."""
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    return scale, -mean * scale if bias is None else bias - mean * scale


def _voxels(image: Tensor) -> Tensor:
    """Channels-last maps (channels, x, y, z) as a matrix (voxels, channels) in the same memory."""
    return image.permute(1, 2, 3, 0).view(-1, len(image))


LAYERS: dict[Any, Layer] = {
    torch.conv3d: convolved,
    F.instance_norm: instance_normed,
    F.avg_pool3d: average_pooled,
}


def _is_map(x: Tensor) -> bool:
    """Whether a tensor is what these layers know: (batch, channels, x, y, z) float32 on a CPU."""
    plain = x.ndim == 5 and x.dtype == torch.float32 and x.device.type == "cpu"
    return plain and x.layout == torch.strided and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


def _channels_last(x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=CHANNELS_LAST)
    if x.shape[1] > 1:
        return x
    # With one channel a tensor is of either order, and what comes of it is of that which its strides say.
    a, b, c = x.shape[2:]
    return x.as_strided(x.shape, (a * b * c, 1, b * c, c, 1))


def _three(size: Any) -> tuple[int, int, int]:
    x, y, z = (size,) * 3 if isinstance(size, int) else tuple(size) * (3 // len(size))
    return x, y, z


def can_be_quick(x: Tensor) -> bool:
    """Whether a map is one of those that are quicker here, and nobody learns, converts or compiles."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
    return _is_map(x) and not torch.is_grad_enabled() and not recorded


def _has_onednn() -> bool:
    # As torch offers them; they are not in its manual.
    functions = ("mkldnn_convolution", "batch_norm_update_stats")
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and all(hasattr(torch, name) for name in functions)
