"""What is being worked on in a window, without the window: a model, a scan, a session for each frame of it.

Everything here may take seconds and is called from the thread of `Work`; what a step comes to is a `Picture`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textseg.device import DeviceChoice, choose_compute
from textseg.errors import ScanError
from textseg.geometry import Floats, Geometry
from textseg.inference import Segmenter
from textseg.interactive.engine import Engine, Progress
from textseg.interactive.marks import Mark
from textseg.models import fetched_models, shipped_models
from textseg.prompts import understand
from textseg.session import CACHE_BYTES, Answer, Session
from textseg.viewer.coordinates import to_scan
from textseg.viewer.drawing import Stroke, put_on
from textseg.viewer.saving import SaveFormat, save_objects
from textseg.volume import Modality, Volume

# Each scan, and each frame of a 4D one, has a session; together they must not take many times the memory.
FURTHER_CACHE_BYTES = CACHE_BYTES // 8


@dataclass(frozen=True)
class OtherEngine:
    """What draws masks instead of the model, and where its weights lie; the model still reads words."""

    kind: Literal["SAM", "nnInteractive"]
    weights: Path

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.weights.name}"


# Made of the model's own engine, which answers words for it.
MakeEngine = Callable[[Engine], Engine]


def engine_maker(other: OtherEngine, device: DeviceChoice) -> MakeEngine:
    """The weights loaded, once for all scans.

    Raises:
        ModelError: they are missing or damaged, or the package that runs them is not installed.
        DeviceError: the device is not there.
    """
    torch_device = str(choose_compute(device).device)
    if other.kind == "SAM":
        from textseg.interactive.sam import SamEngine, load_sam

        predictor = load_sam(other.weights, device=torch_device)
        return lambda words: SamEngine(predictor, words)
    from textseg.interactive.nninteractive import NnInteractiveEngine, load_nninteractive

    inference = load_nninteractive(other.weights, torch_device)
    return lambda words: NnInteractiveEngine(inference, words)


@dataclass(frozen=True)
class ScanKey:
    """Which scan is meant: a layer by its unique name, a frame of it, how its world and values are read."""

    layer: str
    frame: int
    geometry: Geometry
    modality: Modality | None


@dataclass(frozen=True, eq=False)
class Row:
    """An accepted object as a list shows it; centre: (3,) in the layer's array."""

    number: int
    name: str
    volume_ml: float
    centre: Floats


@dataclass(frozen=True, eq=False)
class Picture:
    """All that a window shows of a session.

    Args:
        sentence: what the last step came to, in words.
        mask: (x, y, z) what is being worked on; 0, or the number that it will have once it is accepted.
        number: that one.
        labels: (x, y, z) the accepted objects.
        rows: these as a list.
        marks, text: of what is being worked on.
    """

    sentence: str
    geometry: Geometry
    mask: NDArray[np.unsignedinteger[Any]]
    number: int
    labels: NDArray[np.uint16]
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    text: str | None
    can_undo: bool
    can_redo: bool


@dataclass
class Desk:
    """A model, a scan and their session.

    Args:
        progress: called within steps; an exception from it cancels the step.
        load_model: makes a segmenter of a model's name or folder and a device.
        load_engine: makes what draws masks instead of it.
        chosen: the model and the device to work with.
        other: what draws masks instead of the model, if anything does.
    """

    progress: Progress = lambda stage, done, of: None
    load_model: Callable[[str, DeviceChoice], Segmenter] = lambda model, device: Segmenter(
        model, device=device
    )
    load_engine: Callable[[OtherEngine, DeviceChoice], MakeEngine] = engine_maker
    chosen: tuple[str, DeviceChoice] = ("default", "auto")
    other: OtherEngine | None = None
    _make_engine: MakeEngine | None = None
    _segmenter: Segmenter | None = None
    _session: Session | None = None
    _sessions: dict[ScanKey, Session] = field(default_factory=dict)
    _labels: tuple[object, NDArray[np.uint16], tuple[Row, ...]] | None = None

    @property
    def session(self) -> Session:
        """Of the scan that is looked at.

        Raises:
            ScanError: nothing was done on it yet.
        """
        if self._session is None:
            raise ScanError("Nothing was done on this scan yet. Say or mark something first.")
        return self._session

    # ---- model and scan ----

    def use_model(self, model: str, device: DeviceChoice) -> str:
        """Work with another model and say so; what was done stays, and can be undone.

        Raises:
            ModelError, DeviceError: there is no such; the model before stays.
        """
        if not self._sessions:
            # Loaded with the first step.
            self._segmenter, self.chosen = None, (model, device)
            self.other, self._make_engine = None, None
            return f"The model {Path(model).name}."
        segmenter = self._loaded(model, device)
        carried = {
            key: carried_over(session, segmenter, self.progress) for key, session in self._sessions.items()
        }
        current = next((key for key, session in self._sessions.items() if session is self._session), None)
        self._sessions, self._session = carried, carried.get(current) if current else None
        self._segmenter, self.chosen = segmenter, (model, device)
        self.other, self._make_engine = None, None
        return f"Working with {segmenter.model.name} on {segmenter.compute}; what was done stays."

    def use_engine(self, other: OtherEngine, device: DeviceChoice) -> str:
        """Have something else draw masks, and say so; the model still reads words, and what was done stays.

        Raises:
            ModelError, DeviceError: its weights or its package are not there; what answered before stays.
        """
        self.progress(f"loading {other.kind}", 0, 1)
        make_engine = self.load_engine(other, device)
        if device != self.chosen[1]:
            self.use_model(self.chosen[0], device)
        self._make_engine, self.other = make_engine, other
        if self._session is not None:
            self._look_at(self._session)
        return f"{other.name} draws masks, {Path(self.chosen[0]).name} reads words; what was done stays."

    def begin(self, key: ScanKey, read: Callable[[], Volume]) -> None:
        """Go to a scan, or a frame of one; the first time, its session begins.

        Raises:
            ScanError, ModelError, PlanError: see `Session.set_scan`.
        """
        if key not in self._sessions:
            # Sessions share the memory for encoded regions, most of it for the first one.
            cache_bytes = FURTHER_CACHE_BYTES if self._sessions else CACHE_BYTES
            session = Session(self._model(), cache_bytes=cache_bytes, progress=self.progress)
            self.progress("reading the scan", 0, 1)
            session.set_scan(read(), key.modality)
            self._sessions[key] = session
        if self._session is not self._sessions[key]:
            self._look_at(self._sessions[key])

    def go_to(self, key: ScanKey) -> Picture | None:
        """What was done on a scan before; None where nothing was."""
        session = self._sessions.get(key)
        if session is None:
            self._session = None
            return None
        if session is not self._session:
            self._look_at(session)
        return self.picture("")

    def forget(self, layer: str) -> None:
        """Let go of what was done on a layer."""
        self._sessions = {key: kept for key, kept in self._sessions.items() if key.layer != layer}
        if self._session not in self._sessions.values():
            self._session, self._labels = None, None

    # ---- steps ----

    def say(self, text: str) -> Picture:
        """Raises: PromptError, ScanError: see `Session.say`."""
        answer = self.session.say(text)
        return self.picture(self._said(text, answer))

    def mark(self, stroke: Stroke) -> Picture:
        """Raises: PromptError, ScanError: see `put_on`."""
        answer = put_on(self.session, stroke)
        kind = f"{'' if stroke.positive else 'negative '}{stroke.tool}".capitalize()
        return self.picture(f"{kind}: {_volume(answer.volume_ml)}.")

    def undo(self) -> Picture:
        return self.picture("Undone." if self.session.undo() else "There is nothing to undo.")

    def redo(self) -> Picture:
        return self.picture("Done again." if self.session.redo() else "There is nothing to redo.")

    def reset(self) -> Picture:
        self.session.reset()
        return self.picture("Begun anew.")

    def accept(self, name: str | None) -> Picture:
        """Raises: PromptError, ScanError: see `Session.accept`."""
        accepted = self.session.accept(name)
        return self.picture(f"Accepted {accepted.name}, {_volume(accepted.volume_ml)}.")

    def remove(self, name: str) -> Picture:
        """Raises: PromptError: see `Session.remove`."""
        self.session.remove(name)
        return self.picture(f"Removed {name}.")

    # ---- files ----

    def save_objects(self, path: Path, kind: SaveFormat) -> Picture:
        """Raises: OutputError, ScanError: see `saving.save_objects`."""
        written = save_objects(self.session, path, kind)
        return self.picture(f"Saved {written}.")

    def save_session(self, path: Path) -> Picture:
        """Raises: OutputError, ScanError: see `Session.save`."""
        self.session.save(path)
        return self.picture(f"Saved {path}; every further step is saved there too.")

    def open_session(self, path: Path, key: ScanKey, read: Callable[[], Volume]) -> Picture:
        """Go on with a saved session on the scan that is shown.

        Raises:
            ScanError: the file is no session, or one of another scan.
        """
        session = Session.load(path, scan=read(), model=self._model(), progress=self.progress)
        self._sessions[key] = session
        self._look_at(session)
        return self.picture(f"Going on with {path.name}; every further step is saved there.")

    def scan_of_session(self, path: Path) -> Volume:
        """The scan that a saved session is about, from where it was or from beside the session file.

        Raises:
            ScanError: the file is no session, or its scan is missing or another one.
        """
        return Session.load(path, model=self._model()).volume

    # ---- inside ----

    def _look_at(self, session: Session) -> None:
        """Go to a session; what draws masks instead of the model knows one scan at a time and comes along."""
        self._session = session
        if self._make_engine is not None:
            session.engine = self._make_engine(session.own_engine)

    def _model(self) -> Segmenter:
        if self._segmenter is None:
            self._segmenter = self._loaded(*self.chosen)
        return self._segmenter

    def _loaded(self, model: str, device: DeviceChoice) -> Segmenter:
        self.progress("loading the model", 0, 1)
        return self.load_model(model, device)

    def _said(self, text: str, answer: Answer) -> str:
        canonical = understand(text).canonical
        meant = f"“{text}”" if canonical == text.strip().lower() else f"“{text}”, understood as {canonical}"
        presence = "" if answer.presence is None else f" (presence {answer.presence:.2f})"
        if answer.voxels == 0:
            return f"Not found: {meant}{presence}."
        return f"{meant}: {_volume(answer.volume_ml)}{presence}."

    def picture(self, sentence: str) -> Picture:
        """What there is to see now."""
        session = self.session
        labels, rows = self._objects(session)
        number = len(rows) + 1
        kind = np.uint8 if number <= np.iinfo(np.uint8).max else np.uint16
        return Picture(
            sentence=sentence,
            geometry=session.geometry,
            mask=session.mask * kind(number),
            number=number,
            labels=labels,
            rows=rows,
            marks=session.marks,
            text=session.text,
            can_undo=session.can_undo,
            can_redo=session.can_redo,
        )

    def _objects(self, session: Session) -> tuple[NDArray[np.uint16], tuple[Row, ...]]:
        """The label map and the list, made anew only where the objects are others than before."""
        objects = session.objects
        # An empty tuple is one and the same for every session, of whatever size.
        if self._labels is None or self._labels[0] != (objects, session.geometry):
            rows = tuple(
                Row(number, one.name, one.volume_ml, _centre(one.mask))
                for number, one in enumerate(objects, start=1)
            )
            self._labels = ((objects, session.geometry), session.labels, rows)
        return self._labels[1], self._labels[2]


def carried_over(session: Session, segmenter: Segmenter, progress: Progress) -> Session:
    """The same session, with all that can be undone, on another model."""
    with tempfile.TemporaryDirectory(prefix="textseg-") as folder:
        path, volume, modality = session.path, session.volume, session.modality
        session.save(Path(folder) / "carried.session")
        session.path = path
        described = Volume(volume.voxels, volume.geometry, volume.file, modality)
        carried = Session.load(
            Path(folder) / "carried.session", scan=described, model=segmenter, progress=progress
        )
        carried.path = path
    return carried


def model_names() -> list[str]:
    """The models on this machine that a session can work with."""
    models = [*shipped_models(), *(one for one in fetched_models() if one.kind == "textseg")]
    return [one.name for one in models]


def _centre(mask: NDArray[np.bool_]) -> Floats:
    """The voxel of a mask that is nearest to its centroid, as an index of the layer's array."""
    voxels = np.argwhere(mask)
    return to_scan(voxels[np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()])


def _volume(volume_ml: float) -> str:
    return f"{volume_ml:.1f} ml" if volume_ml >= 1 else f"{volume_ml:.3f} ml"
