"""Agreement with VoxTell's own code, on the folder and outputs beside the checkout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.geometry import Geometry
from textseg.network.voxtell.flow import blended_slabs, prepare_like_voxtell, segment_like_voxtell
from textseg.network.voxtell.folder import convert, load_voxtell
from textseg.network.voxtell.text import load_text
from textseg.volume import Volume


@pytest.fixture(scope="module")
def expected(original):
    with np.load(original / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def loaded(original):
    return load_voxtell(original)


@pytest.fixture(scope="module")
def vectors(original, loaded):
    encoder = load_text(original, loaded.text_width)
    return encoder.embed(encoder.prompts)


@torch.inference_mode()
def test_a_window_through_the_network(loaded, vectors, expected):
    features = loaded.encode(torch.from_numpy(expected["patch"]))
    logits = loaded.decode(features, vectors).logits[0].numpy()
    assert np.abs(logits - expected["patch_logits"].astype(np.float32)).max() <= 2e-3


def test_the_crop(expected):
    _, box = prepare_like_voxtell(expected["image"])
    assert list(zip(box.start, box.stop, strict=True)) == [tuple(ends) for ends in expected["crop"].tolist()]


@pytest.mark.slow
def test_the_logits_of_a_scan(loaded, vectors, expected, cpu):
    image, _ = prepare_like_voxtell(expected["image"])
    logits = torch.cat([part for _, part in blended_slabs(loaded, image, vectors, cpu)], dim=1).numpy()
    assert np.abs(logits - expected["logits_float32"]).max() <= 1e-3


@pytest.mark.slow
def test_the_masks_of_a_scan(loaded, vectors, expected, cpu):
    # The image is (z, y, x) of canonical axes; the scan holds it the other way round, and flipped.
    shape = tuple(expected["mask_shape"].tolist())
    voxels = expected["image"].transpose(2, 1, 0)[::-1]
    volume = Volume(voxels, Geometry(voxels.shape, np.diag([-1.0, 1, 1, 1])))
    masks, _ = segment_like_voxtell(volume, loaded, vectors, cpu)
    packed = np.unpackbits(expected["mask_float32"], count=int(np.prod(shape))).reshape(shape)
    different = masks[:, ::-1].transpose(0, 3, 2, 1) != packed.astype(bool)
    assert different.mean() < 1e-5


@torch.inference_mode()
def test_the_converted_folder_gives_the_same_bits(original, loaded, vectors, expected, tmp_path):
    convert(original, tmp_path / "converted")
    converted = load_voxtell(tmp_path / "converted")
    bank = load_text(tmp_path / "converted", converted.text_width)
    assert torch.equal(bank.embed(bank.prompts), vectors)
    patch = torch.from_numpy(expected["patch"])
    before = loaded.decode(loaded.encode(patch), vectors)
    after = converted.decode(converted.encode(patch), vectors)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
