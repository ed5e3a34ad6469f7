"""Through a scan as VoxTell goes: canonical axes, crop, z-score, windows, and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from textseg.errors import ScanError
from textseg.geometry import AxisOrder, Geometry
from textseg.network.voxtell.flow import (
    blended_slabs,
    prepare_like_voxtell,
    segment_like_voxtell,
    window_weight,
)
from textseg.network.voxtell.text import load_text
from textseg.volume import Volume

AFFINE = np.array([[0.8, 0.1, 0, -30], [-0.1, 1.1, 0.2, 17], [0, -0.1, 2.5, 400], [0, 0, 0, 1.0]])


def scan(shape=(37, 30, 21), border=(3, 2, 1)):
    """A scan (x, y, z) in RAS+ with a border of zeros and something off-centre in it."""
    x, y, z = border
    voxels = np.zeros(shape, np.int16)
    noise = np.random.default_rng(4).integers(
        -200, 300, size=(shape[0] - x - 4, shape[1] - y, shape[2] - z - 2)
    )
    noise[4:9, 6:16, 3:7] += 900
    # No corner of the box may be 0 by chance.
    noise[0, 0, 0] = noise[-1, -1, -1] = 5
    voxels[x:-4, y:, z:-2] = noise
    return Volume(voxels, Geometry(shape, AFFINE))


@pytest.fixture(scope="module")
def text(shared_folder, network):
    return load_text(shared_folder, network.text_width).embed(["liver", "spleen"])


def plain_blend(network, image, text):
    """nnU-Net's windows, all logits kept: image (1, z, y, x), no smaller than a window."""
    window = network.window
    delta = np.zeros(window)
    delta[tuple(n // 2 for n in window)] = 1
    weight = torch.from_numpy(gaussian_filter(delta, [n / 8 for n in window], 0, mode="constant", cval=0))
    weight = weight / weight.max() * 10
    total, weights = (
        torch.zeros((len(text), *image.shape[1:])).double(),
        torch.zeros(image.shape[1:]).double(),
    )
    starts = []
    for n, size in zip(image.shape[1:], window, strict=True):
        steps = int(np.ceil((n - size) / (size / 2))) + 1
        step = (n - size) / (steps - 1) if steps > 1 else 0
        starts.append([int(np.round(step * i)) for i in range(steps)])
    count = 0
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                place = (slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
                features = network.encode(image[(slice(None), *place)][None])
                total[(slice(None), *place)] += network.decode(features, text).logits[0][0] * weight
                weights[place] += weight
                count += 1
    return (total / weights).float(), count


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(16, 24, 16), (30, 25, 31), (41, 24, 17)], ids=str)
def test_slabs_put_together_are_the_plain_blend(shape, network, text, cpu):
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(6))
    expected, count = plain_blend(network, image, text)
    seen = []
    slabs = list(blended_slabs(network, image, text, cpu, lambda done, of: seen.append((done, of))))
    stops = [start + logits.shape[1] for start, logits in slabs]
    assert [start for start, _ in slabs] == [0, *stops[:-1]]
    assert (torch.cat([logits for _, logits in slabs], dim=1) - expected).abs().max() < 3e-4
    assert seen == [(n, count) for n in range(1, count + 1)]
    assert max(logits.shape[1] for _, logits in slabs) <= network.window[0]


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(11, 31, 9), (5, 7, 3), (33, 9, 16)], ids=str)
def test_a_small_image_lies_amid_zeros(shape, network, text, cpu):
    image = torch.randn((1, *shape), generator=torch.Generator().manual_seed(6))
    missing = [max(0, size - n) for n, size in zip(shape, network.window, strict=True)]
    before = [m // 2 for m in missing]
    sides = [side for b, m in zip(before, missing, strict=True) for side in (b, m - b)]
    padded = F.pad(image, [*sides[4:], *sides[2:4], *sides[:2]])
    expected, _ = plain_blend(network, padded, text)
    inside = [slice(b, b + n) for b, n in zip(before, shape, strict=True)]
    slabs = list(blended_slabs(network, image, text, cpu))
    assert slabs[0][0] == 0
    logits = torch.cat([part for _, part in slabs], dim=1)
    assert logits.shape == (2, *shape)
    assert (logits - expected[(slice(None), *inside)]).abs().max() < 3e-4


def test_the_weight_is_nnunets(network):
    weight = window_weight(network.window)
    delta = np.zeros(network.window)
    delta[8, 12, 8] = 1
    gaussian = gaussian_filter(delta, [2, 3, 2], 0, mode="constant", cval=0)
    assert np.allclose(weight, gaussian / gaussian.max(), rtol=1e-5, atol=0)
    assert float(weight[8, 12, 8]) == 1
    assert (weight > 0).all()


def test_the_crop_holds_all_that_is_not_zero_and_nothing_more():
    voxels = np.zeros((9, 8, 7), np.int16)
    voxels[2:5, 3:8, 1:3] = np.arange(30).reshape(3, 5, 2)
    image, box = prepare_like_voxtell(voxels)
    assert (box.start, box.stop) == ((2, 3, 1), (5, 8, 3))
    # Zeros within the box count as much as any other voxel.
    expected = (np.arange(30) - 14.5) / np.arange(30).std()
    assert image.dtype == torch.float32
    assert np.allclose(image.numpy().ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("value", [0, 7])
def test_a_flat_scan_gives_zeros_rather_than_nan(value):
    image, box = prepare_like_voxtell(np.full((3, 4, 5), value, np.float64))
    assert image.shape == (1, 3, 4, 5)
    assert box.shape == (3, 4, 5)
    assert (image == 0).all()


def test_masks_are_the_signs_of_the_logits_in_their_place(network, text, cpu):
    volume = scan()
    masks, presence = segment_like_voxtell(volume, network, text, cpu)
    assert masks.shape == (2, 37, 30, 21)
    image, box = prepare_like_voxtell(volume.voxels[0].transpose(2, 1, 0))
    logits = torch.cat([part for _, part in blended_slabs(network, image, text, cpu)], dim=1)
    expected = np.zeros_like(masks)
    x, y, z = box.slices[::-1]
    expected[:, x, y, z] = (logits > 0).numpy().transpose(0, 3, 2, 1)
    assert np.array_equal(masks, expected)
    assert np.allclose(presence, logits.amax(dim=(1, 2, 3)).sigmoid())
    assert 0.02 < masks.mean() < 0.9
    assert not masks[:, :3].any()


@pytest.mark.parametrize(
    "order",
    [
        AxisOrder((0, 1, 2), (True, True, False)),
        AxisOrder((2, 0, 1), (False, True, True)),
        AxisOrder((1, 2, 0), (True, False, False)),
    ],
    ids=str,
)
def test_a_scan_with_its_axes_in_another_order_gets_the_same_masks(order, network, text, cpu):
    volume = scan()
    masks, presence = segment_like_voxtell(volume, network, text, cpu)
    turned = Volume(order.apply(volume.voxels), volume.geometry.reordered(order))
    again, presence_again = segment_like_voxtell(turned, network, text, cpu)
    assert np.array_equal(again, order.apply(masks))
    assert np.array_equal(presence_again, presence)


def test_a_window_is_encoded_once_for_all_prompts(network, cpu):
    calls = []
    handle = network.encoder.register_forward_hook(lambda *_: calls.append(1))
    windows = []
    image = torch.zeros(1, 17, 24, 16)
    text = torch.randn((19, network.text_width), generator=torch.Generator().manual_seed(8))
    list(blended_slabs(network, image, text, cpu, lambda done, of: windows.append(of)))
    handle.remove()
    assert len(calls) == len(windows) == 2


def test_the_scan_is_left_as_it_is(network, text, cpu):
    volume = scan()
    volume = replace(volume, voxels=volume.voxels.astype(np.float32))
    before = volume.voxels.copy()
    segment_like_voxtell(volume, network, text, cpu)
    assert np.array_equal(volume.voxels, before)


def test_several_channels_are_refused(network, text, cpu):
    volume = scan()
    two = Volume(np.concatenate([volume.voxels] * 2), volume.geometry)
    with pytest.raises(ScanError, match="one channel, got 2"):
        segment_like_voxtell(two, network, text, cpu)
