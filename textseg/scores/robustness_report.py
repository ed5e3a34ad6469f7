"""What was lost, as one table and one page that needs nothing beside it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from textseg.destination import Destination
from textseg.errors import OutputError
from textseg.scores.figures import draw_boxes
from textseg.scores.observations import SUITES, Observation, Suite
from textseg.scores.statistics import Estimate, bootstrap_mean
from textseg.scores.tables import FEW_CASES, NOTHING, Table, interval, number, plain
from textseg.version import __version__

REPORT_FORMAT = "textseg-probe-1"
WHOLE_SUITE = "all"
MOST_WORST = 15
FILES = ("observations.csv", "robustness.csv", "robustness.md", "robustness.html", "robustness.json")
FIGURE = "drops.png"

READING = (
    "Drop: Dice of the canonical prompt minus Dice of the variant, mean over cases of the mean over a case's "
    "answers, with 95 % bootstrap interval over cases. Same: Dice of the two masks with each other. Refused "
    f"prompts count as empty masks. A drop says little where the canonical Dice is low. {FEW_CASES}"
)
# What each suite does, for the page and the Markdown.
EXPLANATIONS: Mapping[Suite, str] = {
    "paraphrases": "The same structure in other words: synonyms and abbreviations, the word order, one "
    "typing error (never in the side), another language.",
    "laterality": "The side that is asked: Dice of the masks of both sides together, minus that of the side "
    "alone; an exchange of sides, or both given for one, is lost there. Mirrored scan: left and right are "
    "exchanged in the image, and each is to be found on its new side.",
    "absent": "Prompts for what is not in the scan: a mask counts 0 and none counts 1, so the drop is the "
    "share of false alarms.",
    "sentences": "Sentences around the names that the text tower was not trained on, and the dataset's own.",
    "orientation": "A part of the scan (at most 120 mm wide) in the 47 other orders and directions of its "
    "axes, brought back to the world; all masks should be the same.",
    "spacing": "The scan averaged to isotropic voxels of 1 to 6 mm, no finer than it is; both masks are "
    "judged on that grid.",
    "noise": "White noise (20, 50, 100 HU; elsewhere 5, 10, 20 % of the 99th percentile), and contrast (CT: "
    "positive values × 0.8 and × 1.25; elsewhere gamma 0.7 and 1.5).",
    "crops": "The half towards the head, the half towards the feet, and a close-up with 10 mm around all "
    "that is asked; both masks are judged within the crop.",
}


@dataclass(frozen=True)
class Lost:
    """One test of a suite, or all of them: means over cases, and over how many answers."""

    suite: Suite
    test: str
    answers: int
    canonical: Estimate
    dice: Estimate
    drop: Estimate
    worst: float
    same: Estimate
    refused: int


def losses(observations: Sequence[Observation]) -> list[Lost]:
    """One entry a test, those of a suite together after one for the whole suite."""
    found = []
    for suite in SUITES:
        of_suite = [each for each in observations if each.suite == suite]
        if of_suite:
            tests = dict.fromkeys(each.test for each in of_suite)
            found.append(_lost(suite, WHOLE_SUITE, of_suite))
            # The 47 orders are one test: they differ in no way that anybody would ask for.
            for test in tests if suite != "orientation" else ():
                found.append(_lost(suite, test, [each for each in of_suite if each.test == test]))
    return found


def robustness_table(observations: Sequence[Observation]) -> Table:
    """The one table: a row a suite, and one for each of its tests."""
    rows = tuple(
        (
            lost.suite if lost.test == WHOLE_SUITE else f"– {lost.test}",
            str(lost.answers),
            str(lost.drop.cases),
            number(lost.canonical.mean, 3),
            number(lost.dice.mean, 3),
            interval(lost.drop, 3, signed=True),
            number(lost.worst, 3, signed=True),
            number(lost.same.mean, 3),
            str(lost.refused) if lost.refused else NOTHING,
        )
        for lost in losses(observations)
    )
    headings = (
        "Suite",
        "Answers",
        "Cases",
        "Canonical Dice",
        "Dice",
        "Drop",
        "Largest drop",
        "Same",
        "Refused",
    )
    return Table("Robustness", headings, rows, READING)


def worst_table(observations: Sequence[Observation], most: int = MOST_WORST) -> Table:
    """The answers that lost most, to be looked at."""
    lost = sorted((each for each in observations if each.drop > 0), key=lambda each: -each.drop)[:most]
    rows = tuple(
        (
            each.prompt,
            each.structure,
            f"{each.suite}: {each.test}",
            each.case,
            number(each.canonical, 3),
            "refused" if each.refused else number(each.dice, 3),
            number(each.drop, 3, signed=True),
        )
        for each in lost
    )
    return Table(
        "What was lost most", ("Prompt", "Structure", "Test", "Case", "Canonical", "Dice", "Drop"), rows
    )


def write_robustness(
    folder: Path,
    observations: Sequence[Observation],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write the table (CSV, Markdown, JSON), every answer (CSV), a picture and the page into a folder.

    Args:
        about: what was probed and how, in words and numbers; `model` and `dataset` head the page.

    Raises:
        OutputError: a file is already there, or can't be written.
    """
    tables = [robustness_table(observations), worst_table(observations)]
    with Destination(folder, overwrite=overwrite).all_or_nothing() as unfinished:
        draw_drops(unfinished / FIGURE, observations)
        picture = (unfinished / FIGURE).read_bytes()
        texts = (
            observations_csv(observations),
            losses_csv(observations),
            _markdown(tables, about, observations),
            _page(tables, about, observations, picture),
            json.dumps(_document(observations, about), indent=1) + "\n",
        )
        for name, text in zip(FILES, texts, strict=True):
            _write(unfinished / name, text)
    return [folder / name for name in (*FILES, FIGURE)]


def check_report(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that can't be written to or holds a report, before there is anything to write.

    Raises:
        OutputError: it is so.
    """
    Destination(folder).check_folder()
    there = [name for name in (*FILES, FIGURE) if (folder / name).exists()]
    if there and not overwrite:
        raise OutputError(
            f"Files are never replaced unasked, but {folder} already holds {there[0]}. "
            "Use --overwrite or another folder."
        )


def draw_drops(path: Path, observations: Sequence[Observation]) -> None:
    """A PNG with a box a test: the drops of its answers.

    Raises:
        OutputError: it can't be written.
    """
    groups: dict[str, dict[str, list[float]]] = {}
    for each in observations:
        name = each.suite if each.suite == "orientation" else f"{each.suite}: {each.test}"
        groups.setdefault(name, {"drop": []})["drop"].append(each.drop)
    drops = [drop for each in observations if math.isfinite(drop := each.drop)]
    low = math.floor(10 * min([-0.1, *drops])) / 10
    high = math.ceil(10 * max([0.1, *drops])) / 10
    draw_boxes(path, "Dice lost by test", groups, "drop in Dice against the canonical prompt", (low, high))


def observations_csv(observations: Sequence[Observation]) -> str:
    """One line an answer; empty where a value is not defined."""
    names = [field.name for field in fields(Observation)]
    rows = ([*(plain(getattr(each, name)) for name in names), plain(each.drop)] for each in observations)
    return _csv([*names, "drop"], rows)


def losses_csv(observations: Sequence[Observation]) -> str:
    """One line a test, as in `robustness_table`, with numbers alone."""
    headings = ["suite", "test", "answers", "cases", "canonical_dice", "dice"]
    headings += ["drop", "drop_low", "drop_high", "largest_drop", "same", "refused"]

    def row(lost: Lost) -> list[object]:
        numbers = (lost.canonical.mean, lost.dice.mean, lost.drop.mean, lost.drop.low, lost.drop.high)
        more = (lost.worst, lost.same.mean)
        counts = (lost.suite, lost.test, lost.answers, lost.drop.cases)
        return [*counts, *map(plain, numbers), *map(plain, more), lost.refused]

    return _csv(headings, (row(lost) for lost in losses(observations)))


def _lost(suite: Suite, test: str, observations: Sequence[Observation]) -> Lost:
    def over_cases(field: str) -> Estimate:
        values: dict[str, list[float]] = {}
        for each in observations:
            if math.isfinite(value := getattr(each, field)):
                values.setdefault(each.case, []).append(value)
        return bootstrap_mean([float(np.mean(of_case)) for of_case in values.values()])

    drops = [drop for each in observations if math.isfinite(drop := each.drop)]
    return Lost(
        suite,
        test,
        len(observations),
        over_cases("canonical"),
        over_cases("dice"),
        over_cases("drop"),
        max(drops, default=math.nan),
        over_cases("same"),
        sum(each.refused for each in observations),
    )


def _suites_of(observations: Sequence[Observation]) -> Iterator[tuple[Suite, str]]:
    asked = {each.suite for each in observations}
    return ((suite, EXPLANATIONS[suite]) for suite in SUITES if suite in asked)


def _heading(about: Mapping[str, Any], observations: Sequence[Observation]) -> tuple[str, str]:
    title = f"Robustness of {about['model']} on {about['dataset']}"
    cases = len({each.case for each in observations})
    said = ", ".join(f"{name} {value}" for name, value in about.items() if name not in ("model", "dataset"))
    return title, f"{cases} {'case' if cases == 1 else 'cases'}; {said}; textseg {__version__}."


def _markdown(tables: Sequence[Table], about: Mapping[str, Any], observations: Sequence[Observation]) -> str:
    title, line = _heading(about, observations)
    suites = "\n".join(f"- **{suite}** {text}" for suite, text in _suites_of(observations))
    return (
        "\n\n".join([f"# {title}", line, *(table.as_markdown().strip() for table in tables), suites]) + "\n"
    )


_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;color:#1e2024;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .7rem;border-bottom:1px solid #e2e4e8;text-align:right}"
    "th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #787c82}"
    "section{overflow-x:auto}img{max-width:100%}p,dd{color:#50545a}dt{font-weight:600}"
)


def _page(
    tables: Sequence[Table], about: Mapping[str, Any], observations: Sequence[Observation], picture: bytes
) -> str:
    """HTML with its picture inside: a file that can be sent."""
    title, line = (html.escape(text) for text in _heading(about, observations))
    table, *others = (each.as_html() for each in tables)
    suites = "".join(
        f"<dt>{html.escape(suite)}</dt><dd>{html.escape(text)}</dd>"
        for suite, text in _suites_of(observations)
    )
    image = base64.b64encode(picture).decode("ascii")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{line}</p>\n{table}"
        f'<section><h2>Every answer</h2><img alt="Box plots of the drop in Dice, one a test" '
        f'src="data:image/png;base64,{image}"></section>\n{"".join(others)}'
        f"<h2>What the suites do</h2>\n<dl>{suites}</dl>\n</body>\n</html>\n"
    )


def _document(observations: Sequence[Observation], about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "textseg": __version__,
        "about": dict(about),
        "tests": [_finite(asdict(lost)) for lost in losses(observations)],
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with null for what is not defined."""
    return {
        name: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def _csv(headings: Sequence[str], rows: Iterator[list[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return stream.getvalue()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error
