"""The kernels run in three ways: compiled by g++ for the CPU, as plain torch, and on a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import textseg_kernels
import torch
from numpy.typing import NDArray
from textseg_kernels import compile, on_gpu
from torch import Tensor

KERNELS = {
    "gather.cu": ("gather_int16", "gather_float32"),
    "blend.cu": ("blend_float16", "blend_float32"),
    "finalise.cu": ("finalise", "finalise_labels"),
    "components.cu": ("components_start", "components_join", "components_count", "components_keep"),
}


class Run(ctypes.Structure):
    """The structure of this name in cuda_on_cpu.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("first", ctypes.c_uint * 3),
        ("seed", ctypes.c_uint),
        ("interleaved", ctypes.c_uint),
    ]


class CpuLaunch:
    """Runs kernels on the CPU, with the arguments that `textseg_kernels.compile.launch` takes."""

    def __init__(self, folder: Path) -> None:
        self.libraries = {name: ctypes.CDLL(str(_compiled(name, folder))) for name in KERNELS}
        self.as_usual()

    def as_usual(self) -> None:
        """All blocks, in their order, each thread without a pause."""
        self.first_block = (0, 0)
        self.seed = 0
        self.interleaved = False

    def __call__(
        self, name: str, kernel: str, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]
    ) -> None:
        library = self.libraries[name]
        assert library[f"{kernel}_arguments"]() == len(arguments)
        run = Run(_three(grid, 1), _three(block, 1), _three(self.first_block, 0), self.seed, self.interleaved)
        values = [_c_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        library[f"{kernel}_on_cpu"](ctypes.byref(run), pointers)


def _compiled(name: str, folder: Path) -> Path:
    lines = [f'#include "{Path(__file__).parent / "cuda_on_cpu.h"}"', compile.source(name)]
    program = folder / f"{name}.cpp"
    program.write_text("\n".join([*lines, *(f"ON_CPU({kernel})" for kernel in KERNELS[name])]))
    library = folder / f"{name}.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror"]
    subprocess.run(["g++", *flags, "-o", library, program], check=True)
    return library


def _three(extent: Sequence[int], missing: int) -> Any:
    return (ctypes.c_uint * 3)(*extent, *[missing] * (3 - len(extent)))


def _c_value(argument: Tensor | int | np.generic) -> Any:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, np.generic):
        return ctypes.create_string_buffer(argument.tobytes(), argument.nbytes)
    return ctypes.c_longlong(argument)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors here are so small that starting a second thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _cpu_launch(tmp_path_factory: pytest.TempPathFactory) -> CpuLaunch:
    if shutil.which("g++") is None:
        pytest.skip("Needs g++ to compile the kernels for the CPU.")
    return CpuLaunch(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def cpu_launch(_cpu_launch: CpuLaunch) -> Iterator[CpuLaunch]:
    yield _cpu_launch
    _cpu_launch.as_usual()


@dataclass(frozen=True)
class Kernels:
    """The package's functions for arrays, computed in one of the ways; what they fill is filled in place."""

    device: str
    functions: dict[str, Callable[..., Any]]

    def gather(
        self, scan: NDArray[Any], maps: NDArray[Any], out: NDArray[Any], channel: int, **numbers: float
    ) -> None:
        filled = self._tensor(out)
        self.functions["gather"](self._tensor(scan), maps, filled, channel, **numbers)
        out[...] = filled.cpu().numpy()

    def blend(
        self, logits: NDArray[Any], starts: Any, tables: tuple[NDArray[Any], ...], slab: NDArray[Any]
    ) -> None:
        filled = self._tensor(slab)
        starts = np.array(starts, np.int64).reshape(-1, 3)
        self.functions["blend"](self._tensor(logits), starts, self._tensors(tables), filled)
        slab[...] = filled.cpu().numpy()

    def finalise(self, slab: NDArray[Any], weights: Any, map: Any, shape: Any, threshold: float) -> Any:
        return self._finalised("finalise", slab, weights, map, shape, threshold)

    def finalise_labels(
        self, slab: NDArray[Any], weights: Any, map: Any, shape: Any, threshold: float
    ) -> Any:
        return self._finalised("finalise_labels", slab, weights, map, shape, threshold)

    def keep_components(self, mask: NDArray[Any], least: int, depth: int | None = None) -> NDArray[Any]:
        kept: Tensor = self.functions["keep_components"](self._tensor(mask), least, depth)
        return kept.cpu().numpy()

    def keep_largest_component(self, mask: NDArray[Any], depth: int | None = None) -> NDArray[Any]:
        kept: Tensor = self.functions["keep_largest_component"](self._tensor(mask), depth)
        return kept.cpu().numpy()

    def _finalised(self, name: str, slab: NDArray[Any], weights: Any, *arguments: Any) -> Any:
        moved = self._tensors(weights) if isinstance(weights, tuple) else self._tensor(weights)
        result = self.functions[name](self._tensor(slab), moved, *arguments)
        return type(result)(*(tensor.cpu().numpy() for tensor in result))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _tensors(self, arrays: tuple[NDArray[Any], ...]) -> tuple[Tensor, ...]:
        return tuple(self._tensor(array) for array in arrays)


NAMES = ("gather", "blend", "finalise", "finalise_labels", "keep_components", "keep_largest_component")


@pytest.fixture(
    params=[
        "compiled for the CPU",
        "torch",
        pytest.param("torch on a GPU", marks=pytest.mark.gpu),
        pytest.param("CuPy", marks=pytest.mark.gpu),
    ]
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    public = {name: getattr(textseg_kernels, name) for name in NAMES}
    if request.param == "compiled for the CPU":
        launch = request.getfixturevalue("cpu_launch")
        return Kernels("cpu", {name: _bound(getattr(on_gpu, name), launch) for name in NAMES})
    if request.param == "torch":
        return Kernels("cpu", public)
    if request.param == "CuPy":
        pytest.importorskip("cupy", reason="Needs CuPy.")
    else:
        monkeypatch.setattr("textseg_kernels.tensors._cupy_is_there", lambda: False)
    return Kernels("cuda:0", public)


def _bound(function: Callable[..., Any], launch: CpuLaunch) -> Callable[..., Any]:
    return lambda *arguments, **numbers: function(launch, *arguments, **numbers)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def oblique() -> Callable[..., NDArray[np.float64]]:
    """A map (3, 4) that turns, shears, flips y and scales, and brings a grid's centre near a volume's."""

    def mapped(grid: Sequence[int], volume: Sequence[int], scale: float = 0.7) -> NDArray[np.float64]:
        turn = np.array([[0.9, 0.3, -0.1], [0.25, -0.95, 0.2], [0.05, 0.15, 1.05]]) * scale
        centre = (np.array(volume) - 1) / 2 + np.array([0.3, -0.4, 0.15])
        return np.column_stack([turn, centre - turn @ ((np.array(grid) - 1) / 2)])

    return mapped
