"""The package as a package, and its sources as CUDA compilers see them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import textseg_kernels
import torch
from textseg_kernels import compile, tensors

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
SOURCES = ("gather.cu", "blend.cu", "finalise.cu", "components.cu")


def _new_process(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    return ran.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_cupy():
    code = "import sys, textseg_kernels; print({'torch', 'cupy', 'textseg', 'scipy'} & set(sys.modules))"
    assert _new_process(code) == "set()"


def test_the_name_kernels_is_not_ours():
    assert _new_process("import importlib.util; print(importlib.util.find_spec('kernels'))") == "None"


def test_the_package_does_not_import_textseg():
    for path in files("textseg_kernels").iterdir():
        if path.name.endswith(".py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(from|import) textseg\b", text, re.MULTILINE)


def test_sources_are_whole_and_index_with_64_bits():
    names = {path.name for path in files("textseg_kernels").iterdir() if path.name.endswith(".cu")}
    assert names == set(SOURCES)
    for name in SOURCES:
        text = re.sub(r"//.*", "", compile.source(name))
        assert "#include" not in text
        assert 'extern "C" __global__ void' in text
        wide = re.sub(r"\b(unsigned )?long long\b|\bunsigned (char|short)\b|\bshort\b", "", text)
        assert not re.search(r"\b(int|unsigned|long|size_t|u?int\d+_t)\b", wide)


@pytest.mark.skipif(NVCC is None, reason="Needs nvcc.")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", SOURCES)
def test_nvcc_compiles(name: str, architecture: str, tmp_path: Path):
    program = tmp_path / name
    program.write_text(compile.source(name))
    options = ["-std=c++17", "--fmad=false", "-Werror", "all-warnings", f"-arch={architecture}", "-cubin"]
    subprocess.run([str(NVCC), *options, "-o", tmp_path / "a.cubin", program], check=True)
    assert (tmp_path / "a.cubin").stat().st_size > 0


def _cupy_13(entered):
    return {
        "ExternalStream": lambda pointer, index: entered("stream", pointer),
        "Stream": SimpleNamespace(),
    }


def _cupy_14(entered):
    from_external = lambda stream: entered("stream", stream.__cuda_stream__()[1])  # noqa: E731
    return {"Stream": SimpleNamespace(from_external=from_external)}


@pytest.fixture(params=[_cupy_13, _cupy_14])
def fake_cupy(request, monkeypatch):
    """A CuPy that writes down what it is asked for."""
    calls = []

    @contextmanager
    def entered(*what):
        calls.append(what)
        yield

    def module(code, options, backend):
        calls.append(("compiled", len(code), options, backend))
        return SimpleNamespace(get_function=lambda kernel: lambda *call: calls.append((kernel, *call)))

    fake = SimpleNamespace(
        cuda=SimpleNamespace(Device=lambda index: entered("device", index), **request.param(entered)),
        RawModule=module,
        from_dlpack=lambda tensor: ("dlpack", tensor.dtype, tensor.requires_grad),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234, device=device)
    )
    compile._module.cache_clear()
    yield calls
    compile._module.cache_clear()


def test_a_launch_compiles_once_and_runs_on_the_current_stream(fake_cupy):
    # A tensor on CUDA can't be had here; its device is all that is asked of it.
    tensor = torch.ones(3, requires_grad=True)
    arguments = (5, tensor, torch.zeros(2, dtype=torch.bool), np.float32(1.5))
    for _ in range(2):
        compile.launch("blend.cu", "blend_float32", (7, 1), (32, 8), arguments)
    compiled = ("compiled", len(compile.source("blend.cu")), compile.OPTIONS, "nvrtc")
    passed = (5, ("dlpack", torch.float32, False), ("dlpack", torch.uint8, False), np.float32(1.5))
    ran = [("device", None), ("stream", 1234), ("blend_float32", (7, 1), (32, 8), passed)]
    # The compiler works on the device too.
    assert fake_cupy == [*ran[:2], ("device", None), compiled, ran[2], *ran]


@pytest.mark.parametrize(("module", "there"), [(SimpleNamespace(), True), (None, False)])
def test_cupy_is_used_where_it_can_be_imported(monkeypatch, module, there):
    monkeypatch.setitem(sys.modules, "cupy", module)
    tensors._cupy_is_there.cache_clear()
    assert tensors._cupy_is_there() is there
    tensors._cupy_is_there.cache_clear()


@pytest.mark.parametrize("name", ["gather", "blend", "finalise", "finalise_labels", "keep_components"])
def test_cuda_tensors_go_to_the_kernels(monkeypatch, name):
    monkeypatch.setattr(tensors, "_through_cupy", lambda tensor: True)
    monkeypatch.setattr(f"textseg_kernels.on_gpu.{name}", lambda launch, *_, **__: launch)
    monkeypatch.setattr(compile, "launch", "CuPy's")
    numbers = {"lowest": 0.0, "highest": 1.0, "mean": 0.0, "sd": 1.0, "padding": 0.0}
    map = np.eye(4)[:3]
    slab, weights = torch.zeros(1, 2, 3, 4), torch.ones(2, 3, 4)
    tables = (torch.ones(2), torch.ones(3), torch.ones(4))
    arguments = {
        "gather": (weights, map[None], torch.zeros(1, 2, 3, 4, 1).half(), 0),
        "blend": (slab[None], [(0, 0, 0)], tables, slab),
        "finalise": (slab, weights, map, (2, 3, 4), 0.0),
        "finalise_labels": (slab, tables, map, (2, 3, 4), 0.0),
        "keep_components": (weights > 0, 2),
    }
    result = getattr(textseg_kernels, name)(*arguments[name], **(numbers if name == "gather" else {}))
    assert result == (None if name in ("gather", "blend") else "CuPy's")
