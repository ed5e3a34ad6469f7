"""How much faster a cohort is than calling `textseg predict` for one scan after the other.

    python tests/benchmarks/cohort_throughput.py [--scans 8] [--model default] [--jobs N]

Both ways read the same small CT phantoms, ask the same prompts and write masks and previews, in processes of
their own with an empty folder each; the loop starts Python and loads the model for every scan, as a shell
script would. Prints both throughputs and their ratio, and checks that both wrote the same masks. On a machine
that others use too, the ratio of processor time says more than that of the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

PHANTOM = Path(__file__).resolve().parents[2] / "examples" / "torso_phantom.nii.gz"
PROMPTS = ("left lung", "vertebral column")
TEXTSEG = (sys.executable, "-m", "textseg_cli.main")


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="textseg-") as name:
        work = Path(name)
        scans = write_scans(work / "scans", options.scans)
        # Both ways find the vectors of the prompts on disk, as on any day but the first.
        os.environ["TEXTSEG_CACHE"] = str(work / "cache")
        _run("predict", scans[0], *PROMPTS, "--model", options.model, "-o", work / "warm")
        looped = measured(lambda: predict_each(scans, work / "loop", options.model))
        words = [work / "scans", *PROMPTS, "--model", options.model, "-o", work / "cohort"]
        words += ["--jobs", options.jobs] if options.jobs else []
        cohort = measured(lambda: _run("cohort", "run", *words))
        same = sum(_is_same(scan, work) for scan in scans)
    sys.stdout.write(
        f"{options.scans} scans, {len(PROMPTS)} prompts, {len(os.sched_getaffinity(0))} cores, "
        f"load {os.getloadavg()[0]:.1f}\n"
        f"textseg predict in a loop  {_shown(looped, options.scans)}\n"
        f"textseg cohort run         {_shown(cohort, options.scans)}\n"
        f"ratio {looped[0] / cohort[0]:.2f}, of processor time {looped[1] / cohort[1]:.2f}; "
        f"scans with the same masks both ways: {same} of {options.scans}\n"
    )


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in all processes that were started."""
    began, used = time.perf_counter(), _processor_seconds()
    work()
    return time.perf_counter() - began, _processor_seconds() - used


def write_scans(folder: Path, count: int) -> list[Path]:
    """So many phantoms with noise of their own, int16 in HU."""
    folder.mkdir(parents=True)
    phantom = nib.load(PHANTOM)
    voxels = np.asarray(phantom.dataobj)
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 12, voxels.shape)
        paths.append(folder / f"scan{number:03d}.nii.gz")
        nib.save(nib.Nifti1Image((voxels + noise).astype(np.int16), phantom.affine), paths[-1])
    return paths


def predict_each(scans: list[Path], out: Path, model: str) -> None:
    """One `textseg predict` after the other."""
    for scan in scans:
        _run("predict", scan, *PROMPTS, "--model", model, "--preview", "-o", out)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _shown(seconds: tuple[float, float], scans: int) -> str:
    clock, processor = seconds
    return f"{clock:7.1f} s {3600 * scans / clock:6.0f} scans an hour {processor:7.1f} s of the processor"


def _is_same(scan: Path, work: Path) -> bool:
    """Whether both ways found the same voxels, but for one in a thousand: threads add in their own order."""
    stem = scan.name.removesuffix(".nii.gz")
    for prompt in (prompt.replace(" ", "_") for prompt in PROMPTS):
        paths = [work / "loop" / f"{stem}_{prompt}.nii.gz", work / "cohort" / stem / f"mask_{prompt}.nii.gz"]
        if not all(path.exists() for path in paths):
            return not any(path.exists() for path in paths)
        one, other = (np.asarray(nib.load(path).dataobj) for path in paths)
        if np.count_nonzero(one != other) > 1e-3 * np.count_nonzero(one):
            return False
    return True


def _run(*words: object) -> None:
    # 3 is for a scan in which nothing was found.
    done = subprocess.run([*TEXTSEG, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--model", default="default")
    parser.add_argument("--jobs", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
