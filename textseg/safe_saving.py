"""Weights to disk as safetensors, whole or not at all, the same bytes for the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from textseg.atomic import write_bytes

# The format begins with its header's length as a little-endian number; the data after it is so aligned.
LENGTH_BYTES = 8
METADATA = "__metadata__"


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write contiguous CPU tensors by name.

    The library puts the metadata into another order every time; here it is sorted, since a file's hash is how
    a model is known again.

    Raises:
        OSError: the folder can't be made or written, or the disk is full; nothing half-written is left.
    """
    content = save(dict(tensors), dict(metadata))
    begin = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES:begin])
    header[METADATA] = dict(sorted(metadata.items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % LENGTH_BYTES)
    write_bytes(path, len(ordered).to_bytes(LENGTH_BYTES, "little") + ordered + content[begin:])
