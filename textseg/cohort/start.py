"""From what was asked to jobs that can run: names without identifiers, and a cohort that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from textseg.cohort.jobs import JOURNAL_FILE, SECRET_FILE, CohortError, Settings
from textseg.cohort.journal import Journal, disk_in_words
from textseg.cohort.privacy import Pseudonyms, read_or_make_salt, temporary_salt
from textseg.cohort.request import FoundJobs, Naming, Request, find_jobs, may_be_kept
from textseg.embeddings.extras import import_extra


def start_cohort(request: Request, settings: Settings, out: Path) -> FoundJobs:
    """The jobs of a cohort in its folder, which is made, and what was asked kept there for `retry`.

    Raises:
        CohortError: see `find_jobs`.
        OutputError: the folder can't be made or written to.
        ModelError: a library that a format or the backend needs is not installed.
    """
    _need_libraries_for(settings)
    with disk_in_words(out), _nothing_left_of_a_false_start(out):
        out.mkdir(parents=True, exist_ok=True)
        salt = read_or_make_salt(out)
        with closing(Journal(out / JOURNAL_FILE, make=True)) as journal:
            naming = Naming(Pseudonyms(settings.ids, salt), journal.number_of)
            found = find_jobs(request, naming, leave_out=out)
            _refuse_names(journal, settings, found, out)
            is_safe = settings.ids == "keep" or may_be_kept(request, found.identifiers)
            journal.keep_fact("request", request.as_json() if is_safe else None)
            journal.keep_fact("settings", settings.as_json())
    return found


@contextmanager
def _nothing_left_of_a_false_start(out: Path) -> Iterator[None]:
    """What can't be found leaves neither journal nor salt where there was none, and no new folder."""
    was_there = out.exists()
    new = [path for path in (out / JOURNAL_FILE, out / SECRET_FILE) if not path.exists()]
    try:
        yield
    except CohortError:
        for path in new:
            path.unlink(missing_ok=True)
        if not was_there:
            with suppress(OSError):  # what somebody else put there meanwhile stays
                out.rmdir()
        raise


def _refuse_names(journal: Journal, settings: Settings, found: FoundJobs, out: Path) -> None:
    """What an earlier run named after patients stays in the folder, its tables and its report."""
    before = journal.fact("settings")
    if before is None or before["ids"] != "keep" or settings.ids == "keep":
        return
    if any(job.is_dicom for job in found.jobs):
        raise CohortError(
            f"{out} holds identifiers of patients from a run with --ids keep, which --ids {settings.ids} "
            "would not take away. Take another folder, or --ids keep."
        )


def _need_libraries_for(settings: Settings) -> None:
    # Said once before the start rather than for every scan.
    for ending, module in {"dicom-seg": "highdicom", "rtstruct": "skimage"}.items():
        if ending in settings.formats:
            import_extra(module, "dicom", f"--format {ending}")
    if settings.backend == "openvino":
        import_extra("openvino", "openvino", "--backend openvino")


def look_up_jobs(request: Request, settings: Settings, out: Path | None = None) -> FoundJobs:
    """The jobs of a cohort, with nothing written anywhere: DICOM scans have names for this once.

    Raises:
        CohortError: see `find_jobs`.
        ModelError: a library that a format or the backend needs is not installed.
    """
    _need_libraries_for(settings)
    numbers: dict[str, int] = {}
    naming = Naming(
        Pseudonyms(settings.ids, temporary_salt()),
        lambda handle: numbers.setdefault(handle, len(numbers) + 1),
    )
    return find_jobs(request, naming, leave_out=out)


def what_was_asked(out: Path) -> tuple[Request, Settings]:
    """The request and the settings of a cohort's last run.

    Raises:
        CohortError: the folder holds no cohort, or its sources could not be kept.
    """
    with closing(Journal(out / JOURNAL_FILE)) as journal:
        kept, settings = journal.fact("request"), journal.fact("settings")
    if settings is None or kept is None:
        raise CohortError(
            f"The sources of {out} were not kept, since their paths hold identifiers of a patient. "
            "Run the same `textseg cohort run` again with --retry-failed."
        )
    return Request.from_json(kept), Settings.from_json(settings)
