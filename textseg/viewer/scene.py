"""Which plane napari shows, and which way up; also what of it moved in 0.9: a scene and a canvas."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from textseg.geometry import Floats
from textseg.viewer.coordinates import ends_on_screen, orientation, plane_position


def camera_of(viewer: Any) -> Any:
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def text_overlay_of(viewer: Any) -> Any:
    return viewer.canvas.overlays.text if hasattr(viewer, "scene") else viewer.text_overlay


def turn_upright(viewer: Any, world: str | None) -> None:
    """The head, or the front, on top in the 2D view, letters at its sides, and no mirror image in 3D.

    Args:
        world: the ends of the patient to which napari's axes run; None where there is no patient.
    """
    overlay, displayed = text_overlay_of(viewer), _displayed(viewer)
    overlay.visible = False
    if world is None or min(displayed) < 0:
        return
    towards = orientation(displayed, world)
    camera_of(viewer).orientation = towards
    if len(displayed) == 2:
        left, right, top, bottom = ends_on_screen(displayed, towards[1], world)
        overlay.text = f"{left} ◂ ▸ {right}   {top} ▴ ▾ {bottom}"
        overlay.visible = True


def show_plane(viewer: Any, matrix: Floats, index: ArrayLike) -> None:
    """Go to the plane of a place (3,) in the array of a layer; matrix: (4, 4) its own. Nothing in 3D."""
    displayed, before = _displayed(viewer), viewer.dims.ndim - 3
    if len(displayed) == 2 and min(displayed) >= 0:
        position = plane_position(index, matrix, displayed)
        for axis in set(range(3)) - set(displayed):
            viewer.dims.set_point(axis + before, position[axis])


def _displayed(viewer: Any) -> list[int]:
    """The axes on the screen, counted from the first of the three of space."""
    return [axis - (viewer.dims.ndim - 3) for axis in viewer.dims.displayed]
