"""A network whose answers are known: it paints what its maps show, so that geometry can be checked."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from textseg.network.build import Decoded, Features
from textseg.network.spatial_prompts import (
    NOT_POINT,
    NOT_REGION,
    NOT_SCRIBBLE,
    POINT,
    PREVIOUS,
    REGION,
    SCRIBBLE,
)


@dataclass
class Painter:
    """Inside is what is bright where words are asked for, plus what was marked, less what was marked as not.

    Without words inside is the previous mask and every mark, clicks grown by `radius` voxels; with `floods`
    it is all of the bright image as soon as something in the window is marked or was inside before.
    """

    radius: int = 2
    floods: bool = False
    sure: float = 1.0
    encoded: list[Tensor] = field(default_factory=list)
    texts: list[Tensor | None] = field(default_factory=list)
    maps: list[Tensor | None] = field(default_factory=list)
    total_stride = (4, 4, 4)

    def encode(self, image: Tensor) -> Features:
        self.encoded.append(image)
        return Features(image, (image,))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        self.texts.append(text)
        self.maps.append(spatial)
        bright = features.coarsest[:, :1] > 0
        inside = bright & (text is not None)
        if spatial is not None:
            maps = spatial[:, 0]
            positive, negative = (self._marked(maps, channels) for channels in (THIS, NOT_THIS))
            touched = positive | (maps[:, PREVIOUS : PREVIOUS + 1] > 0)
            flooded = bright & touched.any() if self.floods else touched
            inside = (inside | flooded) & ~negative
        logits = torch.where(inside, 6.0, -6.0)
        return Decoded((logits,), torch.full((1, 1), 8.0 * (2 * self.sure - 1)))

    def _marked(self, maps: Tensor, channels: tuple[int, int, int]) -> Tensor:
        """(1, 1, x, y, z): clicked voxels, each a cube of `radius`, and drawn ones as they are."""
        clicks = (maps[:, channels[0] : channels[0] + 1] == 1).float()
        if self.radius:
            clicks = nn.functional.max_pool3d(clicks, 2 * self.radius + 1, 1, self.radius)
        return (clicks > 0) | (maps[:, list(channels[1:])].amax(dim=1, keepdim=True) > 0)


THIS = (POINT, REGION, SCRIBBLE)
NOT_THIS = (NOT_POINT, NOT_REGION, NOT_SCRIBBLE)
