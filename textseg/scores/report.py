"""All that is written of scores: one folder with tables, pictures and the rules, all of it or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from textseg.destination import Destination
from textseg.errors import OutputError
from textseg.scores.challenge import Challenge
from textseg.scores.figures import draw_bland_altman, draw_boxes, draw_calibration
from textseg.scores.measures import (
    COLUMNS,
    EMPTY_RULE,
    LESION_COLUMNS,
    Rules,
    StructureScore,
    tolerance_columns,
)
from textseg.scores.presence import auroc, calibration
from textseg.scores.tables import (
    ALL,
    Systems,
    Table,
    challenge_table,
    comparison_table,
    detection_of,
    estimate_of,
    estimates_csv,
    in_brief,
    lesion_table,
    overlap_table,
    presence_table,
    ranking_table,
    scores_csv,
    structure_table,
    structures_of,
    tolerance_table,
    volume_table,
)
from textseg.version import __version__

REPORT_FORMAT = "textseg-scores-1"


def tables_of(systems: Systems, challenge: Challenge | None = None) -> list[Table]:
    """Every table of a report, the most telling first."""
    several = len(systems) > 1
    tables = [] if challenge is None else [_challenge(systems, challenge)]
    if several:
        tables += [ranking_table(systems), *_there(comparison_table(systems))]
    for system, scores in systems.items():
        tables.append(structure_table(_title("Structures", system, several), scores))
        tables += _there(lesion_table(_title("Lesions", system, several), scores))
        tables += _there(tolerance_table(_title("Further tolerances", system, several), scores))
        tables.append(overlap_table(_title("Further overlap", system, several), scores))
        tables.append(volume_table(_title("Volumes", system, several), scores))
    return [*tables, presence_table(systems)]


def brief_tables_of(systems: Systems, challenge: Challenge | None = None) -> list[Table]:
    """The tables that fit a screen: no row for a comparison that shows nothing, no further measures."""
    several = len(systems) > 1
    tables = []
    for system, scores in systems.items():
        tables.append(structure_table(_title("Structures", system, several), scores))
        tables += _there(tolerance_table(_title("Further tolerances", system, several), scores))
        tables += _there(lesion_table(_title("Lesions", system, several), scores))
    tables.append(presence_table(systems))
    if several:
        tables += [in_brief(table) for table in _there(comparison_table(systems))]
        tables.append(ranking_table(systems))
    return tables if challenge is None else [*tables, _challenge(systems, challenge)]


def write_report(
    folder: Path,
    systems: Systems,
    rules: Rules,
    *,
    challenge: Challenge | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Write scores as CSV, JSON, Markdown, LaTeX and PNG into a folder, which is made where it is missing.

    Args:
        folder: where to.
        systems: for each system its scores; the first is compared with the others.
        rules: by which masks were judged.
        challenge: also count as this challenge does.
        notes: what a reader should know, such as that a prediction was resampled.
        overwrite: replace files that are there.

    Returns:
        The paths written.

    Raises:
        OutputError: a file is already there, or can't be written.
    """
    tables = tables_of(systems, challenge)
    with Destination(folder, overwrite=overwrite).all_or_nothing() as unfinished:
        _write(unfinished / "scores.csv", scores_csv(systems))
        _write(unfinished / "structures.csv", estimates_csv(systems))
        _write(unfinished / "report.md", _markdown(tables, systems, rules, notes))
        _write(unfinished / "tables.tex", "\n".join(table.as_latex() for table in tables))
        _draw(unfinished, systems)
        _write(unfinished / "scores.json", json.dumps(_document(systems, rules, challenge, notes), indent=1))
        names = sorted(path.name for path in unfinished.iterdir())
    return [folder / name for name in names]


def _challenge(systems: Systems, challenge: Challenge) -> Table:
    summaries = {system: challenge.summary(scores) for system, scores in systems.items()}
    return challenge_table(challenge.name, summaries, challenge.explanation)


def _there(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def _title(title: str, system: str, several: bool) -> str:
    return f"{title}, {system}" if several else title


def _draw(folder: Path, systems: Systems) -> None:
    structures = list(dict.fromkeys(name for scores in systems.values() for name in structures_of(scores)))
    for column in COLUMNS:
        if column.field in ("dice", "nsd"):
            groups = {name: _values(systems, name, column.field) for name in structures}
            heading = f"{column.heading} by structure"
            draw_boxes(folder / f"boxes_{column.field}.png", heading, groups, column.heading, (0.0, 1.0))
    for number, (system, scores) in enumerate(systems.items(), start=1):
        name = "bland_altman.png" if len(systems) == 1 else f"bland_altman_{number}.png"
        volumes = [score.predicted_ml for score in scores], [score.reference_ml for score in scores]
        draw_bland_altman(folder / name, _title("Volumes", system, len(systems) > 1), *volumes)
    curves = {}
    for system, scores in systems.items():
        said = [score for score in scores if math.isfinite(score.presence)]
        if said:
            curves[system] = calibration([score.presence for score in said], [score.there for score in said])
    if curves:
        draw_calibration(folder / "calibration.png", "Calibration of presence", curves)


def _values(systems: Systems, structure: str, field: str) -> dict[str, list[float]]:
    return {
        system: [getattr(score, field) for score in scores if score.structure == structure]
        for system, scores in systems.items()
    }


def _markdown(tables: Sequence[Table], systems: Systems, rules: Rules, notes: Sequence[str]) -> str:
    cases = len({score.case for scores in systems.values() for score in scores})
    scored = ", ".join(
        f"{system} ({len(structures_of(scores))} structures)" for system, scores in systems.items()
    )
    parts = [
        "# Scores",
        f"{scored}; {cases} {'case' if cases == 1 else 'cases'}. textseg {__version__}.",
        f"NSD at a tolerance of {rules.tolerance_mm:g} mm. {EMPTY_RULE}",
        *(f"Note: {note}" for note in notes),
        *(table.as_markdown().strip() for table in tables),
    ]
    return "\n\n".join(parts) + "\n"


def _document(
    systems: Systems, rules: Rules, challenge: Challenge | None, notes: Sequence[str]
) -> dict[str, Any]:
    """The same as JSON; a measure that is not defined is null."""
    return {
        "format": REPORT_FORMAT,
        "textseg": __version__,
        "rules": asdict(rules) | {"empty": EMPTY_RULE},
        "challenge": challenge.name if challenge else None,
        "notes": list(notes),
        "systems": {system: _summary(scores, challenge) for system, scores in systems.items()},
    }


def _summary(scores: Sequence[StructureScore], challenge: Challenge | None) -> dict[str, Any]:
    said = [score for score in scores if math.isfinite(score.presence)]
    probabilities, there = [score.presence for score in said], [score.there for score in said]
    curve = calibration(probabilities, there)
    return {
        "challenge": _finite(challenge.summary(scores)) if challenge else None,
        "structures": {
            structure: {
                column.field: _finite(asdict(estimate))
                for column in (*COLUMNS, *tolerance_columns(scores), *LESION_COLUMNS)
                if (estimate := estimate_of(scores, column, structure)).cases
            }
            for structure in [*structures_of(scores), ALL]
        },
        "presence": {
            **asdict(detection_of(scores)),
            "auroc": _or_none(auroc(probabilities, there)),
            "expected_calibration_error": _or_none(curve.expected_error),
            "reliability": [asdict(one) for one in curve.bins],
        },
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _or_none(value) for name, value in values.items()}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error
