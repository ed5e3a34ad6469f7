"""The version, in one place, that pyproject.toml reads too."""

__version__ = "0.1.0"
