"""The panel in napari: gathers what a person says and draws, has it done elsewhere, shows what it came to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from qtpy import QtGui
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QWidget

from textseg.device import DeviceChoice
from textseg.errors import TextsegError
from textseg.geometry import Floats
from textseg.prompts import default_lexicon
from textseg.viewer.completion import History, completions
from textseg.viewer.coordinates import tilt_degrees
from textseg.viewer.desk import Desk, OtherEngine, Picture, Row, ScanKey, model_names
from textseg.viewer.drawing import Stroke
from textseg.viewer.files import Files
from textseg.viewer.scans import ORIGIN, grid_of, matrix_of, volume_of, world_of
from textseg.viewer.scene import show_plane, turn_upright
from textseg.viewer.shortcuts import SHORTCUTS
from textseg.viewer.shown import ShownLayers, colour_of
from textseg.viewer.tools import Tools
from textseg.viewer.widgets import TOOLS, Widgets, fill_table
from textseg.viewer.work import Work
from textseg.volume import Modality

POLL_MS = 25
WRONG = "color: #ff7a6e;"
FOLDER, SAM, NNINTERACTIVE = "Folder…", "SAM weights…", "nnInteractive folder…"
# A tilt that nobody sees is not worth a word.
TILT_DEGREES = 0.5
# Qt holds a panel weakly; it stays as long as its widget is there, or until it is closed.
_OPEN: set[Panel] = set()


class Panel:
    """The panel and what it steers; `widgets.root` is what napari docks.

    Args:
        viewer: napari's.
        desk: with the model to begin with.
    """

    def __init__(self, viewer: Any, desk: Desk | None = None) -> None:
        self.viewer = viewer
        self.desk = desk or Desk()
        self.widgets = Widgets()
        self.work = Work(self._on_progress)
        self.desk.progress = self.work.progress
        self.history = History()
        self.shown = ShownLayers(viewer, self._bind_keys)
        self.tools = Tools(viewer, self._matrix, self.shown.show_stroke, self._mark, self._wrong)
        self.files = Files(self)
        self._timer = QTimer(self.widgets.root)
        self._timer.setInterval(POLL_MS)
        self._timer.timeout.connect(self._deliver)
        self._names = default_lexicon().names()
        self._others: dict[str, OtherEngine] = {}
        self._layers: list[Any] = []
        self._drawn_key: ScanKey | None = None
        self._closed = False
        self._rows: tuple[Row, ...] = ()
        _OPEN.add(self)
        # No function that holds the panel: the collector would take that apart first, and Qt call it then.
        self.widgets.root.destroyed.connect(self.close)
        self._connect()
        self._list_models()
        self._list_layers()

    # ---- what is worked on ----

    @property
    def layer(self) -> Any | None:
        """The layer that is segmented."""
        index = self.widgets.layer.currentIndex()
        return self._layers[index] if 0 <= index < len(self._layers) else None

    @property
    def world(self) -> str:
        """To which ends of the patient napari's axes run, as far as the layer is concerned."""
        said = str(self.widgets.world.currentData())
        return said if self.layer is None else world_of(self.layer, said)

    @property
    def frame(self) -> int:
        """Of a 4D layer, the frame that is shown; else 0."""
        layer = self.layer
        if layer is None or layer.ndim < 4:
            return 0
        place = layer.world_to_data(self.viewer.dims.point)[0]
        return int(np.clip(np.round(place), 0, layer.data.shape[0] - 1))

    def key(self) -> ScanKey:
        """Which scan is meant now.

        Raises:
            ScanError, GeometryError: the layer can't be one.
        """
        layer = self.layer
        if layer is None:
            raise TextsegError("There is no scan to work on. Open one, or choose its layer.")
        modality: Modality | None = self.widgets.modality.currentData()
        return ScanKey(str(layer.unique_id), self.frame, grid_of(layer, self.world), modality)

    def choose(self, layer: Any) -> None:
        """Work on this layer."""
        self.widgets.layer.setCurrentIndex(self._layers.index(layer))

    # ---- steps; each is a button or a key ----

    def say(self) -> None:
        text = self.widgets.prompt.text().strip()
        if text:
            self.history.add(text)
            # Keys belong to the picture again, Ctrl+Z above all.
            self.widgets.prompt.clearFocus()
            self._begin(lambda: self.desk.say(text))

    def undo(self) -> None:
        self._go_on(self.desk.undo)

    def redo(self) -> None:
        self._go_on(self.desk.redo)

    def reset(self) -> None:
        self._go_on(self.desk.reset)

    def accept(self) -> None:
        name = self.widgets.name.text().strip() or None
        self._go_on(lambda: self.desk.accept(name), then=self.widgets.name.clear)

    def remove(self) -> None:
        row = self.widgets.table.currentRow()
        if row >= 0:
            name = self.widgets.table.item(row, 1).text()
            self._go_on(lambda: self.desk.remove(name))

    def use_nothing(self) -> None:
        self._use(0)

    def use_point(self) -> None:
        self._use(1)

    def use_box(self) -> None:
        self._use(2)

    def use_scribble(self) -> None:
        self._use(3)

    def use_lasso(self) -> None:
        self._use(4)

    def toggle_sign(self) -> None:
        self.tools.positive = not self.tools.positive
        self.widgets.sign.setChecked(not self.tools.positive)
        self.widgets.sign.setText("+ this" if self.tools.positive else "− not this")

    def toggle_help(self) -> None:
        hidden = self.widgets.help.isHidden()
        self.widgets.help.setVisible(hidden)
        self.widgets.keys.setChecked(hidden)

    def type_prompt(self) -> None:
        self.widgets.prompt.setFocus()
        self.widgets.prompt.selectAll()

    def cancel(self) -> None:
        self.work.cancel()

    def close(self) -> None:
        """Give mouse, keys and thread back; the layers stay."""
        if self._closed:
            return
        self._closed = True
        _OPEN.discard(self)
        for event, callback in self._events():
            event.disconnect(callback)
        for shortcut in SHORTCUTS:
            self.viewer.bind_key(shortcut.keys, None, overwrite=True)
        self.work.close()
        self.tools.close()

    # ---- having things done ----

    def do(self, task: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have something done in the thread of work, then hand over what it gave; an error is shown."""
        self.work.submit(task, then, self._wrong)
        self.widgets.cancel.setEnabled(True)
        self._timer.start()

    def show_picture(self, key: ScanKey, picture: Picture | None) -> None:
        """Show what a step came to, unless another scan is looked at by now."""
        if self.layer is None or key != self._drawn_key:
            return
        if picture is None:
            self.shown.clear()
            self._list_objects(())
            return
        self.shown.show(picture, matrix_of(self.layer))
        self._list_objects(picture.rows)
        self.widgets.undo.setEnabled(picture.can_undo)
        self.widgets.redo.setEnabled(picture.can_redo)
        self.tell(picture.sentence)

    def tell(self, sentence: str) -> None:
        if sentence:
            self.widgets.message.setStyleSheet("")
            self.widgets.message.setText(sentence)

    def _begin(self, step: Callable[[], Picture]) -> None:
        """A step that may be the first one on its scan."""
        layer = self.layer
        try:
            key = self.key()
        except TextsegError as error:
            self._wrong(str(error))
            return
        read = partial(volume_of, layer, key.frame, self.world)

        def task() -> Picture:
            self.desk.begin(key, read)
            return step()

        self.do(task, partial(self.show_picture, key))

    def _go_on(self, step: Callable[[], Picture], then: Callable[[], None] = lambda: None) -> None:
        """A step that needs one before it."""

        try:
            key = self.key()
        except TextsegError as error:
            self._wrong(str(error))
            return

        def shown(picture: Picture) -> None:
            then()
            self.show_picture(key, picture)

        self.do(step, shown)

    def _mark(self, stroke: Stroke) -> None:
        self._begin(lambda: self.desk.mark(stroke))

    def _wrong(self, sentence: str) -> None:
        self.widgets.message.setStyleSheet(WRONG)
        self.widgets.message.setText(sentence)

    def _deliver(self) -> None:
        self.work.deliver()
        if not self.work.busy:
            self._timer.stop()
            self.widgets.cancel.setEnabled(False)
            self.widgets.progress.setRange(0, 1)
            self.widgets.progress.setValue(0)
            self.widgets.progress.setFormat("")

    def _on_progress(self, stage: str, done: int, of: int) -> None:
        # A single step is all or nothing: the bar only shows that something is being done.
        self.widgets.progress.setRange(0, of if of > 1 else 0)
        self.widgets.progress.setValue(done)
        self.widgets.progress.setFormat(stage)
        self.widgets.message.setStyleSheet("")
        self.widgets.message.setText(f"{stage[:1].upper()}{stage[1:]} …")

    # ---- the scan, the model, the view ----

    def _list_layers(self) -> None:
        """The layers that may be scans, and still the one that was chosen."""
        before, chosen = self._layers, self.layer
        self._layers = [one for one in self.viewer.layers if type(one).__name__ == "Image" and one.ndim >= 3]
        for gone in (str(one.unique_id) for one in before if one not in self._layers):
            self.do(partial(self.desk.forget, gone), lambda _: None)
        combo = self.widgets.layer
        combo.blockSignals(True)
        combo.clear()
        combo.addItems([layer.name for layer in self._layers])
        combo.setCurrentIndex(self._layers.index(chosen) if chosen in self._layers else len(self._layers) - 1)
        combo.blockSignals(False)
        if self.layer is not chosen:
            self._look()

    def _look(self) -> None:
        """Another layer or frame, or other words about it: show what was done there, and what it is."""
        layer = self.layer
        ours = layer is None or ORIGIN in layer.metadata
        self.widgets.world.setVisible(not ours)
        self.widgets.world_name.setVisible(not ours)
        self._turn_upright()
        if layer is None:
            self.shown.clear()
            return
        try:
            key = self.key()
        except TextsegError as error:
            self._wrong(str(error))
            return
        self._drawn_key = key
        shape = " × ".join(map(str, key.geometry.shape))
        spacing = " × ".join(f"{mm:.3g}" for mm in key.geometry.spacing_mm)
        tilt = tilt_degrees(key.geometry)
        tilted = f", tilted by {tilt:.0f}°, shown along its own axes" if tilt > TILT_DEGREES else ""
        self.tell(f"{shape} voxels of {spacing} mm{tilted}.")
        self.do(lambda: self.desk.go_to(key), partial(self.show_picture, key))

    def _on_dims(self) -> None:
        """Another slice means nothing; another frame of a 4D scan is another scan."""
        layer, drawn = self.layer, self._drawn_key
        if layer is not None and layer.ndim == 4 and drawn is not None and self.frame != drawn.frame:
            self._look()

    def _turn_upright(self) -> None:
        turn_upright(self.viewer, self.world if self.layer is not None else None)

    def _matrix(self) -> Floats | None:
        try:
            return matrix_of(self.layer) if self.layer is not None else None
        except TextsegError as error:
            self._wrong(str(error))
            return None

    def _list_models(self) -> None:
        names = model_names()
        if self.desk.chosen[0] not in names:
            names.insert(0, self.desk.chosen[0])
        self.widgets.model.addItems([*names, FOLDER, SAM, NNINTERACTIVE])
        self._show_chosen_model()

    def _show_chosen_model(self) -> None:
        model, device = self.desk.chosen
        shown = self.desk.other.name if self.desk.other is not None else model
        self._offer_model(shown)
        self.widgets.model.setCurrentText(shown)
        self.widgets.device.setCurrentText(device)

    def _offer_model(self, name: str) -> None:
        if self.widgets.model.findText(name) < 0:
            self.widgets.model.insertItem(0, name)

    def _choose_model(self) -> None:
        """What the two lists say by now: a model, or what draws masks instead of one, and a device."""
        name = self.widgets.model.currentText()
        device = cast("DeviceChoice", self.widgets.device.currentText())
        chosen: str | OtherEngine | None
        if name == FOLDER:
            chosen = self.files.ask_folder("A model's folder")
        elif name == SAM:
            chosen = self._other("SAM", self.files.ask_weights("Weights of SAM or MedSAM"))
        elif name == NNINTERACTIVE:
            chosen = self._other("nnInteractive", self.files.ask_folder("A trained folder of nnInteractive"))
        else:
            chosen = self._others.get(name, name)
        if isinstance(chosen, OtherEngine):
            self.do(partial(self.desk.use_engine, chosen, device), self.tell)
        elif chosen and ((chosen, device) != self.desk.chosen or self.desk.other is not None):
            self.do(partial(self.desk.use_model, chosen, device), self.tell)
        # Where it could not be loaded, or no file was chosen, the one before is still there.
        self.do(lambda: None, lambda _: self._show_chosen_model())

    def _other(self, kind: Literal["SAM", "nnInteractive"], path: str) -> OtherEngine | None:
        """What was chosen in a dialog, remembered by its name; None where that was left."""
        if not path:
            return None
        other = OtherEngine(kind, Path(path))
        self._others[other.name] = other
        return other

    def _list_objects(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows
        fill_table(self.widgets.table, [(colour_of(row.number), row.name, row.volume_ml) for row in rows])

    def go_to_index(self, index: ArrayLike) -> None:
        """Show the plane of a place (3,) in the layer's array; nothing in 3D."""
        matrix = self._matrix()
        if matrix is not None:
            show_plane(self.viewer, matrix, index)

    # ---- connections ----

    def _use(self, index: int) -> None:
        self.widgets.tools.button(index).setChecked(True)
        self.tools.tool = TOOLS[index][0]

    def _complete(self, typed: str) -> None:
        found = completions(typed, self.history.newest_first, self._names)
        self.widgets.completer.model().setStringList(found)

    def _connect(self) -> None:
        widgets = self.widgets
        for name in ("say", "undo", "redo", "reset", "accept", "remove", "cancel"):
            getattr(widgets, name).clicked.connect(lambda _=False, name=name: getattr(self, name)())
        widgets.sign.clicked.connect(lambda _=False: self.toggle_sign())
        widgets.keys.clicked.connect(lambda _=False: self.toggle_help())
        widgets.tools.idClicked.connect(self._use)
        widgets.depth.valueChanged.connect(lambda depth: setattr(self.tools, "depth", depth))
        widgets.prompt.returnPressed.connect(self.say)
        widgets.prompt.textEdited.connect(self._complete)
        for combo in (widgets.layer, widgets.world, widgets.modality):
            combo.currentIndexChanged.connect(lambda _=0: self._look())
        for combo in (widgets.model, widgets.device):
            combo.activated.connect(lambda _=0: self._choose_model())
        widgets.table.cellDoubleClicked.connect(lambda row, _: self.go_to_index(self._rows[row].centre))
        for event, callback in self._events():
            event.connect(callback)
        self._bind_keys(self.viewer)
        self._shortcut(widgets.prompt, "Up", lambda: self._put(self.history.older))
        self._shortcut(widgets.prompt, "Down", lambda: self._put(self.history.newer))

    def _events(self) -> list[tuple[Any, Callable[[], None]]]:
        """napari's events, and what each brings about."""
        layers, dims = self.viewer.layers.events, self.viewer.dims.events
        return [
            (layers.inserted, self._list_layers),
            (layers.removed, self._list_layers),
            (dims.order, self._turn_upright),
            (dims.ndisplay, self._turn_upright),
            (dims.point, self._on_dims),
        ]

    def _put(self, step: Callable[[str], str]) -> None:
        self.widgets.prompt.setText(step(self.widgets.prompt.text()))

    def _shortcut(self, widget: QWidget, keys: str, does: Callable[[], None]) -> None:
        gui: Any = QtGui  # as qtpy takes the class from where each Qt has it
        shortcut = gui.QShortcut(QKeySequence(keys), widget)
        shortcut.setContext(Qt.ShortcutContext.WidgetShortcut)
        shortcut.activated.connect(does)

    def _bind_keys(self, to: Any) -> None:
        """To the viewer, and to our own layers, whose kinds have keys of their own."""
        for shortcut in SHORTCUTS:
            to.bind_key(
                shortcut.keys, lambda _, action=shortcut.action: getattr(self, action)(), overwrite=True
            )


def make_panel(viewer: Any = None) -> QWidget:
    """The panel for a napari window, by default the one in front: what the Plugins menu opens."""
    import napari

    return Panel(viewer or napari.current_viewer()).widgets.root
