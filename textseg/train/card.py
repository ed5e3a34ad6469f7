"""The model card: what a model was trained on, what it reached on held-back cases, and what it can't do."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textseg.atomic import write_bytes
from textseg.models import CARD_FILE
from textseg.plan import Plan
from textseg.prompts import Lexicon
from textseg.train.cases import Target
from textseg.train.evaluate import Score
from textseg.train.words import canonical_words

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Row:
    """One structure in one kind of image: mean Dice over the cases that show it, and how presence did."""

    kind: str
    prompt: str
    cases: int
    dice: float
    lowest: float
    missed: int


def summarise(scores: Iterable[Score], plan: Plan, lexicon: Lexicon) -> list[Row]:
    """Mean Dice by kind of image and structure, best first; what is reported as not found counts as 0."""
    grouped: dict[tuple[str, Target], list[Score]] = defaultdict(list)
    for score in scores:
        if score.dice is not None:
            grouped[score.kind, score.target].append(score)
    rows = []
    for (kind, target), members in grouped.items():
        values = [given_dice(score, plan) for score in members]
        missed = sum(score.presence < plan.masks.presence for score in members)
        rows.append(
            Row(
                kind,
                canonical_words(target, lexicon),
                len(values),
                float(np.mean(values)),
                float(np.min(values)),
                missed,
            )
        )
    return sorted(rows, key=lambda row: (row.kind, -row.dice))


def given_dice(score: Score, plan: Plan) -> float:
    """The Dice that a user gets: no mask is given below the plan's presence threshold."""
    assert score.dice is not None
    return score.dice if score.presence >= plan.masks.presence else 0.0


def false_alarms(scores: Iterable[Score], plan: Plan) -> tuple[int, int]:
    """How many prompts for what a case does not show got a mask, and how many were asked."""
    absent = [score for score in scores if score.voxels == 0]
    alarms = [s for s in absent if s.presence >= plan.masks.presence and s.predicted_voxels > 0]
    return len(alarms), len(absent)


def write_card(
    introduction: str,
    scores: Sequence[Score],
    plan: Plan,
    lexicon: Lexicon,
    facts: dict[str, Any],
    model: Path,
) -> None:
    """Write the card, Markdown, and the numbers behind it, JSON, into a model's folder.

    Args:
        introduction: Markdown to stand first: data, licences, limits; `{facts[...]}` in it is filled in.
        facts: of the run; with `best_step`, `steps` and `validation_dice` the card says whose weights it has.
    """
    rows = summarise(scores, plan, lexicon)
    alarms, asked = false_alarms(scores, plan)
    results = results_section(rows, alarms, asked, chosen_sentence(facts))
    text = introduction.format(facts=facts) + "\n" + results
    document = {
        "facts": facts,
        "false_alarms": alarms,
        "absent_asked": asked,
        "rows": [vars(row) for row in rows],
    }
    write_bytes(model / CARD_FILE, text.encode())
    write_bytes(model / SCORES_FILE, (json.dumps(document, indent=1) + "\n").encode())


def chosen_sentence(facts: Mapping[str, Any]) -> str:
    """Which weights a run kept, where some of its held-back cases chose them; nothing where none did."""
    if facts.get("best_step") is None:
        return ""
    return (
        f"The weights are the running average of step {facts['best_step']} of {facts['steps']}, the best of "
        f"those scored in training: mean Dice {facts['validation_dice']:.2f} on parts of these cases. "
        "Since they chose the step, what is measured on them here is slightly too high."
    )


def results_section(rows: Sequence[Row], alarms: int, asked: int, chosen: str = "") -> str:
    """The tables: one a kind of image, then what was said of absent things.

    chosen: a sentence on how these cases chose the weights, to stand above the tables.
    """
    lines = ["## Measured on held-back cases", "", *([chosen, ""] if chosen else [])]
    for kind in sorted({row.kind for row in rows}):
        of_kind = [row for row in rows if row.kind == kind]
        mean = float(np.mean([row.dice for row in of_kind]))
        lines += [f"### {kind}: mean Dice {mean:.2f} over {len(of_kind)} prompts", ""]
        lines += ["| prompt | Dice | lowest | cases | reported as not found |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.prompt} | {row.dice:.2f} | {row.lowest:.2f} | {row.cases} | {row.missed} |"
            for row in of_kind
        ]
        lines.append("")
    if not rows:
        lines += ["Nothing: no case was held back.", ""]
    if asked:
        lines += [
            "### Things that are not in the scan",
            "",
            f"{alarms} of {asked} prompts for structures that a case's labels name but do not show "
            f"got a mask ({100 * alarms / asked:.0f} %).",
            "",
        ]
    return "\n".join(lines)
