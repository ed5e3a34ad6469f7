"""The mouse on napari's canvas, and waiting for what it brings about."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from textseg.viewer.coordinates import plane_position

# Machines may be busy with something else.
SECONDS = 300
KINDS = {
    "press": QEvent.Type.MouseButtonPress,
    "move": QEvent.Type.MouseMove,
    "release": QEvent.Type.MouseButtonRelease,
}


def wait_until(condition):
    """Let the window live until it is so."""
    for _ in range(SECONDS * 50):
        if condition():
            return
        QTest.qWait(20)
    raise AssertionError("it never came to be so")


def settle(panel):
    """Until everything asked for is done and shown."""
    wait_until(lambda: not panel.work.busy)
    QTest.qWait(50)


def canvas_of(viewer):
    return viewer.window._qt_viewer.canvas


def pixel_of(viewer, index, matrix):
    """Where on the canvas a place (z, y, x) of a layer's array is drawn, after going to its plane."""
    before = viewer.dims.ndim - 3
    displayed = [axis - before for axis in viewer.dims.displayed]
    position = plane_position(index, matrix, displayed)
    for axis in set(range(3)) - set(displayed):
        viewer.dims.set_point(axis + before, position[axis])
    QTest.qWait(100)
    x, y = canvas_of(viewer).view.scene.transform.map([position[displayed[1]], position[displayed[0]]])[:2]
    return QPointF(float(x), float(y))


def drag(viewer, indices, matrix, modifiers=Qt.KeyboardModifier.NoModifier):
    """Press at the first place (z, y, x) of a layer's array, move over the others, release at the last."""
    pixels = [pixel_of(viewer, index, matrix) for index in np.asarray(indices, float)]
    _send(viewer, "press", pixels[0], modifiers)
    for pixel in pixels[1:]:
        _send(viewer, "move", pixel, modifiers)
    _send(viewer, "release", pixels[-1], modifiers)


def click(viewer, x, y):
    """On a pixel of the canvas."""
    for kind in ("press", "release"):
        _send(viewer, kind, QPointF(x, y), Qt.KeyboardModifier.NoModifier)


def _send(viewer, kind, pixel, modifiers):
    left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
    native = canvas_of(viewer).native
    button = none if kind == "move" else left
    held = none if kind == "release" else left
    place = QPointF(native.mapToGlobal(pixel.toPoint()))
    QApplication.sendEvent(native, QMouseEvent(KINDS[kind], pixel, place, button, held, modifiers))
    QTest.qWait(20)


def press_key(viewer, key, modifiers=Qt.KeyboardModifier.NoModifier):
    QTest.keyClick(canvas_of(viewer).native, key, modifiers)
    QTest.qWait(20)
