"""The keys: one table, which the window binds and the help panel shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcut:
    """keys: as napari writes them; action: the panel's method; does: what the help panel says of it."""

    keys: str
    action: str
    does: str

    @property
    def shown(self) -> str:
        """As it stands on keyboards: "Ctrl+Shift+Z"."""
        return self.keys.replace("Control", "Ctrl").replace("-", "+")


# Letters as in the napari plugin of nnInteractive, where annotators know them from.
SHORTCUTS = (
    Shortcut("P", "use_point", "Point: click"),
    Shortcut("B", "use_box", "Box: drag from corner to corner"),
    Shortcut("S", "use_scribble", "Scribble: drag a line"),
    Shortcut("L", "use_lasso", "Lasso: drag around"),
    Shortcut("M", "use_nothing", "Look: the mouse moves the picture"),
    Shortcut("T", "toggle_sign", "Marks mean “this” / “not this”"),
    Shortcut("Control-Z", "undo", "Undo the last step"),
    Shortcut("Control-Shift-Z", "redo", "Redo"),
    Shortcut("A", "accept", "Accept the object, begin the next"),
    Shortcut("R", "reset", "Begin this object anew"),
    Shortcut("/", "type_prompt", "To the prompt line"),
    Shortcut("H", "toggle_help", "Show or hide these keys"),
)
# What needs no binding: napari and the mouse do it.
BY_MOUSE = (
    ("Shift + drag", "One mark with the other sign"),
    ("Mouse wheel", "Zoom; with Ctrl, next slice"),
    ("Up, Down", "In the prompt line: what was said before"),
)
