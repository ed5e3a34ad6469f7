"""`textseg cohort`: many scans at once, in a run that can be killed and goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from textseg.errors import OutputError, PromptError
from textseg_cli.cohort_tables import (
    estimate_lines,
    prompt_notes,
    show_found,
    show_problems,
    show_state,
)
from textseg_cli.exits import BAD_INPUT, FAILED, STOPPED, plain_errors
from textseg_cli.output import Screen, hide_library_warnings
from textseg_cli.predict import Device, ModalityChoice

if TYPE_CHECKING:
    from textseg.cohort.jobs import Settings
    from textseg.cohort.journal import Entry
    from textseg.cohort.request import Request
    from textseg.cohort.run import RunEnd, Stop
    from textseg.cohort.workers import Workers
    from textseg.device import DeviceChoice
    from textseg.volume import Modality as Kind

cohort = typer.Typer(
    help="Segment a whole cohort: checked first, in parallel, resumed after whatever stops it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
WHAT, HOW, WHERE, SHOWN = "What to segment", "How", "What to write", "What to print"


@dataclass(frozen=True)
class Hands:
    """Who does the work, as it was typed."""

    device: Device
    jobs: int | None
    threads: int | None
    timeout: float | None
    cluster: str | None
    options: tuple[str, ...]


class IdsChoice(StrEnum):
    KEEP = "keep"
    HASH = "hash"
    DROP = "drop"


class BackendChoice(StrEnum):
    TORCH = "torch"
    OPENVINO = "openvino"


class CohortFormat(StrEnum):
    NII_GZ = "nii.gz"
    NRRD = "nrrd"
    MHA = "mha"
    DICOM_SEG = "dicom-seg"
    RTSTRUCT = "rtstruct"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of scans, a BIDS dataset, a DICOM archive, a quoted glob, a list (.txt), or a table "
        "(.csv, .tsv, .json, .parquet) with the column scan, and if wanted prompts, id, model, modality.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="What to find in every scan; more scans may come before."),
]
PromptsFile = Annotated[
    Path | None, typer.Option(help="More prompts, one a line; # begins a comment.", rich_help_panel=WHAT)
]
Match = Annotated[
    str,
    typer.Option(
        metavar="PATTERN",
        help='Only scans whose file name (for DICOM, series description) fits, such as "*_T1w*".',
        rich_help_panel=WHAT,
    ),
]
Modality = Annotated[
    ModalityChoice,
    typer.Option(help="What the scans are; auto asks headers, then values.", rich_help_panel=WHAT),
]
Model = Annotated[
    str, typer.Option(metavar="NAME|PATH", help="A model by name, or its folder.", rich_help_panel=HOW)
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=HOW)]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Worker processes; by default one a GPU, or the cores shared out among several. On Slurm its "
        "jobs, by default one.",
        rich_help_panel=HOW,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Processor threads of each worker; an even share.", rich_help_panel=HOW),
]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.1, metavar="SECONDS", help="The longest for one scan.", rich_help_panel=HOW),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="local|slurm|ADDRESS",
        help="Run on a dask cluster: of this machine, of Slurm jobs, or at tcp://host:port.",
        rich_help_panel=HOW,
    ),
]
ClusterOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="For Slurm: queue, account, cores, memory, walltime, gpus, interface, directive, prologue.",
        rich_help_panel=HOW,
    ),
]
Ids = Annotated[
    IdsChoice,
    typer.Option(
        help="DICOM identifiers in names, tables and records: salted hashes, none, or as they are.",
        rich_help_panel=WHERE,
    ),
]
BackendOption = Annotated[
    BackendChoice,
    typer.Option(
        "--backend",
        help="What runs the image encoder on CPUs; the same for all scans, so that they can be compared.",
        rich_help_panel=HOW,
    ),
]
Formats = Annotated[
    list[CohortFormat] | None,
    typer.Option(
        "--format", help="Of the masks; repeatable; the scan's own by default.", rich_help_panel=WHERE
    ),
]
CleanUp = Annotated[
    bool | None,
    typer.Option(
        "--clean-up/--no-clean-up",
        help="Keep the largest part of a mask, fill its holes; or leave masks as they are. By default small "
        "stray parts of organs that are one piece are dropped, where the model's plan says so.",
        rich_help_panel=HOW,
    ),
]
WriteEmpty = Annotated[
    bool,
    typer.Option("--write-empty", help="Write a mask also for what is not found.", rich_help_panel=WHERE),
]
NoPreview = Annotated[bool, typer.Option("--no-preview", help="Write no pictures.", rich_help_panel=WHERE)]
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a cohort.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=SHOWN)]


@cohort.command()
@plain_errors()
def check(
    source: Source,
    prompts: Prompts = None,
    prompts_file: PromptsFile = None,
    match: Match = "",
    modality: Modality = ModalityChoice.AUTO,
    model: Model = "default",
    device: DeviceOption = Device.AUTO,
    jobs: Jobs = None,
    threads: Threads = None,
    backend: BackendOption = BackendChoice.TORCH,
    formats: Formats = None,
    ids: Ids = IdsChoice.HASH,
    no_preview: NoPreview = False,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="OUT", help="Where a run would write.", rich_help_panel=WHERE),
    ] = Path("cohort"),
    quiet: Quiet = False,
) -> None:
    """Read every scan, prompt and model as a run would, and write nothing.

    Shows what is wrong in one table, and how long a run will take and how much
    it will write. Exit code 2 if a scan can't be segmented.
    """
    from textseg.cohort.check import check_jobs, estimate, measure_speed
    from textseg.cohort.start import look_up_jobs
    from textseg.cohort.workers import places_for

    screen = _screen(quiet)
    settings = _settings(formats, False, False, no_preview, ids, backend)
    request = _request(source, prompts, prompts_file, match, modality, model)
    found = look_up_jobs(request, settings, out)
    places = places_for(device.value, jobs, threads)
    with screen.progress() as progress:
        looks = check_jobs(
            found.jobs, settings, min(jobs or len(places), len(os.sched_getaffinity(0))), progress
        )
        progress("segmenting one scan to estimate the time", 0, 1)
        speed = measure_speed(looks, found.jobs, device.value, places[0].threads, backend.value)
    problems = [
        *found.problems,
        *prompt_notes(found.jobs),
        *(one for look in looks for one in look.problems),
    ]
    if not quiet:
        show_problems(screen, problems)
        taken = estimate(looks, found.jobs, settings, out, len(places), speed)
        screen.lines(estimate_lines(looks, taken, len(places)))
    if any(problem.level == "error" for problem in problems):
        raise typer.Exit(BAD_INPUT)


@cohort.command()
@plain_errors()
def run(
    source: Source,
    prompts: Prompts = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="The folder for everything, new or to go on in.",
            rich_help_panel=WHERE,
        ),
    ] = Path("cohort"),
    prompts_file: PromptsFile = None,
    match: Match = "",
    modality: Modality = ModalityChoice.AUTO,
    model: Model = "default",
    device: DeviceOption = Device.AUTO,
    jobs: Jobs = None,
    threads: Threads = None,
    timeout: Timeout = None,
    cluster: Cluster = None,
    cluster_option: ClusterOption = None,
    backend: BackendOption = BackendChoice.TORCH,
    clean_up: CleanUp = None,
    formats: Formats = None,
    ids: Ids = IdsChoice.HASH,
    write_empty: WriteEmpty = False,
    no_preview: NoPreview = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Also what failed before and has not changed.", rich_help_panel=HOW
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Segment every scan of a cohort; the same command again goes on where it was stopped.

    Each scan gets a folder OUT/ID with masks, measures, a preview and a record;
    tables and a report lie above. A scan that fails is written down and the
    others go on; scans that are done are found by content, not by name. Ctrl+C
    finishes what is running, a second one stops at once.
    """
    settings = _settings(formats, clean_up, write_empty, no_preview, ids, backend)
    request = _request(source, prompts, prompts_file, match, modality, model)
    screen = _screen(quiet)
    hands = Hands(device, jobs, threads, timeout, cluster, tuple(cluster_option or ()))
    _run(screen, request, settings, out, hands, retry_failed=retry_failed)


@cohort.command()
@plain_errors()
def retry(
    out: Folder,
    scan: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Only these; all that failed by default.")
    ] = None,
    device: DeviceOption = Device.AUTO,
    jobs: Jobs = None,
    threads: Threads = None,
    timeout: Timeout = None,
    cluster: Cluster = None,
    cluster_option: ClusterOption = None,
    quiet: Quiet = False,
) -> None:
    """Try again what failed, after a file was mended or with more time."""
    from textseg.cohort.run import entries_of
    from textseg.cohort.start import what_was_asked

    screen = _screen(quiet)
    failed = [entry.id for entry in entries_of(out) if entry.state == "failed"]
    unknown = sorted({*(scan or [])} - {*failed})
    if unknown:
        raise PromptError(f"Only what failed can be tried again, but {unknown[0]} did not.")
    if not failed:
        screen.lines(["Nothing failed."])
        return
    request, settings = what_was_asked(out)
    hands = Hands(device, jobs, threads, timeout, cluster, tuple(cluster_option or ()))
    _run(screen, request, settings, out, hands, only=scan or failed, retry_failed=True)


@cohort.command()
@plain_errors()
def status(
    out: Folder,
    as_json: Annotated[
        bool, typer.Option("--json", help="All jobs on stdout.", rich_help_panel=SHOWN)
    ] = False,
) -> None:
    """How far a cohort is, and what failed for which reason; also while it runs."""
    from textseg.cohort.run import entries_of

    screen = Screen(json=as_json)
    entries = entries_of(out)
    if as_json:
        screen.lines([json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False)])
        return
    show_state(screen, entries)


@cohort.command()
@plain_errors()
def summary(out: Folder, quiet: Quiet = False) -> None:
    """Write the tables again and show what was found, prompt by prompt."""
    from textseg.cohort.run import entries_of

    screen = _screen(quiet)
    _finish(screen, out, entries_of(out))


@cohort.command()
@plain_errors()
def export(
    out: Folder,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new folder, or a new file ending in .zip.")],
    with_dicom: Annotated[
        bool,
        typer.Option("--with-dicom", help="Also DICOM SEG and RTSTRUCT, which name their patient."),
    ] = False,
) -> None:
    """Copy masks, previews, tables and the report to hand on, without the journal and the private file."""
    from textseg.cohort.export import export_cohort
    from textseg.cohort.run import entries_of

    count = export_cohort(out, entries_of(out), to, with_dicom=with_dicom)
    Screen().lines([f"Written to {to}: {count} files"])


# ---- what was typed ----


def _screen(quiet: bool) -> Screen:
    if quiet:
        hide_library_warnings()
    return Screen(quiet)


def _request(
    source: str,
    words: Sequence[str] | None,
    prompts_file: Path | None,
    match: str,
    modality: ModalityChoice,
    model: str,
) -> Request:
    from textseg.cohort.request import Request
    from textseg.prompts import read_prompts_file

    sources, prompts = _sources_and_prompts([source, *(words or [])])
    prompts += read_prompts_file(prompts_file) if prompts_file else []
    return Request(
        sources=tuple(os.path.abspath(one) for one in sources),
        prompts=tuple(prompts),
        model=os.path.abspath(model) if os.path.isdir(model) else model,
        modality=None if modality is ModalityChoice.AUTO else cast("Kind", modality.value),
        match=match,
    )


def _sources_and_prompts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The first word is a source; so are those after it that are files, as of a glob without quotes."""
    count = 1
    while count < len(words) and os.path.exists(words[count]):
        count += 1
    return list(words[:count]), list(words[count:])


def _settings(
    formats: Sequence[CohortFormat] | None,
    clean_up: bool | None,
    write_empty: bool,
    no_preview: bool,
    ids: IdsChoice,
    backend: BackendChoice,
) -> Settings:
    from textseg.cohort.jobs import Settings

    chosen = tuple(dict.fromkeys(one.value for one in formats or ()))
    return Settings(chosen, clean_up, write_empty, not no_preview, ids.value, backend.value)


# ---- a run ----


def _run(
    screen: Screen,
    request: Request,
    settings: Settings,
    out: Path,
    hands: Hands,
    only: Sequence[str] | None = None,
    retry_failed: bool = False,
) -> None:
    from textseg.cohort.run import Compute, Stop, entries_of, run_cohort
    from textseg.cohort.start import start_cohort

    found = start_cohort(request, settings, out)
    for problem in [*found.problems, *prompt_notes(found.jobs)]:
        screen.note(problem.what)
    workers, threads = _workers(hands)
    stop = Stop()
    with screen.progress() as progress, _asked_to_stop_by_signals(stop, screen):
        end = run_cohort(
            found.jobs,
            out,
            settings,
            workers,
            compute=Compute(hands.device.value, threads),
            only=only,
            retry_failed=retry_failed,
            stop=stop,
            progress=progress,
            failed=screen.warning,
        )
    _finish(screen, out, entries_of(out))
    _say_end(screen, end, out)


def _workers(hands: Hands) -> tuple[Workers, int | None]:
    """Who does the work, and with how many threads each."""
    device: DeviceChoice = hands.device.value
    if hands.cluster is None:
        from textseg.cohort.workers import LocalWorkers, places_for

        places = places_for(device, hands.jobs, hands.threads)
        return LocalWorkers(places, hands.timeout), places[0].threads
    from textseg.cohort.cluster import open_cluster, places_on, read_options

    options = read_options(hands.options)
    places = places_on(hands.cluster, device, hands.jobs, hands.threads, options)
    on_gpu = {Device.CPU: False, Device.CUDA: True}.get(hands.device)
    workers = open_cluster(hands.cluster, places, options, hands.timeout, on_gpu)
    return workers, places[0].threads if places else hands.threads


@contextmanager
def _asked_to_stop_by_signals(stop: Stop, screen: Screen) -> Iterator[None]:
    """Ctrl+C, and the signal with which Slurm and systemd end programs, ask the run to stop."""

    def ask(number: int, frame: object) -> None:
        stop.ask()
        if stop.requests == 1:
            screen.note("Stopping: finishing what is running; once more to stop at once.")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(screen: Screen, out: Path, entries: Sequence[Entry]) -> None:
    """Tables and pages from what is done, written and shown."""
    from textseg.cohort.summary import summary_rows, write_tables
    from textseg.report.cohort_page import write_cohort_report

    rows = summary_rows(out, entries)
    try:
        written = [*write_tables(out, rows), *write_cohort_report(out, rows)[:1]]
    except OutputError as error:
        # The disk may be full, which the end of the run tells; the masks are there.
        screen.warning(str(error))
        written = []
    if screen.quiet:
        return
    show_found(screen, entries, rows)
    if written:
        screen.lines([f"Written: {', '.join(str(path) for path in written)}"])


def _say_end(screen: Screen, end: RunEnd, out: Path) -> None:
    counts = f"{end.done} done ({end.found_done} of them before), {end.failed} failed, {end.pending} to do"
    if end.stopped == "disk":
        raise OutputError(
            f"The disk of {out} is full, so the run stopped with {counts}; nothing half-written is left. "
            "Make room and run the same command again to go on."
        )
    if end.stopped == "asked":
        screen.note(f"Stopped with {counts}. Run the same command again to go on.")
        raise typer.Exit(STOPPED)
    if not screen.quiet:
        screen.lines([f"{counts}, in {out}"])
    if end.failed:
        raise typer.Exit(FAILED)
