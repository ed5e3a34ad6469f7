"""A coarse look finds the windows that are worth one; the others are left out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.device import Compute
from textseg.network.build import Decoded, Features
from textseg.sliding import Batches, segment_windows, windows_of
from textseg.zoom import coarser, worth_a_look

CPU = Compute(torch.device("cpu"), torch.float32)
SHAPE = (40, 48, 24)


@dataclass
class Threshold:
    """A network that finds each prompt where the image is brighter than the prompt's number."""

    windows: list[tuple[int, ...]] = field(default_factory=list)
    asked: list[list[float]] = field(default_factory=list)
    total_stride = (4, 4, 4)

    def encode(self, image: Tensor) -> Features:
        self.windows.append(tuple(image.shape[2:]))
        return Features(image, (image,))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        assert text is not None
        self.asked.append(text[:, 0].tolist())
        logits = features.coarsest[:, :1] - text[None, :, 0, None, None, None]
        return Decoded((logits,), logits.amax(dim=(2, 3, 4)))


@pytest.fixture
def plan(default_plan):
    """Windows of 8 × 12 × 8 and strides of 4."""
    small = {"size_voxels": (8, 12, 8), "overlap": 0.5}
    network = {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}
    return default_plan.model_copy(
        update={
            "windows": default_plan.windows.model_copy(update=small),
            "training": default_plan.training.model_copy(update={"patch_voxels": (4, 4, 4)}),
            "network": default_plan.network.model_copy(update=network),
        }
    )


@pytest.fixture
def image():
    """Two blocks: the first prompt's in one corner, the second's near another one."""
    image = torch.full((1, *SHAPE), -20.0)
    image[0, 2:6, 4:8, 2:6] = 20.0
    image[0, 30:36, 40:46, 16:22] = 5.0
    return image


TEXT = torch.tensor([[10.0], [0.0], [30.0]])


def test_only_windows_near_what_the_coarse_look_sees_are_wanted(image, plan):
    wanted = worth_a_look(Threshold(), image, TEXT, plan, CPU)
    boxes = windows_of(SHAPE, plan)
    assert wanted.shape == (len(boxes), 3)
    for box, row in zip(boxes, wanted, strict=True):
        inside = image[0][box.slices]
        # What is there is found; far from it nobody looks.
        assert row[0] >= bool((inside > 10).any())
        assert row[1] >= bool((inside > 0).any())
    assert 0 < wanted[:, 0].mean() < 0.2
    assert wanted[:, 0].sum() < wanted[:, 1].sum() < len(boxes) / 2
    # Nowhere is it brighter than 30 less 3.
    assert not wanted[:, 2].any()


def test_masks_are_those_of_a_look_at_everything(image, plan):
    exact = segment_windows(Threshold(), image, TEXT, plan, CPU)
    wanted = worth_a_look(Threshold(), image, TEXT, plan, CPU)
    network = Threshold()
    seen = []
    zoomed = segment_windows(network, image, TEXT, plan, CPU, lambda *step: seen.append(step), wanted=wanted)
    assert torch.equal(zoomed.logits > 0, exact.logits > 0)
    assert (exact.logits > 0).flatten(1).any(dim=1).tolist() == [True, True, False]
    assert len(network.windows) == wanted.any(axis=1).sum() < len(wanted) / 2
    # No prompt is decoded where it is not wanted, and progress still counts every window.
    assert sum(map(len, network.asked)) == wanted.sum()
    assert seen[-1] == (len(wanted), len(wanted))
    assert torch.equal(zoomed.presence[:2], exact.presence[:2])
    assert zoomed.presence[2] == 0


@pytest.mark.parametrize("batches", [Batches(windows=3), Batches(prompts=1), Batches(a_pass=2)], ids=str)
def test_what_is_wanted_does_not_depend_on_what_is_computed_together(batches, image, plan):
    wanted = np.zeros((len(windows_of(SHAPE, plan)), 3), np.bool_)
    wanted[::3, 0] = wanted[1::2, 2] = wanted[5] = True
    expected = segment_windows(Threshold(), image, TEXT, plan, CPU, wanted=wanted)
    run = segment_windows(Threshold(), image, TEXT, plan, CPU, batches=batches, wanted=wanted)
    if batches.windows == 1:
        assert torch.equal(run.logits, expected.logits)
    # Windows that are looked at together are looked at for what one of them is wanted for.
    assert ((run.logits > 0) >= (expected.logits > 0)).all()


def test_small_images_are_looked_at_once(plan):
    network = Threshold()
    assert worth_a_look(network, torch.zeros(1, 10, 12, 8), TEXT, plan, CPU) is None
    assert network.windows == []


def test_half_the_resolution_averages_what_there_is():
    image = torch.arange(15.0).reshape(1, 5, 1, 3)
    assert torch.equal(coarser(image)[0, :, 0], torch.tensor([[2.0, 3.5], [8.0, 9.5], [12.5, 14.0]]))
