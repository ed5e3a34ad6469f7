"""How fast the kernels are on this machine's GPU, run by hand: python tests/benchmarks/kernels.py

Each kernel is timed against the torch code that one would write without it, and against the time that a copy
of as many bytes takes on the same device. Ratios are printed and written to tests/benchmarks/results. Needs
torch, CuPy and NumPy alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
# Python puts a program's own folder on the path, and so the name of this file, which is another project's.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != HERE]
# For machines where textseg itself is not installed.
sys.path.append(str(HERE.parents[1] / "kernels"))

import numpy as np  # noqa: E402
import textseg_kernels  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from textseg_kernels import in_torch, summed_weights  # noqa: E402
from torch import Tensor  # noqa: E402

WARM_UPS = 3
REPEATS = 15
INTENSITIES = {"lowest": -200.0, "highest": 300.0, "mean": 40.0, "sd": 85.0}


@dataclass(frozen=True)
class Sizes:
    """In voxels: a chest and abdomen CT, a slab of it at working spacing, and the network's windows."""

    scan: tuple[int, int, int] = (512, 512, 400)
    slab: tuple[int, int, int] = (230, 230, 270)
    window: tuple[int, int, int] = (128, 128, 128)
    windows: int = 8
    prompts: int = 16


@dataclass(frozen=True, eq=False)
class Case:
    """One kernel's work, done by it and by plain torch; each gives tensors that can be compared.

    bytes: what has to be read and written at least.
    """

    name: str
    kernel: Callable[[], Any]
    plain: Callable[[], Any]
    bytes: int


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds; `of_copy` is the share of the device's copy bandwidth that is reached."""

    name: str
    kernel_ms: float
    torch_ms: float
    times_faster: float
    of_copy: float


def cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Every kernel, one after the other, so that only one's arrays take room."""
    torch.manual_seed(7)
    yield _gather_case(sizes, device)
    yield _blend_case(sizes, device)
    yield from _finalise_cases(sizes, device)
    yield _components_case(sizes, device)


def _gather_case(sizes: Sizes, device: torch.device) -> Case:
    scan = torch.randint(-1000, 1500, sizes.scan, dtype=torch.int16, device=device)
    as_float = scan.float()
    maps = np.stack([_oblique(sizes.window, sizes.scan, shift) for shift in range(sizes.windows)])
    out = torch.empty((sizes.windows, *sizes.window, 1), dtype=torch.float16, device=device)

    def kernel() -> Tensor:
        textseg_kernels.gather(scan, maps, out, 0, **INTENSITIES, padding=-1.0)
        return out

    def plain() -> Tensor:
        patches = []
        for map in maps:
            grid = _unit_grid(map, sizes.window, sizes.scan, device)
            sampled = F.grid_sample(as_float[None, None], grid, padding_mode="border", align_corners=False)
            clipped = sampled.clamp(INTENSITIES["lowest"], INTENSITIES["highest"])
            normalised = (clipped - INTENSITIES["mean"]) / INTENSITIES["sd"]
            inside = (grid.abs() <= 1).all(-1)[:, None]
            patches.append(torch.where(inside, normalised, -1.0).half())
        return torch.cat(patches).permute(0, 2, 3, 4, 1).contiguous()

    voxels = sizes.windows * int(np.prod(sizes.window))
    return Case("gather", kernel, plain, voxels * (scan.element_size() + out.element_size()))


def _blend_case(sizes: Sizes, device: torch.device) -> Case:
    shape = (sizes.windows, sizes.prompts, *sizes.window)
    logits = torch.randn(shape, dtype=torch.float16, device=device)
    slab = torch.zeros((sizes.prompts, *sizes.slab), device=device)
    tables = tuple(torch.linspace(0.1, 1, n, device=device) for n in sizes.window)
    room = [slab - window for slab, window in zip(sizes.slab, sizes.window, strict=True)]
    starts = [tuple(i * n // max(1, sizes.windows - 1) for n in room) for i in range(sizes.windows)]
    x, y, z = tables
    weights = x[:, None, None] * y[None, :, None] * z[None, None, :]

    def kernel() -> Tensor:
        textseg_kernels.blend(logits, starts, (x, y, z), slab.zero_())
        return slab

    def plain() -> Tensor:
        slab.zero_()
        for window, start in zip(logits, starts, strict=True):
            box = tuple(slice(i, i + n) for i, n in zip(start, sizes.window, strict=True))
            slab[(slice(None), *box)] += window.float() * weights
        return slab

    covered = np.zeros(sizes.slab, bool)
    for start in starts:
        covered[tuple(slice(i, i + n) for i, n in zip(start, sizes.window, strict=True))] = True
    return Case("blend", kernel, plain, logits.nbytes + sizes.prompts * int(covered.sum()) * 8 + slab.nbytes)


def _finalise_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    coarse = torch.randn((1, sizes.prompts, 6, 7, 8), device=device)
    slab = F.interpolate(coarse, size=sizes.slab, mode="trilinear")[0].contiguous() - 0.3
    tables = [torch.from_numpy(summed_weights([0], np.linspace(0.5, 1, n), n)).to(device) for n in sizes.slab]
    weights = (tables[0], tables[1], tables[2])
    product = tables[0][:, None, None] * tables[1][:, None] * tables[2]
    scale = np.array(sizes.slab) / np.array(sizes.scan)
    map = np.column_stack([np.diag(scale), scale / 2 - 0.5])
    voxels = int(np.prod(sizes.scan))

    def interpolated(prompt: int) -> Tensor:
        mean = slab[prompt] / product
        return F.interpolate(mean[None, None], size=sizes.scan, mode="trilinear", align_corners=False)[0, 0]

    def plain() -> tuple[Tensor, ...]:
        """Interpolate, threshold, pack; count, box and sums from how many voxels each plane has."""
        counts, bits = [], []
        places = torch.arange(8, dtype=torch.uint8, device=device)
        for prompt in range(sizes.prompts):
            mask = interpolated(prompt) > 0
            for axes in ((1, 2), (0, 2), (0, 1)):
                planes = mask.sum(axes)
                indices = torch.arange(len(planes), device=device)
                (planes * indices).sum(), torch.where(planes > 0, indices, len(planes)).min()
                torch.where(planes > 0, indices, -1).max()
            counts.append(mask.sum())
            padded = F.pad(mask.to(torch.uint8), (0, -mask.shape[2] % 8))
            eights = padded.view(*mask.shape[:2], -1, 8) << places
            bits.append(eights.sum(-1, dtype=torch.uint8))
        return torch.stack(counts), torch.stack(bits)

    def kernel() -> tuple[Tensor, ...]:
        masks = textseg_kernels.finalise(slab, weights, map, sizes.scan, 0.0)
        return masks.counts, masks.bits

    yield Case("finalise", kernel, plain, slab.nbytes + sizes.prompts * voxels // 8)

    def plain_labels() -> tuple[Tensor, ...]:
        labels = torch.zeros(sizes.scan, dtype=torch.int16, device=device)
        highest = torch.zeros(sizes.scan, device=device)
        for prompt in range(sizes.prompts):
            logits = interpolated(prompt)
            wins = logits > highest
            labels[wins] = prompt + 1
            highest = torch.where(wins, logits, highest)
        return torch.bincount(labels.flatten().int(), minlength=sizes.prompts + 1)[1:], labels

    def labels() -> tuple[Tensor, ...]:
        result = textseg_kernels.finalise_labels(slab, weights, map, sizes.scan, 0.0)
        return result.counts, result.labels

    yield Case("finalise_labels", labels, plain_labels, slab.nbytes + voxels * 2)


def _components_case(sizes: Sizes, device: torch.device) -> Case:
    coarse = torch.randn((1, 1, *(max(2, n // 8) for n in sizes.slab)), device=device)
    mask = (F.interpolate(coarse, size=sizes.slab, mode="trilinear")[0, 0] > 0.4).contiguous()
    # Labels and sizes are written and read, eight bytes each.
    return Case(
        "keep_largest_component",
        lambda: textseg_kernels.keep_largest_component(mask),
        lambda: in_torch.keep_largest_component(mask, None),
        mask.numel() * (2 + 4 * 8),
    )


def _oblique(grid: tuple[int, ...], volume: tuple[int, ...], shift: int) -> Any:
    """A map (3, 4) that turns by about ten degrees, with the grid's centre near the volume's."""
    turn = np.array([[1.1, 0.18, -0.05], [-0.18, 1.1, 0.09], [0.05, -0.08, 1.2]])
    centre = (np.array(volume) - 1) / 2 + shift
    return np.column_stack([turn, centre - turn @ ((np.array(grid) - 1) / 2)])


def _unit_grid(map: Any, shape: tuple[int, ...], volume: tuple[int, ...], device: torch.device) -> Tensor:
    """What grid_sample wants: (1, x, y, z, 3), the last axis first, -1 to 1 over the whole volume."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    to_scan = torch.from_numpy(map).float().to(device)
    positions = indices @ to_scan[:, :3].T + to_scan[:, 3]
    return ((2 * positions + 1) / torch.tensor(volume, device=device) - 1).flip(-1)[None]


def _milliseconds(work: Callable[[], Any]) -> float:
    for _ in range(WARM_UPS):
        work()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(float(start.elapsed_time(stop)))
    return median(times)


def _copied_bytes_per_ms(device: torch.device) -> float:
    """Bytes read and written in a millisecond by a copy of a gibibyte within the device."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _milliseconds(lambda: target.copy_(source))


def _timed(case: Case, copied_bytes_per_ms: float) -> Timing:
    kernel, plain = _milliseconds(case.kernel), _milliseconds(case.plain)
    return Timing(case.name, kernel, plain, plain / kernel, case.bytes / kernel / copied_bytes_per_ms)


def _write(report: dict[str, Any], device_name: str, date: str) -> Path:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    path = folder / f"kernels-{device}-{date}.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def main() -> int:
    if not torch.cuda.is_available():
        sys.stderr.write("Timing the kernels needs a CUDA device, and torch sees none.\n")
        return 1
    try:
        import cupy
    except ImportError as error:
        sys.stderr.write(f"Timing the kernels needs CuPy, which can't be imported: {error}.\n")
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    name, date = torch.cuda.get_device_name(device), datetime.now(UTC).strftime("%Y-%m-%d")
    copied = _copied_bytes_per_ms(device)
    sizes = Sizes()
    sys.stdout.write(f"{name}: copies {copied / 1e6:.0f} GB/s\n")
    timings = []
    for case in cases(sizes, device):
        timing = _timed(case, copied)
        timings.append(timing)
        sys.stdout.write(
            f"{timing.name}: {timing.kernel_ms:.3f} ms, torch {timing.torch_ms:.3f} ms, "
            f"{timing.times_faster:.1f} times faster, {timing.of_copy:.0%} of copy bandwidth\n"
        )
    report = {
        "device": name,
        "date": date,
        "torch": torch.__version__,
        "cupy": cupy.__version__,
        "copy_gb_per_s": copied / 1e6,
        "sizes": asdict(sizes),
        "timings": [asdict(timing) for timing in timings],
    }
    sys.stdout.write(f"{_write(report, name, date)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
