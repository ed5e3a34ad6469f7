"""VoxTell with less work a prompt gives VoxTell's logits, whatever sizes it has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.voxtell.tiny_folder import FLAT, ODD, SHALLOW, Tiny, write_folder
from textseg import quick_voxtell
from textseg.device import Compute
from textseg.network.voxtell.folder import load_voxtell
from textseg.quick_layers import quick_layers
from textseg.quick_voxtell import QuickVoxTell

CPU = Compute(torch.device("cpu"), torch.float32)
# Kernels of three everywhere and steps by two, as in the release.
CUBES = Tiny(
    patch=(16, 24, 16),
    kernels=((3, 3, 3),) * 4,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    decoder_convolutions=(1, 1, 1),
    slope=0.01,
)
SIZES = {"cubes": CUBES, "tiny": Tiny(), "shallow": SHALLOW, "odd": ODD, "flat": FLAT}


@torch.inference_mode()
@pytest.mark.parametrize("always", [False, True], ids=["where worth it", "always"])
@pytest.mark.parametrize("tiny", SIZES.values(), ids=SIZES)
def test_logits_are_those_of_the_network(tiny, always, tmp_path, monkeypatch):
    if always:
        monkeypatch.setattr(quick_voxtell, "LEAST_SAVED", -(10**9))
        monkeypatch.setattr(quick_voxtell, "LARGEST", 10**12)
    network = load_voxtell(write_folder(tmp_path / "voxtell", tiny))
    torch.manual_seed(2)
    image, text = torch.randn(2, 1, *tiny.patch), torch.randn(3, tiny.text)
    expected = network.decode(network.encode(image), text)
    quick = QuickVoxTell(network)
    with quick_layers(CPU):
        features = quick.encode(image)
        found = quick.decode(features, text)
        again = quick.decode(features, text[:1])
    assert found.logits[0].shape == expected.logits[0].shape
    rounding = 1e-4 * expected.logits[0].abs().max()
    assert (found.logits[0] - expected.logits[0]).abs().max() < rounding
    assert torch.allclose(found.presence, expected.presence, rtol=1e-4, atol=1e-4)
    # Features serve more than once.
    assert (again.logits[0] - expected.logits[0][:, :1]).abs().max() < rounding
    assert expected.logits[0].std() > 0.01


def test_maps_of_few_voxels_are_not_folded(tmp_path):
    network = load_voxtell(write_folder(tmp_path / "voxtell", CUBES))
    # 8 × 12 × 8 and 16 × 24 × 16 voxels; folding costs as much as some hundreds of them.
    assert [step.folding is not None for step in QuickVoxTell(network)._steps] == [True, True]
    small = load_voxtell(write_folder(tmp_path / "small", replace(CUBES, patch=(8, 8, 8))))
    assert [step.folding is not None for step in QuickVoxTell(small)._steps] == [False, True]
