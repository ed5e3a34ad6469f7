"""A cohort of real scans and broken files that is killed three times, beside one that nobody disturbs.

    python tests/benchmarks/cohort_crashes.py DATA [--kill-after 10 15 20] [--out FOLDER] [--save]

60 scans of all sorts of DATA (hippocampus crops, sarcomas in CT, MR and PET, torsos) and 10 broken files are
asked for what fits them. The process and its workers are killed with SIGKILL after so many seconds and the
same command is given again, until it ends. Every file of the results, save the journal and what tells of
time, must be the same byte for byte as that of the undisturbed run.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from textseg.device import processor_name
from textseg.network.weights import file_hash

RESULTS = Path(__file__).parent / "results"
HIPPOCAMPI, SARCOMAS = 22, 33
TORSO = ("liver", "spleen", "left kidney")


def scans(data: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """60 scans, spread evenly over their lists, and what each is asked for."""
    crops = _spread(sorted((data / "Dataset001_Hippocampus/imagesTr").glob("*.nii.gz")), HIPPOCAMPI)
    sarcomas = _spread(sorted((data / "Dataset002_Sarcoma/imagesTr").glob("*.nii.gz")), SARCOMAS)
    torsos = [
        *sorted((data / "Dataset003_TorsoCT/imagesTr").glob("*.nii.gz")),
        *sorted((data / "Dataset004_PartlyLabelledCT/imagesTr").glob("*.nii.gz")),
        data / "scans/abdomen_mr_t2.nii.gz",
    ]
    return [
        *((path, ("anterior hippocampus", "posterior hippocampus")) for path in crops),
        *((path, ("soft tissue sarcoma",)) for path in sarcomas),
        *((path, TORSO) for path in torsos[:5]),
    ]


def broken(good: Path, folder: Path) -> list[Path]:
    """Ten files of which none is a scan: cut off, empty, of text, of noise, flat, with NaN alone …"""
    folder.mkdir(parents=True, exist_ok=True)
    content = good.read_bytes()
    plain = gzip.decompress(content)
    files = {
        "cut.nii.gz": content[: len(content) // 2],
        "empty.nii.gz": b"",
        "text.nii.gz": b"This is no scan.\n",
        "header_alone.nii": plain[:348],
        "half_a_header.nii": plain[:100],
        "cut_plain.nii": plain[: len(plain) // 2],
        "noise.nrrd": np.random.default_rng(0).bytes(5000),
        "no_data.mha": b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\n",
    }
    for name, made in files.items():
        (folder / name).write_bytes(made)
    affine = nib.load(good).affine
    nib.save(nib.Nifti1Image(np.full((20, 20, 20), np.nan, np.float32), affine), folder / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((20, 20), np.float32), affine), folder / "flat.nii.gz")
    return sorted(folder.iterdir())


def command(manifest: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "textseg_cli", "cohort", "run", str(manifest), "-o", str(out)]


def killed(arguments: Sequence[str], seconds: float) -> bool:
    """Whether the command still ran after so many seconds, and was killed with its workers."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file of results by its place; the journal and the log tell of the way, not the end."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {
        path.relative_to(out).as_posix(): file_hash(path)
        for path in files
        if ".sqlite" not in path.name and path.suffix != ".log"
    }


def found(out: Path) -> dict[str, Any]:
    """For each prompt how many scans it was asked of, in how many it was found, and volumes in ml."""
    asked: dict[str, int] = defaultdict(int)
    volumes: dict[str, list[float]] = defaultdict(list)
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["prompt"]:
                continue  # a scan that failed
            asked[row["prompt"]] += 1
            if float(row["volume_ml"] or 0) > 0:
                volumes[row["prompt"]].append(float(row["volume_ml"]))
    return {
        prompt: {
            "asked": asked[prompt],
            "found": len(ml),
            "median_ml": round(statistics.median(ml), 1) if ml else None,
            "range_ml": [round(min(ml), 1), round(max(ml), 1)] if ml else None,
        }
        for prompt in asked
        for ml in [volumes[prompt]]
    }


def _spread(files: list[Path], count: int) -> list[Path]:
    return [files[i] for i in np.linspace(0, len(files) - 1, count).round().astype(int)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kill-after", type=float, nargs="+", default=[10, 15, 20])
    parser.add_argument("--out", type=Path, help="Kept afterwards; a temporary folder without it.")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    work = asked.out or Path(tempfile.mkdtemp(prefix="textseg-crashes-"))
    good = scans(asked.data.resolve())
    bad = broken(good[0][0], work / "broken")
    manifest = work / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["scan", "prompts"])
        rows.writerows([str(path), ";".join(prompts)] for path, prompts in good)
        rows.writerows([str(path), "liver"] for path in bad)

    calm, disturbed = work / "calm", work / "disturbed"
    began = time.monotonic()
    subprocess.run(command(manifest, calm), check=False, stdout=subprocess.DEVNULL)
    calm_s = time.monotonic() - began
    kills = [killed(command(manifest, disturbed), seconds) for seconds in asked.kill_after]
    subprocess.run(command(manifest, disturbed), check=False, stdout=subprocess.DEVNULL)

    one, other = digests(calm), digests(disturbed)
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor_name(),
        "scans": len(good),
        "broken": len(bad),
        "undisturbed_s": round(calm_s, 1),
        "killed": sum(kills),
        "files": len(one),
        "different": different,
        "found": found(calm),
    }
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    if asked.save:
        path = RESULTS / f"cohort-crashes-{facts['date']}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
