"""A cohort to hand on: masks, previews and tables as a folder or a zip, without journal and secrets."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from textseg.atomic import written_whole
from textseg.cohort.folders import read_record
from textseg.cohort.jobs import REPORT, TABLES, CohortError
from textseg.cohort.journal import Entry
from textseg.errors import OutputError

# 1980 is the first year that a zip can hold; one time for all makes equal exports equal files.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
# Objects that name their patient, whatever the choice of --ids: only they can be.
DICOM_ENDING = ".dcm"


def export_cohort(out: Path, entries: Sequence[Entry], to: Path, *, with_dicom: bool = False) -> int:
    """Copy what is done to a new folder, or to a new file that ends in .zip; gives the number of files.

    Each scan has a folder with its masks, preview, measures and record; the tables and the report lie above.

    Args:
        with_dicom: also DICOM SEG and RTSTRUCT, which hold their patient's name and numbers.

    Raises:
        CohortError: nothing is done yet.
        OutputError: something is at the place already, or it can't be written.
    """
    files = list(_files(out, entries, with_dicom))
    if not any(entry.state == "done" for entry in entries):
        raise CohortError(f"An export needs at least one finished scan, but {out} has none.")
    if os.path.lexists(to):
        raise OutputError(f"An export never replaces what is there, but {to} exists. Choose another name.")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write = _write_zip if to.suffix.lower() == ".zip" else _write_folder
        write(files, out, to)
    except OSError as error:
        raise OutputError(f"{to} can't be written: {error.strerror or error}.") from error
    return len(files)


def _files(out: Path, entries: Sequence[Entry], with_dicom: bool) -> Iterator[Path]:
    """What to copy: of each job only what its record lists, so that nothing strange slips in."""
    yield from (path for path in sorted(out.glob(f"{TABLES}.*")) if path.is_file())
    report = out / f"{REPORT}.html"
    if report.is_file():
        yield report
    yield from (path for path in sorted((out / REPORT).rglob("*")) if path.is_file())
    for entry in entries:
        if entry.state != "done":
            continue
        try:
            names = read_record(out / entry.id)["cohort"]["files"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        kept = [name for name in names if with_dicom or not name.endswith(DICOM_ENDING)]
        yield from (out / entry.id / name for name in sorted({*kept, "result.json"}))


def _write_folder(files: Sequence[Path], out: Path, to: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".textseg-", dir=to.parent) as hidden:
        whole = Path(hidden) / "export"
        whole.mkdir()
        for path in files:
            target = whole / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        os.replace(whole, to)


def _write_zip(files: Sequence[Path], out: Path, to: Path) -> None:
    with (
        written_whole(to) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for path in files:
            entry = zipfile.ZipInfo(f"{to.stem}/{path.relative_to(out).as_posix()}", ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target)
