"""From file to mask: our slabs and packed masks beside the plain way that keeps every prompt's logits.

    python tests/benchmarks/end_to_end.py [--shape 256 256 160] [--spacing 1.5] [--prompts 8] [--save]

Both read the same CT of noise, prepare it, run the same model over the same windows and write one mask a
prompt. The plain way keeps the logits of all prompts, divides, restores and thresholds them at the end. Each
runs in a process of its own, of which the peak of memory is told, beside what textseg predicted. Agreement is
the share of voxels that are the same in all masks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from textseg.device import describe_device
from textseg.inference import Segmenter
from textseg.masks import above_threshold
from textseg.prepare import prepare, restore_mask
from textseg.scan import read_scan, write_mask
from textseg.sliding import segment_windows

RESULTS = Path(__file__).parent / "results"
NAMES = ("liver", "spleen", "left kidney", "right kidney", "stomach", "pancreas", "aorta", "heart", "colon")
WAYS = ("plain", "ours")


def plainly(segmenter: Segmenter, scan: Path, prompts: list[str], folder: Path) -> int:
    """The obvious way; gives 0, since it predicts nothing."""
    volume, plan = read_scan(scan), segmenter.plan
    text = segmenter.text.embed([prompt.canonical for prompt in segmenter.model.read_prompts(prompts)])
    prepared = prepare(volume, plan, "ct", plan.spacing_for("torso"))
    answer = segment_windows(segmenter.network, prepared.image, text, plan, segmenter.compute)
    masks = [
        restore_mask(each, prepared, lambda found: above_threshold(found, plan.masks.threshold))
        for each in answer.logits
    ]
    there = (answer.presence >= plan.masks.presence).tolist()
    for name, mask, is_there in zip(prompts, masks, there, strict=True):
        write_mask(folder / f"{name}.nii.gz", mask if is_there else np.zeros_like(mask), volume)
    return 0


def ours(segmenter: Segmenter, scan: Path, prompts: list[str], folder: Path) -> int:
    """As `textseg predict` goes; gives the predicted peak in bytes."""
    found = segmenter(scan, prompts, modality="ct")
    for name, mask in zip(prompts, found.masks, strict=True):
        write_mask(folder / f"{name}.nii.gz", mask, found.volume)
    assert found.memory is not None
    return found.memory.predicted_peak_bytes


def measure_one(way: str, asked: argparse.Namespace) -> dict[str, float]:
    segmenter = Segmenter(asked.model, device=asked.device, threads=asked.threads)
    prompts = [NAMES[i % len(NAMES)] + " " * (i // len(NAMES)) for i in range(asked.prompts)]
    began, began_clock = time.process_time(), time.perf_counter()
    run = {"plain": plainly, "ours": ours}[way]
    predicted = run(segmenter, asked.work / "scan.nii.gz", prompts, asked.work / way)
    return {
        "processor_seconds": time.process_time() - began,
        "clock_seconds": time.perf_counter() - began_clock,
        "peak_bytes": peak(),
        "gpu_peak_bytes": torch.cuda.max_memory_allocated() if asked.device == "cuda" else 0,
        "predicted_peak_bytes": predicted,
    }


def peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def write_scan(path: Path, asked: argparse.Namespace) -> None:
    """An ellipse of noisy tissue in air, in Hounsfield units."""
    shape = tuple(asked.shape)
    x, y, _ = np.ogrid[: shape[0], : shape[1], : shape[2]]
    body = ((x / shape[0] - 0.5) / 0.42) ** 2 + ((y / shape[1] - 0.5) / 0.33) ** 2 < 1
    voxels = np.full(shape, -1000, np.int16)
    noise = np.random.default_rng(0).integers(-60, 120, shape).astype(np.int16)
    np.copyto(voxels, noise, where=np.broadcast_to(body, shape))
    nib.save(nib.Nifti1Image(voxels, np.diag([asked.spacing] * 3 + [1.0])), path)


def agreement(work: Path) -> float:
    """The share of voxels that are the same in all masks of both ways."""
    same = []
    for path in sorted((work / "plain").glob("*.nii.gz")):
        one, other = (np.asarray(nib.load(work / way / path.name).dataobj) for way in WAYS)
        same.append(float((one == other).mean()))
    return min(same)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_scan(work / "scan.nii.gz", asked)
        found: dict[str, Any] = {}
        for way in WAYS:
            (work / way).mkdir()
            command = [sys.executable, __file__, *sys.argv[1:], "--one", way, "--work", folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
            found[way] = json.loads(done.stdout.splitlines()[-1])
        found["agreement"] = agreement(work)
    seconds = "clock_seconds" if asked.device == "cuda" else "processor_seconds"
    found["times_faster"] = found["plain"][seconds] / found["ours"][seconds]
    found["peak_share"] = found["ours"]["peak_bytes"] / found["plain"]["peak_bytes"]
    found["peak_over_predicted"] = found["ours"]["peak_bytes"] / found["ours"]["predicted_peak_bytes"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="From file to mask, slab by slab and plainly.")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 160))
    parser.add_argument("--spacing", type=float, default=1.5, help="mm")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        sys.stdout.write(json.dumps(measure_one(asked.one, asked)) + "\n")
        return
    today = datetime.now(UTC).date().isoformat()
    result = {
        "device": describe_device(torch.device(asked.device)),
        "threads": asked.threads,
        "load": round(os.getloadavg()[0], 1),
        "date": today,
        "shape": tuple(asked.shape),
        "prompts": asked.prompts,
        "versions": {name: version(name) for name in ("textseg", "torch", "nibabel")},
        **measure(asked),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
        path = RESULTS / f"end-to-end-{name}-{today}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
