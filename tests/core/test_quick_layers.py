"""Quicker layers give torch's values, and leave alone what they do not know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from textseg import quick_layers as quick
from textseg.device import Compute

CPU = Compute(torch.device("cpu"), torch.float32)
LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(4)
    with torch.inference_mode():
        yield


@pytest.fixture
def taken(monkeypatch):
    """How often a layer here was taken, and did the work."""
    seen = []

    def counted(layer):
        def call(*args, **options):
            found = layer(*args, **options)
            if found is not None:
                seen.append(layer.__name__)
            return found

        return call

    for function, layer in list(quick.LAYERS.items()):
        monkeypatch.setitem(quick.LAYERS, function, counted(layer))
    return seen


def quickly(function, *args, **options):
    with quick.quick_layers(CPU):
        return function(*args, **options)


LAYERS = [
    (nn.Conv3d(3, 5, 3, padding=1), (2, 3, 5, 7, 9), "convolved"),
    (nn.Conv3d(3, 5, 3, padding=1, bias=False), (1, 3, 4, 4, 4), "convolved"),
    (nn.Conv3d(4, 6, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)), (1, 4, 5, 6, 7), "convolved"),
    (nn.Conv3d(4, 6, 3, dilation=2, padding=2, groups=2), (1, 4, 7, 6, 5), "convolved"),
    (nn.Conv3d(1, 5, 1), (1, 1, 3, 1, 2), "convolved"),
    (nn.InstanceNorm3d(6, affine=True), (2, 6, 5, 7, 3), "instance_normed"),
    (nn.InstanceNorm3d(1, eps=0.1), (1, 1, 5, 1, 1), "instance_normed"),
    (nn.AvgPool3d(2), (2, 3, 4, 6, 8), "average_pooled"),
    (nn.AvgPool3d((1, 3, 2), (1, 3, 2)), (1, 3, 5, 6, 4), "average_pooled"),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["plain", "last"])
@pytest.mark.parametrize(("layer", "shape", "name"), LAYERS, ids=lambda each: str(each)[:40])
def test_a_layer_gives_what_torch_gives(layer, shape, name, layout, taken):
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x = (torch.randn(shape) * 2 + 3).contiguous(memory_format=layout)
    before = x.clone()
    expected = layer(x)
    found = quickly(layer, x)
    assert taken == [name]
    assert torch.allclose(found, expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(x, before)
    # So that the next layer need not copy.
    assert found.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(3, 5, 3, padding="same"), (1, 3, 5, 5, 5)),
        (nn.Conv3d(3, 5, 3).double(), (1, 3, 5, 5, 5)),
        (nn.InstanceNorm3d(3, track_running_stats=True).eval(), (1, 3, 5, 5, 5)),
        (nn.AvgPool3d(2), (1, 3, 5, 5, 5)),
        (nn.AvgPool3d(3, 1, padding=1), (1, 3, 6, 6, 6)),
        (nn.AvgPool3d(2, divisor_override=3), (1, 3, 6, 6, 6)),
        (nn.Conv3d(3, 5, 1), (3, 4, 5, 6)),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_a_layer_does_not_know_is_left_to_torch(layer, shape, taken):
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(quickly(layer, x), layer(x))
    assert taken == []


def test_gradients_and_other_types_are_left_to_torch(taken):
    layer = nn.Conv3d(3, 4, 3)
    image = torch.randn(1, 3, 6, 6, 6)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(1, 3, 6, 6, 6, requires_grad=True)
        own = nn.Conv3d(3, 4, 3)
        quickly(own, x).sum().backward()
        assert x.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quickly(layer, image).dtype == torch.bfloat16
    for compute in (
        Compute(torch.device("cpu"), torch.bfloat16),
        Compute(torch.device("cuda"), torch.float32),
    ):
        with quick.quick_layers(compute):
            layer(image)
    assert taken == []
    quickly(layer, image)
    assert taken == ["convolved"]


def test_moments_of_many_voxels_with_a_large_mean():
    image = (torch.randn(1, 8, 96, 64, 48) * 0.5 + 40).contiguous(memory_format=LAST)[0]
    mean, variance = quick.moments(image)
    exact = torch.var_mean(image.double(), dim=(1, 2, 3), correction=0)
    assert (variance / exact[0] - 1).abs().max() < 1e-5
    assert (mean / exact[1] - 1).abs().max() < 1e-6


def test_a_map_of_one_value_becomes_its_bias():
    norm = nn.InstanceNorm3d(2, affine=True)
    norm.bias.copy_(torch.tensor([1.5, -2.0]))
    found = quickly(norm, torch.full((1, 2, 4, 4, 4), 7.0))
    assert torch.allclose(found, norm.bias[:, None, None, None].expand_as(found), atol=1e-3)


def test_one_voxel_is_refused_as_torch_refuses_it():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        quickly(F.instance_norm, torch.ones(1, 2, 1, 1, 1))


def test_functions_are_taken_like_modules(taken):
    x, weight = torch.randn(1, 4, 6, 6, 6), torch.randn(2, 4, 3, 3, 3)
    expected = F.conv3d(x, weight[:, :2], None, 1, 1, 1, 2)
    assert torch.allclose(quickly(F.conv3d, x, weight[:, :2], None, 1, 1, 1, 2), expected, atol=1e-5)
    assert taken == ["convolved"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["plain", "last"])
@pytest.mark.parametrize("slope", [None, 0.0, 0.1])
@pytest.mark.parametrize("is_added", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_norm_sum_and_rectifier_in_one_pass(affine, is_added, slope, layout, monkeypatch):
    monkeypatch.setattr(quick, "CACHED", 100)
    norm = nn.InstanceNorm3d(3, affine=affine)
    for parameter in norm.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x, added = ((torch.randn(2, 3, 4, 5, 7) * 3 + 1).contiguous(memory_format=layout) for _ in range(2))
    expected = norm(x) + (added if is_added else 0)
    if slope is not None:
        expected = F.leaky_relu(expected, slope)
    before = added.clone()
    found = quick.norm_and_rectify(x, norm, slope, added if is_added else None)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.is_contiguous(memory_format=LAST)
    assert torch.equal(added, before)
    if layout is LAST:
        assert found.data_ptr() == x.data_ptr()


def test_one_pass_leaves_other_types_to_torch():
    norm = nn.InstanceNorm3d(3).double()
    x, added = torch.randn(2, 3, 4, 5, 7).double(), torch.randn(2, 3, 4, 5, 7).double()
    before = x.clone()
    found = quick.norm_and_rectify(x, norm, 0.2, added)
    assert torch.equal(found, F.leaky_relu(norm(before) + added, 0.2))
    assert torch.equal(x, before)


def test_a_norm_that_somebody_hooked_is_called():
    norm, x = nn.InstanceNorm3d(4, affine=True), torch.randn(1, 4, 5, 6, 7).contiguous(memory_format=LAST)
    norm.register_forward_hook(lambda module, inputs, normed: torch.full_like(normed, -1.0))
    assert torch.equal(quick.norm_and_rectify(x, norm, 0.25), torch.full_like(x, -0.25))
