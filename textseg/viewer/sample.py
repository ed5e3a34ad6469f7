"""Sample data: the phantom that textseg comes with, drawn rather than shipped a second time."""

from __future__ import annotations

import numpy as np

from textseg.geometry import AxisOrder, Geometry
from textseg.viewer.scans import LayerData, image_layer
from textseg.volume import Volume

SHAPE, SPACING_MM, SEED = (116, 92, 150), 3.0, 7


def torso_phantom_layer() -> list[LayerData]:
    """The bundled CT of a torso without a patient, with a tumour in the left kidney."""
    import torch

    from textseg.train.lesions import paint_ball
    from textseg.train.phantom import LEGEND, VALUES, torso_phantom
    from textseg.train.synth import synthesise

    random = np.random.default_rng(SEED)
    canonical = Geometry(SHAPE, np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]))
    labels = torso_phantom(random, canonical)
    image = synthesise(torch.from_numpy(labels.astype(np.int64)), LEGEND, "ct", random)
    kidney = np.argwhere(labels == VALUES["left kidney"])
    place = kidney[kidney[:, 2].argsort()[len(kidney) // 4]]
    image = paint_ball(image, tuple(place), radius_voxels=4.5, shift=-60.0)
    voxels = image.numpy().round().astype(np.int16)
    scanner = AxisOrder((0, 1, 2), (True, True, False))
    volume = Volume(scanner.apply(voxels), canonical.reordered(scanner), modality="ct")
    return [image_layer("torso phantom", [volume])]
