"""One structure in one scan, empty masks included."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.scores.conftest import block
from textseg.scores.measures import Rules, diagonal_mm, score_structure


@pytest.fixture
def score(grid):
    def run(predicted, reference, **more):
        return score_structure("case", "liver", predicted, reference, grid, **more)

    return run


def test_all_measures_are_there_in_their_units(score, grid):
    a, b = block(grid.shape, (4, 5, 3), (14, 15, 9)), block(grid.shape, (4, 5, 4), (14, 15, 10))
    found = score(a, b, presence=0.8)
    assert found.reference_ml == pytest.approx(600 * 0.8 * 1.1 * 2.5 / 1000)
    assert found.dice == pytest.approx(5 / 6)
    assert found.hd95_mm == pytest.approx(2.5)
    assert 0 < found.assd_mm < 2.5
    assert found.nsd < score(a, b, rules=Rules(tolerance_mm=2.5)).nsd == 1
    assert found.volume_error == 0
    assert found.presence == 0.8
    assert found.there
    assert found.found


def test_a_part_of_the_scan_gives_what_the_whole_gives(score, grid):
    a, b = block(grid.shape, (4, 5, 3), (14, 15, 9)), block(grid.shape, (6, 4, 4), (13, 15, 12))
    part = (slice(4, 14), slice(4, 15), slice(3, 12))
    assert score(a[part], b[part], lesions=True) == score(a, b, lesions=True)


def test_a_missed_structure_is_as_far_as_the_scan_is_wide(score, grid):
    missed = score(np.zeros(grid.shape, bool), block(grid.shape, (4, 5, 3), (14, 15, 9)), lesions=True)
    assert (missed.dice, missed.iou, missed.nsd, missed.sensitivity, missed.lesion_f1) == (0, 0, 0, 0, 0)
    diagonal = math.sqrt((30 * 0.8) ** 2 + (26 * 1.1) ** 2 + (18 * 2.5) ** 2)
    assert diagonal_mm(grid) == pytest.approx(diagonal)
    assert missed.hd95_mm == missed.assd_mm == pytest.approx(diagonal)
    assert math.isnan(missed.precision)
    assert missed.volume_error == -1
    assert not missed.found


def test_an_absent_structure_has_no_overlap_to_speak_of(score, grid):
    alarm = score(block(grid.shape, (4, 5, 3), (6, 7, 5)), np.zeros(grid.shape, bool), lesions=True)
    denied = score(np.zeros(grid.shape, bool), np.zeros(grid.shape, bool), lesions=True)
    for absent in (alarm, denied):
        for value in (absent.dice, absent.nsd, absent.hd95_mm, absent.precision, absent.lesion_f1):
            assert math.isnan(value)
        assert not absent.there
    assert (alarm.false_lesions, denied.false_lesions) == (1, 0)
    assert alarm.found
    assert not denied.found


def test_lesions_are_found_by_half_and_seen_by_a_tenth(score, grid):
    reference = block(grid.shape, (1, 1, 1), (5, 5, 5)) | block(grid.shape, (10, 10, 10), (20, 14, 14))
    predicted = (
        block(grid.shape, (1, 1, 1), (4, 5, 5))
        | block(grid.shape, (10, 10, 10), (12, 14, 14))
        | block(grid.shape, (25, 2, 2), (27, 4, 4))
    )
    lesions = score(predicted, reference, lesions=True)
    assert (lesions.reference_lesions, lesions.predicted_lesions, lesions.lesions_found) == (2, 3, 1)
    assert lesions.lesion_f1 == pytest.approx(2 / 5)
    assert lesions.lesion_dice == pytest.approx(6 / 7)
    assert (lesions.lesions_seen, lesions.lesion_sensitivity, lesions.false_lesions) == (2, 1, 1)
    assert not score(predicted, reference).lesions
