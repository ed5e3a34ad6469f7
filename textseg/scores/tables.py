"""Scores as tables for people: one row a structure, with intervals; as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from textseg.scores.measures import COLUMNS, LESION_COLUMNS, Column, StructureScore, tolerance_columns
from textseg.scores.presence import Detection, auroc, calibration, detection
from textseg.scores.statistics import (
    CONFIDENCE,
    Comparison,
    Estimate,
    bland_altman,
    bootstrap_mean,
    compare,
    holm,
    rank_systems,
)

Systems = Mapping[str, Sequence[StructureScore]]
ALL = "all structures"
# What two systems are compared and ranked by: one measure of overlap, one of the surface.
JUDGED = tuple(column for column in COLUMNS if column.field in ("dice", "nsd"))
JUDGED_LESIONS = tuple(column for column in LESION_COLUMNS if column.field == "lesion_f1")
MEANS = (
    "Mean over cases with 95 % bootstrap interval; the last row is the mean over cases of the mean over a "
    "case's structures."
)
FOUND = "Found: masks where the structure is there. False alarms: masks where it is absent."
FEW_CASES = "With fewer than about ten cases intervals are too narrow."
SIGNIFICANT = 1 - CONFIDENCE
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table of words: a title, headings, rows of as many cells, and a note below."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def as_markdown(self) -> str:
        lines = [self.headings, ("---", *("---:" for _ in self.headings[1:])), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
        return f"## {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")

    def as_html(self) -> str:
        """A section with a heading, a `table`, and the note."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.headings)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        note = f"<p>{html.escape(self.note)}</p>\n" if self.note else ""
        return (
            f"<section>\n<h2>{html.escape(self.title)}</h2>\n"
            f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n{note}</section>\n"
        )

    def as_latex(self) -> str:
        """A `tabular` in a `table`; needs the package booktabs."""
        rows = "\n".join(" & ".join(map(_latex, row)) + r" \\" for row in self.rows)
        caption = _latex(f"{self.title}. {self.note}".strip())
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{caption}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}\n\\toprule\n"
            f"{' & '.join(map(_latex, self.headings))} \\\\\n\\midrule\n{rows}\n\\bottomrule\n"
            "\\end{tabular}\n\\end{table}\n"
        )


def scores_csv(systems: Systems) -> str:
    """One line a system, case and structure, with every measure; empty where it is not defined."""
    names = [field.name for field in fields(StructureScore) if field.name != "nsd_at"]
    further = tolerance_columns([score for scores in systems.values() for score in scores])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["system", *names, *(column.field for column in further)])
    for system, scores in systems.items():
        for score in scores:
            values = [getattr(score, name) for name in names] + [column.of(score) for column in further]
            writer.writerow([system, *map(plain, values)])
    return stream.getvalue()


def estimates_csv(systems: Systems) -> str:
    """One line a system, structure and measure: its mean and interval over how many cases."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["system", "structure", "measure", "mean", "low", "high", "cases"])
    for system, scores in systems.items():
        for structure in [*structures_of(scores), ALL]:
            for column in (*COLUMNS, *tolerance_columns(scores), *LESION_COLUMNS):
                estimate = estimate_of(scores, column, structure)
                if estimate.cases:
                    numbers = (estimate.mean, estimate.low, estimate.high)
                    writer.writerow([system, structure, column.field, *map(plain, numbers), estimate.cases])
    return stream.getvalue()


def structure_table(title: str, scores: Sequence[StructureScore]) -> Table:
    """Overlap and surface of each structure, and of all, with what was found and what was a false alarm."""
    columns = (*JUDGED, *(column for column in COLUMNS if column.field in ("hd95_mm", "assd_mm")))
    rows = []
    for structure in [*structures_of(scores), ALL]:
        chosen = scores if structure == ALL else _of(scores, structure)
        found = detection_of(chosen)
        counts = (
            _share(found.found, found.found + found.missed),
            _share(found.false_alarms, found.false_alarms + found.denied),
        )
        rows.append((structure, *counts, *_estimates(scores, columns, structure)))
    headings = ("Structure", "Found", "False alarms", *(column.heading for column in columns))
    return Table(title, headings, tuple(rows), f"{MEANS} {FOUND} {FEW_CASES}")


def overlap_table(title: str, scores: Sequence[StructureScore]) -> Table:
    """The further measures of overlap."""
    columns = tuple(column for column in COLUMNS if column.field in ("iou", "sensitivity", "precision"))
    structures = [*structures_of(scores), ALL]
    rows = tuple((structure, *_estimates(scores, columns, structure)) for structure in structures)
    return Table(title, ("Structure", *(column.heading for column in columns)), rows, MEANS)


def tolerance_table(title: str, scores: Sequence[StructureScore]) -> Table | None:
    """Surface Dice at further tolerances, if there are any."""
    columns = tolerance_columns(scores)
    if not columns:
        return None
    structures = [*structures_of(scores), ALL]
    rows = tuple((structure, *_estimates(scores, columns, structure)) for structure in structures)
    return Table(title, ("Structure", *(column.heading for column in columns)), rows, MEANS)


def lesion_table(title: str, scores: Sequence[StructureScore]) -> Table | None:
    """Lesion by lesion, if any structure was judged so."""
    judged = [score for score in scores if score.lesions]
    if not judged:
        return None
    rows = []
    for structure in structures_of(judged):
        chosen = _of(judged, structure)
        rows.append(
            (
                structure,
                _share(sum(s.lesions_seen for s in chosen), sum(s.reference_lesions for s in chosen)),
                *_estimates(judged, LESION_COLUMNS, structure),
            )
        )
    return Table(
        title,
        ("Structure", "Lesions seen", *(column.heading for column in LESION_COLUMNS)),
        tuple(rows),
        "Pieces matched one to one. F1 and DSC over true positives at an overlap of 0.5 (IoU) unless a "
        "challenge sets another; seen and false positives at an IoU of 0.1.",
    )


def volume_table(title: str, scores: Sequence[StructureScore]) -> Table:
    """Predicted against reference volumes, with Bland and Altman's limits."""
    rows = []
    for structure in structures_of(scores):
        there = [score for score in _of(scores, structure) if score.there]
        if there:
            agreement = bland_altman([s.predicted_ml for s in there], [s.reference_ml for s in there])
            errors = bootstrap_mean([100 * score.volume_error for score in there])
            rows.append(
                (
                    structure,
                    number(float(np.mean([score.reference_ml for score in there])), 1),
                    number(float(np.mean([score.predicted_ml for score in there])), 1),
                    interval(errors, 1),
                    number(agreement.bias, 1),
                    _range(agreement.low, agreement.high, 1),
                )
            )
    headings = ("Structure", "Reference (ml)", "Predicted (ml)", "Error (%)", "Bias (ml)", "Limits (ml)")
    return Table(title, headings, tuple(rows), "Limits: bias ± 1.96 standard deviations of the differences.")


def presence_table(systems: Systems) -> Table:
    """Whether systems say rightly what is there: by their masks, and by presence scores if they have any."""
    rows = []
    for system, scores in systems.items():
        found = detection_of(scores)
        said = [score for score in scores if math.isfinite(score.presence)]
        probabilities, there = [score.presence for score in said], [score.there for score in said]
        rows.append(
            (
                system,
                _share(found.found, found.found + found.missed),
                _share(found.denied, found.denied + found.false_alarms),
                number(auroc(probabilities, there), 3),
                number(calibration(probabilities, there).expected_error, 3),
            )
        )
    return Table(
        "Presence",
        ("System", "Sensitivity", "Specificity", "AUROC", "ECE"),
        tuple(rows),
        "Sensitivity and specificity of masks that are not empty; AUROC and expected calibration error of "
        "the presence scores in the records.",
    )


def comparison_table(systems: Systems) -> Table | None:
    """The first system against each other one, for all structures and one by one, p corrected together."""
    first, *others = systems
    made: list[tuple[str, str, Column, Comparison]] = []
    for other in others:
        for structure in [ALL, *structures_of(systems[first])]:
            for column in (*JUDGED, *JUDGED_LESIONS):
                comparison = _compared(systems[first], systems[other], structure, column)
                if comparison is not None:
                    made.append((other, structure, column, comparison))
    if not made:
        return None
    adjusted = holm([comparison.p for *_, comparison in made])
    rows = []
    for (other, structure, column, comparison), p in zip(made, adjusted, strict=True):
        verdict = "no difference shown"
        if p < SIGNIFICANT:
            verdict = f"{first if comparison.difference.mean > 0 else other} better"
        difference = interval(comparison.difference, 3, signed=True)
        cases = str(comparison.difference.cases)
        numbers = (difference, cases, _p_value(comparison.p), _p_value(p))
        rows.append((structure, other, column.heading, *numbers, verdict))
    return Table(
        f"{first} against others",
        ("Structure", "Other", "Measure", "Difference", "Cases", "p", "p (Holm)", "Verdict"),
        tuple(rows),
        f"Difference: {first} minus the other, on the same cases. Wilcoxon's signed-rank test, two-sided; "
        f"Holm's correction over all {len(made)} tests of this table. With fewer than six cases no "
        "difference can be shown.",
    )


def in_brief(comparison: Table) -> Table:
    """The rows of a comparison that are of all structures, or that show a difference."""
    rows = tuple(row for row in comparison.rows if row[0] == ALL or row[-1].endswith("better"))
    return replace(comparison, rows=rows)


def ranking_table(systems: Systems) -> Table:
    """Systems in the order of their mean rank over cases, structures and measures."""
    cells = sorted({(score.structure, score.case) for scores in systems.values() for score in scores})
    cases = sorted({case for _, case in cells})
    structures = sorted({structure for structure, _ in cells})
    columns = (*JUDGED, *JUDGED_LESIONS)
    values = np.full((len(systems), len(cases), len(structures), len(columns)), np.nan)
    for i, scores in enumerate(systems.values()):
        for score in scores:
            place = cases.index(score.case), structures.index(score.structure)
            values[i, *place] = [getattr(score, column.field) for column in columns]
    flat = values.reshape(len(systems), len(cases), -1)
    better = [column.higher_is_better for _ in structures for column in columns]
    rows = [
        (number(place.place, 0), place.system, number(place.mean_rank, 2), _percent(place.first_share))
        for place in rank_systems(flat, list(systems), better)
    ]
    return Table(
        "Ranking",
        ("Place", "System", "Mean rank", "First in resamples"),
        tuple(rows),
        "Ranked for each case, structure and measure ("
        + ", ".join(column.heading for column in columns)
        + "), then the mean of ranks; the last column is the share of bootstrap resamples of the cases in "
        "which the system comes first.",
    )


def challenge_table(name: str, summaries: Mapping[str, Mapping[str, float]], explanation: str) -> Table:
    """What a challenge would say of each system."""
    headings = tuple(next(iter(summaries.values())))
    rows = tuple((system, *(number(value, 4) for value in one.values())) for system, one in summaries.items())
    return Table(f"Challenge {name}", ("System", *headings), rows, explanation)


def structures_of(scores: Sequence[StructureScore]) -> list[str]:
    """The structures in the order in which they come."""
    return list(dict.fromkeys(score.structure for score in scores))


def estimate_of(scores: Sequence[StructureScore], column: Column, structure: str = ALL) -> Estimate:
    """The mean of a measure over cases for one structure, or of the cases' means over it all for `ALL`."""
    return bootstrap_mean(list(_by_case(scores, column, structure).values()))


def detection_of(scores: Sequence[StructureScore]) -> Detection:
    return detection([score.found for score in scores], [score.there for score in scores])


def _by_case(scores: Sequence[StructureScore], column: Column, structure: str) -> dict[str, float]:
    """A measure of each case: of one structure, or the mean over all that have a value."""
    chosen = scores if structure == ALL else _of(scores, structure)
    values: dict[str, list[float]] = {}
    for score in chosen:
        value = column.of(score)
        if math.isfinite(value):
            values.setdefault(score.case, []).append(value)
    return {case: float(np.mean(each)) for case, each in values.items()}


def _compared(
    a: Sequence[StructureScore], b: Sequence[StructureScore], structure: str, column: Column
) -> Comparison | None:
    """Both systems on the structures and cases that both were asked for; None without one."""
    both = {(score.case, score.structure) for score in a} & {(score.case, score.structure) for score in b}
    ours, theirs = (
        _by_case([score for score in scores if (score.case, score.structure) in both], column, structure)
        for scores in (a, b)
    )
    shared = [case for case in ours if case in theirs]
    return compare([ours[case] for case in shared], [theirs[case] for case in shared]) if shared else None


def _estimates(
    scores: Sequence[StructureScore], columns: Sequence[Column], structure: str
) -> tuple[str, ...]:
    return tuple(interval(estimate_of(scores, column, structure), column.digits) for column in columns)


def _of(scores: Sequence[StructureScore], structure: str) -> list[StructureScore]:
    return [score for score in scores if score.structure == structure]


# ---- words ----


def plain(value: object) -> object:
    """A value as CSV files hold it: six digits, nothing for what is not defined."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number in so many digits; a dash where it is not defined."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _range(low: float, high: float, digits: int, *, signed: bool = False) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    return f"{number(low, digits, signed=signed)} to {number(high, digits, signed=signed)}"


def interval(estimate: Estimate, digits: int, *, signed: bool = False) -> str:
    """A mean with its interval, if it has one."""
    mean = number(estimate.mean, digits, signed=signed)
    limits = _range(estimate.low, estimate.high, digits, signed=signed)
    return mean if limits == NOTHING else f"{mean} ({limits})"


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole}" if whole else NOTHING


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else NOTHING


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _latex(text: str) -> str:
    # First what stands for itself in the replacements of others.
    text = text.replace("\\", "\0")
    for letter in "&%$#_{}":
        text = text.replace(letter, f"\\{letter}")
    signs = {"\0": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    for sign, words in {**signs, "±": r"$\pm$", "<": "$<$", ">": "$>$"}.items():
        text = text.replace(sign, words)
    return text
