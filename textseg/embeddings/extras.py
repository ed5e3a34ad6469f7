"""Optional libraries: imported when they are needed, and missed in a sentence that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from textseg.errors import ModelError


def import_extra(module: str, extra: str, purpose: str) -> Any:
    """A module of an extra.

    Args:
        module: its import name.
        extra: of textseg that brings it.
        purpose: what needs it, as the subject of the error's sentence.

    Raises:
        ModelError: it is not installed, or can't be imported as it is installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(
            f'{purpose} needs {error.name}, which is not installed: pip install "textseg[{extra}]".'
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        # A torchvision built for CUDA beside another torch ends here ("torchvision::nms does not exist").
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{purpose} needs {module}, which is installed but can't be imported ({reason}). Are torch and "
            "torchvision builds for each other? Install matching ones."
        ) from error
