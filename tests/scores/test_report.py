"""Tables and pictures of scores."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from textseg.errors import OutputError
from textseg.scores.challenge import CHALLENGES
from textseg.scores.figures import Axis, draw_bland_altman, draw_boxes, draw_calibration
from textseg.scores.measures import Rules, StructureScore
from textseg.scores.presence import calibration
from textseg.scores.report import brief_tables_of, tables_of, write_report
from textseg.scores.tables import (
    ALL,
    Table,
    comparison_table,
    estimates_csv,
    in_brief,
    lesion_table,
    ranking_table,
    scores_csv,
    structure_table,
    volume_table,
)


def score(case: str, structure: str, dice: float, presence: float = math.nan) -> StructureScore:
    """A structure of 100 ml, found in the measure of its Dice; absent where that is NaN."""
    there = not math.isnan(dice)
    shares = (dice, dice / (2 - dice), dice, dice, dice - 1, dice)
    reference, predicted = (100.0, 100.0 * dice) if there else (0.0, 0.0)
    distances = (4 - 4 * dice, 2 - 2 * dice)
    return StructureScore(case, structure, reference, predicted, *shares, *distances, presence)


def system(better: float = 0.0) -> list[StructureScore]:
    random = np.random.default_rng(3)
    cases = [f"case{i}" for i in range(12)]
    found = [score(case, "liver", 0.8 + better + 0.05 * random.random(), 0.95) for case in cases]
    found += [score(case, "left_kidney & co", 0.6 + 0.3 * random.random(), 0.7) for case in cases[:7]]
    return [*found, score("case0", "spleen", math.nan, 0.3)]


SYSTEMS = {"good": system(0.1), "plain": system()}


def row(table: Table, first: str) -> tuple[str, ...]:
    return next(cells for cells in table.rows if cells[0] == first)


def test_csv_has_a_line_a_structure_and_nothing_for_what_is_not_defined():
    lines = list(csv.DictReader(io.StringIO(scores_csv(SYSTEMS))))
    assert len(lines) == 2 * 20
    assert lines[0]["system"] == "good"
    assert float(lines[0]["dice"]) == pytest.approx(SYSTEMS["good"][0].dice, rel=1e-5)
    assert lines[19]["structure"] == "spleen"
    assert lines[19]["dice"] == ""


def test_csv_of_estimates_has_intervals():
    lines = list(csv.DictReader(io.StringIO(estimates_csv(SYSTEMS))))
    (dice,) = (
        one
        for one in lines
        if (one["system"], one["structure"], one["measure"]) == ("plain", "liver", "dice")
    )
    assert 0.8 < float(dice["low"]) < float(dice["mean"]) < float(dice["high"]) < 0.85
    assert dice["cases"] == "12"


def test_structures_are_listed_with_what_was_found():
    table = structure_table("Structures", SYSTEMS["plain"])
    assert row(table, "liver")[1:3] == ("12/12", "–")
    assert row(table, "spleen")[1:3] == ("–", "0/1")
    assert row(table, "spleen")[3] == "–"
    liver = SYSTEMS["plain"][:12]
    assert row(table, "liver")[3].startswith(f"{np.mean([one.dice for one in liver]):.3f} (0.8")
    by_case = [
        np.mean([one.dice for one in SYSTEMS["plain"] if one.case == f"case{i}" and one.there])
        for i in range(12)
    ]
    assert row(table, ALL)[3].startswith(f"{np.mean(by_case):.3f} (")


def test_volumes_have_bias_and_limits():
    table = volume_table("Volumes", [score("a", "liver", 0.8), score("b", "liver", 0.9)])
    assert row(table, "liver")[1:3] == ("100.0", "85.0")
    assert row(table, "liver")[4] == "-15.0"
    assert row(table, "liver")[5] == f"{-15 - 1.96 * math.sqrt(50):.1f} to {-15 + 1.96 * math.sqrt(50):.1f}"


def test_without_lesions_there_is_no_table_of_them():
    assert lesion_table("Lesions", SYSTEMS["plain"]) is None


def test_a_better_system_is_called_better_where_it_is():
    table = comparison_table(SYSTEMS)
    assert row(table, "liver")[3].startswith("+0.100")
    assert row(table, "liver")[-1] == "good better"
    assert row(table, "left_kidney & co")[-1] == "no difference shown"
    assert float(row(table, "liver")[-2].strip("< ")) > float(row(table, "liver")[-3].strip("< ")) - 1e-9
    turned = comparison_table({"plain": SYSTEMS["plain"], "good": SYSTEMS["good"]})
    assert row(turned, "liver")[-1] == "good better"
    assert {cells[0] for cells in in_brief(table).rows} == {ALL, "liver"}


def test_systems_are_compared_on_what_both_were_asked_for():
    fewer = {"good": SYSTEMS["good"], "lazy": [one for one in SYSTEMS["good"] if one.dice > 0.85]}
    assert row(comparison_table(fewer), ALL)[3].startswith("+0.000")


def test_ranking_puts_the_better_first():
    first, second = ranking_table({"plain": SYSTEMS["plain"], "good": SYSTEMS["good"]}).rows
    assert (first[0], first[1], first[3]) == ("1", "good", "100%")
    assert second[1] == "plain"


def test_tables_are_markdown_and_latex():
    table = Table("A & B", ("Name", "Share"), (("left_kidney | right", "50 %"), ("x < y", "–")), "Note.")
    assert "| left_kidney \\| right | 50 % |" in table.as_markdown()
    assert table.as_markdown().startswith("## A & B\n\n| Name | Share |\n| --- | ---: |\n")
    latex = table.as_latex()
    assert "left\\_kidney | right & 50 \\% \\\\" in latex
    assert "x $<$ y & -- \\\\" in latex
    assert "\\caption{A \\& B. Note.}" in latex
    assert latex.count("\\begin") == latex.count("\\end") == 2


def test_a_report_is_written_whole_and_replaced_only_when_asked(tmp_path):
    challenge = CHALLENGES["cvpr"]
    written = write_report(tmp_path / "out", SYSTEMS, Rules(), challenge=challenge, notes=["a: resampled."])
    assert sorted(path.name for path in written) == [
        "bland_altman_1.png",
        "bland_altman_2.png",
        "boxes_dice.png",
        "boxes_nsd.png",
        "calibration.png",
        "report.md",
        "scores.csv",
        "scores.json",
        "structures.csv",
        "tables.tex",
    ]
    assert sorted((tmp_path / "out").iterdir()) == written
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for words in ("Note: a: resampled.", "## Challenge cvpr", "## Ranking", "Where the reference is empty"):
        assert words in report
    document = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert document["systems"]["good"]["challenge"]["F1"] is None
    assert document["systems"]["good"]["structures"]["liver"]["dice"]["cases"] == 12
    assert document["systems"]["good"]["presence"]["denied"] == 1
    with pytest.raises(OutputError, match="--overwrite"):
        write_report(tmp_path / "out", SYSTEMS, Rules())
    assert write_report(tmp_path / "out", SYSTEMS, Rules(), overwrite=True)


def test_the_screen_shows_fewer_tables_than_the_report():
    titles = [table.title for table in brief_tables_of(SYSTEMS, CHALLENGES["cvpr"])]
    assert titles[-1] == "Challenge cvpr"
    assert "Further overlap, good" not in titles
    assert set(titles) < {table.title for table in tables_of(SYSTEMS, CHALLENGES["cvpr"])}


# ---- pictures ----


def pixels(path, colour) -> np.ndarray:
    """Where a picture has about this colour: (n, 2) row and column."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.argwhere(np.abs(picture - colour).sum(axis=-1) < 12)


def test_boxes_lie_where_their_values_are(tmp_path):
    blue = (0, 114, 178)
    middles = []
    for name, values in (("low", np.linspace(0.2, 0.3, 6)), ("high", np.linspace(0.7, 0.8, 6))):
        draw_boxes(tmp_path / f"{name}.png", "Dice", {"liver": {"one": values}}, "Dice", (0, 1))
        middles.append(pixels(tmp_path / f"{name}.png", blue)[:, 1].mean())
    assert middles[1] - middles[0] == pytest.approx(720 / 2, abs=3)


def test_a_structure_without_values_says_so(tmp_path):
    draw_boxes(tmp_path / "a.png", "Dice", {"liver": {"one": [math.nan]}}, "Dice", (0, 1))
    assert not len(pixels(tmp_path / "a.png", (0, 114, 178)))


def test_volumes_too_large_are_above_the_middle(tmp_path):
    rows = []
    for name, predicted in (("over", [15, 150]), ("under", [7, 70])):
        draw_bland_altman(tmp_path / f"{name}.png", "Volumes", [*predicted, 0], [10, 100, 5])
        rows.append(pixels(tmp_path / f"{name}.png", (0, 114, 178))[:, 0].mean())
    assert rows[0] < rows[1]
    draw_bland_altman(tmp_path / "none.png", "Volumes", [0.0], [5.0])
    assert not len(pixels(tmp_path / "none.png", (0, 114, 178)))


def test_an_honest_curve_runs_up_the_diagonal(tmp_path):
    scores = np.linspace(0, 1, 400)
    there = np.random.default_rng(1).random(400) < scores
    draw_calibration(tmp_path / "a.png", "Calibration", {"one": calibration(scores, there)})
    dots = pixels(tmp_path / "a.png", (0, 114, 178))
    curve = dots[dots[:, 0] < 600]
    assert np.corrcoef(curve[:, 0], curve[:, 1])[0, 1] < -0.95


def test_a_logarithmic_axis_gives_each_power_of_ten_the_same_room():
    axis = Axis(1, 1000, (), "", True)
    assert [axis.share(value) for value in (1, 10, 100, 1000)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
