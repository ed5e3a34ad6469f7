"""A histogram as a picture (SVG) to be put into a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from textseg.geometry import Floats

WIDTH, HEIGHT, BASE, TOP = 300, 120, 92, 8
FEWEST_BINS, MOST_BINS = 6, 24
# Beyond this ratio of largest and smallest, a bin is a ratio rather than a difference.
LOGARITHMIC_FROM = 20.0


def histogram(name: str, volumes_ml: Sequence[tuple[float, bool]]) -> str:
    """An SVG of volumes in ml, each with whether it is odd: bars, their median, a mark for each odd one.

    The axis is logarithmic where the largest volume is more than twenty times the smallest above zero.
    """
    values = np.array([volume for volume, _ in volumes_ml])
    odd = np.array([is_odd for _, is_odd in volumes_ml])
    logarithmic = bool(values.min() > 0 and values.max() > LOGARITHMIC_FROM * values.min())
    scaled = np.log(values) if logarithmic else values
    low, high = float(scaled.min()), float(scaled.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(np.ceil(2 * np.sqrt(len(values))), FEWEST_BINS, MOST_BINS))
    counts, edges = np.histogram(scaled, bins, (low, high))
    back = np.exp(edges) if logarithmic else edges

    def across(numbers: Floats) -> Floats:
        return np.asarray(4 + (WIDTH - 8) * (numbers - low) / (high - low))

    lefts = across(edges)
    bars = "".join(
        f'<rect class="bar" x="{left:.1f}" width="{right - left - 1:.1f}" y="{BASE - tall:.1f}" '
        f'height="{tall:.1f}"><title>{start:.3g} to {stop:.3g} ml: {count}</title></rect>'
        for left, right, start, stop, count, tall in zip(
            lefts, lefts[1:], back, back[1:], counts, (BASE - TOP) * counts / counts.max(), strict=False
        )
        if count
    )
    middle = float(across(np.median(scaled)))
    ticks = "".join(
        f'<path class="odd" d="M{x:.1f} {BASE + 3} l3 6 h-6 z"><title>{ml:.3g} ml</title></path>'
        for x, ml in zip(across(scaled[odd]), values[odd], strict=True)
    )
    median_ml = float(np.median(values))
    ends = f"{values.min():.3g} to {values.max():.3g} ml"
    label = f"Volumes of {name}: {len(values)} from {ends}, median {median_ml:.3g} ml"
    kind = ", log scale" if logarithmic else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{bars}'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}"/>'
        f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{TOP - 4}" y2="{BASE}"/>{ticks}'
        f'<text x="4" y="{HEIGHT - 4}">{values.min():.3g}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">median {median_ml:.3g} ml{kind}</text>'
        f'<text x="{WIDTH - 4}" y="{HEIGHT - 4}" text-anchor="end">{values.max():.3g}</text></svg>'
    )
