"""How long a session takes to answer: the first look at a torso CT, then 20 random marks.

    python tests/benchmarks/session_latency.py [--threads 2] [--device cpu] [--save]

The scan is a torso CT of the real data beside the checkout, or the phantom of the examples where there is
none. Words look at all of it first; then clicks, boxes, scribbles and lassos are drawn on what they found,
half of them as "not this", each answered before the next. A session file is written after each step, as in
the viewer. Processor seconds stand beside seconds by the clock, since others may use the machine;
threads that wait for a busy processor count as working, so there one thread tells the work better.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulated_user import draw

from textseg.device import describe_device
from textseg.network.spatial_prompts import Interaction
from textseg.session import Session
from textseg.train.interactions import KINDS, drawn_on

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = REPOSITORY.parent / "shared" / "data" / "Dataset003_TorsoCT" / "imagesTr"
PHANTOM = REPOSITORY / "examples" / "torso_phantom.nii.gz"
RESULTS = Path(__file__).parent / "results"
WORDS = ("liver", "left kidney", "spleen", "vertebral column")
STEPS = 20


def find_scan() -> Path:
    return min(REAL.glob("*.nii.gz"), default=PHANTOM)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and processor seconds that it takes."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - processor


def marks(session: Session, random: np.random.Generator) -> Iterator[Interaction]:
    """Marks on what the words found, of every kind in turn."""
    structure = session.mask
    for step in range(STEPS):
        yield drawn_on(structure, KINDS[step % len(KINDS)], random, positive=bool(random.integers(2)))


def measure(device: str, threads: int) -> dict[str, Any]:
    session = Session(device=device, threads=threads)  # type: ignore[arg-type]
    scan = find_scan()
    reading = timed(lambda: session.set_scan(scan))
    first = timed(lambda: session.say(WORDS[0]))
    again = [timed(lambda word=word: session.say(word)) for word in WORDS[1:]]  # type: ignore[misc]
    session.say(WORDS[0])
    with tempfile.TemporaryDirectory() as folder:
        session.save(Path(folder) / "benchmark.session")
        random = np.random.default_rng(7)
        steps = [timed(lambda mark=mark: draw(session, mark)) for mark in marks(session, random)]  # type: ignore[misc]
    clock, processor = np.array(steps).T
    return {
        "scan": scan.name,
        "shape": session.geometry.shape,
        "device": describe_device(session.segmenter.compute.device),
        "compute": str(session.segmenter.compute),
        "torch": torch.__version__,
        "reading": _seconds(reading),
        "first look": _seconds(first),
        "words again": _seconds((float(np.median(again, axis=0)[0]), float(np.median(again, axis=0)[1]))),
        "mark, median": _seconds((float(np.median(clock)), float(np.median(processor)))),
        "mark, 95th percentile": _seconds(
            (float(np.quantile(clock, 0.95)), float(np.quantile(processor, 0.95)))
        ),
    }


def _seconds(times: tuple[float, float]) -> dict[str, float]:
    return {"clock_s": round(times[0], 3), "processor_s": round(times[1], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", action="store_true", help="keep the numbers in tests/benchmarks/results")
    arguments = parser.parse_args()
    facts = measure(arguments.device, arguments.threads) | {"date": datetime.now(UTC).date().isoformat()}
    text = json.dumps(facts, indent=1)
    sys.stdout.write(text + "\n")
    if arguments.save:
        machine = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"session-latency-{machine}-{facts['date']}.json").write_text(
            text + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
