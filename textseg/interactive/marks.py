"""What a person draws on a scan, and the same thing on a network's working grid.

A mark is kept in voxels of the scan's own array, whole numbers at voxel centres, so that what was clicked on
a voxel stays exactly there; any working grid, of any axis order, spacing or angle, is reached through the
world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textseg.errors import PromptError
from textseg.geometry import Floats, Geometry, Shape
from textseg.network.spatial_prompts import Interaction, Lasso, Point, Region, Scribble
from textseg.resample import POSITION_STEP

Coordinates = Literal["world", "voxel"]
MarkKind = Literal["point", "box", "scribble", "lasso"]
Position = tuple[float, float, float]
Voxels = NDArray[np.int64]

# A lasso's points may be off their common plane by this much, in voxels of the working grid.
PLANE_TOLERANCE_VOXELS = 1.0


@dataclass(frozen=True)
class Mark:
    """One mark, in voxels of the scan's own array, whole numbers at voxel centres.

    points: of a point its place; of a box two opposite corners of its extent, half a voxel outside of the
    outer voxels' centres; of a scribble its line; of a lasso its closed line, without the first point again.
    """

    kind: MarkKind
    points: tuple[Position, ...]
    positive: bool = True

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "points": [list(p) for p in self.points], "positive": self.positive}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Mark:
        points = tuple(_position(p) for p in document["points"])
        return cls(document["kind"], points, bool(document["positive"]))


def point_mark(position: ArrayLike, positive: bool, scan: Geometry, coordinates: Coordinates) -> Mark:
    """A click at a place (3,), world mm or voxels of the scan.

    Raises:
        PromptError: the place is no three finite numbers, or lies outside of the scan.
    """
    points = _points([position], "A point is a place of three numbers", scan, coordinates)
    _refuse_outside(points, "A point", scan)
    return _mark("point", points, positive)


def box_mark(
    start: ArrayLike, stop: ArrayLike, positive: bool, scan: Geometry, coordinates: Coordinates
) -> Mark:
    """A box whose edges run along the scan's axes; on one slice it is one voxel, or no mm, thick.

    Args:
        start, stop: (3,) in voxels the half-open range, in world mm two opposite corners in any order.

    Raises:
        PromptError: a corner is no three finite numbers, the box is empty, or lies outside of the scan.
    """
    points = _points([start, stop], "A box has two corners of three numbers", scan, coordinates)
    if coordinates == "voxel":
        if (points[1] <= points[0]).any():
            raise PromptError(
                f"A box in voxels runs from a start up to a larger stop, got {_said(points[0])} to "
                f"{_said(points[1])}. On one slice the stop is the start and one."
            )
        points = points - 0.5
    low, high = points.min(axis=0), points.max(axis=0)
    if (high <= -0.5).any() or (low >= np.array(scan.shape) - 0.5).any():
        raise PromptError(_outside("A box", points, scan))
    return _mark("box", np.stack([low, high]), positive)


def scribble_mark(points: ArrayLike, positive: bool, scan: Geometry, coordinates: Coordinates) -> Mark:
    """A line through points (n, 3), in space or on a slice.

    Raises:
        PromptError: there is no point, they are no finite numbers, or all lie outside of the scan.
    """
    line = _points(
        points, "A scribble is a line through at least one place of three numbers", scan, coordinates
    )
    _refuse_outside(line, "A scribble", scan)
    return _mark("scribble", line, positive)


def lasso_mark(points: ArrayLike, positive: bool, scan: Geometry, coordinates: Coordinates) -> Mark:
    """A closed line through points (n, 3) in one plane, which need not be one of the scan's own.

    Raises:
        PromptError: the points enclose nothing, do not lie in one plane, or lie outside of the scan.
    """
    rule = "A lasso is a closed line through at least three places of three numbers"
    line = _points(points, rule, scan, coordinates)
    if len(line) > 1 and np.allclose(line[0], line[-1]):
        line = line[:-1]
    if len(line) < 3 or _area(line) < 1e-6:
        raise PromptError(f"{rule}, got {len(line)} that enclose nothing. Draw it around something.")
    _refuse_outside(line, "A lasso", scan)
    centred = line - line.mean(axis=0)
    if np.abs(centred @ np.linalg.svd(centred, full_matrices=False)[2][2]).max() > PLANE_TOLERANCE_VOXELS:
        raise PromptError(
            "The points of a lasso lie in one plane, got points that do not. Draw on one slice."
        )
    return _mark("lasso", line, positive)


def drawn(mark: Mark, scan: Geometry, working: Geometry) -> Interaction:
    """The mark on a working grid; parts of it may lie outside of that grid."""
    points = to_grid(np.array(mark.points), scan, working)
    if mark.kind == "point":
        x, y, z = _nearest(points[0], working.shape)
        return Point((float(x), float(y), float(z)), mark.positive)
    if mark.kind == "box":
        return _region(mark, scan, working)
    if mark.kind == "scribble":
        return Scribble(line_voxels(points), mark.positive)
    return Lasso(enclosed_voxels(points), mark.positive)


def to_grid(points: Floats, scan: Geometry, working: Geometry) -> Floats:
    """Voxel positions (n, 3) of the scan as positions on another grid, rounded as resampling rounds them."""
    moved = working.to_voxels(scan.to_world(points))
    return np.asarray(np.round(moved / POSITION_STEP) * POSITION_STEP)


def voxels_of(interaction: Interaction, shape: Shape) -> Voxels:
    """Voxels (n, 3) that stand for an interaction on a grid: all of a line, a lattice of a box."""
    if isinstance(interaction, Point):
        voxels = np.array([interaction.position], np.int64)
    elif isinstance(interaction, Region):
        start = np.maximum(interaction.start, 0)
        last = np.minimum(interaction.stop, shape) - 1
        if (last < start).any():
            return np.zeros((0, 3), np.int64)
        edges = [
            np.unique(np.linspace(a, b, 9).round().astype(np.int64)) for a, b in zip(start, last, strict=True)
        ]
        voxels = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 3)
    else:
        voxels = np.asarray(interaction.voxels, np.int64)
    return voxels[((voxels >= 0) & (voxels < np.array(shape))).all(axis=1)]


def extent_mm(mark: Mark, scan: Geometry) -> float:
    """The longest side, in mm, of a box or a lasso; 0 for marks that do not tell an object's size."""
    if mark.kind in ("point", "scribble"):
        return 0.0
    points = np.array(mark.points)
    return float(((points.max(axis=0) - points.min(axis=0)) * scan.spacing_mm).max())


def line_voxels(points: Floats) -> Voxels:
    """The voxels (n, 3) of a line through points (n, 3), each touching the next by a face, edge or corner."""
    if len(points) == 1:
        return np.floor(points + 0.5).astype(np.int64)
    strokes = np.diff(points, axis=0)
    steps = np.maximum(1, np.ceil(np.abs(strokes).max(axis=1))).astype(int)
    stroke = np.repeat(np.arange(len(strokes)), steps)
    # From one over its steps to one along each stroke; the first point of all is put before.
    along = (np.arange(len(stroke)) - np.repeat(np.cumsum(steps) - steps, steps) + 1) / steps[stroke]
    places = points[stroke] + along[:, None] * strokes[stroke]
    voxels = np.floor(np.concatenate([points[:1], places]) + 0.5).astype(np.int64)
    new = np.append(True, (voxels[1:] != voxels[:-1]).any(axis=1))
    return np.asarray(voxels[new])


def enclosed_voxels(points: Floats) -> Voxels:
    """The voxels (n, 3), one thick, within a closed flat line through points (n, 3); its line if none is."""
    centre = points.mean(axis=0)
    normal = np.linalg.svd(points - centre, full_matrices=False)[2][2]
    across = int(np.abs(normal).argmax())
    # Off by less than rounding over a thousand voxels, the plane is one of the grid's own.
    slopes = np.where(np.abs(normal) < 1e-3 * abs(normal[across]), 0.0, normal / normal[across])
    along = [axis for axis in range(3) if axis != across]
    flat = points[:, along]
    low, high = np.ceil(flat.min(axis=0)).astype(int), np.floor(flat.max(axis=0)).astype(int)
    first, second = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij")
    places = np.stack([first.ravel(), second.ravel()], axis=1)
    places = places[_within(flat, places)]
    if len(places) == 0:
        return line_voxels(np.concatenate([points, points[:1]]))
    height = centre[across] - (places - centre[along]) @ slopes[along]
    height = np.floor(np.round(height / POSITION_STEP) * POSITION_STEP + 0.5)
    voxels = np.empty((len(places), 3), np.int64)
    voxels[:, along], voxels[:, across] = places, height
    return voxels


def _within(line: Floats, places: Voxels) -> NDArray[np.bool_]:
    """Which places (n, 2) lie within a closed line (m, 2), by the number of times that a ray crosses it."""
    inside = np.zeros(len(places), bool)
    for (a, b), (c, d) in zip(line, np.roll(line, -1, axis=0), strict=True):
        if b == d:
            continue
        crosses = (places[:, 1] >= min(b, d)) & (places[:, 1] < max(b, d))
        inside ^= crosses & (places[:, 0] < a + (places[:, 1] - b) * (c - a) / (d - b))
    return inside


def _region(mark: Mark, scan: Geometry, working: Geometry) -> Region:
    """The voxels whose centres lie in the box, at least one along each axis."""
    (a, b, c), (d, e, f) = mark.points
    corners = np.array([[x, y, z] for x in (a, d) for y in (b, e) for z in (c, f)])
    moved = to_grid(corners, scan, working)
    low, high = moved.min(axis=0), moved.max(axis=0)
    start, stop = np.ceil(low), np.floor(high) + 1
    middle = np.floor((low + high) / 2 + 0.5)
    start, stop = np.where(stop > start, start, middle), np.where(stop > start, stop, middle + 1)
    x, y, z = (int(n) for n in start)
    u, v, w = (int(n) for n in stop)
    return Region((x, y, z), (u, v, w), mark.positive)


def _nearest(position: Floats, shape: Shape) -> Voxels:
    """The nearest voxel; what lies on the outer face of the grid belongs to the voxel inside of it."""
    nearest = np.floor(position + 0.5)
    nearest = np.where(np.abs(position - (np.array(shape) - 0.5)) < 1e-3, np.array(shape) - 1, nearest)
    return np.where(np.abs(position + 0.5) < 1e-3, 0, nearest).astype(np.int64)


def _points(
    points: ArrayLike | list[ArrayLike], rule: str, scan: Geometry, coordinates: Coordinates
) -> Floats:
    """Points (n, 3) in voxels of the scan."""
    if coordinates not in ("world", "voxel"):
        raise PromptError(f"Coordinates are world or voxel, got {coordinates!r}.")
    try:
        array = np.asarray(cast(ArrayLike, points), np.float64)
    except (TypeError, ValueError):
        array = np.full((1,), np.nan)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0 or not np.isfinite(array).all():
        raise PromptError(f"{rule}, got {np.shape(array)} or numbers that are not finite.")
    return scan.to_voxels(array) if coordinates == "world" else array


def _refuse_outside(points: Floats, name: str, scan: Geometry) -> None:
    inside = (points >= -0.5 - 1e-6) & (points <= np.array(scan.shape) - 0.5 + 1e-6)
    if not inside.all(axis=1).any():
        raise PromptError(_outside(name, points, scan))


def _outside(name: str, points: Floats, scan: Geometry) -> str:
    voxel, world = points.mean(axis=0), scan.to_world(points.mean(axis=0))
    return (
        f"{name} lies within the scan of {' × '.join(map(str, scan.shape))} voxels, got voxel "
        f"{_said(voxel)}, which is {_said(world)} mm in the world. Are these world or voxel coordinates?"
    )


def _said(numbers: Floats) -> str:
    return "(" + ", ".join(f"{number:.4g}" for number in numbers) + ")"


def _area(line: Floats) -> float:
    """Of a closed flat line in space."""
    centred = line - line[0]
    return float(np.linalg.norm(np.cross(centred, np.roll(centred, -1, axis=0)).sum(axis=0)) / 2)


def _mark(kind: MarkKind, points: Floats, positive: bool) -> Mark:
    return Mark(kind, tuple(_position(point) for point in points), positive)


def _position(point: ArrayLike) -> Position:
    x, y, z = (float(value) for value in np.asarray(point, np.float64))
    return x, y, z
