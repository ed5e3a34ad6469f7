"""What napari shows of a session: the mask in hand, the accepted objects, and the marks."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from napari.utils import DirectLabelColormap

from textseg.geometry import Floats
from textseg.report.preview import COLOURS
from textseg.viewer.desk import Picture
from textseg.viewer.drawing import Stroke, draw, outline

NOW, OBJECTS, SHAPES, POINTS = "textseg now", "textseg objects", "textseg strokes", "textseg points"
STROKE = "textseg stroke"

# Signs differ in shape as well, for those who do not tell green from red.
POSITIVE, NEGATIVE = "#3ddc84", "#ff5a4f"
POSITIVE_SYMBOL, NEGATIVE_SYMBOL = "disc", "x"
POINT_VOXELS, LINE_VOXELS = 3.0, 0.6
OPACITY = 0.45
MOST_OBJECTS = 255


def colour_of(number: int) -> tuple[float, float, float, float]:
    """Red, green, blue and opacity, 0 to 1, of the n-th object, from 1; those of previews come first."""
    if number <= len(COLOURS):
        red, green, blue = (part / 255 for part in COLOURS[number - 1])
    else:
        red, green, blue = colorsys.hsv_to_rgb((number * 0.618034) % 1.0, 0.65, 0.95)
    return red, green, blue, 1.0


class ShownLayers:
    """The layers that belong to us; any that a person takes away comes back with the next step.

    Args:
        viewer: napari's.
        prepare: called with each new layer, to bind keys to it.
    """

    def __init__(self, viewer: Any, prepare: Callable[[Any], None]) -> None:
        self.viewer = viewer
        self._prepare = prepare
        self._matrix: Floats = np.eye(4)

    def show(self, picture: Picture, matrix: Floats) -> None:
        """Everything after a step; matrix: (4, 4) of the scan's layer."""
        self._matrix = matrix
        self._show_labels(OBJECTS, picture.labels.T)
        self._show_labels(NOW, picture.mask.T)
        self._show_marks(picture)

    def show_stroke(self, stroke: Stroke | None, matrix: Floats) -> None:
        """What is being drawn; None takes it away. matrix: (4, 4) of the scan's layer."""
        self._matrix = matrix
        layer = self._layer(STROKE, self._add_shapes)
        self._set_shapes(layer, [] if stroke is None else [outline(stroke)], [stroke and stroke.positive])

    def clear(self) -> None:
        for name in (NOW, OBJECTS, SHAPES, POINTS, STROKE):
            if name in self.viewer.layers:
                self.viewer.layers.remove(name)

    def _show_labels(self, name: str, data: Any) -> None:
        layer = self._layer(name, lambda name: self._add_labels(name, data))
        if layer.data is not data:
            layer.data = data
        self._place(layer)

    def _show_marks(self, picture: Picture) -> None:
        drawing = draw(picture.marks, picture.geometry)
        shapes = self._layer(SHAPES, self._add_shapes)
        outlines = list(zip(drawing.kinds, drawing.shapes, strict=True))
        self._set_shapes(shapes, outlines, drawing.shapes_positive)
        points = self._layer(POINTS, self._add_points)
        self._place(points)
        points.data = np.array(drawing.points).reshape(-1, 3)
        if drawing.points:
            points.face_color = [_colour(positive) for positive in drawing.points_positive]
            points.symbol = [
                POSITIVE_SYMBOL if positive else NEGATIVE_SYMBOL for positive in drawing.points_positive
            ]

    def _set_shapes(self, layer: Any, shapes: Sequence[tuple[str, Floats]], positive: Any) -> None:
        self._place(layer)
        layer.data = []
        if shapes:
            colours = [_colour(bool(one)) for one in positive]
            layer.add(
                [vertices for _, vertices in shapes],
                shape_type=[kind for kind, _ in shapes],
                edge_color=colours,
                edge_width=LINE_VOXELS,
                face_color=[[0, 0, 0, 0]] * len(shapes),
            )

    # ---- layers ----

    def _layer(self, name: str, add: Callable[[str], Any]) -> Any:
        """Our layer of this name; a new one leaves the one that a person works with the active one."""
        if name in self.viewer.layers:
            return self.viewer.layers[name]
        active, point = self.viewer.layers.selection.active, self.viewer.dims.point
        layer = add(name)
        self._prepare(layer)
        # An empty layer reaches from 0 to 0 for napari, which then goes to another slice.
        if len(point) == self.viewer.dims.ndim:
            self.viewer.dims.point = point
        if active is not None:
            self.viewer.layers.selection.active = active
        return layer

    def _place(self, layer: Any) -> None:
        if not np.array_equal(layer.affine.affine_matrix, self._matrix):
            layer.affine = self._matrix

    def _add_labels(self, name: str, data: Any) -> Any:
        colours: dict[int | None, Any] = {number: colour_of(number) for number in range(1, MOST_OBJECTS + 1)}
        colormap = DirectLabelColormap(color_dict={None: (0.8, 0.8, 0.8, 1.0), 0: (0, 0, 0, 0), **colours})
        layer = self.viewer.add_labels(
            data, name=name, opacity=OPACITY, colormap=colormap, affine=self._matrix
        )
        # Painted voxels would not reach the session: corrections are marks.
        layer.editable = False
        return layer

    def _add_shapes(self, name: str) -> Any:
        return self.viewer.add_shapes([], ndim=3, name=name, opacity=0.9, affine=self._matrix)

    def _add_points(self, name: str) -> Any:
        return self.viewer.add_points(
            ndim=3, name=name, size=POINT_VOXELS, border_width=0.15, border_color="black", affine=self._matrix
        )


def _colour(positive: bool) -> str:
    return POSITIVE if positive else NEGATIVE
