"""Masks kept as bits: an eighth of the memory, which a hundred prompts on a large scan need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index as as_int
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from textseg.geometry import AxisOrder, Box, Shape, bounding_box

Mask = NDArray[np.bool_]
SAME_ORDER = AxisOrder((0, 1, 2), (False, False, False))


class PackedMasks(NDArrayOperatorsMixin):
    """Masks (prompts, x, y, z) that read like an array of bool and are kept as bits.

    `masks[0]` unpacks one prompt's mask and iterating one after the other; `masks[1:]` and `masks[[2, 0]]`
    stay packed. Whatever else arrays can do (`masks.sum()`, `masks & other`, NumPy's functions) unpacks all
    of them.

    bits: (prompts, u, v, bytes) uint8, eight voxels along the last axis a byte, the lowest bit first, as
    `textseg_kernels.finalise` packs them.
    order: how the bits' axes (u, v, w) follow from the masks' (x, y, z).
    """

    def __init__(self, prompts: int, bits_shape: Shape, order: AxisOrder = SAME_ORDER) -> None:
        u, v, w = bits_shape
        # Pages of zeros cost nothing before something is written to them.
        self.bits = np.zeros((prompts, u, v, -(-w // 8)), np.uint8)
        self.bits_shape, self.order = bits_shape, order

    @property
    def shape(self) -> tuple[int, int, int, int]:
        x, y, z = (self.bits_shape[axis] for axis in self.order.inverse().axes)
        return len(self.bits), x, y, z

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> np.dtype[np.bool_]:
        return np.dtype(np.bool_)

    def put(self, prompt: int, box: Box, mask: Mask) -> None:
        """Set the voxels of a box of the bits' grid (u, v, w), whose start along w is a multiple of 8."""
        self.put_bits(prompt, box, np.packbits(mask, axis=-1, bitorder="little"))

    def put_bits(self, prompt: int, box: Box, bits: NDArray[np.uint8]) -> None:
        """The same with voxels that are packed already."""
        first = box.start[2] // 8
        u, v, _ = box.slices
        self.bits[prompt, u, v, first : first + bits.shape[2]] |= bits

    def clear(self, prompt: int) -> None:
        self.bits[prompt] = 0

    def replace(self, prompt: int, mask: Mask) -> None:
        """Another mask (x, y, z) for a prompt."""
        self.bits[prompt] = np.packbits(self.order.apply(mask), axis=-1, bitorder="little")

    def unpack(self, prompt: int) -> Mask:
        """A prompt's mask (x, y, z)."""
        flags = np.unpackbits(self.bits[prompt], axis=-1, count=self.bits_shape[2], bitorder="little")
        return np.ascontiguousarray(self.order.inverse().apply(flags.view(np.bool_)))

    def cropped(self, prompt: int) -> tuple[Box, Mask] | None:
        """The smallest box of the bits' grid (u, v, w) that holds a mask, and the mask in it; None if empty.

        What lies around is looked at as bytes of eight voxels and never unpacked: most of a scan is empty.
        """
        bits = self.bits[prompt]
        outer = bounding_box(bits != 0)
        if outer is None:
            return None
        u, v, w = outer.slices
        # Bits beyond the last voxel are 0.
        flags = np.unpackbits(bits[u, v, w], axis=-1, bitorder="little").view(np.bool_)
        inner = bounding_box(flags)
        assert inner is not None, "a byte that is not 0 has a bit that is set"
        return inner.moved((outer.start[0], outer.start[1], 8 * outer.start[2])), flags[inner.slices]

    def within(self, prompt: int) -> tuple[Box, Mask] | None:
        """The smallest box (x, y, z) that holds a prompt's mask, and the mask in it; None if it is empty."""
        found = self.cropped(prompt)
        if found is None:
            return None
        back = self.order.inverse()
        return found[0].reordered(back, self.bits_shape), back.apply(found[1])

    def keep(self, prompt: int, box: Box, mask: Mask) -> None:
        """Another mask for a prompt, which is set nowhere but in a box of the bits' grid (u, v, w)."""
        self.clear(prompt)
        before = box.start[2] % 8
        start = box.start[0], box.start[1], box.start[2] - before
        self.put(prompt, Box(start, box.stop), np.pad(mask, ((0, 0), (0, 0), (before, 0))))

    def sizes(self) -> NDArray[np.int64]:
        """How many voxels each mask has, (prompts,)."""
        return np.array([np.bitwise_count(bits).sum(dtype=np.int64) for bits in self.bits], np.int64)

    def __len__(self) -> int:
        return len(self.bits)

    def __iter__(self) -> Iterator[Mask]:
        return (self.unpack(prompt) for prompt in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        try:
            mask = self.unpack(as_int(first))
        except TypeError:
            if not rest and isinstance(first, slice | list):
                return _of_bits(self.bits[first], self.bits_shape, self.order)
            return self.__array__()[index]
        return mask[tuple(rest)] if rest else mask

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("Packed masks can't be had as an array without a copy.")
        masks = np.empty(self.shape, np.bool_)
        for prompt in range(len(self)):
            masks[prompt] = self.unpack(prompt)
        return masks if dtype is None else masks.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        unpacked = [np.asarray(each) if isinstance(each, PackedMasks) else each for each in inputs]
        return getattr(ufunc, method)(*unpacked, **options)

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for underscored names before there are any bits.
        if name.startswith("_") or "bits" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__array__(), name)


def within(masks: Mask | PackedMasks, index: int) -> tuple[Box, Mask] | None:
    """A mask's smallest box (x, y, z) and what lies in it, None for an empty one; packed masks stay so."""
    if isinstance(masks, PackedMasks):
        return masks.within(index)
    box = bounding_box(masks[index])
    return None if box is None else (box, masks[index][box.slices])


def joined(parts: Sequence[NDArray[np.bool_] | PackedMasks]) -> NDArray[np.bool_] | PackedMasks:
    """The masks (prompts, x, y, z) of several parts, one after the other; packed where they all are alike."""
    packed = [part for part in parts if isinstance(part, PackedMasks)]
    if len(packed) < len(parts) or len({(part.bits_shape, part.order) for part in packed}) > 1:
        return np.concatenate([np.asarray(part) for part in parts])
    bits = np.concatenate([part.bits for part in packed])
    return _of_bits(bits, packed[0].bits_shape, packed[0].order)


def _of_bits(bits: NDArray[np.uint8], bits_shape: Shape, order: AxisOrder) -> PackedMasks:
    masks = PackedMasks(0, bits_shape, order)
    masks.bits = bits
    return masks
