"""What came of a cohort as tables: a row for every prompt of every scan, and for every scan that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from textseg.cohort.folders import read_measures, read_record
from textseg.cohort.jobs import TABLES
from textseg.cohort.journal import Entry
from textseg.measure import write_measures

Row = dict[str, str | bool | int | float | None]
# Of each prompt in a record, those that the measures do not hold as well.
OF_PROMPT = ("prompt", "understood_as", "side", "presence", "found", "file")
OF_SCAN = ("modality",)
TABLE_ENDINGS = ("csv", "json", "parquet")
# Measures of the record have the names that older records know; the table has those of the measures.
OF_MEASURES = ("prompt", "understood_as", "side", "presence")


def summary_rows(out: Path, entries: Sequence[Entry]) -> list[Row]:
    """The rows of a cohort by id: id, state, reason, scan, then prompt and measures, then the extra columns.

    A manifest's column that is named like one of ours gets "manifest_" before its name.
    """
    return [row for entry in entries for row in _rows_of(out, entry)]


def write_tables(out: Path, rows: Sequence[Row]) -> list[Path]:
    """summary.csv, summary.json and, where pyarrow is installed, summary.parquet; gives their paths.

    Raises:
        OutputError: one can't be written.
    """
    endings = [ending for ending in TABLE_ENDINGS if ending != "parquet" or find_spec("pyarrow")]
    paths = [out / f"{TABLES}.{ending}" for ending in endings]
    for path in paths:
        write_measures(path, rows)
    return paths


def _rows_of(out: Path, entry: Entry) -> list[Row]:
    head: Row = {"id": entry.id, "state": entry.state, "reason": entry.reason, "scan": entry.scan}
    bodies: Sequence[Row] = [{}]
    if entry.state == "done":
        try:
            bodies = _bodies(out / entry.id)
        except (OSError, ValueError, KeyError, TypeError):
            # Somebody took the folder away; a run would do the scan again.
            head["reason"] = "Its folder is not there any more; run the cohort again."
    rows = []
    for body in bodies:
        row = head | body
        row |= {f"manifest_{name}" if name in row else name: value for name, value in entry.extra.items()}
        rows.append(row)
    return rows


def _bodies(folder: Path) -> list[Row]:
    record = read_record(folder)
    scan: Row = {name: record["scan"][name] for name in OF_SCAN}
    scan["model"] = record["model"]["name"]
    measures = read_measures(folder) or [{} for _ in record["prompts"]]
    return [
        scan | {name: prompt[name] for name in OF_PROMPT} | _only_measures(measured)
        for prompt, measured in zip(record["prompts"], measures, strict=True)
    ]


def _only_measures(measured: Mapping[str, Any]) -> Row:
    return {name: value for name, value in measured.items() if name not in OF_MEASURES}
