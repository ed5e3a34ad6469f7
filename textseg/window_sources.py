"""Where windows come from: cut out of a prepared image, or gathered on a GPU from the scan's own voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from textseg_kernels import gather
from torch import Tensor

from textseg.device import Compute
from textseg.geometry import Box, Shape
from textseg.normalise import Scale
from textseg.prepare import Prepared
from textseg.resample import averaging_grid, resample
from textseg.volume import Volume

# What `gather` reads; other types become float32.
OWN_TYPES = (torch.int16, torch.float32)


class WindowSource(Protocol):
    """Windows of an image whose size is `shape` (x, y, z)."""

    @property
    def shape(self) -> Shape: ...

    def crop(self, boxes: Sequence[Box]) -> Tensor:
        """Windows of one size (windows, channels, x, y, z) on the device, channels-last."""

    def brightest(self, box: Box) -> float:
        """The highest value of the first channel in a box."""


class ImageWindows:
    """Cut out of an image (channels, x, y, z), in which all of them lie."""

    def __init__(self, image: Tensor, compute: Compute) -> None:
        self._image, self._compute = image, compute

    @property
    def shape(self) -> Shape:
        _, x, y, z = self._image.shape
        return x, y, z

    def crop(self, boxes: Sequence[Box]) -> Tensor:
        windows = torch.stack([self._image[(slice(None), *box.slices)] for box in boxes])
        return self._compute.bring(windows.contiguous(memory_format=torch.channels_last_3d))

    def brightest(self, box: Box) -> float:
        return float(self._image[0][box.slices].amax())


@dataclass(frozen=True, eq=False)
class ScanWindows:
    """Gathered from a scan's voxels on the device: resampled, normalised and padded as they are read.

    Nothing of the working grid's size is kept but a window. The values are those of the prepared image,
    rounded to float16.

    volumes: one a channel (x, y, z), int16 or float32; where a scan is finer than the working grid, averaged
        along those axes.
    to_volume: (3, 4), from voxels of the working grid to positions in them.
    scales, beyond: see `Prepared`.
    shape: of the working grid.
    """

    volumes: tuple[Tensor, ...]
    to_volume: NDArray[np.float64]
    scales: tuple[Scale, ...]
    beyond: tuple[float, ...]
    shape: Shape

    def crop(self, boxes: Sequence[Box]) -> Tensor:
        size = (len(boxes), *boxes[0].shape, len(self.volumes))
        windows = torch.empty(size, dtype=torch.float16, device=self.volumes[0].device)
        maps = np.repeat(self.to_volume[None], len(boxes), axis=0)
        for map, box in zip(maps, boxes, strict=True):
            map[:, 3] += map[:, :3] @ np.array(box.start, np.float64)
        for channel, (volume, scale, beyond) in enumerate(
            zip(self.volumes, self.scales, self.beyond, strict=True)
        ):
            gather(
                volume,
                maps,
                windows,
                channel,
                lowest=scale.low,
                highest=scale.high,
                mean=scale.mean,
                sd=scale.sd,
                padding=beyond,
            )
        return windows.permute(0, 4, 1, 2, 3)

    def brightest(self, box: Box) -> float:
        return float(self.crop([box])[0, 0].amax())


def scan_windows(volume: Volume, prepared: Prepared, device: torch.device) -> ScanWindows:
    """Windows of a prepared scan, gathered on a device.

    Only for images that are no smaller than a window: what lies around a smaller one is padding in the
    prepared image, and here the scan.
    """
    canonical = volume.canonical()
    averaged = averaging_grid(canonical.geometry, prepared.geometry)
    volumes = []
    for voxels in canonical.voxels:
        tensor = torch.from_numpy(np.require(voxels, requirements=["C", "W"])).to(device)
        own = tensor if tensor.dtype in OWN_TYPES else tensor.float()
        if averaged.shape != canonical.geometry.shape:
            own = resample(own.float(), canonical.geometry, averaged).contiguous()
        volumes.append(own)
    to_volume = np.linalg.solve(averaged.affine, prepared.geometry.affine)[:3]
    return ScanWindows(
        tuple(volumes), np.asarray(to_volume), prepared.scales, prepared.beyond, prepared.geometry.shape
    )
