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
