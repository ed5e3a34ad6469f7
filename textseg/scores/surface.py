"""Distances between the surfaces of two masks in millimetres, each piece of surface weighed by its area.

As Nikolov et al. define it (Clinically applicable segmentation of head and neck anatomy for radiotherapy,
J Med Internet Res 2021, e26151; the surface-distance package): the surface lies in the cells between eight
neighbouring voxel centres. A cell with voxels of both kinds holds a piece of surface, whose area follows from
which of the eight are inside, cut halfway between neighbours as in marching cubes. Distances run between the
centres of such cells. What lies outside of the grid is background, so a mask that is cut off by the border
of the scan has a surface there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from textseg.errors import GeometryError
from textseg.geometry import Floats, Geometry, Shape, bounding_box
from textseg.scores.overlap import Mask, around

Corner = tuple[int, int, int]
Point = tuple[float, float, float]
Cells = NDArray[np.intp]

CORNERS: tuple[Corner, ...] = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))

# How up to four corners that hang together along edges are cut off: the corners, and flat pieces of surface
# through the middles of the edges that are cut. Every other such set is one of these turned or mirrored.
CAPS: tuple[tuple[tuple[Corner, ...], tuple[tuple[Point, ...], ...]], ...] = (
    (((0, 0, 0),), (((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)),)),
    (((0, 0, 0), (1, 0, 0)), (((0, 0.5, 0), (0, 0, 0.5), (1, 0, 0.5), (1, 0.5, 0)),)),
    (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0)),
        (
            ((0, 0, 0.5), (1, 0, 0.5), (0, 1, 0.5)),
            ((1, 0, 0.5), (0, 1, 0.5), (0.5, 1, 0), (1, 0.5, 0)),
        ),
    ),
    (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)),
        (((0, 0, 0.5), (1, 0, 0.5), (1, 1, 0.5), (0, 1, 0.5)),),
    ),
    (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        (((1, 0.5, 0), (0.5, 1, 0), (0, 1, 0.5), (0, 0.5, 1), (0.5, 0, 1), (1, 0, 0.5)),),
    ),
    (
        ((0, 1, 0), (0, 0, 0), (1, 0, 0), (1, 0, 1)),
        (
            ((0, 1, 0.5), (0.5, 1, 0), (1, 0.5, 0), (0.5, 0, 1)),
            ((1, 0.5, 0), (1, 0.5, 1), (0.5, 0, 1)),
            ((0.5, 0, 1), (0, 0, 0.5), (0, 1, 0.5)),
        ),
    ),
)
MOST_PIECES = 4

# Nearest surfaces are looked for cell by cell among so many nearest neighbours; beyond, a tree is faster.
NEAR_CELLS = 250
# Equal in millimetres up to rounding: ten steps of 0.2 mm are within a tolerance of 2 mm.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far each piece of one surface is from the other surface, and its area.

    Args:
        predicted_mm: (pieces of the prediction,) mm to the reference; infinite where that is empty.
        predicted_mm2: (pieces of the prediction,) their areas.
        reference_mm: (pieces of the reference,) mm to the prediction.
        reference_mm2: (pieces of the reference,) their areas.
    """

    predicted_mm: Floats
    predicted_mm2: Floats
    reference_mm: Floats
    reference_mm2: Floats

    def surface_dice(self, tolerance_mm: float) -> float:
        """The share of both surfaces that lies within the tolerance of the other; NaN with both empty."""
        within = tolerance_mm * (1 + ROUNDING)
        near = float(
            self.predicted_mm2[self.predicted_mm <= within].sum()
            + self.reference_mm2[self.reference_mm <= within].sum()
        )
        whole = float(self.predicted_mm2.sum() + self.reference_mm2.sum())
        return near / whole if whole else math.nan

    def hausdorff(self, percent: float = 95.0) -> float:
        """The distance in mm within which this percentage of either surface's area lies; the larger of both.

        100 gives the Hausdorff distance itself. Infinite with one mask empty, NaN with both.
        """
        ways = ((self.predicted_mm, self.predicted_mm2), (self.reference_mm, self.reference_mm2))
        distances = [_weighted_percentile(*way, percent) for way in ways if way[0].size]
        return max(distances, default=math.nan)

    def average(self) -> float:
        """The mean distance in mm over the area of both surfaces; infinite with one empty, NaN with both."""
        areas = float(self.predicted_mm2.sum() + self.reference_mm2.sum())
        if not areas:
            return math.nan
        return float(self.predicted_mm @ self.predicted_mm2 + self.reference_mm @ self.reference_mm2) / areas


def surface_distances(
    predicted: Mask, reference: Mask, spacing: Geometry | Sequence[float]
) -> SurfaceDistances:
    """Distances between the surfaces of two masks on one grid.

    Only the box that holds both masks is looked at, so the cost follows the structure and not the scan.

    Args:
        predicted, reference: (x, y, z) bool.
        spacing: the grid, whose shear is heeded; or three numbers, mm along x, y, z.

    Raises:
        GeometryError: the shapes differ, or the spacing is not three positive numbers.
    """
    if predicted.shape != reference.shape or predicted.ndim != 3:
        raise GeometryError(
            f"Two masks are compared on one grid (x, y, z), got {predicted.shape} and {reference.shape}. "
            "Resample one of them first."
        )
    steps = steps_mm(spacing)
    box = around(box for box in (bounding_box(predicted), bounding_box(reference)) if box is not None)
    if box is None:
        return SurfaceDistances(*(np.zeros(0) for _ in range(4)))
    areas = area_table(steps)
    codes = [neighbour_codes(mask[box.slices]) for mask in (predicted, reference)]
    # Cells that hold no surface have no area: codes 0 and 255.
    cells = [np.flatnonzero((code != 0) & (code != 255)) for code in codes]
    pieces = [areas[code.ravel()[cell]] for code, cell in zip(codes, cells, strict=True)]
    shape = cast(Shape, codes[0].shape)
    there = _distances(cells[0], cells[1], shape, steps)
    back = _distances(cells[1], cells[0], shape, steps)
    return SurfaceDistances(there, pieces[0], back, pieces[1])


def surface_area_mm2(mask: Mask, spacing: Geometry | Sequence[float]) -> float:
    """The area of a mask's surface (x, y, z) in mm²; `spacing` as in `surface_distances`."""
    box = bounding_box(mask)
    if box is None:
        return 0.0
    counts = np.bincount(neighbour_codes(mask[box.slices]).ravel(), minlength=256)
    return float(counts @ area_table(steps_mm(spacing)))


def area_table(steps: Floats) -> Floats:
    """The surface's area in mm² in a cell for each of the 256 codes of its corners.

    Ambiguous cells are cut so that the corners of the rarer kind stay apart, whichever kind that is: code
    and 255 - code have one area.

    Args:
        steps: (3, 3), the columns are the steps of the three array axes in mm.

    Returns:
        (256,) mm²; bit 4 x + 2 y + z of the code is set where corner (x, y, z) of the cell is inside.
    """
    # A flat piece with normal n (its length the area) has the normal det(A) A⁻ᵀ n after the linear map A.
    cofactor = np.linalg.det(steps) * np.linalg.inv(steps).T
    return np.asarray(np.linalg.norm(_unit_normals() @ cofactor.T, axis=2).sum(axis=1))


def neighbour_codes(mask: Mask) -> NDArray[np.uint8]:
    """The code of each cell between the voxels of a mask (x, y, z), and of those around its border.

    Returns:
        (x + 1, y + 1, z + 1); the corners of cell (i, j, k) are voxels i - 1 and i, j - 1 and j, k - 1 and k.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    # Pairs along z, squares of pairs along y, cubes of squares along x: three joins in place of eight.
    codes = codes[..., :-1] | codes[..., 1:] << np.uint8(1)
    codes = codes[:, :-1] | codes[:, 1:] << np.uint8(2)
    codes = codes[:-1] | codes[1:] << np.uint8(4)
    return codes


def steps_mm(spacing: Geometry | Sequence[float]) -> Floats:
    """(3, 3), the columns are the steps of the array axes in mm, of a grid or of three spacings.

    Raises:
        GeometryError: the spacing is not three positive numbers.
    """
    if isinstance(spacing, Geometry):
        return np.array(spacing.affine[:3, :3])
    if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise GeometryError(f"Spacing must be three positive numbers in mm, got {tuple(spacing)}.")
    return np.diag(np.asarray(spacing, np.float64))


# ---- areas ----


@cache
def _unit_normals() -> Floats:
    """(256, pieces, 3): normals of the flat pieces of surface in a cell of side 1, as long as their areas."""
    normals = np.zeros((256, MOST_PIECES, 3))
    caps = _turned_caps()
    for code in range(256):
        inside = frozenset(corner for bit, corner in enumerate(CORNERS) if code >> bit & 1)
        rarer = inside if len(inside) <= 4 else frozenset(CORNERS) - inside
        pieces = [piece for part in _joined_along_edges(rarer) for piece in caps[part]]
        normals[code, : len(pieces)] = np.reshape(pieces, (-1, 3))
    return normals


def _turned_caps() -> dict[frozenset[Corner], list[Floats]]:
    """The normals of every set of corners that is one of the caps, turned and mirrored in all 48 ways."""
    caps: dict[frozenset[Corner], list[Floats]] = {}
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        for corners, pieces in CAPS:
            turned = _turned(corners, axes, flips).astype(int)
            key = frozenset((int(x), int(y), int(z)) for x, y, z in turned)
            caps.setdefault(key, [_normal(_turned(piece, axes, flips)) for piece in pieces])
    return caps


def _turned(points: Sequence[Point], axes: Sequence[int], flips: Sequence[bool]) -> Floats:
    """Points (n, 3) of the unit cell with its axes permuted and flipped."""
    permuted = np.asarray(points, np.float64)[:, list(axes)]
    return np.where(flips, 1 - permuted, permuted)


def _normal(polygon: Floats) -> Floats:
    """The normal of a flat polygon (n, 3), as long as its area."""
    return np.asarray(np.cross(polygon, np.roll(polygon, -1, axis=0)).sum(axis=0) / 2)


def _joined_along_edges(corners: frozenset[Corner]) -> Iterator[frozenset[Corner]]:
    """The corners in groups that hang together along edges of the cell."""
    left = set(corners)
    while left:
        group = {left.pop()}
        while near := {a for a in left for b in group if sum(i != j for i, j in zip(a, b, strict=True)) == 1}:
            group |= near
            left -= near
        yield frozenset(group)


# ---- distances ----


def _distances(cells: Cells, others: Cells, shape: Shape, steps: Floats) -> Floats:
    """For each of these cells of a grid the distance in mm to the nearest of the others; exact.

    Most pieces of a good mask lie near the reference, so the neighbours of all are looked at together,
    nearest first; those that are left ask a tree.

    Args:
        cells, others: flat indices into a grid of this shape.
    """
    if others.size == 0:
        return np.full(cells.size, np.inf)
    distances = np.zeros(cells.size)
    left = _near_distances(cells, others, shape, steps, distances)
    if left.size:
        tree = cKDTree(_positions_mm(others, shape, steps), balanced_tree=False, compact_nodes=False)
        distances[left] = tree.query(_positions_mm(cells[left], shape, steps))[0]
    return distances


def _near_distances(cells: Cells, others: Cells, shape: Shape, steps: Floats, distances: Floats) -> Cells:
    """Fill in the distances of cells with a neighbour among the nearest; gives the places of the rest."""
    offsets = _near_offsets(steps)
    margin = np.abs(offsets).max(axis=0)
    padded = tuple(int(n + 2 * m) for n, m in zip(shape, margin, strict=True))
    taken = np.zeros(padded, np.bool_).ravel()
    taken[_flat(others, shape, padded, margin)] = True
    at, left = _flat(cells, shape, padded, margin), np.arange(cells.size)
    strides = np.array([padded[1] * padded[2], padded[2], 1])
    lengths = np.linalg.norm(offsets @ steps.T, axis=1)
    for jump, length in zip((offsets @ strides).tolist(), lengths.tolist(), strict=True):
        hit = taken[at + jump]
        distances[left[hit]] = length
        missed = ~hit
        at, left = at[missed], left[missed]
        if not left.size:
            break
    return left


def _near_offsets(steps: Floats) -> NDArray[np.int64]:
    """Offsets (n, 3) of all cells within the ball that holds about `NEAR_CELLS`, nearest first."""
    radius_mm = (0.75 / math.pi * NEAR_CELLS * abs(np.linalg.det(steps))) ** (1 / 3)
    reach = np.floor(radius_mm * np.linalg.norm(np.linalg.inv(steps), axis=1)).astype(int)
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    lengths = np.linalg.norm(offsets @ steps.T, axis=1)
    order = np.argsort(lengths, kind="stable")
    return np.asarray(offsets[order[: np.count_nonzero(lengths <= radius_mm)]])


def _flat(cells: Cells, shape: Shape, padded: tuple[int, ...], margin: NDArray[np.int64]) -> Cells:
    """Flat indices in a grid as flat indices in that grid with a margin around it."""
    inside = np.unravel_index(cells, shape)
    moved = tuple(i + m for i, m in zip(inside, margin, strict=True))
    return np.asarray(np.ravel_multi_index(moved, padded))


def _positions_mm(cells: Cells, shape: Shape, steps: Floats) -> Floats:
    indices = np.stack(np.unravel_index(cells, shape), axis=1).astype(np.float64)
    # Not @: the threads of a matrix library wait for each other where many processes share the processor.
    return np.asarray(np.einsum("ni,ji->nj", indices, steps))


def _weighted_percentile(distances_mm: Floats, areas_mm2: Floats, percent: float) -> float:
    """The smallest distance within which at least this percentage of the area lies."""
    order = np.argsort(distances_mm)
    shares = np.cumsum(areas_mm2[order])
    at = int(np.searchsorted(shares, shares[-1] * percent / 100))
    return float(distances_mm[order[min(at, order.size - 1)]])
