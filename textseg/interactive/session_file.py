"""A session as one file: a zip of JSON and packed bits, no pickle, written whole or not at all.

Every mask and every field is in it once, however many states share it, and compressed before: writing a
session after each click copies bytes and computes nothing.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textseg.atomic import written_whole
from textseg.errors import OutputError, ScanError
from textseg.geometry import Box, Geometry, Shape
from textseg.interactive.engine import Outcome
from textseg.interactive.kept import Field, PackedMask
from textseg.interactive.marks import Mark
from textseg.interactive.states import Draft, SessionObject, State
from textseg.prompts import understand
from textseg.version import __version__
from textseg.volume import Volume

FORMAT = "textseg-session-1"
DOCUMENT = "session.json"


@dataclass(frozen=True)
class ScanReference:
    """Where a session's scan lies and what it holds: files, and a hash of voxels and grid.

    Nothing of it depends on the format: a scan that was moved or converted without loss is still the same.
    """

    files: tuple[str, ...]
    content: str
    modality: str


@dataclass(frozen=True, eq=False)
class SavedSession:
    """All that a session file holds: states in order, the index of the current one, scan and model."""

    states: tuple[State, ...]
    current: int
    scan: ScanReference | None
    model: str


def content_hash(volume: Volume) -> str:
    """SHA-256 of a scan's values, as float32, and of its grid."""
    digest = hashlib.sha256(repr(volume.voxels.shape).encode())
    digest.update(np.round(volume.geometry.affine, 4).tobytes())
    for channel in volume.voxels:
        for plane in channel:
            digest.update(np.ascontiguousarray(plane, np.float32).tobytes())
    return digest.hexdigest()


def write_session(path: Path, saved: SavedSession) -> None:
    """Write a session file; an earlier one is replaced once the new one is whole.

    Raises:
        OutputError: it can't be written; the earlier file is as it was.
    """
    packed = _Tables()
    states = [_state_json(state, packed) for state in saved.states]
    document = {
        "format": FORMAT,
        "textseg": __version__,
        "model": saved.model,
        "scan": _scan_json(saved.scan),
        "current": saved.current,
        "states": states,
        **packed.as_json(),
    }
    try:
        with written_whole(path) as unfinished, zipfile.ZipFile(unfinished, "w") as file:
            file.writestr(DOCUMENT, json.dumps(document, ensure_ascii=False), zipfile.ZIP_DEFLATED)
            for name, content in packed.blobs.items():
                file.writestr(name, content, zipfile.ZIP_STORED)
    except OSError as error:
        raise OutputError(
            f"The session file {path} can't be written: {error.strerror or error}. Choose another folder; "
            "what was done so far is still there."
        ) from error


def read_session(path: Path) -> SavedSession:
    """What a session file holds, without its scan.

    Raises:
        ScanError: the file is missing, or is no session file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            document = json.loads(file.read(DOCUMENT))
            if document.get("format") != FORMAT:
                raise ScanError(
                    f"A session file is of the format {FORMAT}, but {path} is of {document.get('format')!r}. "
                    "Was it written by a newer textseg?"
                )
            return _read(document, file)
    except FileNotFoundError as error:
        raise ScanError(f"A session file must exist, but there is no {path}. Is the path right?") from error
    except OSError as error:
        raise ScanError(f"The session file {path} can't be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"{path} is not a session file of textseg, or is damaged: {error}.") from error


class _Tables:
    """Marks, masks, fields, drafts and objects of all states, each once."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self._rows: dict[str, list[Any]] = {"marks": [], "masks": [], "fields": [], "objects": []}
        self._known: dict[int, int] = {}

    def as_json(self) -> dict[str, list[Any]]:
        return self._rows

    def mark(self, mark: Mark) -> int:
        return self._index("marks", mark, mark.as_json)

    def mask(self, mask: PackedMask) -> int:
        def row() -> dict[str, Any]:
            self.blobs[name] = mask.bits
            return {"shape": mask.shape, "box": _box_json(mask.box), "bits": name}

        name = f"masks/{len(self._rows['masks']):04d}.bits"
        return self._index("masks", mask, row)

    def field(self, field: Field) -> int:
        return [self._one_field(one) for one in field.chain][-1]

    def _one_field(self, field: Field) -> int:
        def row() -> dict[str, Any]:
            self.blobs[name] = field.bits
            return {
                "spacing_mm": field.spacing_mm,
                "shape": field.shape,
                "box": _box_json(field.box),
                "base": None if field.base is None else self._known[id(field.base)],
                "values": name,
            }

        name = f"fields/{len(self._rows['fields']):04d}.int8"
        return self._index("fields", field, row)

    def object(self, one: SessionObject) -> int:
        def row() -> dict[str, Any]:
            return {
                "name": one.name,
                "text": one.text,
                "marks": [self.mark(mark) for mark in one.marks],
                "presence": one.presence,
                "mask": self.mask(one.packed),
                "affine": one.geometry.affine.tolist(),
            }

        return self._index("objects", one, row)

    def _index(self, table: str, thing: Any, row: Any) -> int:
        if id(thing) not in self._known:
            document = row()
            self._rows[table].append(document)
            self._known[id(thing)] = len(self._rows[table]) - 1
        return self._known[id(thing)]


def _state_json(state: State, packed: _Tables) -> dict[str, Any]:
    draft, outcome = state.draft, state.draft.outcome
    return {
        "event": state.event,
        "text": draft.prompt.text if draft.prompt else None,
        "marks": [packed.mark(mark) for mark in draft.marks],
        "outcome": None
        if outcome is None
        else {
            "mask": packed.mask(outcome.mask),
            "presence": outcome.presence,
            "field": None if outcome.field is None else packed.field(outcome.field),
            "changed": _box_json(outcome.changed),
        },
        "objects": [packed.object(one) for one in state.objects],
    }


def _read(document: dict[str, Any], file: zipfile.ZipFile) -> SavedSession:
    marks = [Mark.from_json(row) for row in document["marks"]]
    masks = [
        PackedMask(_three(row["shape"]), _box(row["box"]), file.read(row["bits"]))
        for row in document["masks"]
    ]
    fields: list[Field] = []
    for row in document["fields"]:
        x, y, z = (float(mm) for mm in row["spacing_mm"])
        box = _box(row["box"])
        assert box is not None
        base = None if row["base"] is None else fields[row["base"]]
        fields.append(Field((x, y, z), _three(row["shape"]), box, file.read(row["values"]), base))
    objects = [
        SessionObject(
            row["name"],
            row["text"],
            tuple(marks[i] for i in row["marks"]),
            row["presence"],
            masks[row["mask"]],
            Geometry(masks[row["mask"]].shape, np.array(row["affine"])),
        )
        for row in document["objects"]
    ]
    states = tuple(_state(row, marks, masks, fields, objects) for row in document["states"])
    current = int(document["current"])
    if not 0 <= current < len(states):
        raise ValueError("its current state is not there")
    return SavedSession(states, current, _scan(document["scan"]), str(document["model"]))


def _state(
    row: dict[str, Any],
    marks: Sequence[Mark],
    masks: Sequence[PackedMask],
    fields: Sequence[Field],
    objects: Sequence[SessionObject],
) -> State:
    kept, outcome = row["outcome"], None
    if kept is not None:
        field = None if kept["field"] is None else fields[kept["field"]]
        outcome = Outcome(masks[kept["mask"]], kept["presence"], field, _box(kept["changed"]))
    prompt = None if row["text"] is None else understand(row["text"])
    draft = Draft(prompt, tuple(marks[i] for i in row["marks"]), outcome)
    return State(row["event"], draft, tuple(objects[i] for i in row["objects"]))


def _scan_json(scan: ScanReference | None) -> dict[str, Any] | None:
    return None if scan is None else {"files": scan.files, "content": scan.content, "modality": scan.modality}


def _scan(row: dict[str, Any] | None) -> ScanReference | None:
    return None if row is None else ScanReference(tuple(row["files"]), row["content"], row["modality"])


def _box_json(box: Box | None) -> list[Shape] | None:
    return None if box is None else [box.start, box.stop]


def _box(row: Sequence[Sequence[int]] | None) -> Box | None:
    return None if row is None else Box(_three(row[0]), _three(row[1]))


def _three(values: Sequence[int]) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
