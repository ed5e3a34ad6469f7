"""The model card: a zero is shown as a zero, and what is not found counts as nothing."""

from __future__ import annotations

import json

import pytest

from textseg.models import CARD_FILE
from textseg.train.card import SCORES_FILE, false_alarms, results_section, summarise, write_card
from textseg.train.cases import Target
from textseg.train.evaluate import Score

LIVER, KIDNEY, TUMOUR = Target("liver"), Target("left_kidney"), Target("left_kidney", "tumor")


@pytest.fixture(scope="module")
def judged(plan):
    """The plan with a presence threshold in the middle."""
    return plan.model_copy(update={"masks": plan.masks.model_copy(update={"presence": 0.5})})


def score(target, dice, presence=0.9, *, kind="torso ct", voxels=500, predicted=480):
    return Score("case", kind, target, voxels, dice, presence, predicted)


def absent(presence, predicted):
    return score(LIVER, None, presence, voxels=0, predicted=predicted)


def test_rows_are_means_by_kind_and_prompt_best_first(judged, lexicon):
    scores = [
        score(KIDNEY, 0.5),
        score(LIVER, 0.9),
        score(LIVER, 0.7),
        score(LIVER, 0.4, kind="brain mr"),
        score(TUMOUR, None, voxels=3),
    ]
    rows = summarise(scores, judged, lexicon)
    assert [(row.kind, row.prompt, row.cases) for row in rows] == [
        ("brain mr", "liver", 1),
        ("torso ct", "liver", 2),
        ("torso ct", "left kidney", 1),
    ]
    assert rows[1].dice == pytest.approx(0.8)
    assert rows[1].lowest == 0.7
    assert rows[1].missed == 0


def test_what_is_reported_as_not_found_counts_as_zero(judged, lexicon):
    (row,) = summarise([score(LIVER, 0.9), score(LIVER, 0.8, presence=0.49)], judged, lexicon)
    assert row.dice == pytest.approx(0.45)
    assert row.lowest == 0.0
    assert row.missed == 1


def test_presence_at_the_threshold_is_found(judged, lexicon):
    (row,) = summarise([score(LIVER, 0.8, presence=0.5)], judged, lexicon)
    assert (row.dice, row.missed) == (0.8, 0)


def test_only_a_mask_of_something_absent_is_a_false_alarm(judged):
    scores = [
        absent(0.9, 100),
        absent(0.5, 1),
        absent(0.49, 100),  # not reported
        absent(0.9, 0),  # nothing marked
        score(LIVER, 0.0, predicted=100),  # there, but missed
        score(LIVER, None, voxels=3),  # hardly there
    ]
    assert false_alarms(scores, judged) == (2, 4)


def test_zeros_stand_in_the_table(judged, lexicon):
    rows = summarise(
        [score(LIVER, 0.9), score(KIDNEY, 0.0), score(TUMOUR, 0.7, presence=0.1)], judged, lexicon
    )
    section = results_section(rows, 1, 4)
    assert "### torso ct: mean Dice 0.30 over 3 prompts" in section
    assert "| liver | 0.90 | 0.90 | 1 | 0 |" in section
    assert "| left kidney | 0.00 | 0.00 | 1 | 0 |" in section
    assert "| left kidney tumor | 0.00 | 0.00 | 1 | 1 |" in section
    assert "1 of 4 prompts" in section
    assert "25 %" in section


def test_nothing_is_said_of_absent_things_that_were_not_asked():
    assert "not in the scan" not in results_section([], 0, 0)


def test_the_card_and_its_numbers_are_written(tmp_path, judged, lexicon):
    scores = [score(LIVER, 0.875), score(KIDNEY, 0.0), absent(0.9, 10)]
    write_card("# Model\n\n{facts[hours]:.1f} hours\n", scores, judged, lexicon, {"hours": 3.25}, tmp_path)
    card = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert card.startswith("# Model\n\n3.2 hours\n\n## Measured")
    assert "| liver | 0.88 |" in card
    numbers = json.loads((tmp_path / SCORES_FILE).read_text(encoding="utf-8"))
    assert numbers["facts"] == {"hours": 3.25}
    assert (numbers["false_alarms"], numbers["absent_asked"]) == (1, 1)
    assert [row["dice"] for row in numbers["rows"]] == [0.875, 0.0]


def test_the_card_says_which_step_the_held_back_cases_chose(tmp_path, judged, lexicon):
    facts = {"best_step": 400, "steps": 900, "validation_dice": 0.816}
    write_card("# Model\n", [score(LIVER, 0.875)], judged, lexicon, facts, tmp_path)
    card = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert "average of step 400 of 900" in card
    assert "mean Dice 0.82 on parts of these cases" in card


def test_the_card_of_a_last_average_says_nothing_of_a_choice(tmp_path, judged, lexicon):
    facts = {"best_step": None, "steps": 900, "validation_dice": None}
    write_card("# Model\n", [score(LIVER, 0.875)], judged, lexicon, facts, tmp_path)
    assert "average of step" not in (tmp_path / CARD_FILE).read_text(encoding="utf-8")
