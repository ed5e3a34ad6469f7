"""What `textseg cohort` shows: problems, states, what was found, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textseg_cli.output import Screen
from textseg_cli.predict import notes_on

if TYPE_CHECKING:
    from textseg.cohort.check import Estimate, Look
    from textseg.cohort.jobs import Job, Problem
    from textseg.cohort.journal import Entry
    from textseg.cohort.summary import Row

MOST_SHOWN = 40


def prompt_notes(jobs: Sequence[Job]) -> list[Problem]:
    """What should be known of how prompts are read, each once."""
    from textseg.cohort.jobs import Problem
    from textseg.errors import TextsegError
    from textseg.models import find_model

    notes: dict[str, Problem] = {}
    for prompts, model in dict.fromkeys((job.prompts, job.model) for job in jobs):
        try:
            folder = find_model(model)
            read = folder.read_prompts(prompts) if folder.kind == "textseg" else []
        except TextsegError:
            # Each of its scans will say so.
            continue
        for note in (note for prompt in read for note in notes_on(prompt)):
            notes[note] = Problem("the prompts", note, "warning")
    return list(notes.values())


def show_problems(screen: Screen, problems: Sequence[Problem]) -> None:
    """One table, the worst first."""
    order = ("error", "warning", "note")
    rows = [
        (one.level, one.where, one.what) for one in sorted(problems, key=lambda one: order.index(one.level))
    ]
    if rows:
        screen.table("Problems", ("Level", "Where", "What"), rows)


def estimate_lines(looks: Sequence[Look], taken: Estimate, workers: int) -> list[str]:
    """How many scans are fine, and what a run will take of time and disk."""
    good = sum(1 for look in looks if not any(one.level == "error" for one in look.problems))
    share = "one worker" if workers == 1 else f"{workers} workers"
    time = "unknown" if taken.seconds is None else f"about {_duration(taken.seconds)} with {share}"
    lines = [
        f"{good} of {len(looks)} scans can be segmented.",
        f"Time: {time}. Disk: about {_size(taken.disk_bytes)}, {_size(taken.free_bytes)} free.",
    ]
    if taken.disk_bytes > taken.free_bytes:
        lines.append("The disk will be full before the end.")
    return lines


def show_state(screen: Screen, entries: Sequence[Entry]) -> None:
    """How many scans are in which state, and why some failed."""
    states = [entry.state for entry in entries]
    counts = {state: states.count(state) for state in ("done", "running", "pending", "failed")}
    screen.lines([", ".join(f"{count} {state}" for state, count in counts.items())])
    _show_failed(screen, entries)


def show_found(screen: Screen, entries: Sequence[Entry], rows: Sequence[Row]) -> None:
    """How often each prompt was found, and its volumes."""
    from statistics import median

    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row.get("prompt"), str):
            by_prompt.setdefault(str(row["prompt"]), []).append(row)
    table = []
    for prompt, asked in by_prompt.items():
        volumes = [
            float(str(row["volume_ml"])) for row in asked if row["found"] and row.get("volume_ml") is not None
        ]
        spread = f"{median(volumes):.1f} ({min(volumes):.1f} to {max(volumes):.1f})" if volumes else "–"
        table.append((prompt, f"{len(volumes)} of {len(asked)}", spread))
    if table:
        screen.table("Found", ("Prompt", "In scans", "Median volume (range), ml"), table[:MOST_SHOWN])
    _show_failed(screen, entries)


def _show_failed(screen: Screen, entries: Sequence[Entry]) -> None:
    failed = [(entry.id, entry.reason) for entry in entries if entry.state == "failed"]
    if failed:
        screen.table("Failed", ("Scan", "Why"), failed[:MOST_SHOWN])
    if len(failed) > MOST_SHOWN:
        screen.lines([f"and {len(failed) - MOST_SHOWN} more; all are in the tables."])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
