"""The errors that textseg raises; each message is one sentence: the rule, what came, what to try."""

from __future__ import annotations


class TextsegError(Exception):
    """Whatever textseg raises on purpose; the command line prints its message and nothing else."""


class ScanError(TextsegError, ValueError):
    """A scan can't be read or can't be segmented as it is."""


class SeriesChoiceError(ScanError):
    """A DICOM folder holds several series and none, or an unknown one, was chosen."""


class GeometryError(TextsegError, ValueError):
    """A grid that is not a grid: singular affine, spacing that is not positive, shapes that differ."""


class PromptError(TextsegError, ValueError):
    """A prompt that can't be understood as a prompt at all."""


class PlanError(TextsegError, ValueError):
    """A plan that is not valid, or that does not fit what it is used with."""


class ModelError(TextsegError):
    """An unknown model, or one whose files are missing, damaged or do not fit its plan."""


class DeviceError(TextsegError):
    """The device that was asked for is not there."""


class OutputError(TextsegError, OSError):
    """A result can't be written where it was asked to be written."""


class DatasetError(TextsegError, ValueError):
    """Training data that is incomplete or contradicts itself."""


# How libraries say that memory is missing where they have no class of their own for it: torch on CPUs, CUDA's
# libraries, SimpleITK, OpenVINO.
OUT_OF_MEMORY_WORDS = (
    *("can't allocate memory", "not enough memory", "out of memory", "failed to allocate memory"),
    *("bad_alloc", "_alloc_failed"),
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is missing, told by name and words: torch may not be loaded yet."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(each in words for each in OUT_OF_MEMORY_WORDS)
