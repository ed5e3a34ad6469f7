"""Where sliding windows lie, and how much each of their voxels counts."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from textseg.geometry import Box, Shape
from textseg.plan import Plan, Triple, WindowPlan


def window_shape(image: Shape, plan: Plan) -> Shape:
    """The window for an image (x, y, z): the plan's, or just large enough where the image is smaller.

    Never smaller than what the network was trained on, and always a multiple of its strides.
    """
    sizes = zip(
        image, plan.windows.size_voxels, plan.training.patch_voxels, plan.network.total_stride, strict=True
    )
    x, y, z = (min(most, max(least, -(-n // stride) * stride)) for n, most, least, stride in sizes)
    return x, y, z


def placed(image: Shape, window: Shape) -> Box:
    """Where an image (x, y, z) lies once it is padded to a window: in its middle, an odd voxel behind it.

    Patches of training are cut around what is asked for, with air on all sides of a small image; networks
    know where in a window they are, and an image in its corner is to them another one.
    """
    return Box((0, 0, 0), image).moved([max(0, size - n) // 2 for n, size in zip(image, window, strict=True)])


def place_windows(image: Shape, window: Triple, overlap: float) -> list[Box]:
    """Windows that cover an image (x, y, z) evenly, as nnU-Net places them, x slowest.

    Neighbours share at least `overlap` of their length; the first starts at 0, the last ends at the border.
    Along an axis that is shorter than the window there is one window, of the image as it is padded to it.
    """
    x, y, z = (_starts(n, size, overlap) for n, size in zip(image, window, strict=True))
    return [Box((0, 0, 0), window).moved(start) for start in product(x, y, z)]


def blend_weights(window: Triple, plan: WindowPlan) -> tuple[NDArray[np.float32], ...]:
    """One Gaussian a window axis; a voxel's weight is the product of its three, largest at the centre.

    Sigma is `sigma_fraction` of the window, as in nnU-Net, and no weight is below a thousandth, so a voxel
    that only window borders cover still gets a sound mean.
    """
    tables = []
    for size in window:
        offsets = np.arange(size) - (size - 1) / 2
        table = np.exp(-0.5 * (offsets / (size * plan.sigma_fraction)) ** 2)
        tables.append(np.maximum(table, 1e-3).astype(np.float32))
    return tuple(tables)


def _starts(image: int, window: int, overlap: float) -> list[int]:
    if image <= window:
        return [0]
    # In whole voxels, so that rounding the starts never takes from the overlap or makes two of them equal.
    longest_step = max(1, int(window * (1 - overlap) + 1e-6))
    steps = -(-(image - window) // longest_step)
    return [round(i * (image - window) / steps) for i in range(steps + 1)]
