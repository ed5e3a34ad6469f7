"""What was lost, as table, files and page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from textseg.errors import OutputError
from textseg.scores.observations import Observation, Suite
from textseg.scores.robustness_report import (
    FIGURE,
    FILES,
    check_report,
    losses,
    losses_csv,
    observations_csv,
    robustness_table,
    worst_table,
    write_robustness,
)


def seen(suite: Suite, test: str, case: str, canonical: float, dice: float, **more: float) -> Observation:
    return Observation(suite, test, case, "liver", f"a <b> {test}", canonical, dice, **more)  # type: ignore[arg-type]


OBSERVATIONS = [
    seen("paraphrases", "synonym", "a", 0.9, 0.9, same=1.0),
    seen("paraphrases", "synonym", "a", 0.9, 0.7, same=0.8),
    seen("paraphrases", "synonym", "b", 0.8, 0.4, same=0.5),
    seen("paraphrases", "language", "b", 0.8, 0.0, same=0.0, refused=True),
    seen("absent", "of another region", "a", 1.0, 0.0),
    seen("orientation", "axes LPS", "a", 0.9, 0.9),
    seen("orientation", "axes LAS", "a", 0.9, 0.9),
]
ABOUT = {"model": "default & co", "dataset": "Torso", "seed": 0}


def test_a_drop_is_the_mean_over_cases_of_the_mean_of_a_case() -> None:
    found = {(lost.suite, lost.test): lost for lost in losses(OBSERVATIONS)}
    assert list(found) == [
        ("paraphrases", "all"),
        ("paraphrases", "synonym"),
        ("paraphrases", "language"),
        ("absent", "all"),
        ("absent", "of another region"),
        ("orientation", "all"),
    ]
    synonym = found["paraphrases", "synonym"]
    assert synonym.drop.mean == pytest.approx((0.1 + 0.4) / 2)
    assert synonym.canonical.mean - synonym.dice.mean == pytest.approx(synonym.drop.mean)
    assert (synonym.answers, synonym.drop.cases, synonym.worst) == (3, 2, pytest.approx(0.4))
    assert synonym.same.mean == pytest.approx((0.9 + 0.5) / 2)
    assert 0.1 <= synonym.drop.low <= synonym.drop.high <= 0.4 + 1e-9
    assert found["paraphrases", "all"].refused == 1
    assert math.isnan(found["absent", "all"].same.mean)


def test_the_table_has_a_row_a_test_and_the_worst_come_first() -> None:
    table = robustness_table(OBSERVATIONS)
    assert [row[0] for row in table.rows][:3] == ["paraphrases", "– synonym", "– language"]
    assert table.rows[1][1:6] == ("3", "2", "0.850", "0.600", "+0.250 (+0.100 to +0.400)")
    worst = worst_table(OBSERVATIONS, 3)
    assert [row[-1] for row in worst.rows] == ["+1.000", "+0.800", "+0.400"]
    assert worst.rows[1][-2] == "refused"


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    written = write_robustness(tmp_path / "out", OBSERVATIONS, ABOUT)
    assert {path.name for path in written} == {*FILES, FIGURE}
    rows = list(csv.DictReader(io.StringIO(observations_csv(OBSERVATIONS))))
    assert len(rows) == len(OBSERVATIONS)
    assert (rows[1]["drop"], rows[4]["same"], rows[3]["refused"]) == ("0.2", "", "True")
    tests = list(csv.DictReader(io.StringIO(losses_csv(OBSERVATIONS))))
    assert tests[1]["drop"] == "0.25"
    assert tests[3]["drop_low"] == ""
    document = json.loads((tmp_path / "out" / "robustness.json").read_text(encoding="utf-8"))
    assert document["about"] == ABOUT
    assert document["tests"][1]["drop"]["mean"] == pytest.approx(0.25)
    assert document["tests"][3]["same"]["mean"] is None
    markdown = (tmp_path / "out" / "robustness.md").read_text(encoding="utf-8")
    assert "| – synonym | 3 | 2 | 0.850 | 0.600 | +0.250 (+0.100 to +0.400) |" in markdown


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    write_robustness(tmp_path, OBSERVATIONS, ABOUT)
    page = (tmp_path / "robustness.html").read_text(encoding="utf-8")
    assert "Robustness of default &amp; co on Torso" in page
    assert "a &lt;b&gt; language" in page
    assert "<b>" not in page
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert image.size == Image.open(tmp_path / FIGURE).size


def test_a_report_is_not_replaced_unasked(tmp_path: Path) -> None:
    check_report(tmp_path, overwrite=False)
    write_robustness(tmp_path, OBSERVATIONS, ABOUT)
    with pytest.raises(OutputError, match="--overwrite"):
        check_report(tmp_path, overwrite=False)
    with pytest.raises(OutputError, match="--overwrite"):
        write_robustness(tmp_path, OBSERVATIONS, ABOUT)
    check_report(tmp_path, overwrite=True)
    write_robustness(tmp_path, OBSERVATIONS[:2], ABOUT, overwrite=True)
    assert "language" not in (tmp_path / "robustness.csv").read_text(encoding="utf-8")
