"""What a hundred prompts on a large scan take of memory: predicted, measured, and the masks alone.

    python tests/benchmarks/memory.py [--shape 512 512 400] [--prompts 100] [--memory 6GB] [--save]

An ellipse of noise as int16, 0.8 × 0.8 × 1 mm, is asked for so many structures of one working spacing, in a
process of its own that segments, measures and writes every mask as `textseg predict` does. So that all masks
are large, which is what memory is for, everything counts as found and the threshold is low. The peak is that
of the whole process (ru_maxrss, imports included), as the prediction is; it is told also as it was before the
first window, when the scan had been read and resampled, and before masks were written. The same with --device
cuda, where the GPU's peak is told too and the prediction is of the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from turns import facts, gpu_peak_bytes, peak_bytes, tell

from textseg.planning import parse_memory
from textseg.prompts import default_lexicon

GROUP = "torso"
# So low that masks fill most of the body.
THRESHOLD = 1e-3


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """Noisy tissue in air, in Hounsfield units, slice by slice."""
    x, y = np.ogrid[: shape[0], : shape[1]]
    body = ((x / shape[0] - 0.5) / 0.42) ** 2 + ((y / shape[1] - 0.5) / 0.33) ** 2 < 1
    voxels = np.full(shape, -1000, np.int16)
    random = np.random.default_rng(0)
    for z in range(shape[2]):
        voxels[..., z][body] = random.integers(-60, 120, int(body.sum()))
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.0, 1.0])), path)


def names(count: int) -> list[str]:
    """So many structures that share a working spacing."""
    known = [concept.name for concept in default_lexicon().concepts_in(GROUP)]
    if len(known) < count:
        raise SystemExit(f"The lexicon has {len(known)} structures of the {GROUP}, asked for {count}.")
    return known[:count]


def segment(asked: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: the whole run, and what it took."""
    from textseg.inference import Segmenter
    from textseg.packed import PackedMasks

    segmenter = Segmenter(
        asked.model,
        device=asked.device,
        threads=asked.threads,
        memory=parse_memory(asked.memory) if asked.memory else None,
    )
    masks = segmenter.plan.masks.model_copy(update={"threshold": THRESHOLD, "presence": 0.0})
    segmenter.plan = segmenter.plan.model_copy(update={"masks": masks})
    before_windows = [0]

    def note(stage: str, done: int, of: int) -> None:
        if stage.startswith("segmenting") and not before_windows[0]:
            before_windows[0] = peak_bytes()

    began = time.perf_counter()
    found = segmenter(asked.work / "scan.nii", names(asked.prompts), modality="ct", progress=note)
    segmenting = peak_bytes()
    if asked.write:
        found.save(asked.work / "masks")
    assert found.memory is not None
    assert isinstance(found.masks, PackedMasks)
    return {
        "seconds": time.perf_counter() - began,
        "predicted": found.memory.as_json(),
        "peak_bytes": peak_bytes(),
        "peak_bytes_of_segmenting": segmenting,
        "peak_bytes_of_reading": before_windows[0],
        "gpu_peak_bytes": gpu_peak_bytes(),
        "masks_bytes": int(found.masks.bits.nbytes),
        "masks_found": sum(each.is_there for each in found.found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of many prompts on a large scan.")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--model", default="default")
    parser.add_argument("--memory", help="a budget, such as 6GB")
    parser.add_argument("--write", action="store_true", help="write all masks too")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        sys.stdout.write(json.dumps(segment(asked)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_scan(Path(folder) / "scan.nii", tuple(asked.shape))
        command = [sys.executable, __file__, *sys.argv[1:], "--work", folder]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"Segmenting failed: {''.join(done.stderr.strip().splitlines()[-1:])}")
    found = json.loads(done.stdout.splitlines()[-1])
    measured = found["gpu_peak_bytes"] if asked.device == "cuda" else found["peak_bytes"]
    result = {
        **facts(asked.device, asked.threads, ("textseg", "torch", "numpy")),
        "shape": list(asked.shape),
        "prompts": asked.prompts,
        "model": asked.model,
        **found,
        "measured_over_predicted": measured / found["predicted"]["predicted_peak_bytes"],
    }
    tell(result, "memory", save=asked.save)


if __name__ == "__main__":
    main()
