"""Words, clicks, boxes and scribbles on one scan, answered at once, each step undone and redone exactly."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textseg.device import DeviceChoice
from textseg.errors import PromptError, ScanError
from textseg.geometry import Box, Geometry
from textseg.inference import ScanLike, Segmenter, read_input
from textseg.interactive.engine import Engine, Outcome, Progress, Turn
from textseg.interactive.marks import Coordinates, Mark, box_mark, lasso_mark, point_mark, scribble_mark
from textseg.interactive.session_file import (
    SavedSession,
    ScanReference,
    content_hash,
    read_session,
    write_session,
)
from textseg.interactive.states import Draft, Event, SessionObject, State
from textseg.interactive.windows_engine import WindowsEngine
from textseg.masks import combine
from textseg.prompts import understand
from textseg.volume import Modality, Volume

CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Answer:
    """What a step came to: the mask's size, how sure the words are (None without them), where it changed.

    changed: the box of the scan's grid outside of which the mask is as before; None where nothing changed.
    """

    voxels: int
    volume_ml: float
    presence: float | None
    changed: Box | None


class Session:
    """One scan, worked on with words and marks until each object is right.

    Every step is answered before it returns; undo and redo go through the states exactly. Steps may be called
    from another thread than the one that reads `mask`; an exception raised by `progress` cancels a step, and
    the session stays as it was.

    Args:
        model: "default", another shipped model, a model's folder, or a `Segmenter` that is loaded.
        device: "auto", "cpu" or "cuda"; counts where the model is not loaded yet, and so do threads.
        threads: processor threads; None for torch's own choice.
        engine: what answers the steps; None for the model itself. It may be changed between two steps.
        cache_bytes: memory for encoded regions of the scan.
        progress: called with the stage in words, the steps done and all steps.

    Raises:
        ModelError: there is no such model, or it is another project's.
        DeviceError: the device is not there.
    """

    def __init__(
        self,
        model: str | Path | Segmenter = "default",
        *,
        device: DeviceChoice = "auto",
        threads: int | None = None,
        engine: Engine | None = None,
        cache_bytes: int = CACHE_BYTES,
        progress: Progress = lambda stage, done, of: None,
    ) -> None:
        if not isinstance(model, Segmenter):
            model = Segmenter(model, device=device, threads=threads)
        self.segmenter = model
        self.progress = progress
        self.path: Path | None = None
        self._own = WindowsEngine(self.segmenter, cache_bytes)
        self._engine: Engine = engine or self._own
        self._volume: Volume | None = None
        self._modality: Modality = "ct"
        self._reference: ScanReference | None = None
        self._states: list[State] = [State()]
        self._current = 0
        self._step = threading.RLock()

    # ---- the scan ----

    def set_scan(self, scan: ScanLike, modality: Modality | None = None) -> None:
        """Begin anew with a scan; whatever was done on another one is forgotten, and no longer saved.

        Args:
            scan, modality: as for `textseg.segment`.

        Raises:
            ScanError: the scan can't be read or shows nothing.
            PlanError: the model does not take such channels.
        """
        with self._step:
            self._take(scan, modality)
            self._states, self._current, self.path = [State()], 0, None

    @property
    def volume(self) -> Volume:
        """The scan.

        Raises:
            ScanError: there is none yet.
        """
        if self._volume is None:
            raise ScanError("A session needs a scan before anything else. Call set_scan first.")
        return self._volume

    @property
    def geometry(self) -> Geometry:
        """The scan's own grid, on which masks lie."""
        return self.volume.geometry

    @property
    def modality(self) -> Modality:
        return self._modality

    @property
    def engine(self) -> Engine:
        """What answers the steps; setting another one changes nothing of what was done."""
        return self._engine

    @engine.setter
    def engine(self, engine: Engine | None) -> None:
        with self._step:
            self._engine = engine or self._own
            if self._volume is not None:
                self._engine.set_scan(self._volume, self._modality)

    @property
    def own_engine(self) -> Engine:
        """The model itself as an engine, whichever answers now; others can be given it to answer words."""
        return self._own

    # ---- steps ----

    def say(self, text: str) -> Answer:
        """Ask for something in words; words said before are replaced, marks stay.

        Raises:
            PromptError: the text can't be a prompt.
            ScanError: there is no scan yet.
        """
        with self._step:
            _ = self.volume
            return self._ask("say", replace(self._draft, prompt=understand(text)), None)

    def add_point(
        self, position: ArrayLike, positive: bool = True, *, coordinates: Coordinates = "world"
    ) -> Answer:
        """Click on what is meant, or on what is not.

        Args:
            position: (3,) world mm RAS+, or voxel indices of the scan's own array, whole numbers at centres.
            positive: "this", or "not this".
            coordinates: "world" or "voxel".

        Raises:
            PromptError: the place is outside of the scan, or in the air around the body.
            ScanError: there is no scan yet.
        """
        with self._step:
            return self._mark(point_mark(position, positive, self.geometry, coordinates))

    def add_box(
        self, start: ArrayLike, stop: ArrayLike, positive: bool = True, *, coordinates: Coordinates = "world"
    ) -> Answer:
        """Draw a box around what is meant, or around what is not; its edges run along the scan's own axes.

        Args:
            start, stop: (3,) two opposite corners in world mm; in voxels a half-open range. On one slice the
                corners agree along an axis, or in voxels the stop is the start and one.
            positive, coordinates: as for `add_point`.

        Raises:
            PromptError: the box is empty or outside of the scan.
            ScanError: there is no scan yet.
        """
        with self._step:
            return self._mark(box_mark(start, stop, positive, self.geometry, coordinates))

    def add_scribble(
        self, points: ArrayLike, positive: bool = True, *, coordinates: Coordinates = "world"
    ) -> Answer:
        """Draw a line over what is meant, or over what is not, on a slice or through several.

        Args:
            points: (n, 3) that the line goes through; between them it has no gaps on any grid.
            positive, coordinates: as for `add_point`.

        Raises:
            PromptError: there are no points, or all of them are outside of the scan.
            ScanError: there is no scan yet.
        """
        with self._step:
            return self._mark(scribble_mark(points, positive, self.geometry, coordinates))

    def add_lasso(
        self, points: ArrayLike, positive: bool = True, *, coordinates: Coordinates = "world"
    ) -> Answer:
        """Draw a closed line around what is meant, or around what is not.

        Args:
            points: (n, 3) in one plane, a slice along any axis or an oblique one; the last joins the first.
            positive, coordinates: as for `add_point`.

        Raises:
            PromptError: the line encloses nothing, is not flat, or lies outside of the scan.
            ScanError: there is no scan yet.
        """
        with self._step:
            return self._mark(lasso_mark(points, positive, self.geometry, coordinates))

    def reset(self) -> None:
        """Put words and marks away and begin the next object; accepted ones stay. Can be undone."""
        with self._step:
            self._go_on(State("reset", Draft(), self.objects))

    def accept(self, name: str | None = None) -> SessionObject:
        """Keep the mask as an object and begin the next one.

        Args:
            name: None takes the words, or "object 1", with a number where the name is taken.

        Raises:
            PromptError: there is no mask to accept, or another object has this name.
            ScanError: there is no scan yet.
        """
        with self._step:
            geometry, draft = self.geometry, self._draft
            if draft.outcome is None or draft.outcome.mask.box is None:
                raise PromptError(
                    "There is no object to accept: the mask is empty. Say or mark something first."
                )
            text = draft.prompt.text if draft.prompt else None
            chosen = self._new_name(name, text)
            presence, mask = draft.outcome.presence, draft.outcome.mask
            accepted = SessionObject(chosen, text, draft.marks, presence, mask, geometry)
            self._go_on(State("accept", Draft(), (*self.objects, accepted)))
            return accepted

    def remove(self, name: str) -> None:
        """Take an accepted object away. Can be undone.

        Raises:
            PromptError: there is no object of this name.
        """
        with self._step:
            kept = tuple(one for one in self.objects if one.name != name)
            if len(kept) == len(self.objects):
                names = ", ".join(one.name for one in self.objects) or "none"
                raise PromptError(f"There is no object {name!r}; accepted are: {names}.")
            self._go_on(State("remove", self._draft, kept))

    def undo(self) -> bool:
        """Go back by one step; False where there is none."""
        return self._turn_to(self._current - 1)

    def redo(self) -> bool:
        """Take the last undo back; False where there is none."""
        return self._turn_to(self._current + 1)

    # ---- what there is ----

    @property
    def mask(self) -> NDArray[np.bool_]:
        """What is being worked on, (x, y, z) on the scan's own grid; nothing before the first step."""
        outcome, shape = self._draft.outcome, self.geometry.shape
        return np.zeros(shape, bool) if outcome is None else outcome.mask.unpack()

    @property
    def text(self) -> str | None:
        """The words of what is being worked on."""
        prompt = self._draft.prompt
        return prompt.text if prompt else None

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks of what is being worked on, in voxels of the scan's array; see `Mark`."""
        return self._draft.marks

    @property
    def presence(self) -> float | None:
        """How sure the words are that it is there, 0 to 1; None without words."""
        return self._draft.outcome.presence if self._draft.outcome else None

    @property
    def objects(self) -> tuple[SessionObject, ...]:
        """What was accepted, in order."""
        return self._states[self._current].objects

    @property
    def labels(self) -> NDArray[np.uint16]:
        """All objects as one label map (x, y, z), numbered from 1; where they overlap the smaller wins."""
        shape = self.geometry.shape
        masks = [one.mask for one in self.objects]
        return combine(np.stack(masks)) if masks else np.zeros(shape, np.uint16)

    @property
    def legend(self) -> dict[int, str]:
        return {number: one.name for number, one in enumerate(self.objects, start=1)}

    @property
    def can_undo(self) -> bool:
        return self._current > 0

    @property
    def can_redo(self) -> bool:
        return self._current + 1 < len(self._states)

    # ---- the file ----

    def save(self, path: str | Path | None = None) -> Path:
        """Write the session file, whole or not at all; from now on every step writes it again.

        Args:
            path: None for the file that it was saved to or loaded from.

        Raises:
            OutputError: it can't be written.
            ScanError: there is no scan yet, or no path was given the first time.
        """
        with self._step:
            _ = self.volume
            target = Path(path) if path is not None else self.path
            if target is None:
                raise ScanError("A session needs a path the first time that it is saved, got none.")
            self._write(target)
            self.path = target
            return target

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        scan: ScanLike | None = None,
        model: str | Path | Segmenter | None = None,
        device: DeviceChoice = "auto",
        threads: int | None = None,
        engine: Engine | None = None,
        cache_bytes: int = CACHE_BYTES,
        progress: Progress = lambda stage, done, of: None,
    ) -> Session:
        """The session as it was saved, with every step that can be undone or redone.

        Args:
            path: of the session file, to which later steps are saved.
            scan: None looks where it was, then beside the session file. It must hold the same voxels.
            model: None for the one that it was saved with.
            device, threads, engine, cache_bytes, progress: as for `Session`.

        Raises:
            ScanError: the file is no session file, or its scan is missing or another one.
        """
        path = Path(path)
        saved = read_session(path)
        session = cls(
            saved.model if model is None else model,
            device=device,
            threads=threads,
            engine=engine,
            cache_bytes=cache_bytes,
            progress=progress,
        )
        if saved.scan is not None:
            session._take_again(saved.scan, scan, path)
        session._states, session._current, session.path = list(saved.states), saved.current, path
        return session

    # ---- inside ----

    @property
    def _draft(self) -> Draft:
        return self._states[self._current].draft

    def _take(self, scan: ScanLike, modality: Modality | None) -> None:
        given = read_input(scan, modality, self.segmenter.plan)
        self._own.set_scan(given.volume, given.modality)
        if self._engine is not self._own:
            self._engine.set_scan(given.volume, given.modality)
        self._volume, self._modality, self._reference = given.volume, given.modality, None

    def _take_again(self, saved: ScanReference, scan: ScanLike | None, path: Path) -> None:
        modality: Modality = saved.modality  # type: ignore[assignment]
        self._take(scan if scan is not None else _find_scan(saved, path), modality)
        content = content_hash(self.volume)
        if content != saved.content:
            where = "the scan given" if scan is not None else ", ".join(saved.files)
            raise ScanError(
                f"A session goes on with the scan that it began with, but {where} holds other voxels or "
                f"another grid than when {path.name} was saved. Give the same scan with scan=."
            )
        self._reference = saved

    def _mark(self, mark: Mark) -> Answer:
        draft = self._draft
        return self._ask("mark", replace(draft, marks=(*draft.marks, mark)), mark)

    def _ask(self, event: Event, draft: Draft, newest: Mark | None) -> Answer:
        turn = Turn(draft.prompt, draft.marks, newest, draft.outcome)
        outcome = self._engine.look(turn, self.progress)
        self._go_on(State(event, replace(draft, outcome=outcome), self.objects))
        return self._answer(outcome)

    def _answer(self, outcome: Outcome) -> Answer:
        voxels = outcome.mask.count()
        volume_ml = voxels * self.geometry.voxel_volume_mm3 / 1000
        return Answer(voxels, volume_ml, outcome.presence, outcome.changed)

    def _go_on(self, state: State) -> None:
        """The state after the current one; what was undone before it can't be redone any more."""
        self._states = [*self._states[: self._current + 1], state]
        self._current += 1
        self._autosave()

    def _turn_to(self, index: int) -> bool:
        with self._step:
            if not 0 <= index < len(self._states):
                return False
            self._current = index
            self._autosave()
            return True

    def _autosave(self) -> None:
        if self.path is not None:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        if self._reference is None:
            files = self.volume.file.paths if self.volume.file else ()
            absolute = tuple(str(file.absolute()) for file in files)
            self._reference = ScanReference(absolute, content_hash(self.volume), self._modality)
        model = self.segmenter.model
        name = model.name if model.name == "default" else str(model.path)
        write_session(path, SavedSession(tuple(self._states), self._current, self._reference, name))

    def _new_name(self, name: str | None, text: str | None) -> str:
        taken = {one.name for one in self.objects}
        if name is not None:
            if not name.strip() or name in taken:
                raise PromptError(f"An object needs a name that no other one has, got {name!r}.")
            return name
        if text is not None and text not in taken:
            return text
        stem, number = (text, 2) if text is not None else ("object", 1)
        while f"{stem} {number}" in taken:
            number += 1
        return f"{stem} {number}"


def _find_scan(saved: ScanReference, path: Path) -> list[Path]:
    """The files of a session's scan: where they were, or of the same names beside the session file."""
    if not saved.files:
        raise ScanError(
            f"The scan of {path.name} was in memory when the session was saved. Give it with scan=."
        )
    for folder in (None, path.parent):
        files = [Path(file) if folder is None else folder / Path(file).name for file in saved.files]
        if all(file.exists() for file in files):
            return files
    raise ScanError(
        f"The scan of {path.name} is no longer at {', '.join(saved.files)}, nor beside the session file. "
        "Give it with scan=."
    )
