"""The journal of a cohort: which job is in which state, in one SQLite file that survives being killed.

Only the process that runs the cohort writes to it; workers report to that process. The journal is kept with
SQLite's own rollback journal and full syncs, which also hold on network disks and after a power cut.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from textseg.cohort.jobs import CohortError, Extra
from textseg.errors import OutputError

State = Literal["pending", "running", "done", "failed"]
STATES: tuple[State, ...] = ("pending", "running", "done", "failed")
FORMAT = "textseg-cohort-1"
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
    reason TEXT NOT NULL DEFAULT '',
    key TEXT NOT NULL DEFAULT '',
    scan TEXT NOT NULL,
    model TEXT NOT NULL,
    prompts TEXT NOT NULL,
    extra TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    seconds REAL,
    finished TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (key);
CREATE TABLE IF NOT EXISTS seen (signature TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (handle TEXT PRIMARY KEY, number INTEGER NOT NULL);
"""
ADD_OR_UPDATE = """
INSERT INTO jobs (id, state, scan, model, prompts, extra) VALUES (?, 'pending', ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET scan = excluded.scan, model = excluded.model, prompts = excluded.prompts,
    extra = excluded.extra
"""


@dataclass(frozen=True)
class Entry:
    """One job as the journal knows it.

    Args:
        scan: where the scan is; empty for a DICOM scan whose names are hidden.
        key: the hash of scan, model, prompts and settings; empty before it was worked out.
        seconds: that the last attempt took.
        finished: when it was done or failed, ISO 8601 in UTC; empty before.
    """

    id: str
    state: State
    reason: str
    key: str
    scan: str
    model: str
    prompts: tuple[str, ...]
    extra: Extra
    attempts: int = 0
    seconds: float | None = None
    finished: str = ""


class Journal:
    """A cohort's journal, opened for reading or for a run.

    Raises:
        CohortError: there is none, it can't be opened, or it was written by another version.
    """

    def __init__(self, path: Path, *, make: bool = False) -> None:
        self.path = path
        if not make and not path.is_file():
            raise CohortError(
                f"The folder of a cohort holds {path.name}, but {path.parent} has none. "
                "Start one with `textseg cohort run`."
            )
        try:
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._base.execute("PRAGMA synchronous = FULL")
            if make:
                self._base.executescript(SCHEMA)
                first = [("format", FORMAT), ("begun", json.dumps(_now()))]
                self._base.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", first)
            found = self.fact("format")
        except sqlite3.DatabaseError as error:
            if is_full(error):
                raise
            raise CohortError(
                f"{path} must be the journal of a cohort, but it can't be opened: {error}. "
                "Delete it to start again; finished scans are found by what their folders hold."
            ) from error
        if found != FORMAT:
            raise CohortError(
                f"{path} must be of the format {FORMAT}, got {found}. Use that version of textseg."
            )

    def close(self) -> None:
        self._base.close()

    # ---- facts of the whole cohort ----

    def fact(self, name: str) -> Any:
        """What was kept under a name; None where nothing was."""
        row = self._base.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else _loaded(row[0])

    @property
    def begun(self) -> str:
        """When the cohort was begun, ISO 8601 in UTC."""
        return str(self.fact("begun"))

    def keep_fact(self, name: str, value: Any) -> None:
        self._base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    # ---- jobs ----

    def register(self, entries: Iterable[Entry]) -> None:
        """Take the jobs of a run: new ones are pending, known ones keep their state, others than done go.

        What was running when an earlier run ended is pending again.
        """
        with self._all_or_nothing():
            self._base.execute("UPDATE jobs SET state = 'pending' WHERE state = 'running'")
            asked = set()
            for entry in entries:
                asked.add(entry.id)
                self._base.execute(ADD_OR_UPDATE, _row_of(entry))
            for (known,) in self._base.execute("SELECT id FROM jobs WHERE state != 'done'").fetchall():
                if known not in asked:
                    self._base.execute("DELETE FROM jobs WHERE id = ?", (known,))

    def start(self, job: str, key: str) -> None:
        self._base.execute(
            "UPDATE jobs SET state = 'running', reason = '', key = ?, attempts = attempts + 1, "
            "seconds = NULL, finished = NULL WHERE id = ?",
            (key, job),
        )

    def release(self, job: str) -> None:
        """Back to pending, as if it had not been started."""
        self._base.execute(
            "UPDATE jobs SET state = 'pending', attempts = MAX(0, attempts - 1) WHERE id = ?", (job,)
        )

    def finish(self, job: str, key: str, seconds: float | None = None) -> None:
        """Done; without seconds, where an earlier run had done it already."""
        self._base.execute(
            "UPDATE jobs SET state = 'done', reason = '', key = ?, seconds = COALESCE(?, seconds), "
            "finished = COALESCE(?, finished, ?) WHERE id = ?",
            (key, seconds, _now() if seconds is not None else None, _now(), job),
        )

    def fail(self, job: str, reason: str, seconds: float | None = None) -> None:
        self._base.execute(
            "UPDATE jobs SET state = 'failed', reason = ?, seconds = ?, finished = ? WHERE id = ?",
            (reason, seconds, _now(), job),
        )

    def forget(self, job: str) -> None:
        """As if it had never been."""
        self._base.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def entries(self) -> list[Entry]:
        """All jobs by their ids."""
        rows = self._base.execute(
            "SELECT id, state, reason, key, scan, model, prompts, extra, attempts, seconds, finished "
            "FROM jobs ORDER BY id"
        )
        return [_entry(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        found = dict(self._base.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
        return {state: int(found.get(state, 0)) for state in STATES}

    def done_under(self, key: str) -> list[str]:
        """The jobs that were done with this key."""
        rows = self._base.execute("SELECT id FROM jobs WHERE key = ? AND state = 'done' ORDER BY id", (key,))
        return [job for (job,) in rows]

    # ---- what need not be worked out twice ----

    def recall(self, signature: str) -> str | None:
        row = self._base.execute("SELECT content FROM seen WHERE signature = ?", (signature,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, signature: str, content: str) -> None:
        self._base.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (signature, content))

    def number_of(self, handle: str) -> int:
        """A running number for a handle, from 1, the same ever after."""
        with self._all_or_nothing():
            self._base.execute(
                "INSERT OR IGNORE INTO numbers SELECT ?, COALESCE(MAX(number), 0) + 1 FROM numbers", (handle,)
            )
            row = self._base.execute("SELECT number FROM numbers WHERE handle = ?", (handle,)).fetchone()
        return int(row[0])

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # On a full disk SQLite has rolled back by itself.
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def is_full(error: BaseException) -> bool:
    """Whether the journal could not be written because the disk is full."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


@contextmanager
def disk_in_words(out: Path) -> Iterator[None]:
    """Around work on a cohort's folder: what its disk refuses becomes one sentence.

    Raises:
        OutputError: the disk is full, or the folder can't be written to.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, OutputError) or (isinstance(error, sqlite3.Error) and not is_full(error)):
            raise
        reason = "the disk is full" if is_full(error) else getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"The output folder {out} can't be written to: {reason}. Make room, or choose another one."
        ) from error


def _row_of(entry: Entry) -> tuple[str, ...]:
    return entry.id, entry.scan, entry.model, json.dumps(entry.prompts), json.dumps(dict(entry.extra))


def _entry(row: tuple[Any, ...]) -> Entry:
    job, state, reason, key, scan, model, prompts, extra, attempts, seconds, finished = row
    asked = tuple(json.loads(prompts)), json.loads(extra)
    return Entry(job, state, reason, key, scan, model, *asked, attempts, seconds, finished or "")


def _loaded(text: str) -> Any:
    # The format is a bare word, so that any SQLite browser shows it as it is.
    return text if text == FORMAT else json.loads(text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
