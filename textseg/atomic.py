"""Files that whoever reads them finds whole: written beside their place and renamed there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there in the end takes its place, and nothing after an error.

    Raises:
        OSError: the file can't be renamed.
    """
    # A name of our own rather than mkstemp's file, which only its owner may read whatever the umask says.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole; the folder is made where it is missing.

    Raises:
        OSError: the folder can't be made or written, or the disk is full; nothing half-written is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)
