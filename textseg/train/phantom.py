"""A torso that nobody had to lie in a scanner for: labels drawn from random ellipsoids, tubes and bends.

Not anatomy to learn from alone, but every organ lies on its own side, so words, sides, absence and the whole
chain can be trained and tested without a patient. The bundled example scan is one of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from textseg.geometry import Geometry

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Organ:
    """An ellipsoid: its centre as fractions of the torso's half axes and height, its half axes in mm.

    Axes: x to the patient's right, y to the front, z to the head; z runs from 0 (hips) to 1 (shoulders).
    """

    name: str
    centre: tuple[float, float, float]
    half_axes_mm: tuple[float, float, float]


# Later organs overwrite earlier ones. Positions and sizes after common adult anatomy, rounded.
ORGANS = (
    Organ("small bowel", (0.0, 0.35, 0.30), (85, 55, 60)),
    Organ("colon", (-0.55, 0.25, 0.32), (22, 25, 75)),
    Organ("colon", (0.55, 0.25, 0.30), (25, 28, 65)),
    Organ("right lung", (0.48, 0.0, 0.80), (58, 75, 105)),
    Organ("left lung", (-0.48, 0.0, 0.80), (55, 75, 105)),
    Organ("liver", (0.38, 0.15, 0.55), (82, 72, 62)),
    Organ("stomach", (-0.33, 0.32, 0.54), (48, 42, 45)),
    Organ("spleen", (-0.68, -0.30, 0.55), (24, 40, 50)),
    Organ("pancreas", (-0.08, 0.12, 0.47), (60, 13, 14)),
    Organ("gallbladder", (0.36, 0.50, 0.46), (15, 17, 26)),
    Organ("right kidney", (0.43, -0.38, 0.43), (28, 26, 54)),
    Organ("left kidney", (-0.43, -0.38, 0.46), (28, 26, 54)),
    Organ("heart", (-0.10, 0.30, 0.73), (55, 48, 52)),
    Organ("urinary bladder", (0.0, 0.25, 0.08), (36, 32, 28)),
)
SPINE = "vertebral column"
TUBES = {
    "aorta": ((-0.07, -0.18), 11.0, (0.25, 0.85)),
    "inferior vena cava": ((0.09, -0.15), 12.0, (0.25, 0.70)),
    "spinal canal": ((0.0, -0.62), 8.0, (0.0, 1.0)),
}
FAT, MUSCLE = "subcutaneous fat", "muscle"
LEGEND: dict[int, str] = dict(
    enumerate(dict.fromkeys([FAT, MUSCLE, *(organ.name for organ in ORGANS), SPINE, *TUBES]), start=1)
)
VALUES = {name: value for value, name in LEGEND.items()}


def torso_phantom(random: np.random.Generator, geometry: Geometry) -> Labels:
    """Labels (x, y, z) uint8 of a random torso on a grid in canonical axes, 0 for air; `LEGEND` names them.

    The torso fills the grid: organs keep their size in mm, their places follow the grid's extent.
    """
    points = _bent(_torso_points(geometry), random, geometry)
    size = np.array([140.0, 100.0]) * random.uniform(0.9, 1.15, 2)
    labels = np.zeros(geometry.shape, np.uint8)
    x, y, _ = points
    radius = (np.abs(x / size[0]) ** 2.5 + np.abs(y / size[1]) ** 2.5) ** 0.4
    fat_mm = random.uniform(6, 25)
    labels[radius < 1 + fat_mm / size.mean()] = VALUES[FAT]
    labels[radius < 1] = VALUES[MUSCLE]
    inside = radius < 0.93
    for organ in ORGANS:
        labels[inside & _in_organ(organ, points, size, random)] = VALUES[organ.name]
    labels[_in_tube(points, size, (0.0, -0.42), random.uniform(17, 22), (0.0, 1.0))] = VALUES[SPINE]
    for name, (place, radius_mm, ends) in TUBES.items():
        labels[_in_tube(points, size, place, radius_mm * random.uniform(0.85, 1.2), ends)] = VALUES[name]
    return labels


def _torso_points(geometry: Geometry) -> NDArray[np.float64]:
    """(3, x, y, z): mm from the torso's axis to the right and to the front, and the height from 0 to 1."""
    x, y = (
        (np.arange(n) - (n - 1) / 2) * mm
        for n, mm in zip(geometry.shape[:2], geometry.spacing_mm[:2], strict=True)
    )
    height = (np.arange(geometry.shape[2]) + 0.5) / geometry.shape[2]
    return np.stack(np.meshgrid(x, y, height, indexing="ij"))


def _bent(
    points: NDArray[np.float64], random: np.random.Generator, geometry: Geometry, reach_mm: float = 9.0
) -> NDArray[np.float64]:
    """The points moved by a smooth random field of some millimetres, so that no organ is an ellipsoid."""
    coarse = tuple(
        max(3, round(n * mm / 45)) for n, mm in zip(geometry.shape, geometry.spacing_mm, strict=True)
    )
    where = np.meshgrid(
        *(np.linspace(0, c - 1, n) for c, n in zip(coarse, geometry.shape, strict=True)), indexing="ij"
    )
    moved = points.copy()
    for axis, reach in enumerate((reach_mm, reach_mm, reach_mm / 500)):
        field = gaussian_filter(random.normal(size=coarse), 0.7)
        moved[axis] += map_coordinates(field, where, order=1) * reach / max(field.std(), 1e-9)
    return moved


def _in_organ(
    organ: Organ, points: NDArray[np.float64], size: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.bool_]:
    x, y, z = points
    height_mm = 560.0
    centre = np.array(organ.centre) + random.normal(0, (0.03, 0.03, 0.012))
    a, b, c = np.array(organ.half_axes_mm) * random.normal(1, 0.10, 3).clip(0.75, 1.3)
    offsets = ((x - centre[0] * size[0]) / a, (y - centre[1] * size[1]) / b, (z - centre[2]) * height_mm / c)
    return np.asarray(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2 < 1)


def _in_tube(
    points: NDArray[np.float64],
    size: NDArray[np.float64],
    place: tuple[float, float],
    radius_mm: float,
    ends: tuple[float, float],
) -> NDArray[np.bool_]:
    x, y, z = points
    across = (x - place[0] * size[0]) ** 2 + (y - place[1] * size[1]) ** 2
    return np.asarray((across < radius_mm**2) & (z >= ends[0]) & (z <= ends[1]))
