"""Fetched weights in one file, and from that file onto a machine without network."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from textseg.atomic import written_whole
from textseg.errors import ModelError, OutputError
from textseg.registry.entries import (
    NOTE_FILE,
    Entry,
    Note,
    all_entries,
    find_entry,
    read_note,
    weights_folder,
)
from textseg.registry.fetch import check_licence, put_in_place, sha256_of, verify

Progress = Callable[[str, int, int], None]
# A note lists some dozens of files.
LONGEST_NOTE = 1_000_000


def pack(
    bundle: Path,
    names: Sequence[str] = (),
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, of: None,
) -> list[str]:
    """Write fetched weights into one zip file, not compressed; the names of what is in it.

    Args:
        names: of the entries; all that are on this machine if there are none.

    Raises:
        ModelError: an entry is not on this machine or damaged, or there is none at all.
        OutputError: the file is there already or can't be written.
    """
    entries = [find_entry(name) for name in names] or [entry for entry in all_entries() if entry.is_here]
    if not entries:
        raise ModelError("There are no fetched weights to pack. Get some with `textseg weights fetch NAME`.")
    if bundle.exists() and not overwrite:
        raise OutputError(f"Files are never replaced unasked, but {bundle} is there. Use --overwrite.")
    for entry in entries:
        wrong = verify(entry.name, progress)
        if wrong:
            raise ModelError(
                f"Only whole weights are packed, but of {entry.name} {wrong[0]}. Fetch it with --again."
            )
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(bundle) as unfinished:
            _write(unfinished, entries, progress)
    except OSError as error:
        raise OutputError(f"{bundle} can't be written: {error.strerror or error}.") from error
    return [entry.name for entry in entries]


def unpack(
    bundle: Path,
    names: Sequence[str] = (),
    *,
    accept_licence: bool = False,
    progress: Progress = lambda stage, done, of: None,
) -> list[str]:
    """Put the weights of a packed file where fetched ones lie; the names of what was in it.

    Nothing of the file is trusted: only files that its notes list are read, each has to have the hash noted
    there, and a path that leads elsewhere is refused.

    Args:
        names: of the entries to take; all if there are none.
        accept_licence: the user accepts licences that forbid commercial use; once is enough.

    Raises:
        ModelError: the file is none of ours or damaged, or lacks an entry, or a licence is not accepted.
        OutputError: the cache can't be written.
    """
    with _reading(bundle), zipfile.ZipFile(bundle) as archive:
        chosen = _chosen(archive, names)
        for entry in chosen:
            check_licence(entry, accept_licence)
        for entry in chosen:
            _take(archive, entry, progress)
    return [entry.name for entry in chosen]


def bundled(bundle: Path, names: Sequence[str] = ()) -> list[Entry]:
    """The entries that a packed file holds, of some names or all of them.

    Raises:
        ModelError: the file is none of ours or damaged, or lacks an entry.
    """
    with _reading(bundle), zipfile.ZipFile(bundle) as archive:
        return _chosen(archive, names)


@contextmanager
def _reading(bundle: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        EOFError,
        ValidationError,
        NotImplementedError,
    ) as error:
        raise ModelError(
            f"A bundle is a whole file of `textseg weights pack`, but {bundle} can't be read so "
            f"({type(error).__name__}). Copy it again."
        ) from error
    except FileNotFoundError as error:
        raise ModelError(f"A bundle is a file that can be read, but {bundle} is not there.") from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{bundle} can't be unpacked into {weights_folder()}: {error.strerror or error}."
        ) from error


def _chosen(archive: zipfile.ZipFile, names: Sequence[str]) -> list[Entry]:
    held = {path.partition("/")[0] for path in archive.namelist() if path.endswith(f"/{NOTE_FILE}")}
    chosen = [find_entry(name) for name in (names or sorted(held))]
    missing = [entry.name for entry in chosen if entry.name not in held]
    if missing or not chosen:
        raise ModelError(
            f"A bundle holds what `textseg weights pack` put in it, but {archive.filename} has "
            f"{', '.join(sorted(held)) or 'nothing of it'}, not {', '.join(missing) or 'weights'}. "
            "Copy it again if it should."
        )
    return chosen


def _write(path: Path, entries: Sequence[Entry], progress: Progress) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry in entries:
            files = [*read_note(entry).files, NOTE_FILE]
            for number, file in enumerate(files):
                progress(f"packing {entry.name}", number, len(files))
                archive.write(entry.place / file, f"{entry.name}/{file}")


def _take(archive: zipfile.ZipFile, entry: Entry, progress: Progress) -> None:
    described = archive.getinfo(f"{entry.name}/{NOTE_FILE}")
    if described.file_size > LONGEST_NOTE:
        raise ModelError(f"The note of {entry.name} in {archive.filename} is too long to be one.")
    note = Note.model_validate_json(archive.read(described))
    folder = weights_folder() / f".{entry.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, (path, noted) in enumerate(note.files.items()):
        progress(f"unpacking {entry.name}", number, len(note.files))
        place = folder / path
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ModelError(
                f"A bundle's files lie in their own folder, but {archive.filename} has {path!r}."
            )
        member = archive.getinfo(f"{entry.name}/{path}")
        if member.file_size != noted.bytes:
            raise ModelError(
                f"{path} of {entry.name} has {member.file_size:,} bytes in {archive.filename} instead of "
                f"{noted.bytes:,}. Copy the bundle again."
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, place.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        if sha256_of(place) != noted.sha256:
            raise ModelError(f"{path} of {entry.name} is damaged in {archive.filename}. Copy it again.")
    put_in_place(entry, folder, note)
