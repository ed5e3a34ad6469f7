"""What marks say that a network did not hear, carried into their surroundings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.interactive.heed import GOAL, MOST, _heard, heed
from textseg.network.spatial_prompts import Lasso, Point, Region, Scribble

SHAPE = (30, 24, 20)
CUBE = (1.0, 1.0, 1.0)


@pytest.fixture
def flat():
    """Logits that deny everything, and features that are alike everywhere but for a brighter half along x."""
    features = 0.01 * torch.randn((4, *SHAPE), generator=torch.Generator().manual_seed(1))
    features[:, 15:] += 1.0
    return torch.full(SHAPE, -2.0), features


def test_without_marks_nothing_moves(flat):
    logits, features = flat
    assert heed(logits, features, [], CUBE) is logits


def test_a_click_turns_its_voxel_and_what_lies_near_and_looks_alike(flat):
    logits, features = flat
    moved = heed(logits, features, [Point((12.0, 12.0, 10.0))], CUBE)
    assert moved[12, 12, 10] > 0.5 * GOAL
    assert moved[9, 12, 10] > 0
    assert moved[16, 12, 10] < -1  # as near as that, but of other looks
    assert bool((logits == -2).all())  # what came in stays as it was


def test_what_is_far_off_keeps_its_values_to_the_bit(flat):
    logits, features = torch.full((80, 24, 20), -2.0), torch.zeros((4, 80, 24, 20))
    moved = heed(logits, features, [Point((10.0, 12.0, 10.0))], CUBE)
    assert torch.equal(moved[32:], logits[32:])
    assert not torch.equal(moved[:30], logits[:30])


def test_what_lies_between_two_marks_that_reach_neither_keeps_its_values_to_the_bit():
    logits, features = torch.full((90, 24, 20), -2.0), torch.zeros((4, 90, 24, 20))
    clicks = [Point((5.0, 12.0, 10.0)), Point((85.0, 12.0, 10.0))]
    moved = heed(logits, features, clicks, CUBE)
    assert torch.equal(moved[28:62], logits[28:62])
    assert moved[5, 12, 10] > 0
    assert moved[85, 12, 10] > 0


def test_not_this_takes_away(flat):
    _, features = flat
    moved = heed(torch.full(SHAPE, 3.0), features, [Point((5.0, 12.0, 10.0), positive=False)], CUBE)
    assert moved[5, 12, 10] < -1
    assert moved[25, 12, 10] > 2.9


def test_marks_that_are_obeyed_move_nothing_and_hold_their_surroundings(flat):
    logits, features = flat
    kept = Point((12.0, 12.0, 10.0), positive=False)
    assert heed(logits - GOAL, features, [kept], CUBE).equal(logits - GOAL)
    click = Point((12.0, 12.0, 15.0))
    alone = heed(logits, features, [click], CUBE)
    held = heed(logits, features, [kept, click], CUBE)
    assert held[12, 12, 10] < 0 < alone[12, 12, 10]
    assert held[12, 12, 15] > 0


def test_the_latest_mark_of_a_voxel_counts(flat):
    logits, features = flat
    line = np.array([[x, 12, 10] for x in range(4, 12)])
    for last in (True, False):
        marks = [Scribble(line, positive=not last), Scribble(line, positive=last)]
        assert bool((heed(logits, features, marks, CUBE)[4:12, 12, 10] > 0).all()) is last


def test_lassos_count_and_boxes_do_not(flat):
    logits, features = flat
    disc = np.array([[x, y, 10] for x in range(4, 12) for y in range(6, 16)])
    assert (heed(logits, features, [Lasso(disc)], CUBE)[4:12, 6:16, 10] > 0).all()
    assert heed(logits, features, [Region((4, 6, 8), (12, 16, 12))], CUBE) is logits


def test_reach_is_the_same_in_millimetres_along_every_axis():
    logits, features = torch.full((40, 40, 40), -2.0), torch.zeros((2, 40, 40, 40))
    moved = heed(logits, features, [Point((20.0, 20.0, 20.0))], (1.0, 2.0, 4.0)) - logits
    torch.testing.assert_close(moved[28, 20, 20], moved[20, 24, 20], rtol=0.1, atol=0.02)
    torch.testing.assert_close(moved[28, 20, 20], moved[20, 20, 22], rtol=0.2, atol=0.05)


def test_the_threshold_is_what_marks_are_measured_from(flat):
    logits, features = flat
    click = [Point((12.0, 12.0, 10.0))]
    low, high = (heed(logits, features, click, CUBE, above)[12, 12, 10] for above in (-1.0, 1.0))
    assert high - low > 1.5


def test_marks_at_the_border_and_of_thousands_of_voxels_are_fine(flat):
    logits, features = flat
    everything = np.argwhere(np.ones((15, *SHAPE[1:]), bool))
    corner = Point((0.0, 0.0, 0.0), positive=False)
    moved = heed(logits, features, [Scribble(everything), corner], CUBE)
    assert bool(moved.isfinite().all())
    assert moved[0, 0, 0] < moved[7, 12, 10]
    many = [Point((float(i % 15), float(i % 24), float(i % 20))) for i in range(2 * MOST)]
    assert bool(heed(logits, features, many, CUBE).isfinite().all())


def test_of_many_clicks_each_speaks_for_its_own_voxel():
    clicks = [(x, y, 10) for x in range(1, 30, 3) for y in range(1, 23, 3)]
    voxels, signs, spoken_by = _heard([Point((float(x), float(y), float(z))) for x, y, z in clicks], SHAPE)
    assert list(map(tuple, voxels.tolist())) == clicks
    assert (signs == 1).all()
    assert spoken_by.tolist() == list(range(len(clicks)))
