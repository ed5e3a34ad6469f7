"""Where voxels lie in the patient: grids without voxels, and exact ways from one to another.

Arrays are indexed (x, y, z) in the order of the file's own axes. The affine takes the index of a voxel's
centre to world millimetres in RAS+: the world's axes grow towards the patient's right, front and head, as
in NIfTI and nibabel.
Every change of grid (reorder, crop, pad, regrid) is a new `Geometry` and touches no voxel; `resample.py`
moves voxels between any two of them, so the way back is the way there with the two grids exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textseg.errors import GeometryError

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Floats = NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)

# The two ends of each world axis, negative end first.
WORLD_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Box:
    """A box of voxels (x, y, z), half open: start is in it, stop is not. It may reach outside of its grid."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        return _three(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into an array; only for a box that lies within its grid."""
        x, y, z = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return x, y, z

    def grown(self, margin_voxels: Sequence[int]) -> Box:
        return Box(
            _three(a - m for a, m in zip(self.start, margin_voxels, strict=True)),
            _three(b + m for b, m in zip(self.stop, margin_voxels, strict=True)),
        )

    def moved(self, by_voxels: Sequence[int]) -> Box:
        return Box(
            _three(a + n for a, n in zip(self.start, by_voxels, strict=True)),
            _three(b + n for b, n in zip(self.stop, by_voxels, strict=True)),
        )

    def within(self, shape: Shape) -> Box:
        """The part of the box that lies in a grid of this shape; empty (stop = start) where none does."""
        start = _three(min(max(a, 0), n) for a, n in zip(self.start, shape, strict=True))
        stop = _three(max(min(b, n), a) for b, n, a in zip(self.stop, shape, start, strict=True))
        return Box(start, stop)

    def reordered(self, order: AxisOrder, shape: Shape) -> Box:
        """The same voxels in a grid whose axes are in another order.

        Args:
            shape: of the grid as it was, from whose ends flipped axes count.
        """
        ends = [
            (shape[axis] - self.stop[axis], shape[axis] - self.start[axis])
            if flipped
            else (self.start[axis], self.stop[axis])
            for axis, flipped in zip(order.axes, order.flipped, strict=True)
        ]
        return Box(_three(start for start, _ in ends), _three(stop for _, stop in ends))


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds every true voxel of a mask (x, y, z); None for an empty mask.

    The axis whose planes lie together in memory comes first, and each axis looks only at what the ones before
    it have left: an organ of 120 × 100 × 70 voxels in 512 × 512 × 300 takes 5 ms, where looking at everything
    three times takes 17 ms (one core of an AMD EPYC; of a flipped view 5 ms for 130 ms).
    """
    # A flipped view is read backwards, which is slow along the innermost axis.
    forwards = mask[tuple(slice(None, None, -1 if step < 0 else 1) for step in mask.strides)]
    found = [slice(None)] * 3
    for axis in sorted(range(3), key=lambda axis: -forwards.strides[axis]):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(forwards[tuple(found)].any(axis=others))
        if hit.size == 0:
            return None
        found[axis] = slice(int(hit[0]), int(hit[-1]) + 1)
    ends = [
        (n - inside.stop, n - inside.start) if step < 0 else (inside.start, inside.stop)
        for inside, n, step in zip(found, mask.shape, mask.strides, strict=True)
    ]
    return Box(_three(start for start, _ in ends), _three(stop for _, stop in ends))


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of one grid follow from another's: new axis i is old axis `axes[i]`, flipped or not."""

    axes: Shape
    flipped: tuple[bool, bool, bool]

    def inverse(self) -> AxisOrder:
        axes = _three(self.axes.index(old) for old in range(3))
        x, y, z = (self.flipped[new] for new in axes)
        return AxisOrder(axes, (x, y, z))

    def apply(self, voxels: NDArray[Scalar]) -> NDArray[Scalar]:
        """The array (..., x, y, z) with its last three axes in the new order; a view."""
        first = voxels.ndim - 3
        reordered = np.transpose(voxels, [*range(first), *(first + axis for axis in self.axes)])
        flips = tuple(first + axis for axis in range(3) if self.flipped[axis])
        return np.flip(reordered, flips) if flips else reordered


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in the patient, without the voxels.

    Args:
        shape: voxels along the array's axes (x, y, z).
        affine: (4, 4) float64, from the index of a voxel's centre to world millimetres, RAS+.
            Any axis order, flips, oblique and sheared axes are allowed.

    Raises:
        GeometryError: the shape is not three positive numbers, or the affine is not finite or singular.
    """

    shape: Shape
    affine: Floats

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(
                f"A grid has three sizes of at least one voxel, got {tuple(self.shape)}. Is this a 3D scan?"
            )
        # Adding 0 makes a copy in which no zero has a sign: equal grids must have equal hashes.
        affine = np.array(self.affine, dtype=np.float64) + 0.0
        _check_affine(affine)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", _three(self.shape))
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Geometry)
            and self.shape == other.shape
            and bool((self.affine == other.affine).all())
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __repr__(self) -> str:
        spacing = " × ".join(f"{mm:.4g}" for mm in self.spacing_mm)
        size = " × ".join(map(str, self.shape))
        return f"Geometry({size} voxels of {spacing} mm, {self.orientation})"

    @cached_property
    def spacing_mm(self) -> Spacing:
        """Distance of neighbouring voxel centres along each array axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def directions(self) -> Floats:
        """(3, 3); column i is the unit vector in the world along which array axis i runs."""
        return np.asarray(self.affine[:3, :3] / self.spacing_mm)

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Three letters, one an array axis: the world end to which it runs, such as "RAS" or "LPI"."""
        order = self.canonical_order()
        letters = [""] * 3
        for world, (axis, flipped) in enumerate(zip(order.axes, order.flipped, strict=True)):
            letters[axis] = WORLD_ENDS[world][0 if flipped else 1]
        return "".join(letters)

    @property
    def shear(self) -> float:
        """The largest |cosine| between two array axes: 0 for a right-angled grid."""
        cosines = self.directions.T @ self.directions - np.eye(3)
        return float(np.abs(cosines).max())

    @property
    def whole(self) -> Box:
        return Box((0, 0, 0), self.shape)

    def to_world(self, voxels: ArrayLike) -> Floats:
        """World positions (..., 3) in mm of voxel indices (..., 3), which may be fractions."""
        indices = np.asarray(voxels, dtype=np.float64)
        return np.asarray(indices @ self.affine[:3, :3].T + self.affine[:3, 3])

    def to_voxels(self, world_mm: ArrayLike) -> Floats:
        """Voxel indices (..., 3), with fractions, of world positions (..., 3) in mm."""
        offsets = np.asarray(world_mm, dtype=np.float64) - self.affine[:3, 3]
        return np.asarray(np.linalg.solve(self.affine[:3, :3], offsets[..., None])[..., 0])

    def corners_mm(self) -> Floats:
        """World positions (8, 3) of the outer corners, half a voxel outside of the corner voxels' centres."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        return self.to_world([[x, y, z] for x in ends[0] for y in ends[1] for z in ends[2]])

    def is_close(self, other: Geometry, tolerance_mm: float = 0.01) -> bool:
        """Whether the two grids have the same shape and no corner of them is further apart than this."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)

    # ---- new grids from this one; none touches a voxel ----

    def canonical_order(self) -> AxisOrder:
        """The order and flips that bring this grid's axes closest to RAS+.

        Equal candidates (axes at 45°) are told apart by the directions that they give, never by the order in
        which the file happens to hold them, so every permuted or flipped copy of a scan ends on one grid.
        """
        directions = self.directions

        def closeness(axes: Shape) -> tuple[float, tuple[float, ...]]:
            chosen = directions[:, axes] * _signs(directions, axes)
            return round(float(np.trace(chosen)), 6), tuple(np.round(chosen, 6).ravel() + 0.0)

        best = max((_three(axes) for axes in permutations(range(3))), key=closeness)
        x, y, z = (bool(sign < 0) for sign in _signs(directions, best))
        return AxisOrder(best, (x, y, z))

    def reordered(self, order: AxisOrder) -> Geometry:
        """This grid with its axes permuted and flipped; `order.apply` does the same to an array."""
        columns = self.affine[:3, order.axes].copy()
        origin = self.affine[:3, 3].copy()
        shape = _three(self.shape[axis] for axis in order.axes)
        for axis in range(3):
            if order.flipped[axis]:
                origin += columns[:, axis] * (shape[axis] - 1)
                columns[:, axis] *= -1
        return Geometry(shape, _affine(columns, origin))

    def canonical(self) -> Geometry:
        """This grid with its axes as close to RAS+ as permuting and flipping can bring them."""
        return self.reordered(self.canonical_order())

    def cropped(self, box: Box) -> Geometry:
        """The part of this grid in the box; where the box reaches outside, the grid is padded."""
        return Geometry(box.shape, _affine(self.affine[:3, :3], self.to_world(box.start)))

    def with_spacing(self, spacing_mm: Sequence[float]) -> Geometry:
        """A grid over exactly the same field of view with voxels of about this size.

        The number of voxels is rounded and the spacing then follows from the field of view, as nnU-Net does
        it, so outer borders coincide and going back restores the very grid.
        """
        if len(spacing_mm) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in spacing_mm):
            raise GeometryError(f"Spacing must be three positive numbers in mm, got {tuple(spacing_mm)}.")
        wanted = zip(self.shape, self.spacing_mm, spacing_mm, strict=True)
        return self.with_shape(_three(max(1, round(n * old / new)) for n, old, new in wanted))

    def with_shape(self, shape: Shape) -> Geometry:
        """A grid over exactly the same field of view with this many voxels."""
        scale = np.array(self.shape) / np.array(shape)
        origin = self.to_world((scale - 1) / 2)
        return Geometry(shape, _affine(self.affine[:3, :3] * scale, origin))

    def right_angled(self) -> Geometry:
        """The smallest grid with right angles, nearest in direction to this one, that covers it."""
        left, _, right = np.linalg.svd(self.directions)
        rotation = left @ right
        corners = self.corners_mm() @ rotation
        low, high = corners.min(axis=0), corners.max(axis=0)
        spacing = np.array(self.spacing_mm)
        shape = np.maximum(1, np.ceil((high - low) / spacing - 1e-6))
        # In the middle over this grid, so that every permuted or flipped copy gets the same voxels.
        first = (low + high - (shape - 1) * spacing) / 2
        return Geometry(_three(shape), _affine(rotation * spacing, rotation @ first))


def _check_affine(affine: Floats) -> None:
    if affine.shape != (4, 4):
        raise GeometryError(f"An affine is a 4 × 4 matrix, got shape {affine.shape}.")
    if not np.isfinite(affine).all():
        raise GeometryError(
            "An affine must be finite, got NaN or infinity in it. Is the file's header damaged?"
        )
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise GeometryError(f"The last row of an affine is 0 0 0 1, got {affine[3].tolist()}.")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing <= 0).any():
        raise GeometryError(
            f"Spacing must be three positive numbers in mm, got {tuple(np.round(spacing, 6).tolist())}. "
            "Is the slice thickness missing from the header?"
        )
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise GeometryError(
            "The three axes of a grid must point in different directions, got an affine that is singular. "
            "Is the file's header damaged?"
        )


def _affine(columns: Floats, origin: Floats) -> Floats:
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = origin
    return affine


def _signs(directions: Floats, axes: Shape) -> Floats:
    return np.where(directions[(0, 1, 2), axes] < 0, -1.0, 1.0)


def _three(values: Any) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
