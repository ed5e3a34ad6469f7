"""The panel's parts and how they lie: no behaviour in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QBrush, QColor, QKeySequence
from qtpy.QtWidgets import (
    QAbstractItemView,
    QButtonGroup,
    QComboBox,
    QCompleter,
    QFrame,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLayout,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from textseg.interactive.marks import MarkKind
from textseg.viewer.coordinates import WORLDS
from textseg.viewer.shortcuts import BY_MOUSE, SHORTCUTS

TOOLS: tuple[tuple[MarkKind | None, str], ...] = (
    (None, "Look"),
    ("point", "Point"),
    ("box", "Box"),
    ("scribble", "Scribble"),
    ("lasso", "Lasso"),
)
MODALITIES = (("auto", None), ("CT", "ct"), ("MR", "mr"), ("PET", "pet"))
DEVICES = ("auto", "cpu", "cuda")
WIDTH_PIXELS = 340


class Widgets:
    """Every widget of the panel by what it is for; `root` holds them all."""

    def __init__(self) -> None:
        self.root = QWidget()
        self.root.setObjectName("textseg")
        self.root.setMinimumWidth(WIDTH_PIXELS)
        column = QVBoxLayout(self.root)
        column.setContentsMargins(8, 6, 8, 6)
        column.setSpacing(6)
        for part in (self._scan(), self._prompt(), self._marks(), self._steps(), self._objects()):
            column.addWidget(part)
        column.addLayout(self._progress())
        self.message = QLabel("Open a scan, or choose its layer.")
        self.message.setWordWrap(True)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        column.addWidget(self.message)
        self.help = _help()
        column.addWidget(self.help)
        column.addStretch(1)

    def _scan(self) -> QWidget:
        self.layer = _combo("The layer that is segmented")
        self.open = _button("Open…", "A NIfTI, NRRD, MetaImage or .mgz file, or a folder of DICOM")
        self.modality = _combo("What the scan is; auto asks its header, then its values")
        for name, value in MODALITIES:
            self.modality.addItem(name, value)
        self.world = _combo(
            "To which ends of the patient the axes of this layer run: left and right depend on it"
        )
        for world, name in WORLDS.items():
            self.world.addItem(name, world)
        self.world_name = QLabel("Axes")
        self.model = _combo("The model, or SAM or nnInteractive with weights of yours")
        self.device = _combo("Where to compute")
        self.device.addItems(DEVICES)
        box, grid = _box("Scan and model")
        _row(grid, 0, "Scan", self.layer, self.open)
        _row(grid, 1, self.world_name, self.world)
        _row(grid, 2, "Model", self.model)
        _row(grid, 3, "Modality", _beside(self.modality, QLabel("Device"), self.device))
        grid.setColumnStretch(1, 1)
        return box

    def _prompt(self) -> QWidget:
        self.prompt = QLineEdit()
        self.prompt.setPlaceholderText("Say what to find, such as left kidney")
        self.completer: Any = QCompleter([])
        self.completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        # What fits is chosen by us, by the beginning of any word.
        self.completer.setCompletionMode(QCompleter.CompletionMode.UnfilteredPopupCompletion)
        self.prompt.setCompleter(self.completer)
        self.say = _button("Find", "Ask for it in words (Enter)")
        box, grid = _box("Words")
        grid.addWidget(self.prompt, 0, 0)
        grid.addWidget(self.say, 0, 1)
        return box

    def _marks(self) -> QWidget:
        self.tools: Any = QButtonGroup(self.root)
        box, grid = _box("Marks")
        row = QHBoxLayout()
        row.setSpacing(3)
        for index, (_, name) in enumerate(TOOLS):
            button = _button(name, _doing(f"use_{TOOLS[index][0] or 'nothing'}"))
            button.setCheckable(True)
            button.setChecked(index == 0)
            self.tools.addButton(button, index)
            row.addWidget(button)
        grid.addLayout(row, 0, 0, 1, 3)
        self.sign = _button("+ this", _doing("toggle_sign"))
        self.sign.setCheckable(True)
        self.depth = QSpinBox()
        self.depth.setRange(0, 500)
        self.depth.setPrefix("± ")
        self.depth.setSuffix(" slices")
        self.depth.setToolTip("How far a box reaches to each side of its slice; 0 for this slice alone")
        grid.addWidget(self.sign, 1, 0)
        grid.addWidget(QLabel("Box depth"), 1, 1, Qt.AlignmentFlag.AlignRight)
        grid.addWidget(self.depth, 1, 2)
        return box

    def _steps(self) -> QWidget:
        row = QWidget()
        layout = _tight(QHBoxLayout(row))
        self.undo = _button("Undo", _doing("undo"))
        self.redo = _button("Redo", _doing("redo"))
        self.reset = _button("Begin anew", _doing("reset"))
        for button in (self.undo, self.redo, self.reset):
            layout.addWidget(button)
        return row

    def _objects(self) -> QWidget:
        box, grid = _box("Objects")
        self.name = QLineEdit()
        self.name.setPlaceholderText("Name; the words by default")
        self.accept = _button("Accept", _doing("accept"))
        self.table = _table()
        self.remove = _button("Remove", "Take the chosen object away; can be undone")
        self.save = _button("Save objects…", "As NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT")
        self.session = _button("Session…", "Save everything done so far, or go on with a saved session")
        grid.addWidget(self.name, 0, 0, 1, 2)
        grid.addWidget(self.accept, 0, 2)
        grid.addWidget(self.table, 1, 0, 1, 3)
        for place, button in enumerate((self.remove, self.session, self.save)):
            grid.addWidget(button, 2, place)
        return box

    def _progress(self) -> QLayout:
        row = QHBoxLayout()
        self.progress = QProgressBar()
        self.progress.setFormat("")
        self.progress.setRange(0, 1)
        self.cancel = _button("Cancel", "Stop this step; everything stays as it was before it")
        self.cancel.setEnabled(False)
        self.keys = _button("Keys", _doing("toggle_help"))
        self.keys.setCheckable(True)
        row.addWidget(self.progress, 1)
        row.addWidget(self.cancel)
        row.addWidget(self.keys)
        return row


def _help() -> QFrame:
    """The table of keys, hidden until it is asked for."""
    frame = QFrame()
    grid = QGridLayout(frame)
    grid.setContentsMargins(2, 2, 2, 2)
    grid.setVerticalSpacing(1)
    lines = [(shortcut.shown, shortcut.does) for shortcut in SHORTCUTS] + list(BY_MOUSE)
    for row, (keys, does) in enumerate(lines):
        key = QLabel(f"<b>{keys}</b>")
        grid.addWidget(key, row, 0)
        grid.addWidget(QLabel(does), row, 1)
    grid.setColumnStretch(1, 1)
    frame.hide()
    return frame


def _table() -> Any:
    """For the accepted objects: colour, name, volume."""
    table: Any = QTableWidget
    table = table(0, 3)
    table.setHorizontalHeaderLabels(["", "Object", "Volume (ml)"])
    header = table.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Fixed)
    header.setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
    header.setSectionResizeMode(2, QHeaderView.ResizeMode.ResizeToContents)
    header.setMinimumSectionSize(18)
    table.setColumnWidth(0, 22)
    table.verticalHeader().hide()
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setFixedHeight(132)
    table.setToolTip("Double click: go there")
    return table


def fill_table(table: Any, rows: Sequence[tuple[tuple[float, ...], str, float]]) -> None:
    """Show objects: colour (red, green, blue, opacity from 0 to 1), name, volume in ml."""
    table.setRowCount(len(rows))
    for place, (colour, name, volume_ml) in enumerate(rows):
        swatch, volume = QTableWidgetItem(), QTableWidgetItem(f"{volume_ml:.2f}")
        swatch.setBackground(QBrush(QColor.fromRgbF(*colour)))
        volume.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        for column, item in enumerate((swatch, QTableWidgetItem(name), volume)):
            table.setItem(place, column, item)


def _doing(action: str) -> str:
    """What a shortcut does, and its key, as a tip."""
    shortcut = next(one for one in SHORTCUTS if one.action == action)
    shown = QKeySequence(shortcut.shown).toString(QKeySequence.SequenceFormat.NativeText)
    return f"{shortcut.does} ({shown})"


def _box(title: str) -> tuple[QGroupBox, QGridLayout]:
    box = QGroupBox(title)
    grid = QGridLayout(box)
    grid.setContentsMargins(6, 4, 6, 6)
    grid.setSpacing(4)
    return box, grid


def _row(
    grid: QGridLayout, row: int, name: str | QLabel, widget: QWidget, last: QWidget | None = None
) -> None:
    grid.addWidget(QLabel(name) if isinstance(name, str) else name, row, 0)
    grid.addWidget(widget, row, 1, 1, 1 if last else 2)
    if last is not None:
        grid.addWidget(last, row, 2)


def _beside(*widgets: QWidget) -> QWidget:
    """Widgets in one row, combos as wide as one another."""
    row = QWidget()
    layout = _tight(QHBoxLayout(row))
    for widget in widgets:
        layout.addWidget(widget, 1 if isinstance(widget, QComboBox) else 0)
    return row


def _tight(layout: QHBoxLayout) -> QHBoxLayout:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(4)
    return layout


def _combo(tip: str) -> QComboBox:
    combo = QComboBox()
    combo.setToolTip(tip)
    # A long name must not make the panel wide.
    combo.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    combo.setMinimumWidth(70)
    return combo


def _button(text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    # The keys stay with the picture.
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return button
