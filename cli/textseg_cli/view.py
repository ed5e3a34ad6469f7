"""`textseg view`: a window with a scan, words and marks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device


@plain_errors()
def view(
    scan: Annotated[
        Path | None,
        typer.Argument(metavar="[SCAN]", help="A NIfTI, NRRD, MetaImage or .mgz file, or a DICOM folder."),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            help="Which DICOM series of SCAN: UID, its beginning or end, or number; all by default."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="A model by name, or its folder.")
    ] = "default",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
) -> None:
    """Segment by words, clicks, boxes, scribbles and lassos in a window (napari).

    Say what to find, correct it with marks, accept it, and save all objects as NIfTI, NRRD, MetaImage or
    DICOM SEG. A 4D scan is worked on frame by frame. The panel is also in napari's own Plugins menu.

    Example: textseg view scan.nii.gz
    """
    from textseg.models import find_model
    from textseg.viewer.window import check_window, open_window

    check_window()
    find_model(model)
    layers = []
    if scan is not None:
        from textseg.viewer.reading import read_layers

        with Screen().progress() as show:
            show("reading", 0, 1)
            layers = read_layers(scan, series=series)
    import napari

    open_window(layers, model, device.value)
    napari.run()
