"""Slices of masks to closed outlines and back, so that going round changes no voxel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from textseg.errors import OutputError
from textseg.geometry import Floats

Bools = NDArray[np.bool_]


def outlines(plane: Bools) -> Iterator[Floats]:
    """Closed outlines (points, 2) of a mask's slice (x, y), in pixels, one for each part; holes by keyholes.

    They run halfway between pixels inside and outside, so that the centres within are those of the mask.
    """
    find_contours = _find_contours()
    # Parts that meet at a corner only are apart, as the contours see them.
    parts, count = ndimage.label(plane)
    for part, place in enumerate(ndimage.find_objects(parts, count), start=1):
        corner = np.array([axis.start for axis in place], dtype=np.float64) - 1
        rings = [ring[:-1] for ring in find_contours(np.pad(parts[place] == part, 1).astype(float), 0.5)]
        # The outer one begins before those within.
        rings.sort(key=lambda ring: float(ring[:, 0].min()))
        outline = rings[0]
        for hole in rings[1:]:
            outline = _with_keyhole(outline, hole)
        yield _without_straight_points(outline) + corner


def _find_contours() -> Any:
    try:
        return import_module("skimage.measure").find_contours
    except ModuleNotFoundError as error:
        raise OutputError(
            'RTSTRUCT needs scikit-image, which is not installed: pip install "textseg[dicom]"; '
            "or write NIfTI."
        ) from error


def _with_keyhole(outline: Floats, hole: Floats) -> Floats:
    """The outline led into the hole where they are nearest, around it and out by the same way.

    The channel is passed twice in opposite directions, so it changes no area even where it crosses another.
    Outline and hole run around in opposite directions, as find_contours has the mask on one side of both.
    """
    inner, outer = np.unravel_index(cdist(hole, outline).argmin(), (len(hole), len(outline)))
    around = np.concatenate([hole[inner:], hole[: inner + 1]])
    return np.concatenate([outline[: outer + 1], around, outline[outer:]])


def _without_straight_points(ring: Floats) -> Floats:
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    # At the end of a keyhole's channel the way turns right back, which is no straight line either.
    ahead = (before * after).sum(axis=1) > 0
    return np.asarray(ring[(np.abs(turns) > 1e-9) | ~ahead])


def inside_polygons(polygons: Sequence[Floats], shape: tuple[int, ...]) -> Bools:
    """The pixels (x, y) whose centres lie within an odd number of polygons (points, 2), given in pixels.

    Scan lines: where an edge crosses the line of a row's centres, everything beyond it changes sides. An edge
    that is passed twice, as in a keyhole, changes it twice and so not at all.
    """
    changes = np.zeros((shape[0] + 1, shape[1]), dtype=np.int64)
    for polygon in polygons:
        starts, stops = polygon, np.roll(polygon, -1, axis=0)
        # Both directions of an edge must give the very same crossing.
        swapped = starts[:, 1] > stops[:, 1]
        starts, stops = np.where(swapped[:, None], stops, starts), np.where(swapped[:, None], starts, stops)
        first = np.clip(np.ceil(starts[:, 1]), 0, shape[1]).astype(int)
        last = np.clip(np.ceil(stops[:, 1]), 0, shape[1]).astype(int)
        edge = np.repeat(np.arange(len(starts)), last - first)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        row += first[edge]
        (x0, y0), (x1, y1) = starts[edge].T, stops[edge].T
        crossing = x0 + (row - y0) * (x1 - x0) / (y1 - y0)
        np.add.at(changes, (np.clip(np.ceil(crossing), 0, shape[0]).astype(int), row), 1)
    return np.asarray(np.cumsum(changes[:-1], axis=0) % 2 == 1)
