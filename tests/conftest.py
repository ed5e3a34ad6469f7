"""What tests in every folder share: the real scans, and which marked tests run here."""

from __future__ import annotations

import locale
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CHARACTERS = locale.setlocale(locale.LC_CTYPE)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout; a test that needs it is skipped where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"Needs the real scans in {folder}, which are not part of the repository.")
    return folder


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption("--download", action="store_true", help="also run tests that fetch weights")
    # pytest-qt ends every run, of whatever tests, where there is no Qt or a library that it needs is missing.
    if pluginmanager.hasplugin("pytest-qt") and not _qt_can_be_loaded():
        pluginmanager.unregister(name="pytest-qt")


def _qt_can_be_loaded() -> bool:
    from pytestqt.qt_compat import qt_api

    try:
        qt_api.set_qt_api("")
    except (ImportError, pytest.UsageError):
        return False
    return True


def pytest_runtest_teardown() -> None:
    # Some libraries set it to C, after which the next tests' text would be read as ASCII.
    locale.setlocale(locale.LC_CTYPE, CHARACTERS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("download") and not item.config.getoption("--download"):
        pytest.skip("Fetches weights; runs with --download.")
    if item.get_closest_marker("gpu") and not _cuda_is_there():
        pytest.skip("Needs a CUDA device.")


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()
