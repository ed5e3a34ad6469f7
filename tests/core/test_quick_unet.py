"""nnU-Net's networks, quickened: the same logits, also with other weights."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import nn

from textseg.device import Compute
from textseg.quick_layers import quick_layers
from textseg.quick_unet import QuickUNet, quicken

unet = pytest.importorskip(
    "dynamic_network_architectures.architectures.unet", reason="Needs the extra train."
)
CPU = Compute(torch.device("cpu"), torch.float32)


def network(kind: str = "ResidualEncoderUNet", **changes: object) -> nn.Module:
    torch.manual_seed(5)
    options = {
        "input_channels": 2,
        "n_stages": 3,
        "features_per_stage": (4, 6, 8),
        "conv_op": nn.Conv3d,
        "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "num_classes": 3,
        "n_conv_per_stage_decoder": (2, 1),
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        ("n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"): (1, 2, 1),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        made = getattr(unet, kind)(**(options | changes))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made.eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ResidualEncoderUNet", {}),
        ("ResidualEncoderUNet", {"conv_bias": False}),
        ("PlainConvUNet", {}),
        ("PlainConvUNet", {"nonlin_first": True}),
    ],
    ids=str,
)
def test_a_quickened_network_gives_the_same_logits(kind, changes):
    plain = network(kind, **changes)
    image = torch.randn(2, 2, 6, 8, 12)
    expected = plain(image)
    quick = quicken(plain)
    assert isinstance(quick, QuickUNet)
    with quick_layers(CPU):
        found = quick(image)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.inference_mode()
def test_other_weights_are_folded_anew():
    quick, other = quicken(network()), network()
    for parameter in other.parameters():
        parameter.mul_(1.3)
    image = torch.randn(1, 2, 4, 8, 8)
    assert list(quick.state_dict()) == list(other.state_dict())
    quick.load_state_dict(other.state_dict())
    expected = other(image)
    assert (quick(image) - expected).abs().max() < 1e-4 * expected.abs().max()
    twice = quick.double()(image.double())
    assert twice.dtype == torch.float64
    assert (twice - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_is_not_known_stays_as_it_is():
    supervised = network(deep_supervision=True)
    plain = nn.Sequential(nn.Conv3d(1, 2, 3))
    assert quicken(supervised) is supervised
    assert quicken(plain) is plain
