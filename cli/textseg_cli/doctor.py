"""`textseg doctor`: what this installation can do, for a person with a question or a bug to report."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from textseg.version import __version__
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen

GIB = 1024**3


@plain_errors()
def doctor() -> None:
    """Print versions, device, memory, models and missing extras."""
    screen = Screen()
    screen.facts("Versions", _versions())
    screen.facts("Device", _device())
    screen.facts("Memory and disk", _memory())
    screen.facts("Models", _models())
    screen.facts("Extras", {extra: _state(extra, wanted) for extra, wanted in _extras().items()})


def _versions() -> dict[str, str]:
    core = [name for name, extra in _requirements() if extra is None]
    return {
        "textseg": __version__,
        "Python": f"{platform.python_version()} at {sys.executable}",
        "system": platform.platform(),
        **{name: _version(name) or "missing: install textseg again" for name in core},
    }


def _device() -> dict[str, str]:
    # Whatever is wrong with torch or a driver is what the doctor was called for.
    try:
        import torch

        from textseg.device import choose_compute, find_gpu

        compute, gpu = choose_compute(), find_gpu()
        facts = {"computes on": str(compute), "threads": f"{torch.get_num_threads()} of {os.cpu_count()}"}
        facts["CUDA"] = torch.version.cuda or "not in this build of torch"
        if gpu is not None:
            facts["GPU"] = gpu.name
            facts["GPU memory"] = f"{gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB free"
    except Exception as error:
        return {"computes on": f"nothing: {type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    return facts


def _memory() -> dict[str, str]:
    disk = shutil.disk_usage(Path.cwd())
    return {
        "memory": _main_memory(),
        "disk here": f"{disk.free / GIB:.0f} of {disk.total / GIB:.0f} GiB free",
    }


def _main_memory() -> str:
    """As Linux tells it; elsewhere the total where the system says that much."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return f"{kib['MemAvailable'] * 1024 / GIB:.1f} of {kib['MemTotal'] * 1024 / GIB:.1f} GiB available"
    except (OSError, KeyError):
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return "unknown"
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"


def _models() -> dict[str, str]:
    from textseg.models import shipped_models

    shipped = {model.name: str(model.path) for model in shipped_models()}
    return shipped or {"none": "no model has its weights here; give predict a folder with --model PATH"}


def _state(extra: str, wanted: list[str]) -> str:
    found = [f"{name} {_version(name)}" for name in wanted if _version(name)]
    missing = [name for name in wanted if not _version(name)]
    if not missing:
        return ", ".join(found)
    return f"missing {', '.join(missing)}: pip install 'textseg[{extra}]'"


def _extras() -> dict[str, list[str]]:
    """The distributions of each extra that is for users."""
    extras: dict[str, list[str]] = {}
    for name, extra in _requirements():
        if extra and extra != "dev":
            extras.setdefault(extra, []).append(name)
    return extras


def _requirements() -> list[tuple[str, str | None]]:
    """Every distribution that textseg's own metadata asks for, with the extra that it belongs to."""
    from importlib import metadata

    found = []
    for requirement in metadata.requires("textseg") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", requirement)
        if name:
            found.append((name.group(), extra.group(1) if extra else None))
    return found


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
