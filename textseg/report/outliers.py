"""Which masks of a cohort deserve a look: empty, tiny, in many parts, on the wrong side, cut off, unusual."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]

KINDS = ("empty", "tiny", "many parts", "wrong side", "cut off", "unusual volume")
TINY_VOXELS = 20
TINY_SHARE = 0.05  # of the cohort's median
MANY_PARTS = 10
MORE_PARTS = 3  # times the cohort's median
# A heart or a liver reaches over the middle, and patients lie askew; only beyond this is it the other side.
ACROSS_MM = 10.0
# Fewer masks have no usual volume.
ENOUGH = 5
# Of the modified z-score; after Iglewicz and Hoaglin, How to detect and handle outliers, 1993.
FAR = 3.5
TO_SD = 0.6745
# Volumes are compared by their ratio; a spread of less than two per cent is taken for two per cent.
LEAST_SPREAD = 0.02


@dataclass(frozen=True)
class Flag:
    """One reason to look at a mask: a kind of KINDS, and why in words."""

    kind: str
    why: str


@dataclass(frozen=True)
class _Usual:
    """What the masks of one prompt are like: those that are there, in logarithms of ml."""

    masks: int
    median_ml: float
    spread: float
    median_parts: float
    share_cut_off: float


def find_outliers(rows: Sequence[Row]) -> list[tuple[Flag, ...]]:
    """The flags of each row (a mask's measures with its `prompt`), none for rows without a mask.

    Masks are compared with those of the same prompt; with fewer than five of these no volume is unusual.
    """
    of_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("present"):
            of_prompt[_asked(row)].append(row)
    usual = {prompt: _usual(present) for prompt, present in of_prompt.items()}
    return [_flags(row, usual.get(_asked(row))) for row in rows]


def _asked(row: Row) -> str:
    return str(row.get("understood_as") or row.get("prompt") or "")


def _usual(rows: Sequence[Row]) -> _Usual:
    volumes = np.log([max(float(row["volume_ml"]), 1e-9) for row in rows])
    median = float(np.median(volumes))
    return _Usual(
        masks=len(rows),
        median_ml=math.exp(median),
        spread=max(float(np.median(np.abs(volumes - median))), LEAST_SPREAD),
        median_parts=float(np.median([row.get("components") or 1 for row in rows])),
        share_cut_off=sum(bool(row.get("touches_border")) for row in rows) / len(rows),
    )


def _flags(row: Row, usual: _Usual | None) -> tuple[Flag, ...]:
    if row.get("present") is False:
        return (Flag("empty", "nothing was found"),)
    if usual is None or not row.get("present"):
        return ()
    found = (_tiny(row, usual), _parts(row, usual), _side(row), _cut_off(row, usual), _volume(row, usual))
    return tuple(flag for flag in found if flag is not None)


def _tiny(row: Row, usual: _Usual) -> Flag | None:
    if int(row["voxels"]) < TINY_VOXELS:
        return Flag("tiny", f"{row['voxels']} voxels")
    share = float(row["volume_ml"]) / usual.median_ml
    if usual.masks >= ENOUGH and share < TINY_SHARE:
        return Flag("tiny", f"{100 * share:.2g} % of the median volume")
    return None


def _parts(row: Row, usual: _Usual) -> Flag | None:
    parts = int(row.get("components") or 1)
    if parts <= max(MANY_PARTS, MORE_PARTS * usual.median_parts):
        return None
    return Flag("many parts", f"{parts} parts, {usual.median_parts:g} as a rule")


def _side(row: Row) -> Flag | None:
    side, offset_mm = row.get("side"), row.get("midline_offset_mm")
    if side not in ("left", "right") or offset_mm is None:
        return None
    beyond_mm = offset_mm if side == "left" else -offset_mm
    if beyond_mm <= ACROSS_MM:
        return None
    other = "right" if side == "left" else "left"
    return Flag("wrong side", f"{beyond_mm:.0f} mm to the {other} of the body's middle")


def _cut_off(row: Row, usual: _Usual) -> Flag | None:
    if not row.get("touches_border"):
        return None
    # A spinal cord is cut off in every scan of a head.
    if usual.masks >= ENOUGH and usual.share_cut_off > 0.5:
        return None
    return Flag(
        "cut off", f"touches the border of the scan ({', '.join(str(row.get('border_sides') or '?'))})"
    )


def _volume(row: Row, usual: _Usual) -> Flag | None:
    if usual.masks < ENOUGH:
        return None
    log_ratio = math.log(max(float(row["volume_ml"]), 1e-9) / usual.median_ml)
    score = TO_SD * log_ratio / usual.spread
    if abs(score) <= FAR:
        return None
    return Flag("unusual volume", f"{math.exp(log_ratio):.2g} × the median volume (robust z {score:+.1f})")
