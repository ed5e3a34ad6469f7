"""The mouse on napari's canvas: point, box, scribble and lasso on the plane that is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from textseg.geometry import Floats
from textseg.interactive.marks import MarkKind
from textseg.viewer.coordinates import shown_index
from textseg.viewer.drawing import Stroke
from textseg.viewer.scene import camera_of

IN_3D = "Marks are drawn in the 2D view. Go there with Ctrl+Y."


class Tools:
    """Which tool is in hand, and what it draws.

    Args:
        viewer: napari's.
        matrix: gives the (4, 4) matrix of the layer that is drawn on; None where there is none.
        preview: called with what is drawn so far, None once it is finished, and the layer's matrix.
        finished: called with what was drawn.
        refused: called with the words of why nothing can be drawn.
    """

    def __init__(
        self,
        viewer: Any,
        matrix: Callable[[], Floats | None],
        preview: Callable[[Stroke | None, Floats], None],
        finished: Callable[[Stroke], None],
        refused: Callable[[str], None],
    ) -> None:
        self.viewer = viewer
        self.positive = True
        self.depth = 0
        self._tool: MarkKind | None = None
        self._matrix, self._preview, self._finished, self._refused = matrix, preview, finished, refused
        viewer.mouse_drag_callbacks.append(self._drag)
        # napari lets the active layer decide; with a tool in hand the mouse draws whatever layer is active.
        self.camera = camera_of(viewer)
        self.camera.events.mouse_pan.connect(self._hold_still)

    @property
    def tool(self) -> MarkKind | None:
        return self._tool

    @tool.setter
    def tool(self, tool: MarkKind | None) -> None:
        self._tool = tool
        self.camera.mouse_pan = tool is None

    def close(self) -> None:
        """Leave the mouse to napari."""
        self.tool = None
        self.viewer.mouse_drag_callbacks.remove(self._drag)
        self.camera.events.mouse_pan.disconnect(self._hold_still)

    def _hold_still(self) -> None:
        if self._tool is not None and self.camera.mouse_pan:
            self.camera.mouse_pan = False

    def _drag(self, viewer: Any, event: Any) -> Iterator[None]:
        matrix = self._matrix()
        if self._tool is None or matrix is None or event.button != 1 or self._others_draw():
            return
        if viewer.dims.ndisplay == 3:
            self._refused(IN_3D)
            return
        tool, positive = self._tool, self.positive != ("Shift" in event.modifiers)
        before = viewer.dims.ndim - 3
        down, right = (axis - before for axis in event.dims_displayed)
        places: list[Floats] = []

        def stroke() -> Stroke:
            return Stroke(tool, np.array(places), (down, right), positive, self.depth)

        def add() -> None:
            place = shown_index(event.position[-3:], matrix, (down, right))
            if not places or np.abs(place - places[-1]).max() > 1e-3:
                places.append(place)

        add()
        self._preview(stroke(), matrix)
        yield
        while event.type == "mouse_move":
            add()
            self._preview(stroke(), matrix)
            yield
        self._preview(None, matrix)
        self._finished(stroke())

    def _others_draw(self) -> bool:
        """Whether the active layer is being drawn on with a tool of napari's own."""
        active = self.viewer.layers.selection.active
        return active is not None and getattr(active, "mode", "pan_zoom") not in ("pan_zoom", "transform")
