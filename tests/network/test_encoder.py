"""The image encoder: one feature map a stage, finest first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.network.conftest import lived_in
from textseg.network.build import build_network
from textseg.network.image_encoder import ImageEncoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_every_stage_has_its_width_and_its_stride(channels, norm, plan):
    network = plan.network.model_copy(update={"norm": norm, "width_ratios": (1, 2, 3)})
    features = ImageEncoder(channels, network)(torch.randn(2, channels, 16, 24, 8))
    assert [tuple(x.shape) for x in features] == [(2, 8, 16, 24, 8), (2, 16, 8, 12, 8), (2, 24, 4, 6, 4)]


@torch.no_grad()
def test_thick_slices_are_mixed_from_the_stage_on_whose_kernel_does(sliced_plan, image):
    network = lived_in(build_network(sliced_plan))
    changed = image.clone()
    changed[..., 5] += 1
    before, after = network.encoder(image), network.encoder(changed)
    reached = [
        torch.nonzero((one - other).abs().amax(dim=(0, 1, 2, 3))).flatten().tolist()
        for one, other in zip(after, before, strict=True)
    ]
    assert reached == [[5], [5], [1, 2, 3]]


def test_every_convolution_of_a_stage_has_its_kernel(sliced_plan):
    encoder = ImageEncoder(1, sliced_plan.network)
    assert encoder.stem.conv.kernel_size == (3, 3, 1)
    for stage, kernel in zip(encoder.stages, sliced_plan.network.kernels, strict=True):
        # Short cuts are 1 x 1 x 1.
        found = {one.kernel_size for one in stage.modules() if isinstance(one, nn.Conv3d)} - {(1, 1, 1)}
        assert found == {kernel}


def test_every_stage_has_its_blocks(plan):
    network = plan.network.model_copy(update={"blocks_per_stage": (1, 3, 2)})
    assert [len(stage) for stage in ImageEncoder(1, network).stages] == [1, 3, 2]


def test_a_first_stage_without_blocks_is_its_stem(plan):
    network = plan.network.model_copy(update={"blocks_per_stage": (0, 1, 1), "width_ratios": (0.5, 1, 2)})
    encoder = ImageEncoder(1, network)
    image = torch.randn(2, 1, 16, 24, 8)
    features = encoder(image)
    assert torch.equal(features[0], encoder.stem(image))
    assert [x.shape[1] for x in features] == [4, 8, 16]


def test_the_image_is_left_as_it_is(plan, image):
    before = image.clone()
    ImageEncoder(1, plan.network)(image)
    assert torch.equal(image, before)


def test_a_shifted_image_gives_shifted_features(network):
    image = torch.zeros(1, 1, 32, 32, 32)
    image[0, 0, 13:17, 12:18, 14:17] = 1
    shifted = torch.roll(image, (4, -4, 2), dims=(2, 3, 4))
    for stage, stride in ((0, (1, 1, 1)), (1, (2, 2, 1))):
        here = network.encoder(image)[stage]
        moved = torch.roll(here, (4 // stride[0], -4 // stride[1], 2), dims=(2, 3, 4))
        # At the border the convolutions see where the image ends.
        inner = (..., *[slice(8, -8)] * 3) if stage == 0 else (..., slice(5, -5), slice(6, -6), slice(9, -9))
        assert torch.allclose(network.encoder(shifted)[stage][inner], moved[inner], atol=1e-5)
