"""The example of a session runs, keeps what the words found, and leaves a session that can be taken up."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np

import textseg
from tests.tiny_model import write_tiny_model
from textseg.session import Session

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_example_keeps_what_the_words_found(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("interactive", EXAMPLES / "interactive.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    segmenter = textseg.Segmenter(write_tiny_model(tmp_path / "tiny"), device="cpu")
    monkeypatch.setattr(textseg, "Session", partial(Session, segmenter))
    whole = textseg.read_scan(EXAMPLES / "torso_phantom.nii.gz")
    grid = whole.geometry.cropped(textseg.geometry.Box((20, 20, 20), (60, 56, 50)))
    small = np.ascontiguousarray(whole.voxels[0, 20:60, 20:56, 20:50], np.float32)
    scan = tmp_path / "scan.nii.gz"
    textseg.scan.nifti.write_nifti(scan, small, grid, None, None)
    program.main(str(scan), str(tmp_path / "mask.nii.gz"), "left kidney")
    said = capsys.readouterr().out
    assert said.startswith("left kidney: ")
    loaded = Session.load(tmp_path / "mask.nii.gz.session", model=segmenter)
    assert list(loaded.legend.values()) == ["left kidney"]
    assert f"kept: left kidney, {loaded.objects[0].volume_ml:.1f} ml" in said
    written = textseg.read_scan(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(written.voxels[0] > 0, loaded.objects[0].mask)
    assert loaded.objects[0].mask.any()
