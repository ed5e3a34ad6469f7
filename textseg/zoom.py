"""Where to look: a pass over the image at half its resolution tells which windows are worth a look.

Approximate: what is too small or too faint to be seen at half the resolution is then not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from textseg.device import Compute
from textseg.geometry import Box, Shape
from textseg.network.build import PromptableNetwork
from textseg.plan import Plan
from textseg.sliding import Batches, Wanted, segment_windows, windows_of

FACTOR = 2
# So many voxels of the coarse image around a window count as in it.
MARGIN = 2
# Looking twice pays off only where the coarse look takes this much less than the fine one.
LEAST_RATIO = 3
# Where the coarse look's logit is above this, so that a probability of 5 % is enough.
ABOVE = -3.0


def worth_a_look(
    network: PromptableNetwork,
    image: Tensor,
    text: Tensor,
    plan: Plan,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, of: None,
    batches: Batches | None = None,
    air: float | None = None,
    *,
    above: float = ABOVE,
) -> Wanted | None:
    """Which prompts may be in which windows (windows, prompts), for `segment_windows`.

    A prompt may be in a window where its logit is above a number somewhere in it, or just beside it, when the
    network looks at the image at half its resolution.

    Args:
        network, image, text, plan, compute, progress, batches, air: as for `segment_windows`.
        above: that number.

    Returns:
        None for small images, where a look at all windows takes hardly longer.
    """
    coarse = coarser(image)
    boxes = windows_of(_shape(image), plan)
    if len(boxes) < LEAST_RATIO * len(windows_of(_shape(coarse), plan)):
        return None
    run = segment_windows(network, coarse, text, plan, compute, progress, batches, air)
    seen = [_around(box, _shape(coarse)) for box in boxes]
    highest = torch.full((len(boxes), len(text)), -torch.inf)
    for slab in run.slabs():
        for row, box in enumerate(seen):
            low, stop = max(box.start[0], slab.start), min(box.stop[0], slab.stop)
            if low >= stop:
                continue
            part = slab.logits[:, low - slab.start : stop - slab.start, *box.slices[1:]]
            here = highest[row, slab.prompts.start : slab.prompts.stop]
            here.copy_(torch.maximum(here, part.amax(dim=(1, 2, 3)).cpu()))
    return np.asarray((highest > above).numpy(), np.bool_)


def coarser(image: Tensor) -> Tensor:
    """(channels, x, y, z) averaged over twice its voxels; at a border over what is left there."""
    window = [min(FACTOR, n) for n in image.shape[1:]]
    return avg_pool3d(image[None], window, FACTOR, ceil_mode=True)[0]


def _around(box: Box, coarse: Shape) -> Box:
    """A window's place in the coarse image, with a margin."""
    start = [max(0, n // FACTOR - MARGIN) for n in box.start]
    stop = [min(size, -(-n // FACTOR) + MARGIN) for n, size in zip(box.stop, coarse, strict=True)]
    return Box(_three(start), _three(stop))


def _three(sizes: Sequence[int]) -> Shape:
    x, y, z = sizes
    return x, y, z


def _shape(image: Tensor) -> Shape:
    return _three(image.shape[1:])
