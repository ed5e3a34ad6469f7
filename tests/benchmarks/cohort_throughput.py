"""How much faster a cohort is than calling `textseg predict` for one scan after the other.

    python tests/benchmarks/cohort_throughput.py [--scans 8] [--model default] [--jobs N] [--save]

Both ways read the same small CT phantoms, ask the same prompts and write masks and previews, in processes of
their own with an empty folder each; the loop starts Python and loads the model for every scan, as a shell
script would. Prints both throughputs and their ratio, and checks that both wrote the same masks. On a machine
that others use too, the ratio of processor time says more than that of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from textseg.device import processor_name

PHANTOM = Path(__file__).resolve().parents[2] / "examples" / "torso_phantom.nii.gz"
PROMPTS = ("left lung", "vertebral column")
TEXTSEG = (sys.executable, "-m", "textseg_cli.main")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Taken:
    """What one way took for all scans: seconds by the clock, and of the processor in all its processes."""

    clock_seconds: float
    processor_seconds: float

    def facts(self, scans: int) -> dict[str, float]:
        return {
            "clock_seconds": round(self.clock_seconds, 2),
            "processor_seconds": round(self.processor_seconds, 2),
            "scans_an_hour": round(3600 * scans / self.clock_seconds, 1),
        }


def main() -> None:
    options = _options()
    result = measure(options)
    sys.stdout.write(_shown(result))
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", result["cpu"].lower()).strip("-")
        path = RESULTS / f"cohort-throughput-{name}-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways' figures, and on what they were measured."""
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
    return {
        "cpu": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("textseg", "torch", "numpy")},
        "model": Path(options.model).name,
        "jobs": options.jobs,
        "scans": options.scans,
        "prompts": PROMPTS,
        "predict_in_a_loop": looped.facts(options.scans),
        "cohort": cohort.facts(options.scans),
        "ratio": round(looped.clock_seconds / cohort.clock_seconds, 3),
        "ratio_of_processor_time": round(looped.processor_seconds / cohort.processor_seconds, 3),
        "scans_with_the_same_masks": same,
    }


def measured(work: Callable[[], None]) -> Taken:
    began, used = time.perf_counter(), _processor_seconds()
    work()
    return Taken(time.perf_counter() - began, _processor_seconds() - used)


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


def _shown(result: dict[str, Any]) -> str:
    same, scans = result["scans_with_the_same_masks"], result["scans"]
    lines = [
        f"{scans} scans, {len(PROMPTS)} prompts, {result['cores']} cores, load {result['load']}",
        f"textseg predict in a loop  {_in_words(result['predict_in_a_loop'])}",
        f"textseg cohort run         {_in_words(result['cohort'])}",
        f"ratio {result['ratio']:.2f}, of processor time {result['ratio_of_processor_time']:.2f}; "
        f"scans with the same masks both ways: {same} of {scans}",
    ]
    return "\n".join(lines) + "\n"


def _in_words(facts: dict[str, float]) -> str:
    return (
        f"{facts['clock_seconds']:7.1f} s {facts['scans_an_hour']:6.0f} scans an hour "
        f"{facts['processor_seconds']:7.1f} s of the processor"
    )


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
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    return parser.parse_args()


if __name__ == "__main__":
    main()
