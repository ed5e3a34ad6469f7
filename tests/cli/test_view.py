"""`textseg view` says in words why there is no window, and opens one on a scan that is read before."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from textseg.viewer import window


@pytest.fixture
def opened(monkeypatch):
    """What a window would have been opened with, on a machine that has none."""
    calls = []
    monkeypatch.setattr(window, "check_window", lambda: None)
    monkeypatch.setattr(window, "open_window", lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(run=lambda: calls.append("run")))
    return calls


def test_a_scan_is_read_and_shown(textseg, scan, tiny_model, opened):
    result = textseg("view", scan, "--model", tiny_model, "--device", "cpu")
    assert result.exit_code == 0, result.output
    (layers, model, device), run = opened
    assert run == "run"
    assert [options["name"] for _, options, _ in layers] == ["scan"]
    assert (model, device) == (str(tiny_model), "cpu")


def test_without_a_scan_the_window_is_empty(textseg, opened):
    assert textseg("view").exit_code == 0
    assert opened[0][0] == []


@pytest.mark.parametrize("arguments", [("missing.nii.gz",), ("--model", "nobody"), ("--device", "abacus")])
def test_bad_input_opens_no_window(textseg, opened, arguments):
    assert textseg("view", *arguments).exit_code == 2
    assert opened == []


def test_without_napari_it_says_what_to_install(textseg, monkeypatch):
    monkeypatch.setattr(window, "find_spec", lambda name: None)
    result = textseg("view")
    assert result.exit_code == 2
    assert 'pip install "textseg[napari]"' in result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Other systems always have a display.")
def test_without_a_display_it_says_so(textseg, monkeypatch):
    monkeypatch.setattr(window, "find_spec", lambda name: object())
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    result = textseg("view")
    assert result.exit_code == 2
    assert "needs a display" in result.stderr
