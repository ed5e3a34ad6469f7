"""Whether a scan holds an image at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.errors import ScanError
from textseg.volume import Volume


def check_voxels(volume: Volume) -> None:
    """Refuse a scan that no network can make sense of.

    Raises:
        ScanError: a channel holds NaN or infinite voxels, or all of its voxels are the same.
    """
    name = volume.file.paths[0].name if volume.file else "The scan"
    for number, voxels in enumerate(volume.voxels):
        which = f"channel {number} of {name}" if volume.channels > 1 else name
        # The extremes tell it all: NaN spreads to both, infinity is one of them.
        low, high = voxels.min(), voxels.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ScanError(_not_finite(which, voxels))
        if low == high:
            raise ScanError(
                f"A scan must show something, but every voxel of {which} is {low:g}. "
                "Is it an empty export or a mask?"
            )


def _not_finite(which: str, voxels: NDArray[Any]) -> str:
    kind = "NaN" if np.isnan(voxels).any() else "infinite"
    bad = np.isnan(voxels) if kind == "NaN" else np.isinf(voxels)
    first = tuple(int(index[0]) for index in np.nonzero(bad))
    return (
        f"Voxels must be finite numbers, but {np.count_nonzero(bad):,} of {voxels.size:,} voxels of {which} "
        f"are {kind}, the first at {first}. Replace them with the value of air or background."
    )
