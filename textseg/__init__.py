"""Text-promptable 3D segmentation: `textseg.segment("scan.nii.gz", ["left kidney"])`.

Names are loaded when they are first used, so `import textseg` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from textseg.version import __version__

if TYPE_CHECKING:
    from textseg.errors import (
        DeviceError,
        GeometryError,
        ModelError,
        OutputError,
        PlanError,
        PromptError,
        ScanError,
        TextsegError,
    )
    from textseg.geometry import Geometry
    from textseg.inference import Segmenter, segment
    from textseg.models import find_model, shipped_models
    from textseg.plan import Plan, read_plan
    from textseg.prompts import Prompt, understand
    from textseg.result import Found, Segmentation
    from textseg.scan import read_scan, write_mask
    from textseg.session import Session
    from textseg.volume import Volume

_HOMES = {
    "segment": "textseg.inference",
    "Segmenter": "textseg.inference",
    "Segmentation": "textseg.result",
    "Session": "textseg.session",
    "Found": "textseg.result",
    "Volume": "textseg.volume",
    "Geometry": "textseg.geometry",
    "read_scan": "textseg.scan",
    "write_mask": "textseg.scan",
    "Prompt": "textseg.prompts",
    "understand": "textseg.prompts",
    "Plan": "textseg.plan",
    "read_plan": "textseg.plan",
    "find_model": "textseg.models",
    "shipped_models": "textseg.models",
    "TextsegError": "textseg.errors",
    "ScanError": "textseg.errors",
    "GeometryError": "textseg.errors",
    "PromptError": "textseg.errors",
    "PlanError": "textseg.errors",
    "ModelError": "textseg.errors",
    "DeviceError": "textseg.errors",
    "OutputError": "textseg.errors",
}

__all__ = [
    "DeviceError",
    "Found",
    "Geometry",
    "GeometryError",
    "ModelError",
    "OutputError",
    "Plan",
    "PlanError",
    "Prompt",
    "PromptError",
    "ScanError",
    "Segmentation",
    "Segmenter",
    "Session",
    "TextsegError",
    "Volume",
    "__version__",
    "find_model",
    "read_plan",
    "read_scan",
    "segment",
    "shipped_models",
    "understand",
    "write_mask",
]


def __getattr__(name: str) -> Any:
    """The public name from its home module, loaded on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'textseg' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
