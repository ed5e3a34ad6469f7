"""napari with a scan and the panel beside it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

from textseg.device import DeviceChoice
from textseg.errors import DeviceError
from textseg.viewer.scans import LayerData


def check_window() -> None:
    """Refuse where no window can open, before anything is read.

    Raises:
        DeviceError: napari or Qt is not installed, or there is no display.
    """
    if find_spec("napari") is None or find_spec("qtpy") is None:
        raise DeviceError(
            'The viewer needs napari, which is not installed. Get it with pip install "textseg[napari]".'
        )
    # Without a display Qt ends the whole process, with many lines.
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in displays):
        raise DeviceError(
            "The viewer needs a display, but there is none here (DISPLAY is not set). Run it on a desktop, "
            "or over ssh with -X; `textseg predict --preview` draws pictures without one."
        )


def open_window(
    layers: list[LayerData], model: str = "default", device: DeviceChoice = "auto", *, show: bool = True
) -> Any:
    """A napari viewer with these layers and the panel; `napari.run()` then hands over to the person.

    Args:
        layers: as `read_layers` gives them, the first of which is worked on.
        model, device: to begin with.

    Raises:
        DeviceError: see `check_window`.
    """
    check_window()
    import napari

    from textseg.viewer.desk import Desk
    from textseg.viewer.panel import Panel

    viewer = napari.Viewer(title="textseg", show=show)
    panel = Panel(viewer, Desk(chosen=(model, device)))
    viewer.window.add_dock_widget(panel.widgets.root, name="textseg", area="right")
    if layers:
        panel.files.add_layers(layers)
    return viewer
