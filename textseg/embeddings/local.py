"""Where the files of another project's encoder lie on this machine; nothing here asks the network."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from textseg.embeddings.files import user_cache
from textseg.errors import ModelError

# Read whole for a fingerprint up to this size; of larger files size, ends and time of change count.
SMALL_BYTES = 16 << 20
END_BYTES = 1 << 20


def find_local(source: str, beside: Path | None = None) -> Path | None:
    """The folder of an encoder: as it is, beside a plan, fetched by textseg, or in the hub's own cache.

    Args:
        source: a folder, or a name on the hub ("Qwen/Qwen3-Embedding-4B").
        beside: a model's folder, in which the source may lie.
    """
    source = source.removeprefix("hf-hub:").removeprefix("local-dir:")
    fetched = user_cache() / "weights" / source.rpartition("/")[2].lower()
    for place in (*([beside / source] if beside else []), Path(source), fetched):
        if place.is_dir():
            return place
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return None
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        # Without the hub's library there is no cache of it either.
        return None
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def need_local(source: str, beside: Path | None = None) -> Path:
    """As `find_local`, for what can't be done without.

    Raises:
        ModelError: it is not on this machine.
    """
    folder = find_local(source, beside)
    if folder is None:
        raise ModelError(
            f"A text encoder must lie on this machine, but {source!r} does not. Fetch it with "
            f"`textseg weights fetch` or `hf download {source}`, or give its folder."
        )
    return folder


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object in an encoder's folder.

    Raises:
        ModelError: the file is missing or no JSON object.
    """
    path = folder / name
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"A text encoder's folder holds {name}, but {path} can't be read ({type(error).__name__}). "
            "Is the folder complete?"
        ) from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} must be a JSON object, got a {type(document).__name__}.")
    return document


def fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits that change with the files of a folder, cheap for gigabytes of weights."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside, facts = path.relative_to(folder), path.stat()
        # What downloaders keep beside the files.
        if any(part.startswith(".") for part in inside.parts):
            continue
        digest.update(f"{inside}\0{facts.st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SMALL_BYTES if facts.st_size <= SMALL_BYTES else END_BYTES))
            if facts.st_size > SMALL_BYTES:
                file.seek(-END_BYTES, 2)
                digest.update(file.read() + str(facts.st_mtime_ns).encode())
    return digest.hexdigest()[:12]
