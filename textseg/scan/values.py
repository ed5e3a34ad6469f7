"""Stored numbers to values: the file's scaling, in the smallest type that holds the result exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INT16 = np.iinfo(np.int16)


def scaled(stored: NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> NDArray[Any]:
    """slope × stored + intercept for stored numbers (x, y, z).

    uint8, int8 and int16 stay as they are without scaling; whole numbers within int16 become int16, so a CT
    takes half the memory; everything else becomes float32.
    """
    if stored.dtype.kind not in "iu" or not (float(slope).is_integer() and float(intercept).is_integer()):
        return _scaled_to_float(stored, slope, intercept)
    if (slope, intercept) == (1, 0) and stored.dtype.newbyteorder("=") in (np.uint8, np.int8, np.int16):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    ends = [int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)]
    if INT16.min <= min(ends) and max(ends) <= INT16.max:
        return _scaled_slice_by_slice(stored, int(slope), int(intercept), np.int64, np.int16)
    return _scaled_to_float(stored, slope, intercept)


def _scaled_to_float(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if (slope, intercept) == (1, 0):
        # A double beyond float32 becomes infinite here and is refused by the check of voxels.
        with np.errstate(over="ignore"):
            return stored.astype(np.float32, copy=False)
    return _scaled_slice_by_slice(stored, slope, intercept, np.float64, np.float32)


def _scaled_slice_by_slice(
    stored: NDArray[Any], slope: float, intercept: float, exact: type[np.generic], kept: type[np.generic]
) -> NDArray[Any]:
    """One slice at a time, so that the exact numbers never take the memory of a whole scan."""
    values = np.empty(stored.shape, dtype=kept, order="F")
    for z in range(stored.shape[-1]):
        with np.errstate(over="ignore"):
            values[..., z] = stored[..., z].astype(exact) * slope + intercept
    return values
