"""What can be fetched, as `entries.json` has it, and where it lies once it is; loads no torch.

A revision, a hash or a size that we have not seen for ourselves is null there. What was fetched is noted
beside the files with the revision and the hashes that came, so it can be verified in any case.
"""

from __future__ import annotations

import difflib
import functools
import json
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textseg.embeddings.files import user_cache
from textseg.errors import ModelError

NOTE_FILE = "fetched.json"
NOTE_FORMAT: Final = "textseg-fetched-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EntryFile(_Part):
    """A file of a repository, or all that match a pattern such as "*.json" in its top folder."""

    path: str
    sha256: str | None
    optional: bool = False


class Entry(_Part):
    """Weights that can be fetched.

    Args:
        name: of the entry; an encoder's is the last part of its repository's, in lower case.
        alias: a shorter name, of the newest version.
        kind: "model" for `--model`, "encoder" for a text encoder, "start" for an image encoder to train from,
            "foreign" for what can be fetched and read, but not run.
        repository: on the hub.
        revision: a commit, or null for the newest.
        folder: the part of the repository that is the model.
        size_bytes: of all files; null where unknown.
        licence: null where unknown; it is then the repository's to tell.
        non_commercial: whether the licence has to be accepted first.
        needs: extras of textseg.
        use: how it is used: an option, or a section of a plan.
        parameters_millions: of the whole network; null where its authors do not tell.
        memory: what it takes, in words; null where nobody has measured it.
        missing: of "foreign" ones, what would have to be known to run them.
    """

    name: str
    title: str
    kind: Literal["model", "encoder", "start", "foreign"]
    repository: str
    revision: str | None
    files: tuple[EntryFile, ...] = Field(min_length=1)
    folder: str
    size_bytes: int | None
    licence: str | None
    non_commercial: bool
    citation: str
    needs: tuple[str, ...]
    use: str
    parameters_millions: float | None
    memory: str | None
    missing: str | None = None
    alias: str | None = None

    def is_called(self, name: str) -> bool:
        return name in (self.name, self.alias)

    @property
    def place(self) -> Path:
        """Where its files lie once they are fetched, as in the repository."""
        return weights_folder() / self.name

    @property
    def model_folder(self) -> Path:
        return self.place / self.folder

    @property
    def is_here(self) -> bool:
        return (self.place / NOTE_FILE).is_file()

    @property
    def licence_text(self) -> str:
        return self.licence or f"the one that {self.repository} tells"


class NotedFile(_Part):
    bytes: int
    sha256: str


class Note(_Part):
    """What was fetched: noted beside the files, by their paths."""

    format: Literal["textseg-fetched-1"] = NOTE_FORMAT
    name: str
    repository: str
    revision: str
    licence: str | None
    converted: bool = False
    files: dict[str, NotedFile]

    @property
    def size_bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def weights_folder() -> Path:
    """Where fetched weights lie, an entry a folder."""
    return user_cache() / "weights"


@functools.cache
def all_entries() -> tuple[Entry, ...]:
    """Everything that can be fetched, in the order of the file."""
    text = resources.files(__package__).joinpath("entries.json").read_text(encoding="utf-8")
    return tuple(Entry.model_validate(entry) for entry in json.loads(text)["entries"])


def find_entry(name: str) -> Entry:
    """The entry of a name or an alias.

    Raises:
        ModelError: there is none, with those that are near.
    """
    found = next((entry for entry in all_entries() if entry.is_called(name)), None)
    if found is None:
        names = [entry.name for entry in all_entries()]
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.4) or names
        raise ModelError(
            f"Weights are fetched by a name of the registry, got {name!r}. Did you mean {' or '.join(near)}?"
        )
    return found


def read_note(entry: Entry) -> Note:
    """What was noted when an entry was fetched.

    Raises:
        ModelError: it was not fetched, or the note is damaged.
    """
    path = entry.place / NOTE_FILE
    try:
        return Note.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{entry.name} is not on this machine. Get it with `textseg weights fetch {entry.name}`."
        ) from error
    except ValidationError as error:
        raise ModelError(
            f"The note of what was fetched, {path}, is damaged. Fetch {entry.name} again with --again."
        ) from error
