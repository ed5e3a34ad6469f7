"""The benchmark program: honest comparisons, and what it says without a device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "kernels.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    specification = importlib.util.spec_from_file_location("textseg_benchmark_of_kernels", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    return module


def test_without_a_device_it_says_so():
    ran = subprocess.run(
        [sys.executable, PROGRAM],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr == "Timing the kernels needs a CUDA device, and torch sees none.\n"
    assert ran.stdout == ""


def test_kernels_and_plain_torch_do_the_same_work(benchmark):
    sizes = benchmark.Sizes(scan=(33, 29, 37), slab=(17, 16, 18), window=(9, 8, 7), windows=3, prompts=2)
    names = []
    for case in benchmark.cases(sizes, torch.device("cpu")):
        names.append(case.name)
        ours, plain = _copied(case.kernel()), _copied(case.plain())
        for a, b in zip(ours, plain, strict=True):
            # Voxels whose logit is within rounding of the threshold may differ.
            differing = (a.double() - b.double()).abs() > 2e-3 * b.double().abs().max()
            assert differing.double().mean() < 2e-3
            assert len(b.unique()) > 1
        assert case.bytes > 0
    assert names == ["gather", "blend", "finalise", "finalise_labels", "keep_largest_component"]


def _copied(result):
    return [tensor.clone() for tensor in (result if isinstance(result, tuple) else (result,))]


def test_timings_are_written_whole(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "HERE", tmp_path)
    path = benchmark._write({"a": 1}, "NVIDIA H200 (141 GB)", "2026-01-31")
    assert path == tmp_path / "results" / "kernels-nvidia-h200-141-gb-2026-01-31.json"
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
