"""Volumes on disk in compressed blocks, so that a patch is read without the rest of its case.

A file is a zip archive of .npy members, one a block, which NumPy and the standard library read: nothing else
is needed where training runs. Each member is deflated on its own, as in `numpy.savez_compressed`.
"""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from textseg.atomic import write_bytes
from textseg.errors import DatasetError

HEADER = "header.json"
BLOCK_VOXELS = 48
# Unpacked blocks that one volume keeps, in bytes; neighbouring patches share most of theirs.
CACHE_BYTES = 64 * 1024**2


@dataclass(eq=False)
class BlockedArray:
    """A volume (x, y, z) in a file of blocks; `array[1:5, :, 3:9]` reads just the blocks that it touches."""

    path: Path
    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    cache_bytes: int = CACHE_BYTES
    _blocks: OrderedDict[tuple[int, int, int], NDArray[Any]] = field(default_factory=OrderedDict, repr=False)

    def __getitem__(self, box: tuple[slice, slice, slice]) -> NDArray[Any]:
        """The voxels of a box of plain slices without steps, as an array of its own."""
        spans = [part.indices(n)[:2] for part, n in zip(box, self.shape, strict=True)]
        starts = np.array([span[0] for span in spans])
        out = np.empty([max(0, stop - start) for start, stop in spans], self.dtype)
        if not out.size:
            return out
        for index in itertools.product(*(_touched(start, stop) for start, stop in spans)):
            first = np.array(index) * BLOCK_VOXELS
            block = self._block(index)
            low = np.maximum(starts, first)
            high = np.minimum(starts + out.shape, first + block.shape)
            source = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
            target = tuple(slice(a, b) for a, b in zip(low - starts, high - starts, strict=True))
            out[target] = block[source]
        return out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("A volume in a file can't be had without a copy.")
        whole = self[:, :, :]
        return whole if dtype is None else whole.astype(dtype)

    def _block(self, index: tuple[int, ...]) -> NDArray[Any]:
        x, y, z = index
        key = (x, y, z)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        # Opened anew each time: a file handle is shared by forked workers, and so would be its position.
        with zipfile.ZipFile(self.path) as archive:
            block: NDArray[Any] = np.load(
                io.BytesIO(archive.read(_member(self.name, key))), allow_pickle=False
            )
        self._blocks[key] = block
        while len(self._blocks) > 1 and sum(kept.nbytes for kept in self._blocks.values()) > self.cache_bytes:
            self._blocks.popitem(last=False)
        return block


def write_blocks(
    path: Path, volumes: Mapping[str, NDArray[Any]], tables: Mapping[str, NDArray[Any]], facts: Any
) -> None:
    """Write volumes in blocks, small tables whole and facts that JSON can hold into one file, all or nothing.

    Args:
        volumes: arrays (x, y, z) by name.
        tables: further arrays that are always read whole.
    """
    header = {
        "facts": facts,
        "block_voxels": BLOCK_VOXELS,
        "volumes": {name: {"shape": v.shape, "dtype": v.dtype.str} for name, v in volumes.items()},
        "tables": list(tables),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(HEADER, json.dumps(header))
        for name, table in tables.items():
            archive.writestr(f"{name}.npy", _packed(table))
        for name, volume in volumes.items():
            for index in itertools.product(*(_touched(0, n) for n in volume.shape)):
                box = tuple(slice(i * BLOCK_VOXELS, (i + 1) * BLOCK_VOXELS) for i in index)
                archive.writestr(_member(name, index), _packed(volume[box]))
    write_bytes(path, packed.getvalue())


def read_blocks(path: Path) -> tuple[dict[str, BlockedArray], dict[str, NDArray[Any]], Any]:
    """What `write_blocks` wrote: volumes that are read block by block, tables, and facts.

    Raises:
        DatasetError: the file is missing, cut short or no file of blocks.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(HEADER))
            tables = {
                name: np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                for name in header["tables"]
            }
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DatasetError(
            f"A prepared case is a whole file of blocks, but {path} is not: {error}. Prepare it again."
        ) from error
    if header["block_voxels"] != BLOCK_VOXELS:
        raise DatasetError(
            f"Prepared cases have blocks of {BLOCK_VOXELS} voxels, but those of {path} have "
            f"{header['block_voxels']}. Prepare it again."
        )
    volumes = {
        name: BlockedArray(path, name, tuple(entry["shape"]), np.dtype(entry["dtype"]))
        for name, entry in header["volumes"].items()
    }
    return volumes, tables, header["facts"]


def _touched(start: int, stop: int) -> range:
    return range(start // BLOCK_VOXELS, -(-stop // BLOCK_VOXELS))


def _member(name: str, index: tuple[int, ...]) -> str:
    return f"{name}/{'_'.join(map(str, index))}.npy"


def _packed(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
