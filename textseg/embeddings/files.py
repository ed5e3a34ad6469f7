"""Where the user's cache is."""

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
