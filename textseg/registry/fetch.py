"""Fetching weights from the hub into the user's cache, checking them, and taking them away."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from textseg.atomic import write_bytes
from textseg.errors import ModelError, OutputError
from textseg.registry.entries import (
    NOTE_FILE,
    Entry,
    EntryFile,
    Note,
    NotedFile,
    find_entry,
    read_note,
    weights_folder,
)

# Each of them, set to anything but these, keeps us from the network.
OFFLINE_VARIABLES = ("TEXTSEG_OFFLINE", "HF_HUB_OFFLINE")
_NO = ("", "0", "false", "no", "off")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; size and sha256 are None where the hub does not tell them."""

    path: str
    bytes: int | None
    sha256: str | None


class Hub(Protocol):
    """Where repositories are."""

    def files(self, repository: str, revision: str | None) -> tuple[str, list[HubFile]]:
        """The commit that a revision (None: the newest) stands for, and its files."""
        ...

    def download(
        self, repository: str, commit: str, path: str, folder: Path, progress: Callable[[int], None]
    ) -> None:
        """Put a file where it belongs in a folder, going on with what an earlier try left there.

        progress is called with the number of bytes that came since the last call.
        """
        ...


class HuggingFace:
    """The hub of Hugging Face."""

    def files(self, repository: str, revision: str | None) -> tuple[str, list[HubFile]]:
        info = _library().HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
        found = [
            HubFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None)
            for each in info.siblings or []
        ]
        return str(info.sha), found

    def download(
        self, repository: str, commit: str, path: str, folder: Path, progress: Callable[[int], None]
    ) -> None:
        hf_hub_download = _library().hf_hub_download
        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
            options["tqdm_class"] = _counting(progress)
        else:
            import_module("huggingface_hub.utils").disable_progress_bars()
        hf_hub_download(repository, path, revision=commit, local_dir=folder, **options)


def fetch(
    name: str,
    *,
    accept_licence: bool = False,
    again: bool = False,
    hub: Hub | None = None,
    progress: Progress = lambda stage, done, of: None,
) -> Path:
    """Weights of the registry on this machine; the folder of the model.

    What is there already is not fetched again. An interrupted fetch goes on where it stopped. Every file is
    held against the hashes of the registry and of the hub before any of them is put in place.

    Args:
        accept_licence: the user accepts a licence that forbids commercial use; once is enough.
        again: fetch also what is there.
        progress: called with the file, the bytes that came and all bytes.

    Raises:
        ModelError: the name is unknown, the licence is not accepted, the network is forbidden or fails, or a
            file is not what it should be.
        OutputError: the cache can't be written.
    """
    entry = find_entry(name)
    if entry.is_here and not again:
        return entry.model_folder
    check_licence(entry, accept_licence)
    _refuse_offline(entry)
    hub = hub or HuggingFace()
    unfinished = weights_folder() / f".{entry.name}.partial"
    with _network(entry), _writing(unfinished):
        commit, there = hub.files(entry.repository, entry.revision)
        wanted = list(_wanted(entry, there))
        total = sum(file.bytes or 0 for file, _ in wanted)
        came = 0

        def count(path: str, more: int) -> None:
            nonlocal came
            came += more
            progress(path, min(came, total), total)

        for file, _ in wanted:
            hub.download(entry.repository, commit, file.path, unfinished, partial(count, file.path))
    with _writing(unfinished):
        files = {file.path: _checked(unfinished, file, expected) for file, expected in wanted}
        note = Note(
            name=entry.name,
            repository=entry.repository,
            revision=commit,
            licence=entry.licence,
            files=files,
        )
        put_in_place(entry, unfinished, note)
    return entry.model_folder


def put_in_place(entry: Entry, folder: Path, note: Note) -> None:
    """Make a folder of whole files the place of an entry, its note written last."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    write_bytes(folder / NOTE_FILE, (note.model_dump_json(indent=1) + "\n").encode())
    older = weights_folder() / f".{entry.name}.older"
    shutil.rmtree(older, ignore_errors=True)
    if entry.place.exists():
        os.replace(entry.place, older)
    os.replace(folder, entry.place)
    shutil.rmtree(older, ignore_errors=True)


def verify(name: str, progress: Progress = lambda stage, done, of: None) -> list[str]:
    """What is wrong with fetched weights, in words, a sentence a file; empty if nothing is.

    Raises:
        ModelError: they are not on this machine.
    """
    entry = find_entry(name)
    note = read_note(entry)
    wrong = []
    for number, (path, noted) in enumerate(note.files.items()):
        progress(path, number, len(note.files))
        place = entry.place / path
        if not place.is_file():
            wrong.append(f"{path} is missing")
        elif place.stat().st_size != noted.bytes:
            wrong.append(f"{path} has {place.stat().st_size:,} bytes instead of {noted.bytes:,}")
        elif sha256_of(place) != noted.sha256:
            wrong.append(f"{path} has changed since it was fetched")
    return wrong


def remove(name: str) -> int:
    """Take fetched weights, and what is left of an interrupted fetch, off this machine; the bytes freed.

    Raises:
        ModelError: the name is unknown, or nothing of it is here.
        OutputError: they can't be removed.
    """
    entry = find_entry(name)
    places = [entry.place, weights_folder() / f".{entry.name}.partial"]
    there = [place for place in places if place.exists()]
    if not there:
        raise ModelError(f"{entry.name} is not on this machine, so there is nothing to remove.")
    freed = sum(path.stat().st_size for place in there for path in place.rglob("*") if path.is_file())
    with _writing(entry.place):
        for place in there:
            shutil.rmtree(place)
    return freed


def convert_fetched(name: str) -> int:
    """Make fetched VoxTell weights smaller and free of pickles, in their place; the bytes saved.

    Raises:
        ModelError: they are not here, or are none of VoxTell.
        OutputError: the cache can't be written.
    """
    from textseg.models import find_model
    from textseg.network.voxtell.folder import convert

    entry = find_entry(name)
    note = read_note(entry)
    if entry.kind != "model" or find_model(entry.model_folder).kind != "voxtell":
        raise ModelError(f"What can be converted is a VoxTell folder, but {name} is none.")
    if note.converted:
        return 0
    made = weights_folder() / f".{entry.name}.partial"
    shutil.rmtree(made, ignore_errors=True)
    with _writing(made):
        written = convert(entry.model_folder, made / entry.folder)
        files = {
            path.relative_to(made).as_posix(): NotedFile(bytes=path.stat().st_size, sha256=sha256_of(path))
            for path in written
        }
        smaller = note.model_copy(update={"files": files, "converted": True})
        put_in_place(entry, made, smaller)
    return note.size_bytes - smaller.size_bytes


def is_accepted(entry: Entry) -> bool:
    """Whether nobody has to accept the licence, or somebody has."""
    return not entry.non_commercial or _accepted().get(entry.name) == entry.licence


def check_licence(entry: Entry, accept: bool) -> None:
    """Refuse weights whose licence forbids commercial use unless somebody accepts it, now or before.

    Raises:
        ModelError: nobody has accepted it.
        OutputError: it can't be noted that somebody has.
    """
    if is_accepted(entry):
        return
    if not accept:
        raise ModelError(
            f"{entry.name} is under the licence {entry.licence_text}, which forbids commercial use and has "
            "to be accepted once. Use --accept-licence if you do."
        )
    accepted = {**_accepted(), entry.name: entry.licence}
    document = {"accepted": accepted, "last": datetime.now(UTC).isoformat(timespec="seconds")}
    with _writing(_accepted_file()):
        write_bytes(_accepted_file(), (json.dumps(document, indent=1) + "\n").encode())


def offline_because() -> str | None:
    """The variable that forbids the network; None where none does."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").lower() not in _NO), None)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the licence ----


def _accepted_file() -> Path:
    return weights_folder() / "licences.json"


def _accepted() -> dict[str, str | None]:
    try:
        accepted = json.loads(_accepted_file().read_text(encoding="utf-8"))["accepted"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return accepted if isinstance(accepted, dict) else {}


# ---- the network ----


def _refuse_offline(entry: Entry) -> None:
    variable = offline_because()
    if variable:
        raise ModelError(
            f"Fetching needs the network, which {variable} forbids. Unset it, or bring {entry.name} from "
            "another machine: `textseg weights pack` there, `textseg weights fetch --from FILE` here."
        )


def _library() -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise ModelError(
            "Fetching needs huggingface_hub, which is not installed: pip install huggingface_hub. Or bring "
            "weights from elsewhere: `textseg weights pack` there, `textseg weights fetch --from FILE` here."
        ) from error


@contextmanager
def _network(entry: Entry) -> Iterator[None]:
    """Whatever the hub's library raises becomes one sentence."""
    try:
        yield
    except (ModelError, OutputError, OSError) as error:
        if _is_of_the_network(error):
            raise _unreachable(entry, error) from error
        raise
    except Exception as error:
        # Errors of httpx, requests and the hub's own have no parent in common but this.
        if _is_of_the_network(error):
            raise _unreachable(entry, error) from error
        raise


def _is_of_the_network(error: BaseException) -> bool:
    libraries = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "socket", "ssl", "hf_xet")
    by_library = any(kind.__module__.split(".")[0] in libraries for kind in type(error).__mro__)
    return by_library or isinstance(error, (ConnectionError, TimeoutError))


def _unreachable(entry: Entry, error: BaseException) -> ModelError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ModelError(
        f"{entry.name} can't be fetched from {entry.repository} ({type(error).__name__}: {reason}). Is the "
        "network there, and may you read the repository? What came so far is kept; run it again to go on."
    )


def _counting(progress: Callable[[int], None]) -> Any:
    """A silent progress bar, as the hub's library wants one, that only counts."""
    bar: Any = import_module("tqdm").tqdm

    class Counting(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> Any:
            progress(int(n or 0))
            return super().update(n)

    return Counting


class _Nowhere:
    """A stream that forgets."""

    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return None


# ---- the files ----


def _wanted(entry: Entry, there: Sequence[HubFile]) -> Iterator[tuple[HubFile, EntryFile]]:
    """The files of an entry that a repository has, each with what the registry says of it."""
    for expected in entry.files:
        found = [file for file in there if _matches(file.path, expected.path)]
        if not found and not expected.optional:
            raise ModelError(
                f"{entry.name} has {expected.path} by the registry, but {entry.repository} has no such file. "
                "Was it moved? A newer textseg may know."
            )
        yield from ((file, expected) for file in found)


def _matches(path: str, pattern: str) -> bool:
    # A star stays within one folder.
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def _checked(folder: Path, file: HubFile, expected: EntryFile) -> NotedFile:
    """Size and hash of a fetched file; one that is not what it should be is taken away, so it comes anew."""
    path = folder / file.path
    size, digest = path.stat().st_size, sha256_of(path)
    hashes = {wanted for wanted in (file.sha256, expected.sha256) if wanted}
    if (file.bytes is not None and size != file.bytes) or hashes - {digest}:
        path.unlink()
        raise ModelError(
            f"A fetched file must be the one that was asked for, but {file.path} has {size:,} bytes and the "
            f"sha256 {digest[:12]}…, not {', '.join(sorted(h[:12] + '…' for h in hashes)) or file.bytes}. "
            "Run it again to fetch it anew."
        )
    return NotedFile(bytes=size, sha256=digest)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except (OutputError, ModelError):
        raise
    except OSError as error:
        if _is_of_the_network(error):
            raise
        raise OutputError(
            f"Weights are kept in {weights_folder()}, but {place.name} can't be written there "
            f"({error.strerror or error}). Is the disk full? TEXTSEG_CACHE chooses another folder."
        ) from error
