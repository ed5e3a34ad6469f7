"""Where the user's cache is, and writing a small file so that whoever reads it finds it whole."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """Where vectors and fetched weights are kept: `$TEXTSEG_CACHE`, or this platform's folder for caches."""
    chosen = os.environ.get("TEXTSEG_CACHE")
    return Path(chosen) if chosen else _platform_cache() / "textseg"


def _platform_cache() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a container's user may have no home
        return Path(tempfile.gettempdir())
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there; the folder is made where it is missing.

    Raises:
        OSError: the folder can't be made or written, or the disk is full; nothing half-written is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files for their owner only; a model and a shared cache are for everyone who may read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
