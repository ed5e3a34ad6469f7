"""What the benchmarks share: ways that take turns, each in a process of its own, and results in files.

As others may use the machine, ways are compared round by round: a ratio is the median of those in one round,
and seconds are the fewest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from subprocess import PIPE
from typing import IO, Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# Above this load others compete for the processor, and the result says so.
BUSY = 1.5

Answer = dict[str, float]

# Python puts a program's own folder on the path, and so kernels.py, whose name is another project's.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != HERE]


def serve(prepare: Callable[[], Callable[[], None]]) -> None:
    """In a way's process: prepare it, then run it once for each line that comes in, and tell what it took.

    Args:
        prepare: gives what is timed. Whatever the two print goes to the standard error.
    """
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        run = prepare()
        before = resident_bytes()
        for _ in sys.stdin:
            began, began_clock = time.process_time(), time.perf_counter()
            run()
            answer = {
                "processor_seconds": time.process_time() - began,
                "clock_seconds": time.perf_counter() - began_clock,
                "peak_bytes": peak_bytes(),
                "grown_bytes": peak_bytes() - before,
                "gpu_peak_bytes": gpu_peak_bytes(),
            }
            out.write(json.dumps(answer) + "\n")
            out.flush()


def take_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Answer]]:
    """What each way answers in each round, after one that does not count, in which all is made ready."""
    answers: dict[str, list[Answer]] = {way: [] for way in commands}
    with contextlib.ExitStack() as stack:
        processes = {way: stack.enter_context(_started(command)) for way, command in commands.items()}
        for number in range(rounds + 1):
            for way, (process, errors) in processes.items():
                answer = _ask(way, process, errors)
                if number:
                    answers[way].append(answer)
        for process, _ in processes.values():
            process.communicate()
    return answers


def best(answers: Sequence[Answer]) -> Answer:
    """The fewest seconds and the highest peaks of one way."""
    return {
        name: (min if "seconds" in name else max)(answer[name] for answer in answers) for name in answers[0]
    }


def times_faster(slow: Sequence[Answer], quick: Sequence[Answer], device: str) -> float:
    """By the clock on GPUs, else by the processor's time; the median of the rounds."""
    seconds = "clock_seconds" if device == "cuda" else "processor_seconds"
    return median(a[seconds] / b[seconds] for a, b in zip(slow, quick, strict=True))


def facts(device: str, threads: int, packages: Sequence[str]) -> dict[str, Any]:
    """What a result says of the machine and the day."""
    import torch

    from textseg.device import describe_device

    return {
        "device": describe_device(torch.device(device)),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "machine_was_busy": os.getloadavg()[0] > BUSY,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in packages},
    }


def tell(result: Mapping[str, Any], name: str, *, save: bool) -> None:
    """Print a result and, where it is to be kept, write it beside the benchmarks."""
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", str(result["device"]).lower()).strip("-")
        (RESULTS / f"{name}-{device}-{result['date']}.json").write_text(text, encoding="utf-8")


def peak_bytes() -> int:
    """The most that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """What this process holds now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def gpu_peak_bytes() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    # What it says may be much, and nobody reads it meanwhile: to a file.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield process, errors
        finally:
            if process.poll() is None:
                process.kill()


def _ask(way: str, process: subprocess.Popen[str], errors: IO[str]) -> Answer:
    """One run of a way."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin
    assert stdout
    with contextlib.suppress(BrokenPipeError):
        stdin.write("again\n")
        stdin.flush()
    line = stdout.readline()
    if not line:
        errors.seek(0)
        raise SystemExit(f"{way} failed: {''.join(errors.read().strip().splitlines()[-1:])}")
    answer: Answer = json.loads(line)
    return answer
