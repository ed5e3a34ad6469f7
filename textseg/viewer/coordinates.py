"""From what napari shows to millimetres in the patient, and back.

Three frames meet here. A scan's own array is (x, y, z), its world mm in RAS+ (`Geometry`). A layer's array is
the same one read backwards, (z, y, x), as napari draws the last two axes. And napari's world has an axis for
each axis of a layer, in that order, but says nothing about the patient: which end of the patient each of them
runs to is written as three letters, "IPL" for the first axis towards the feet, the second to the back, the
third to the left. That is how our reader lays scans out: napari draws the second of two axes to the right and
the first downwards, so that every plane is upright and the patient's left is on the right, as radiologists
look at it; and "IPL" is right-handed, so that in 3D, where napari's first axis comes towards us, it is no
mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from textseg.errors import ScanError
from textseg.geometry import WORLD_ENDS, Floats, Geometry

OURS = "IPL"
# What the layers of other readers may be, by what it is called; the first is the commonest.
WORLDS = {
    "SPL": "z, y, x of DICOM or ITK (SPL)",
    OURS: "z, y, x, head first (IPL)",
    "SAR": "z, y, x of NIfTI (SAR)",
    "RAS": "x, y, z of NIfTI (RAS)",
    "LPS": "x, y, z of DICOM or ITK (LPS)",
}
COMMONEST = next(iter(WORLDS))
OPPOSITE = dict(WORLD_ENDS) | {high: low for low, high in WORLD_ENDS}
# An off-diagonal part of a layer's matrix that is smaller than this part of a voxel is rounding.
ROUNDING = 1e-5


def to_ras(world: str) -> Floats:
    """The (3, 3) matrix from napari's world to RAS+, of axes that run to these ends, such as "IPL".

    Raises:
        ScanError: these are not three ends of three different axes of the patient.
    """
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(world):
        for row, (low, high) in enumerate(WORLD_ENDS):
            if letter in (low, high) and column < 3:
                matrix[row, column] = 1.0 if letter == high else -1.0
    if len(world) != 3 or abs(np.linalg.det(matrix)) != 1:
        raise ScanError(
            f"Three axes run to three different ends of the patient, such as {OURS}, got {world!r}."
        )
    return matrix


def layer_matrix(geometry: Geometry, world: str = OURS) -> Floats:
    """The (4, 4) matrix of a layer whose array (z, y, x) is a scan's read backwards: indices to the world."""
    matrix = np.eye(4)
    back = np.linalg.inv(to_ras(world))
    matrix[:3, :3] = back @ geometry.affine[:3, 2::-1]
    matrix[:3, 3] = back @ geometry.affine[:3, 3]
    return matrix + 0.0


def layer_geometry(shape: Sequence[int], matrix: Floats, world: str, mm_per_unit: float = 1.0) -> Geometry:
    """The grid of a layer's array read backwards, in RAS+ mm; there and back with `layer_matrix`.

    Args:
        shape: of the layer's array, its last three axes.
        matrix: (4, 4) from the layer's indices to napari's world.
        world: the ends of the patient to which the world's axes run.
        mm_per_unit: of the layer's unit.

    Raises:
        GeometryError: the matrix is singular.
        ScanError: the world is none.
    """
    affine = np.eye(4)
    affine[:3, :3] = (to_ras(world) @ matrix[:3, :3])[:, ::-1] * mm_per_unit
    affine[:3, 3] = to_ras(world) @ matrix[:3, 3] * mm_per_unit
    a, b, c = (int(n) for n in shape)
    return Geometry((c, b, a), affine)


def spatial_part(matrix: Floats) -> Floats:
    """The (4, 4) matrix of a layer's last three axes, of a matrix (n + 1, n + 1) that may have frames before.

    Raises:
        ScanError: frames and space are mixed: what is a place in one frame would be a time.
    """
    size = matrix.shape[0] - 1
    frames = size - 3
    part = np.eye(4)
    part[:3, :3], part[:3, 3] = matrix[frames:size, frames:size], matrix[frames:size, size]
    mixed = np.abs(matrix[frames:size, :frames]).sum() + np.abs(matrix[:frames, frames:size]).sum()
    if mixed > ROUNDING:
        raise ScanError(
            "A 4D layer has frames along its first axis and space along the other three, but the affine of "
            "this one mixes them. Give its axes another order."
        )
    return part


def shown_index(position: ArrayLike, matrix: Floats, displayed: Sequence[int]) -> Floats:
    """The place (3,) in a layer's array, with fractions, that is drawn where the mouse is in the 2D view.

    napari draws one plane of the array as it is: of an oblique layer, what tilts out of the screen is left
    away, both when it chooses the plane and when it puts it on the screen. The inverse of the layer's matrix
    would miss such a pixel by centimetres; so the same two steps are taken here.

    Args:
        position: (3,) of the mouse, in napari's world.
        matrix: (4, 4) from the layer's indices to napari's world.
        displayed: the two axes on the screen.
    """
    place = np.asarray(position, np.float64)
    shown, hidden = list(displayed), [axis for axis in range(3) if axis not in displayed]
    inverse = np.linalg.inv(matrix)
    index = np.empty(3)
    index[hidden] = np.round(inverse[np.ix_(hidden, hidden)] @ place[hidden] + inverse[hidden, 3])
    index[shown] = np.linalg.solve(matrix[np.ix_(shown, shown)], place[shown] - matrix[shown, 3])
    return index


def plane_position(index: ArrayLike, matrix: Floats, displayed: Sequence[int]) -> Floats:
    """Where (3,) in napari's world the 2D view has to be for a place in a layer's array to be drawn.

    The hidden axis is inverted as napari does it; see `shown_index`.
    """
    place = np.asarray(index, np.float64)
    shown, hidden = list(displayed), [axis for axis in range(3) if axis not in displayed]
    inverse = np.linalg.inv(matrix)
    position = np.empty(3)
    position[hidden] = np.linalg.solve(inverse[np.ix_(hidden, hidden)], place[hidden] - inverse[hidden, 3])
    position[shown] = matrix[np.ix_(shown, shown)] @ place[shown] + matrix[shown, 3]
    return position


def straightened(geometry: Geometry) -> Geometry:
    """The same grid about the same centre with its axes along those of the patient that they are nearest to.

    So that the 2D view shows every plane as it was acquired: of a tilted layer napari would show the same
    pixels, but leave slices at one end out of the slider's reach, and warn of it at every step.
    """
    order = geometry.canonical_order()
    columns = np.zeros((3, 3))
    for world, (axis, flipped) in enumerate(zip(order.axes, order.flipped, strict=True)):
        columns[world, axis] = geometry.spacing_mm[axis] * (-1 if flipped else 1)
    middle = (np.array(geometry.shape) - 1) / 2
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, geometry.to_world(middle) - columns @ middle
    return Geometry(geometry.shape, affine)


def tilt_degrees(geometry: Geometry) -> float:
    """The largest angle between one of a grid's axes and the patient's axis that it is nearest to."""
    order = geometry.canonical_order()
    cosines = np.abs(geometry.directions[(0, 1, 2), order.axes])
    return float(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max())


def to_scan(indices: ArrayLike) -> Floats:
    """Places (..., 3) in a layer's array as places in the scan's own one, and the other way round."""
    return np.asarray(indices, np.float64)[..., ::-1]


def orientation(displayed: Sequence[int], world: str) -> tuple[str, str, str]:
    """napari's camera for this world: depth, vertical and horizontal direction of the axes on the screen.

    The head, or the front, is on top in 2D, and in 3D there is no mirror image. What we lay out ourselves
    needs nothing but napari's own defaults.
    """
    depth = "towards" if np.linalg.det(to_ras(world)) > 0 else "away"
    vertical = "up" if len(displayed) == 2 and world[displayed[0]] in "SA" else "down"
    return depth, vertical, "right"


def ends_on_screen(displayed: Sequence[int], vertical: str, world: str) -> tuple[str, ...]:
    """The letters at the left, right, top and bottom of the 2D view."""
    down, right = world[displayed[-2]], world[displayed[-1]]
    top, bottom = (down, OPPOSITE[down]) if vertical == "up" else (OPPOSITE[down], down)
    return OPPOSITE[right], right, top, bottom
