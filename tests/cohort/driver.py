"""Runs a cohort with stub workers, as a program that tests can kill: driver.py SOURCE OUT MODEL."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from textseg.cohort import process
from textseg.cohort.jobs import Settings
from textseg.cohort.request import Request
from textseg.cohort.run import Stop, run_cohort
from textseg.cohort.start import start_cohort
from textseg.cohort.workers import LocalWorkers, Place


def main(source: str, out: str, model: str) -> None:
    process.PROGRAM = (str(Path(__file__).with_name("stub_worker.py")),)
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.ask())
    settings = Settings(preview=False)
    found = start_cohort(Request((source,), ("liver", "spleen"), model), settings, Path(out))
    workers = LocalWorkers([Place(1), Place(1)])
    end = run_cohort(found.jobs, Path(out), settings, workers, stop=stop, progress=_show)
    sys.stdout.write(json.dumps(asdict(end)) + "\n")


def _show(stage: str, done: int, of: int) -> None:
    sys.stdout.write(f"{stage}: {done} of {of}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
