"""Manifests: tables of scans with what is asked of each, as CSV, TSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from textseg.cohort.jobs import CohortError
from textseg.embeddings.extras import import_extra
from textseg.volume import Modality

ENDINGS = (".csv", ".tsv", ".json", ".parquet")
# What a manifest may say of a scan; every other column is carried through to the tables.
COLUMNS = ("scan", "prompts", "id", "model", "modality", "series", "volume")
# Between several prompts, and between the files of several channels.
SEPARATOR = re.compile(r"[;|\n]")
BETWEEN = "; "
# What pandas writes into a Parquet file beside the columns.
INDEX = re.compile(r"__index_level_\d+__")
SHOWN_ERRORS = 5
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ManifestRow:
    """One scan of a manifest; empty or None is left to what the command says.

    Args:
        scan: the file, the files of several channels, or a DICOM folder.
        extra: all other columns.
    """

    number: int
    scan: tuple[Path, ...]
    prompts: tuple[str, ...]
    id: str
    model: str
    modality: Modality | None
    series: str | None
    volume: int | None
    extra: dict[str, str | int | float | bool | None]


def read_manifest(path: Path) -> list[ManifestRow]:
    """The rows of a manifest in their order; its paths are relative to its own folder.

    Raises:
        CohortError: it can't be read, has no column "scan", or rows of it make no sense; all of them named.
        ModelError: a Parquet file, and the library that reads it is not installed.
    """
    table = _table(path)
    rows: list[ManifestRow] = []
    errors: list[str] = []
    for number, row in enumerate(table, start=1):
        try:
            rows.append(_row(number, row, path.parent))
        except ValueError as error:
            errors.append(f"row {number}: {error}")
    if errors:
        more = f" and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise CohortError(
            f"The manifest {path.name} must be mended: {'; '.join(errors[:SHOWN_ERRORS])}{more}."
        )
    if not rows:
        raise CohortError(f"A manifest needs at least one row, but {path.name} has none.")
    return rows


def _table(path: Path) -> list[Row]:
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8-sig")
        table = _json(text) if path.suffix.lower() == ".json" else list(_csv(text, path.suffix.lower()))
    except OSError as error:
        raise CohortError(f"A manifest must be readable, but {path} is not: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"A manifest must be UTF-8 text, but {path} is not. Save it as UTF-8.") from error
    except (ValueError, csv.Error) as error:
        raise CohortError(f"The manifest {path} can't be read: {error}.") from error
    if table and "scan" not in table[0]:
        raise CohortError(
            f'A manifest needs a column "scan" with the path of each scan, but {path.name} has only '
            f"{', '.join(map(str, table[0])) or 'none'}."
        )
    return table


def _csv(text: str, ending: str) -> Iterator[Row]:
    first = text.partition("\n")[0]
    # German and French spreadsheets write semicolons; then several prompts in a cell are told apart by "|".
    delimiter = "\t" if ending == ".tsv" else ";" if ";" in first and "," not in first else ","
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter):
        if None in row:
            raise ValueError(f"a line has more cells than the first one: {', '.join(map(str, row.values()))}")
        named = {str(name).strip(): value for name, value in row.items()}
        if any(value not in (None, "") for value in named.values()):
            yield named


def _json(text: str) -> list[Row]:
    document = json.loads(text)
    rows = document.get("scans") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            'JSON must be a list of objects with "scan", or an object with such a list as "scans"'
        )
    return rows


def _parquet(path: Path) -> list[Row]:
    parquet = import_extra("pyarrow.parquet", "cohort", "Reading Parquet")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise CohortError(f"The manifest {path} can't be read as Parquet: {error}.") from error
    return [{name: value for name, value in row.items() if not INDEX.fullmatch(name)} for row in rows]


def _row(number: int, row: Row, folder: Path) -> ManifestRow:
    scans = _several(row.get("scan"), "scan")
    if not scans:
        raise ValueError("no scan")
    return ManifestRow(
        number=number,
        scan=tuple(folder / scan for scan in scans),
        prompts=_several(row.get("prompts"), "prompts"),
        id=_word(row.get("id")),
        model=_model(_word(row.get("model")), folder),
        modality=_modality(_word(row.get("modality")).lower()),
        series=_word(row.get("series")) or None,
        volume=_volume(_word(row.get("volume"))),
        extra={str(name): _plain(value) for name, value in row.items() if name not in COLUMNS},
    )


def _word(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # Tables of numbers come back as 3.0 where a cell of the column is empty.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _several(value: Any, column: str) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not all(isinstance(one, str) for one in value):
            raise ValueError(f"{column} must be words, got {list(value)}")
        parts = list(value)
    else:
        parts = SEPARATOR.split(_word(value))
    return tuple(part.strip() for part in parts if part.strip())


def _model(word: str, folder: Path) -> str:
    return str((folder / word).absolute()) if word and (folder / word).is_dir() else word


def _modality(word: str) -> Modality | None:
    if word in ("", "auto"):
        return None
    known: dict[str, Modality] = {name: name for name in get_args(Modality)}
    if word not in known:
        raise ValueError(f"modality must be {', '.join(known)} or empty, got {word}")
    return known[word]


def _volume(word: str) -> int | None:
    if not word:
        return None
    if not word.isdigit():
        raise ValueError(f"volume must be a whole number from 0, got {word}")
    return int(word)


def _plain(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return BETWEEN.join(map(str, value)) if isinstance(value, list) else str(value)
