"""One prompt and a hundred on one large scan: `textseg predict` from file to files, start of Python included.

    python tests/benchmarks/many_prompts.py SCAN [--shape 512 512 400] [--prompts 1 100] [--combined] [--save]

The scan is interpolated to the shape over its own extent, so that it stays a patient, and asked for the
first structures of a list of the torso's. Every run is a process of its own; masks that are found are written
one by one, or with --combined as one label map. Seconds are told by the clock and of the processor;
`times_longer` is the most prompts' clock over the fewest'.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import SimpleITK
from turns import facts, tell

from textseg.prompts import default_lexicon

GROUP = "torso"


def write_large(scan: Path, shape: tuple[int, int, int], path: Path) -> None:
    """The same patient in so many voxels, as int16."""
    image = SimpleITK.ReadImage(str(scan))
    extent = [n * d for n, d in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    spacing = [e / n for e, n in zip(extent, shape, strict=True)]
    large = SimpleITK.Resample(
        image,
        shape,
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        image.GetOrigin(),
        spacing,
        image.GetDirection(),
        -1000,
        SimpleITK.sitkInt16,
    )
    SimpleITK.WriteImage(large, str(path))


def names(count: int) -> list[str]:
    """So many structures that share a working spacing, the usual organs first."""
    first = ["liver", "spleen", "left kidney", "right kidney", "aorta", "pancreas", "stomach", "heart"]
    others = [concept.name for concept in default_lexicon().concepts_in(GROUP)]
    known = list(dict.fromkeys(first + others))
    if len(known) < count:
        raise SystemExit(f"The lexicon has {len(known)} structures of the {GROUP}, asked for {count}.")
    return known[:count]


def predict(scan: Path, prompts: list[str], out: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One run of the command, and what it took."""
    command = [sys.executable, "-m", "textseg_cli", "predict", str(scan), *prompts, "-o", str(out)]
    command += ["--modality", "ct", "--model", asked.model, "--device", asked.device]
    command += ["--combined"] if asked.combined else []
    command += ["--memory", asked.memory] if asked.memory else []
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    # 1 says that some of the things were not found.
    if done.returncode not in (0, 1):
        raise SystemExit(f"textseg predict failed: {''.join(done.stderr.strip().splitlines()[-1:])}")
    return {
        "clock_seconds": round(seconds, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_bytes_so_far": 1024 * after.ru_maxrss,
        "files": len(list(out.iterdir())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One prompt and a hundred on one large scan.")
    parser.add_argument("scan", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--prompts", type=int, nargs="+", default=(1, 100))
    parser.add_argument("--model", default="default")
    parser.add_argument("--memory", help="a budget, such as 8GB")
    parser.add_argument("--combined", action="store_true", help="one label map in place of a file a mask")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        write_large(asked.scan, tuple(asked.shape), scan)
        runs = {
            f"{count} prompts": predict(scan, names(count), Path(folder) / str(count), asked)
            for count in sorted(asked.prompts)
        }
    every = list(runs.values())
    few, many = every[0], every[-1]
    result = {
        **facts(asked.device, os.cpu_count() or 1, ("textseg", "torch")),
        "shape": list(asked.shape),
        "model": asked.model,
        "combined": asked.combined,
        **runs,
        "times_longer": round(many["clock_seconds"] / few["clock_seconds"], 2),
    }
    tell(result, "many-prompts", save=asked.save)


if __name__ == "__main__":
    main()
