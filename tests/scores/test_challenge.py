"""Scores as challenges count them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from textseg.scores.challenge import CHALLENGES, cvpr, cvpr_with_absent, rexgrounding
from textseg.scores.measures import StructureScore


def structure(
    case: str, dice: float = math.nan, nsd: float = math.nan, *, found: bool = True
) -> StructureScore:
    """A score of something that is there where it has a Dice."""
    there = not math.isnan(dice)
    rest = [math.nan] * 4
    return StructureScore(case, "liver", 10.0 * there, 9.0 * found, dice, *rest, nsd, math.nan, math.nan)


def lesions(
    case: str, dice: float, found: int, predicted: int, reference: int, tp_dice: float
) -> StructureScore:
    return replace(
        structure(case, dice),
        lesions=True,
        lesions_found=found,
        predicted_lesions=predicted,
        reference_lesions=reference,
        lesion_f1=2 * found / (predicted + reference) if reference else math.nan,
        lesion_dice=tp_dice,
    )


def test_cvpr_takes_the_mean_of_cases_of_the_mean_in_each():
    scores = [structure("a", 0.8, 0.9), structure("a", 0.6, 0.5), structure("b", 0.9, 0.3)]
    scores += [lesions("a", 0.5, 1, 1, 3, 0.8), lesions("b", 0.2, 0, 2, 1, math.nan)]
    assert cvpr(scores) == pytest.approx({"DSC": 0.8, "NSD": 0.5, "F1": 0.25, "DSC_TP": 0.4})


def test_a_mask_of_what_is_absent_costs_nothing_in_cvpr_and_something_in_ours():
    scores = [structure("a", 0.8, 0.6), structure("a", found=True), structure("b", 0.6, 0.4)]
    denied = structure("b", found=False)
    assert cvpr([*scores, denied])["DSC"] == pytest.approx(0.7)
    charged = cvpr_with_absent([*scores, denied])
    assert charged["DSC"] == pytest.approx((0.4 + 0.6) / 2)
    assert charged["NSD"] == pytest.approx((0.3 + 0.4) / 2)
    assert math.isnan(charged["F1"])
    # Asking for what is absent, and being told so, is no merit.
    assert cvpr_with_absent([*scores, *[denied] * 9]) == pytest.approx(charged, nan_ok=True)


def test_an_absent_lesion_that_is_drawn_costs_f1():
    alarm = replace(lesions("a", math.nan, 0, 2, 0, math.nan), predicted_ml=1.0)
    scores = [lesions("b", 0.9, 2, 2, 2, 0.9), alarm]
    assert cvpr(scores)["F1"] == 1
    assert cvpr_with_absent(scores)["F1"] == 0.5


def test_rexgrounding_counts_hits_from_a_tenth_and_pools_instances():
    scores = [
        lesions("a", 0.10, 1, 4, 2, 0.3),
        lesions("a", 0.09, 0, 1, 1, math.nan),
        lesions("b", 0.71, 2, 2, 3, 0.8),
        replace(lesions("b", math.nan, 0, 5, 0, math.nan)),
    ]
    summary = rexgrounding(scores)
    assert summary["Dice"] == pytest.approx(0.3)
    assert summary["Hit rate"] == pytest.approx(2 / 3)
    assert summary["Instance precision"] == pytest.approx(3 / 7)
    assert summary["Instance recall"] == pytest.approx(3 / 6)
    assert summary["Instance F1"] == pytest.approx(6 / 13)


def test_each_challenge_has_its_own_rules():
    assert CHALLENGES["cvpr"].rules.tolerance_mm == 2
    assert CHALLENGES["cvpr"].rules.touching == "faces"
    assert CHALLENGES["rexgrounding"].rules.same_lesion_by == "dice"
    for name, challenge in CHALLENGES.items():
        assert challenge.name == name
        assert all(math.isnan(value) for value in challenge.summary([]).values())
