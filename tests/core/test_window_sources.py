"""Windows that are gathered from a scan are those of the prepared image, whatever grid the scan lies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from textseg.device import Compute
from textseg.geometry import AxisOrder, Box, Geometry
from textseg.models import plans_folder
from textseg.network.build import Decoded, Features
from textseg.plan import read_plan
from textseg.prepare import prepare
from textseg.sliding import segment_windows
from textseg.volume import Volume
from textseg.window_sources import ImageWindows, scan_windows

CPU = torch.device("cpu")
PLAN = read_plan(plans_folder() / "default")
SHAPE = (37, 30, 26)
# What each scan's voxels are like beside the working grid's of 2 mm.
SPACINGS = {
    "finer": (0.9, 1.1, 1.0),
    "coarser": (3.1, 2.9, 4.0),
    "both": (1.0, 2.5, 3.3),
    "the same": (2.0, 2.0, 2.0),
}


def grid(spacing, shear=0.0, order=None):
    affine = np.eye(4)
    skew = np.eye(3)
    skew[1, 2] = shear
    turned = Rotation.from_euler("xyz", (8, -12, 15), degrees=True).as_matrix()
    affine[:3, :3] = turned @ skew @ np.diag(spacing)
    affine[:3, 3] = (-30, 17, 400)
    geometry = Geometry(SHAPE, affine)
    return geometry.reordered(order) if order else geometry


def scan(geometry, dtype=np.int16, channels=1):
    """Noisy tissue in air, off the centre, as HU (channels, x, y, z)."""
    random = np.random.default_rng(3)
    hu = np.full((channels, *geometry.shape), -1000.0)
    hu[:, 3:-6, 5:-2, 2:-4] = random.normal(30, 60, hu[:, 3:-6, 5:-2, 2:-4].shape)
    return Volume(hu.astype(dtype), geometry, modality="ct")


def boxes_of(shape, size):
    """Windows in two corners and between them."""
    last = [n - side for n, side in zip(shape, size, strict=True)]
    starts = [(0, 0, 0), tuple(n // 2 for n in last), tuple(last)]
    return [Box(s, tuple(a + n for a, n in zip(s, size, strict=True))) for s in starts]


def agree(gathered, expected):
    # float16 has eleven bits, and sums in another order differ in the last one of float32.
    assert (gathered.float() - expected).abs().max() < 2e-3 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("order", [None, AxisOrder((2, 0, 1), (True, False, True))], ids=["as is", "turned"])
@pytest.mark.parametrize("shear", [0.0, 0.3])
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_gathered_windows_are_those_of_the_prepared_image(spacing, shear, order):
    volume = scan(grid(spacing, shear, order))
    prepared = prepare(volume, PLAN, "ct", (2.0, 2.0, 2.0))
    source = scan_windows(volume, prepared, CPU)
    assert source.shape == prepared.geometry.shape
    # Coarser axes are not averaged: then the kernel reads the scan's own voxels.
    assert (source.volumes[0].dtype == torch.int16) == (min(spacing) >= 2)
    boxes = boxes_of(source.shape, (8, 12, 9))
    expected = ImageWindows(prepared.image, Compute(CPU, torch.float32)).crop(boxes)
    gathered = source.crop(boxes)
    assert gathered.shape == expected.shape == (3, 1, 8, 12, 9)
    assert gathered.dtype == torch.float16
    assert gathered.is_contiguous(memory_format=torch.channels_last_3d)
    agree(gathered, expected)
    assert expected.std() > 0.1
    for box, window in zip(boxes, expected, strict=True):
        assert source.brightest(box) == pytest.approx(float(window[0].max()), abs=4e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_voxels_of_other_types_and_several_channels(dtype):
    geometry = grid((2.0, 3.0, 2.5))
    volume = scan(geometry, np.int16, channels=2)
    voxels = np.clip(volume.voxels + 1100, 0, 250).astype(dtype)
    voxels[1] //= 2
    plan = PLAN.model_copy(update={"channels": ("ct", "mr"), "channel_modalities": ("ct", "mr")})
    volume = Volume(voxels, geometry)
    prepared = prepare(volume, plan, "ct", (2.0, 2.0, 2.0))
    source = scan_windows(volume, prepared, CPU)
    boxes = boxes_of(source.shape, (8, 8, 8))
    gathered = source.crop(boxes)
    assert gathered.shape == (3, 2, 8, 8, 8)
    agree(gathered, ImageWindows(prepared.image, Compute(CPU, torch.float32)).crop(boxes))


class Echo:
    """Logits are the image."""

    total_stride = (16, 16, 16)

    def encode(self, image):
        return Features(image.float(), ())

    def decode(self, features, text, spatial=None):
        return Decoded(
            (features.coarsest[:, :1].expand(-1, len(text), -1, -1, -1),), torch.zeros(1, len(text))
        )


@pytest.mark.parametrize("air", [None, -3.9])
def test_a_whole_scan_is_looked_at_through_gathered_windows(air):
    small = {"size_voxels": (16, 16, 16), "overlap": 0.5}
    plan = PLAN.model_copy(
        update={
            "windows": PLAN.windows.model_copy(update=small),
            "training": PLAN.training.model_copy(update={"patch_voxels": (16, 16, 16)}),
        }
    )
    volume = scan(grid((1.1, 1.9, 3.0)))
    prepared = prepare(volume, plan, "ct", (1.5, 1.5, 1.5))
    source = scan_windows(volume, prepared, CPU)
    compute = Compute(CPU, torch.float32)
    found = segment_windows(Echo(), source, torch.zeros(2, 1), plan, compute, air=air)
    expected = segment_windows(Echo(), prepared.image, torch.zeros(2, 1), plan, compute, air=air)
    agree(found.logits, expected.logits)


@pytest.mark.gpu
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_a_gpu_prepares_and_gathers_the_same(spacing):
    volume = scan(grid(spacing))
    cuda = torch.device("cuda")
    expected = prepare(volume, PLAN, "ct", (2.0, 2.0, 2.0))
    prepared = prepare(volume, PLAN, "ct", (2.0, 2.0, 2.0), cuda)
    assert prepared.geometry == expected.geometry
    assert torch.allclose(prepared.image.cpu(), expected.image, atol=1e-4)
    boxes = boxes_of(expected.geometry.shape, (8, 12, 9))
    gathered = scan_windows(volume, prepared, cuda).crop(boxes)
    agree(gathered.cpu(), scan_windows(volume, expected, CPU).crop(boxes).float())
