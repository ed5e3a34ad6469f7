"""A simulated person at a session: what `textseg.train.interactions` draws, drawn with a mouse.

The training gives a network the voxels of a stroke or of what a line encloses; a person has one pen and one
closed line. Here the pen goes through the voxels of a stroke without leaving them, back on its own way where
it must, and the line encloses the very voxels that were meant, holes and all.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from textseg.network.spatial_prompts import Interaction, Point, Region, Scribble
from textseg.session import Answer, Session

Places = NDArray[np.float64]
Flat = tuple[int, int]
AROUND = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]


def draw(session: Session, mark: Interaction) -> Answer:
    """A simulated mark, in voxels of the scan, as a person's."""
    if isinstance(mark, Point):
        return session.add_point(mark.position, mark.positive, coordinates="voxel")
    if isinstance(mark, Region):
        return session.add_box(mark.start, mark.stop, mark.positive, coordinates="voxel")
    if isinstance(mark, Scribble):
        return session.add_scribble(stroke(mark.voxels), mark.positive, coordinates="voxel")
    return session.add_lasso(outline(mark.voxels), mark.positive, coordinates="voxel")


def stroke(voxels: NDArray[np.int64]) -> Places:
    """A line (m, 3) through all voxels (n, 3) of the largest piece of a scribble on one slice.

    Each place touches the next by an edge or a corner: a walk through the piece, back where it ends.
    """
    flat, across, index = _on_slice(voxels)
    parts, count = ndimage.label(flat, np.ones((3, 3)))
    largest = parts == 1 + np.bincount(parts.ravel(), minlength=count + 1)[1:].argmax()
    free = {(int(a), int(b)) for a, b in np.argwhere(largest)}
    # From an end rather than from the middle, so that the pen goes back as little as it can.
    first = min(free, key=lambda place: (len(_next_to(place, free)), place))
    walk, way = [first], [first]
    free.remove(first)
    while way and free:
        near = _next_to(way[-1], free)
        if near:
            way.append(near[0])
            free.remove(near[0])
        else:
            way.pop()
        if way:
            walk.append(way[-1])
    return _lifted(np.array(walk, float) + _origin(voxels, across), across, index)


def outline(voxels: NDArray[np.int64]) -> Places:
    """The corners (m, 3) of one closed line on a slice that encloses these voxels (n, 3) and no others.

    Around each piece and each hole there is a loop; slits of no width join them.
    """
    flat, across, index = _on_slice(voxels)
    loops = _loops(flat)
    corners = [corner for loop in loops for corner in (*loop, loop[0])]
    back = [loop[0] for loop in loops[-2::-1]]
    return _lifted(np.array(corners + back) - 0.5 + _origin(voxels, across), across, index)


def _loops(flat: NDArray[np.bool_]) -> list[list[Flat]]:
    """Closed walks along the borders of pixels, inside always on the same hand, without straight corners."""
    inside = np.pad(flat, 1)
    ways: dict[Flat, list[Flat]] = {}
    for a, b in np.argwhere(flat):
        corners = [(a, b), (a + 1, b), (a + 1, b + 1), (a, b + 1)]
        beyond = [inside[a + 1, b], inside[a + 2, b + 1], inside[a + 1, b + 2], inside[a, b + 1]]
        for (start, stop), same in zip(pairwise([*corners, corners[0]]), beyond, strict=True):
            if not same:
                ways.setdefault((int(start[0]), int(start[1])), []).append((int(stop[0]), int(stop[1])))
    loops = []
    while ways:
        start = next(iter(ways))
        loop = [start]
        while loop[-1] in ways:
            here = loop[-1]
            loop.append(ways[here].pop())
            if not ways[here]:
                del ways[here]
        loops.append(_bends(loop[:-1]))
    return loops


def _bends(loop: list[Flat]) -> list[Flat]:
    """A closed loop without the places where it goes straight on."""
    triples = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [b for a, b, c in triples if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])]


def _next_to(place: Flat, free: set[Flat]) -> list[Flat]:
    return [near for a, b in AROUND if (near := (place[0] + a, place[1] + b)) in free]


def _on_slice(voxels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], int, int]:
    """Voxels (n, 3) as a picture of their box, the axis across their slice, and their index along it."""
    across = int(np.ptp(voxels, axis=0).argmin())
    places = np.delete(voxels, across, axis=1)
    places = places - places.min(axis=0)
    flat = np.zeros(places.max(axis=0) + 1, bool)
    flat[tuple(places.T)] = True
    return flat, across, int(voxels[0, across])


def _origin(voxels: NDArray[np.int64], across: int) -> NDArray[np.int64]:
    return np.asarray(np.delete(voxels.min(axis=0), across))


def _lifted(places: NDArray[np.floating], across: int, index: int) -> Places:
    return np.insert(places.astype(np.float64), across, index, axis=1)
