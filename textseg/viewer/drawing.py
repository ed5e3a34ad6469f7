"""Strokes of the mouse on a layer as marks of a session, and marks as points and shapes to show."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, floor
from typing import Literal

import numpy as np

from textseg.errors import PromptError
from textseg.geometry import Floats, Geometry
from textseg.interactive.marks import Mark, MarkKind
from textseg.session import Answer, Session
from textseg.viewer.coordinates import to_scan

ShapeKind = Literal["rectangle", "path", "polygon"]

# A stroke moved less than this, in voxels of the layer, was a click.
CLICK_VOXELS = 0.5
# A box through more slices than this is drawn on every second, third … of them.
MOST_SLICES = 60


@dataclass(frozen=True, eq=False)
class Stroke:
    """What was drawn on one plane of a layer.

    Args:
        tool: what it means.
        places: (n, 3) indices of the layer's array with fractions, as drawn.
        displayed: the two axes of the plane.
        positive: "this", or "not this".
        depth: how many slices a box reaches to each side of its own.
    """

    tool: MarkKind
    places: Floats
    displayed: tuple[int, int]
    positive: bool = True
    depth: int = 0


def put_on(session: Session, stroke: Stroke) -> Answer:
    """Make a mark of a stroke, in the session's world.

    Raises:
        PromptError: it is none: a box or a lasso that was a click, or a mark outside of the scan.
    """
    world = session.geometry.to_world(to_scan(_corners(stroke) if stroke.tool == "box" else stroke.places))
    if stroke.tool == "point":
        return session.add_point(world[-1], stroke.positive)
    if stroke.tool == "box":
        return session.add_box(world[0], world[1], stroke.positive)
    if stroke.tool == "scribble":
        return session.add_scribble(world, stroke.positive)
    return session.add_lasso(world, stroke.positive)


def outline(stroke: Stroke) -> tuple[ShapeKind, Floats]:
    """What to show while a stroke is being drawn: vertices (n, 3) in the layer's array."""
    places = stroke.places
    if len(places) == 1:
        # A path of one vertex is none for napari.
        places = np.concatenate([places, places + 1e-3])
    if stroke.tool == "box":
        return "rectangle", _rectangle(places[0], places[-1], stroke.displayed)
    if stroke.tool == "lasso" and len(places) > 2:
        return "polygon", places
    return "path", places


def _corners(stroke: Stroke) -> Floats:
    places = stroke.places
    moved = np.abs(places[-1] - places[0])[list(stroke.displayed)]
    if moved.max() < CLICK_VOXELS:
        raise PromptError(
            "A box goes from one corner to the opposite one, got a click. Drag with the mouse held."
        )
    corners = np.stack([places[0], places[-1]])
    hidden = next(axis for axis in range(3) if axis not in stroke.displayed)
    if stroke.depth > 0:
        # To the outer faces: on a finer working grid the outermost slices would else be half missing.
        corners[:, hidden] += (-stroke.depth - 0.5, stroke.depth + 0.5)
    return corners


def _rectangle(first: Floats, last: Floats, displayed: tuple[int, int]) -> Floats:
    down, right = displayed
    vertices = np.repeat(first[None], 4, axis=0)
    vertices[1:3, right] = last[right]
    vertices[2:, down] = last[down]
    return vertices


@dataclass
class Drawing:
    """Marks as napari draws them; all places are (n, 3) indices of a layer's array.

    Each list has an entry a point or a shape, and `positive` says what it means.
    """

    points: list[Floats] = field(default_factory=list)
    points_positive: list[bool] = field(default_factory=list)
    shapes: list[Floats] = field(default_factory=list)
    kinds: list[ShapeKind] = field(default_factory=list)
    shapes_positive: list[bool] = field(default_factory=list)

    def add_shape(self, kind: ShapeKind, vertices: Floats, positive: bool) -> None:
        self.kinds.append(kind)
        self.shapes.append(vertices)
        self.shapes_positive.append(positive)


def draw(marks: tuple[Mark, ...], geometry: Geometry) -> Drawing:
    """What there is to see of marks on a scan's grid."""
    drawing = Drawing()
    for mark in marks:
        places = to_scan(np.array(mark.points))
        if mark.kind == "point" or len(places) == 1:
            drawing.points.append(places[0])
            drawing.points_positive.append(mark.positive)
        elif mark.kind == "box":
            for vertices in _box_slices(places[0], places[1], geometry):
                drawing.add_shape("rectangle", vertices, mark.positive)
        else:
            drawing.add_shape("polygon" if mark.kind == "lasso" else "path", places, mark.positive)
    return drawing


def _box_slices(low: Floats, high: Floats, geometry: Geometry) -> list[Floats]:
    """A box as a rectangle on each of its slices across its shortest side."""
    spacing = geometry.spacing_mm[::-1]
    hidden = int(np.argmin((high - low) * spacing))
    down, right = (axis for axis in range(3) if axis != hidden)
    # Like the marks themselves: what is thinner than a voxel still lies in one.
    first, last = ceil(low[hidden] - 1e-6), floor(high[hidden] + 1e-6)
    middle = floor((low[hidden] + high[hidden]) / 2 + 0.5)
    slices = range(first, last + 1) if last >= first else range(middle, middle + 1)
    step = max(1, -(-len(slices) // MOST_SLICES))
    rectangles = []
    for number in slices[::step]:
        corner, opposite = low.copy(), high.copy()
        corner[hidden] = opposite[hidden] = number
        rectangles.append(_rectangle(corner, opposite, (down, right)))
    return rectangles
