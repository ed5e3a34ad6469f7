"""The panel's dialogs: opening scans, saving objects, saving and opening sessions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtWidgets import QFileDialog, QMenu

from textseg.viewer.reading import PATTERNS, read_layers
from textseg.viewer.saving import FORMATS, SaveFormat
from textseg.viewer.scans import LayerData, image_layer, origin_of, volume_of

if TYPE_CHECKING:
    from textseg.viewer.panel import Panel

SESSION_ENDING = ".session"
SESSIONS = f"Session (*{SESSION_ENDING})"


class Files:
    """What the buttons for files do; each dialog is one method, what follows from its answer another."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        widgets = panel.widgets
        opening, keeping = QMenu(widgets.root), QMenu(widgets.root)
        opening.addAction("File…", self.ask_scan)
        opening.addAction("DICOM folder…", self.ask_dicom)
        keeping.addAction("Save…", self.ask_save_session)
        keeping.addAction("Open…", self.ask_open_session)
        widgets.open.setMenu(opening)
        widgets.session.setMenu(keeping)
        widgets.save.clicked.connect(lambda _=False: self.ask_save_objects())

    # ---- dialogs ----

    def ask_scan(self) -> None:
        filters = f"Scans ({' '.join(PATTERNS)});;All files (*)"
        path, _ = QFileDialog.getOpenFileName(self.panel.widgets.root, "Open a scan", "", filters)
        if path:
            self.open_scan(Path(path))

    def ask_dicom(self) -> None:
        path = self.ask_folder("A folder of DICOM")
        if path:
            self.open_scan(Path(path))

    def ask_folder(self, title: str) -> str:
        return str(QFileDialog.getExistingDirectory(self.panel.widgets.root, title))

    def ask_weights(self, title: str) -> str:
        filters = "Weights (*.pth *.pt);;All files (*)"
        return str(QFileDialog.getOpenFileName(self.panel.widgets.root, title, "", filters)[0])

    def ask_save_objects(self) -> None:
        filters = ";;".join(kind.filter for kind in FORMATS)
        suggested = self._suggested("_objects" + FORMATS[0].ending)
        path, chosen = QFileDialog.getSaveFileName(
            self.panel.widgets.root, "Save objects", suggested, filters
        )
        if path:
            self.save_objects(Path(path), next(kind for kind in FORMATS if kind.filter == chosen))

    def ask_save_session(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self.panel.widgets.root, "Save the session", self._suggested(SESSION_ENDING), SESSIONS
        )
        if path:
            self.save_session(Path(path))

    def ask_open_session(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.panel.widgets.root, "Open a session", "", SESSIONS)
        if path:
            self.open_session(Path(path))

    # ---- what follows ----

    def open_scan(self, path: Path, series: str | None = None) -> None:
        """Read a scan and add it as a layer; a DICOM folder of several series gives several."""
        self.panel.tell(f"Reading {path.name} …")
        self.panel.do(lambda: read_layers(path, series=series), self.add_layers)

    def add_layers(self, layers: list[LayerData]) -> None:
        """Add scans, and work on the first of them."""
        viewer, first = self.panel.viewer, len(self.panel.viewer.layers) == 0
        added = [viewer.add_image(data, **options) for data, options, _ in layers]
        self.panel.choose(added[0])
        if first:
            # The middle slice rather than the last, and all of it.
            self.panel.go_to_index((np.array(added[0].data.shape[-3:]) - 1) // 2)
            viewer.reset_view()

    def save_objects(self, path: Path, kind: SaveFormat) -> None:
        panel, key = self.panel, self.panel.key()
        panel.do(lambda: panel.desk.save_objects(path, kind), partial(panel.show_picture, key))

    def save_session(self, path: Path) -> None:
        panel, key = self.panel, self.panel.key()
        if path.suffix != SESSION_ENDING:
            path = path.with_name(path.name + SESSION_ENDING)
        panel.do(lambda: panel.desk.save_session(path), partial(panel.show_picture, key))

    def open_session(self, path: Path) -> None:
        """Go on with a session on the chosen layer; where there is none, its scan is opened first."""
        panel = self.panel
        if panel.layer is None:

            def go_on(layers: list[LayerData]) -> None:
                self.add_layers(layers)
                self.open_session(path)

            panel.do(lambda: [image_layer(path.stem, [panel.desk.scan_of_session(path)])], go_on)
            return
        key, read = panel.key(), partial(volume_of, panel.layer, panel.frame, panel.world)
        panel.do(lambda: panel.desk.open_session(path, key, read), partial(panel.show_picture, key))

    def _suggested(self, ending: str) -> str:
        """A name beside the scan's file, or in the folder where we are."""
        layer = self.panel.layer
        if layer is None:
            return f"scan{ending}"
        origin = origin_of(layer)
        file = origin.files[self.panel.frame] if origin else None
        if file is None:
            return f"{layer.name}{ending}"
        return str(file.paths[0].parent / f"{file.stem}{ending}")
