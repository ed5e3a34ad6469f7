"""What is kept of each step: masks packed into bits, and logits as far as the next step needs them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textseg.geometry import Box, Shape, bounding_box
from textseg.plan import Millimetres

# Fast: a mask's bits shrink twentyfold at any level.
ZLIB_LEVEL = 1
# Logits are kept in sixteenths above the threshold, as far as eight: beyond that nothing changes a mask.
STEPS_A_LOGIT = 16
FAR_BELOW = -127


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask (x, y, z) as the bits within its bounding box, compressed."""

    shape: Shape
    box: Box | None
    bits: bytes

    @classmethod
    def pack(cls, mask: NDArray[np.bool_]) -> PackedMask:
        x, y, z = mask.shape
        box = bounding_box(mask)
        if box is None:
            return cls((x, y, z), None, b"")
        return cls((x, y, z), box, zlib.compress(np.packbits(mask[box.slices]).tobytes(), ZLIB_LEVEL))

    def unpack(self) -> NDArray[np.bool_]:
        mask = np.zeros(self.shape, bool)
        if self.box is not None:
            mask[self.box.slices] = self.inside()
        return mask

    def inside(self) -> NDArray[np.bool_]:
        """The mask within its box."""
        if self.box is None:
            return np.zeros((0, 0, 0), bool)
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        count = int(np.prod(self.box.shape))
        return np.unpackbits(bits, count=count).reshape(self.box.shape).astype(bool)

    def count(self) -> int:
        return int(np.count_nonzero(self.inside()))


@dataclass(frozen=True, eq=False)
class Field:
    """Logits on a working grid: those of an earlier step with a box of them replaced.

    Steps share what they did not touch, so a click costs the memory of the windows that it looked at.

    Args:
        spacing_mm: the working spacing that was asked for.
        shape: of the working grid (x, y, z).
        box: what was replaced.
        bits: its int8 values (x, y, z) in steps of a sixteenth above the threshold, compressed.
        base: the rest; None where that is far below the threshold.
    """

    spacing_mm: Millimetres
    shape: Shape
    box: Box
    bits: bytes
    base: Field | None = None

    @classmethod
    def keep(
        cls, spacing_mm: Millimetres, shape: Shape, box: Box, values: NDArray[np.int8], base: Field | None
    ) -> Field:
        return cls(spacing_mm, shape, box, zlib.compress(values.tobytes(), ZLIB_LEVEL), base)

    @property
    def chain(self) -> list[Field]:
        """This one and those it is based on, oldest first."""
        chain: list[Field] = []
        field: Field | None = self
        while field is not None:
            chain.insert(0, field)
            field = field.base
        return chain

    def whole(self) -> NDArray[np.int8]:
        """(x, y, z) on the working grid."""
        values = np.full(self.shape, FAR_BELOW, np.int8)
        for field in self.chain:
            patch = np.frombuffer(zlib.decompress(field.bits), np.int8).reshape(field.box.shape)
            values[field.box.slices] = patch
        return values


def quantised(margins: NDArray[np.float32]) -> NDArray[np.int8]:
    """Logits above a threshold in whole steps; what is above it stays above, what is not stays below."""
    steps = np.clip(np.rint(margins * STEPS_A_LOGIT), FAR_BELOW, -FAR_BELOW)
    kept = np.where(margins > 0, np.maximum(steps, 1), np.minimum(steps, 0))
    return np.asarray(kept, np.int8)
