"""What a cohort is asked for, and its jobs: of folders, globs, lists, BIDS, DICOM archives and manifests."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from textseg.cohort.archive import Series, find_series, looks_like_dicom, series_called
from textseg.cohort.bids import find_bids_scans, is_bids
from textseg.cohort.jobs import JOURNAL_FILE, CohortError, Extra, Job, Problem, safe_id, with_unique_ids
from textseg.cohort.manifest import ENDINGS as MANIFESTS
from textseg.cohort.manifest import ManifestRow, read_manifest
from textseg.cohort.privacy import Pseudonyms, hide, names_on
from textseg.scan.formats import ending_of
from textseg.volume import Modality

LISTS = (".txt", ".lst")
WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Request:
    """What was asked for, as it can be asked for again by `textseg cohort retry`.

    Args:
        sources: folders, files, globs, lists and manifests, as they were typed but absolute.
        prompts: for all scans whose manifest gives none.
        match: only scans whose file name fits this pattern, such as "*_T1w*"; empty for all.
    """

    sources: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    model: str = "default"
    modality: Modality | None = None
    match: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Request:
        several = {name: tuple(document[name]) for name in ("sources", "prompts")}
        return cls(**{**document, **several})


@dataclass(frozen=True)
class Naming:
    """How DICOM scans are named: by pseudonyms, or by numbers that are given out one after the other."""

    pseudonyms: Pseudonyms
    number_of: Callable[[str], int]

    def of(self, series: Series) -> str:
        if self.pseudonyms.ids == "keep":
            return safe_id("_".join(filter(None, (series.patient, series.number, series.description))))
        handle = self.pseudonyms.of("series", series.handle)
        if self.pseudonyms.ids == "drop":
            return f"scan{self.number_of(handle):04d}"
        return f"p{self.pseudonyms.of('patient', series.patient)}_s{handle}"


@dataclass(frozen=True)
class FoundJobs:
    """The jobs of a request, what was passed over on the way to them, and identifiers in their headers."""

    jobs: tuple[Job, ...]
    problems: tuple[Problem, ...]
    identifiers: frozenset[str] = frozenset()


def find_jobs(request: Request, naming: Naming, leave_out: Path | None = None) -> FoundJobs:
    """All scans of a request as jobs with ids of their own.

    Args:
        leave_out: the cohort's own output, which may lie among the scans.

    Raises:
        CohortError: a source is missing, a manifest is bad, or nothing was found.
    """
    finder = _Finder(request, naming, leave_out.resolve() if leave_out else None)
    jobs = [job for source in request.sources for job in finder.jobs_in(source)]
    jobs += finder.jobs_of_slices()
    if not jobs:
        seen = "".join(f" {problem.what}." for problem in finder.problems())
        raise CohortError(
            f"A cohort needs at least one scan, but {_listed(request.sources)} holds none.{seen}"
        )
    lacking = next((job for job in jobs if not job.prompts), None)
    if lacking is not None:
        raise CohortError(
            "Every scan needs a prompt, but none was given for the cohort"
            f"{' or for one of its rows' if len(request.sources) == 1 else ''}. "
            'Add one, such as "liver".'
        )
    return FoundJobs(tuple(with_unique_ids(jobs)), tuple(finder.problems()), frozenset(finder.identifiers))


def may_be_kept(request: Request, identifiers: Iterable[str]) -> bool:
    """Whether the paths of a request are free of a patient's identifiers, and so may lie in the output."""
    return all(hide(source, identifiers) == source for source in request.sources)


class _Finder:
    """The sources of a request, one after the other, and the counts of what was passed over."""

    def __init__(self, request: Request, naming: Naming, leave_out: Path | None) -> None:
        self.request, self.naming, self.leave_out = request, naming, leave_out
        self.passed_over: Counter[str] = Counter()
        self.slices: list[Path] = []
        self.identifiers: set[str] = set()

    def problems(self) -> list[Problem]:
        return [
            Problem("the sources", f"Passed over: {count} × {kind}", "note")
            for kind, count in sorted(self.passed_over.items())
        ]

    def jobs_in(self, source: str) -> Iterator[Job]:
        path = Path(source)
        if not path.exists() and WILDCARDS.search(source):
            yield from self._listed(map(Path, sorted(glob.glob(source, recursive=True))), _fixed_part(source))
        elif path.is_dir():
            yield from self._in_folder(path)
        elif not path.exists():
            raise CohortError(f"A cohort's scans must exist, but there is no file or folder {source}.")
        elif path.suffix.lower() in MANIFESTS:
            yield from (self._of_row(row) for row in read_manifest(path))
        elif path.suffix.lower() in LISTS:
            yield from self._listed(_lines(path), path.parent)
        elif looks_like_dicom(path):
            if not self._is_own(path):
                self.slices.append(path)
        else:
            yield from self._listed([path], path.parent)

    def jobs_of_slices(self) -> Iterator[Job]:
        """Those of DICOM files that were sources one by one, as are the slices of a glob without quotes."""
        if self.slices:
            parents = {str(_absolute(path).parent) for path in self.slices}
            yield from self._of_files(self.slices, Path(os.path.commonpath(parents)))

    def _in_folder(self, folder: Path) -> Iterator[Job]:
        if is_bids(folder):
            for scan in find_bids_scans(folder, self.passed_over):
                if self._is_wanted(scan.path):
                    yield self._job((scan.path,), scan.name, scan.modality, scan.extra)
            return
        yield from self._of_files(list(self._files_below(folder)), folder)

    def _listed(self, paths: Iterable[Path], root: Path) -> Iterator[Job]:
        """Jobs of files as they were listed; of a folder among them, all that it holds."""
        files = []
        for path in paths:
            if path.is_dir():
                yield from self._of_files(list(self._files_below(path)), path)
            elif not self._is_own(path):
                files.append(path)
        yield from self._of_files(files, root)

    def _of_files(self, files: Sequence[Path], root: Path) -> Iterator[Job]:
        dicom = []
        for path in files:
            ending = ending_of(path.name)
            if ending is not None and ending != ".dcm":
                if self._is_wanted(path):
                    inner = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
                    yield self._job((path,), "_".join(inner.parts)[: -len(ending)])
            elif looks_like_dicom(path):
                dicom.append(path)
            elif ending == ".dcm":
                self.passed_over["file named .dcm that is no DICOM"] += 1
            elif not path.exists():
                # A list may name what is gone; its job fails with a reason of its own.
                yield self._job((path,), path.name)
        archive = find_series(dicom)
        self.passed_over += archive.passed_over
        for series in archive.series:
            if self._is_wanted(Path(series.description)):
                yield self._dicom_job(series, root)

    def _job(
        self, scan: tuple[Path, ...], name: str, modality: Modality | None = None, extra: Extra | None = None
    ) -> Job:
        return Job(
            id=safe_id(name),
            scan=tuple(map(_absolute, scan)),
            prompts=self.request.prompts,
            model=self.request.model,
            modality=self.request.modality or modality,
            extra=extra or {},
        )

    def _dicom_job(self, series: Series, root: Path, name: str = "") -> Job:
        self.identifiers |= series.identifiers
        hidden = series.identifiers | series.descriptions | names_on(series.files, _absolute(root))
        return replace(
            self._job((series.files[0].parent,), name or self.naming.of(series)),
            slices=series.files,
            is_dicom=True,
            hidden=tuple(sorted(hidden)),
        )

    def _of_row(self, row: ManifestRow) -> Job:
        is_dicom = any(path.is_dir() or looks_like_dicom(path) for path in row.scan)
        job = self._dicom_row(row) if is_dicom else self._job(row.scan, row.id or _stem(row.scan[0]))
        ids = self.naming.pseudonyms.ids
        extra = row.extra if ids == "keep" or not is_dicom else _hidden_in(row.extra, job.hidden)
        if is_dicom and ids != "keep" and row.id and hide(row.id, self.identifiers) != row.id:
            raise CohortError(
                f"Row {row.number} of the manifest names its scan after an identifier in a DICOM header. "
                "Take another id, leave it empty for a pseudonym, or use --ids keep."
            )
        return replace(
            job,
            prompts=row.prompts or job.prompts,
            model=row.model or job.model,
            modality=row.modality or job.modality,
            series=row.series if not job.slices else None,
            volume=row.volume,
            extra=extra,
        )

    def _dicom_row(self, row: ManifestRow) -> Job:
        """The series that a row means; where that is not clear, or with several channels, its folders."""
        files = [file for path in row.scan for file in (self._files_below(path) if path.is_dir() else [path])]
        found = find_series(path for path in files if looks_like_dicom(path)).series
        meant = found if row.series is None else series_called(found, row.series)
        root = row.scan[0].parent
        if len(meant) == len(row.scan) == 1:
            return self._dicom_job(meant[0], root, row.id)
        hidden = {one for series in found for one in series.identifiers}
        self.identifiers |= hidden
        hidden |= {one for series in found for one in series.descriptions}
        hidden |= names_on([*files, *(path / "file" for path in row.scan)], _absolute(root))
        job = self._job(row.scan, row.id or f"row{row.number:04d}")
        return replace(job, is_dicom=True, hidden=tuple(sorted(hidden)))

    def _files_below(self, folder: Path) -> Iterator[Path]:
        seen: set[str] = set()
        for parent, folders, names in os.walk(folder, followlinks=True):
            here = Path(parent)
            place = os.path.realpath(here)
            # Links may lead to one place by two ways, or round in circles.
            if place in seen or JOURNAL_FILE in names or self._is_own(here):
                # Or it is the output of this cohort, or of another one.
                folders.clear()
                continue
            seen.add(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (here / name for name in sorted(names) if not name.startswith("."))

    def _is_own(self, path: Path) -> bool:
        return self.leave_out is not None and path.resolve().is_relative_to(self.leave_out)

    def _is_wanted(self, path: Path) -> bool:
        return not self.request.match or fnmatch(path.name, self.request.match)


def _hidden_in(extra: Extra, hidden: Iterable[str]) -> dict[str, str | int | float | bool | None]:
    """The columns without identifiers; a number that is one is taken away whole."""
    cleaned: dict[str, str | int | float | bool | None] = {}
    for name, value in extra.items():
        shown = hide(str(value), hidden)
        cleaned[name] = value if shown == str(value) else shown
    return cleaned


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _stem(path: Path) -> str:
    return path.name[: -len(ending_of(path.name) or "") or None]


def _fixed_part(pattern: str) -> Path:
    """The folders of a glob before its first wildcard."""
    parts = Path(pattern).parts
    first = next(number for number, part in enumerate(parts) if WILDCARDS.search(part))
    return Path(*parts[:first]) if first else Path()


def _lines(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(
            f"A list of scans must be UTF-8 text, one path a line, but {path} is not."
        ) from error
    return [
        path.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")
    ]


def _listed(sources: Sequence[str]) -> str:
    return ", ".join(sources)
