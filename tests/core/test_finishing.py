"""Masks from slabs are to the voxel those of the whole volume, whatever grids lie between."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from textseg.finishing import MaskFinisher, empty_masks, finish_slabs
from textseg.geometry import AxisOrder, Box, Geometry
from textseg.masks import above_threshold, logit_of
from textseg.packed import PackedMasks
from textseg.prepare import Prepared, restore_mask, working_grid
from textseg.slabs import Slab

FLIPPED = AxisOrder((2, 0, 1), (True, False, True))
# A scan's shape and spacing of a tilted grid, and the working spacing: finer, coarser and both along axes.
CASES = {
    "upsampled": ((23, 31, 17), (0.8, 1.1, 2.5), (2.0, 2.3, 4.1)),
    "averaged": ((23, 31, 17), (2.0, 2.5, 4.0), (0.9, 1.2, 1.6)),
    "mixed": ((37, 20, 9), (0.7, 1.0, 6.0), (1.5, 1.5, 1.5)),
    "its own": ((13, 11, 18), (1.0, 1.5, 2.0), (1.0, 1.5, 2.0)),
    "one plane": ((1, 25, 14), (3.0, 1.0, 1.0), (1.5, 1.5, 1.5)),
    "one voxel thick": ((19, 1, 1), (1.0, 2.0, 3.0), (1.7, 1.7, 1.7)),
}


def grid(shape, spacing, affine):
    """The directions of an affine at other spacings."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * spacing
    whole = affine.copy()
    whole[:3, :3] = columns
    return Geometry(shape, whole)


def blobs(shape, prompts=3):
    """Logits with smooth borders; the last prompt is nowhere."""
    noise = np.random.default_rng(4).normal(size=(prompts, *shape))
    smooth = np.stack([ndimage.gaussian_filter(each, 1.5, mode="nearest") for each in noise]) * 20
    smooth[-1] = -9
    return torch.from_numpy(smooth.astype(np.float32))


def finished(logits, working, scan, cuts, threshold=0.5, members=None):
    masks = empty_masks(len(logits), scan)
    finisher = MaskFinisher(masks, members or range(len(logits)), working, scan, logit_of(threshold))
    edges = [0, *cuts, working.shape[0]]
    for start, stop in pairwise(edges):
        memory = logits[:, start:stop].clone()
        finisher.add(Slab(start, memory, range(len(logits))))
        # The next slab takes its memory.
        memory.fill_(1e6)
    return masks


def expected(logits, working, scan, threshold=0.5):
    prepared = Prepared(torch.empty(0), working, scan)
    return np.stack(
        [restore_mask(each, prepared, lambda x: above_threshold(x, threshold)) for each in logits]
    )


@pytest.mark.parametrize("shears", ["tilted", "sheared"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_slabs_make_the_masks_of_the_whole(case, turned, shears, request):
    shape, spacing, working_mm = CASES[case]
    scan = grid(shape, spacing, request.getfixturevalue(shears))
    scan = scan.reordered(FLIPPED) if turned else scan
    working = working_grid(scan, working_mm)
    # A crop that leaves a border of the scan uncovered, where it is large enough to have one.
    margins = [min(2, n // 4) for n in working.shape]
    working = working.cropped(
        Box(tuple(margins), tuple(n - m for n, m in zip(working.shape, margins, strict=True)))
    )
    logits = blobs(working.shape)
    planes = working.shape[0]
    masks = finished(
        logits, working, scan, [cut for cut in (1, planes // 3, planes // 2) if 0 < cut < planes]
    )
    assert isinstance(masks, PackedMasks)
    assert masks.shape == (3, *scan.shape)
    whole = expected(logits, working, scan)
    assert np.array_equal(masks, whole)
    assert 0 < whole.sum() < whole.size
    assert not masks[2].any()


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_the_threshold_is_that_of_the_probability(threshold, tilted):
    scan = grid((21, 14, 18), (1.0, 1.5, 2.0), tilted)
    working = working_grid(scan, (2.0, 2.0, 2.0))
    logits = blobs(working.shape)
    masks = finished(logits, working, scan, [4], threshold)
    assert np.array_equal(masks, expected(logits, working, scan, threshold))


def test_groups_of_prompts_come_one_after_the_other_and_go_where_they_belong(tilted):
    scan = grid((21, 14, 18), (1.0, 1.5, 2.0), tilted)
    working = working_grid(scan, (2.0, 2.0, 2.0))
    logits = blobs(working.shape)
    masks = empty_masks(5, scan)
    finisher = MaskFinisher(masks, [4, 0, 2], working, scan, 0.0)
    for prompts in (range(2), range(2, 3)):
        for start, stop in ((0, 3), (3, working.shape[0])):
            part = logits[prompts.start : prompts.stop, start:stop]
            finisher.add(Slab(start, part, prompts))
    whole = expected(logits, working, scan)
    assert np.array_equal(masks[[4, 0, 2]], whole)
    assert not masks[[1, 3]].any()


def test_finishing_beside_the_network_is_the_same(tilted):
    scan = grid((21, 14, 18), (1.0, 1.5, 2.0), tilted)
    working = working_grid(scan, (2.0, 2.0, 2.0))
    logits = blobs(working.shape)
    memory = torch.empty_like(logits[:, :2])

    def slabs():
        for start in range(0, working.shape[0], 2):
            part = logits[:, start : start + 2]
            # Each takes the memory of the one before, which may still be waiting.
            memory[:, : part.shape[1]] = part
            yield Slab(start, memory[:, : part.shape[1]], range(3))

    found = []
    for beside in (False, True):
        masks = empty_masks(3, scan)
        finish_slabs(slabs(), MaskFinisher(masks, range(3), working, scan, 0.0), beside=beside)
        found.append(np.asarray(masks))
    assert np.array_equal(*found)
    assert np.array_equal(found[0], expected(logits, working, scan))
