"""Scores as pictures: box plots, Bland and Altman's plot, the reliability curve. PNG, on white, for print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from textseg.destination import save_png
from textseg.lettering import Font, drawable, font_for, shortened
from textseg.scores.presence import Calibration
from textseg.scores.statistics import bland_altman

Colour = tuple[int, int, int]
Groups = Mapping[str, Mapping[str, Sequence[float]]]

# Drawn larger and brought down, so that lines and dots have no steps.
SCALE = 2
TEXT_PIXELS = 18
ROW_PIXELS = 22
GROUP_GAP_PIXELS = 14
MARGIN_PIXELS = 24
PLOT_PIXELS = 720
SQUARE_PIXELS = 560
DOT_PIXELS = 4
LONGEST_LABEL_PIXELS = 340
# Quartiles of fewer values say nothing that the values do not.
FEWEST_FOR_BOX = 5
# Differences of volumes that are all smaller are drawn as small as they are.
SMALLEST_REACH_PERCENT = 10.0

PAPER: Colour = (255, 255, 255)
INK: Colour = (30, 32, 36)
FAINT: Colour = (120, 124, 130)
GRID: Colour = (226, 228, 232)
# Told apart by colour-blind readers too (Okabe and Ito).
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)


@dataclass(frozen=True)
class Axis:
    """Values along a picture's side: where they begin and end, and which are written."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        return min(max((at - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Frame:
    """A plot on a page: its sides in pixels and its axes, y upwards."""

    draw: ImageDraw.ImageDraw
    left: int
    top: int
    right: int
    bottom: int
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[int, int]:
        return (
            round(self.left + self.x.share(x) * (self.right - self.left)),
            round(self.bottom - self.y.share(y) * (self.bottom - self.top)),
        )

    def dot(self, x: float, y: float, colour: Colour, pixels: float = DOT_PIXELS) -> None:
        across, down = self.at(x, y)
        reach = round(pixels * SCALE)
        box = (across - reach, down - reach, across + reach, down + reach)
        self.draw.ellipse(box, fill=colour, outline=PAPER, width=SCALE // 2)


def draw_boxes(path: Path, title: str, groups: Groups, label: str, limits: tuple[float, float]) -> None:
    """A box a system for each group: quartiles, whiskers within 1.5 box lengths (Tukey), and every value.

    Args:
        path: of the PNG, which appears whole or not at all.
        title: above the plot.
        groups: for each group (a structure) the values of each system; only finite ones are drawn.
        label: what the values are.
        limits: the ends of the axis.

    Raises:
        OutputError: the file can't be written.
    """
    systems = list(dict.fromkeys(system for values in groups.values() for system in values))
    several = len(systems) > 1
    labels = {group: _label(group) for group in groups}
    left = MARGIN_PIXELS + round(max(font.getlength(text) for text, font in labels.values()) / SCALE) + 12
    height = sum(ROW_PIXELS * len(systems) + GROUP_GAP_PIXELS for _ in groups)
    top = MARGIN_PIXELS + 34 + (30 if several else 0)
    page, draw = blank_page(left + PLOT_PIXELS + 2 * MARGIN_PIXELS, top + height + 66)
    axis = Axis(*limits, ticks_between(*limits), label)
    frame = Frame(
        draw, left * SCALE, top * SCALE, (left + PLOT_PIXELS) * SCALE, (top + height) * SCALE, axis, _ROWS
    )
    _draw_title(draw, title, left)
    if several:
        _draw_legend(draw, systems, left, MARGIN_PIXELS + 34)
    draw_x_axis(frame)
    down = top + GROUP_GAP_PIXELS // 2
    for group, values in groups.items():
        middle = (down + ROW_PIXELS * len(systems) / 2) * SCALE
        text, font = labels[group]
        draw.text((frame.left - 10 * SCALE, middle), text, font=font, fill=INK, anchor="rm")
        for i, system in enumerate(systems):
            finite = [value for value in values.get(system, ()) if math.isfinite(value)]
            _draw_box(
                frame, finite, round((down + ROW_PIXELS * (i + 0.5)) * SCALE), COLOURS[i % len(COLOURS)]
            )
        down += ROW_PIXELS * len(systems) + GROUP_GAP_PIXELS
    save_page(page, path)


def draw_bland_altman(
    path: Path, title: str, predicted_ml: Sequence[float], reference_ml: Sequence[float]
) -> None:
    """Differences of volumes in per cent of their mean against that mean, with bias and limits of agreement.

    Per cent and a logarithmic axis, because structures differ in size by orders of magnitude. Pairs with an
    empty mask are left out: presence counts those.

    Args:
        predicted_ml, reference_ml: (pairs,) in the same order.

    Raises:
        OutputError: the file can't be written.
    """
    pairs = [(p, r) for p, r in zip(predicted_ml, reference_ml, strict=True) if p > 0 and r > 0]
    means = np.array([(p + r) / 2 for p, r in pairs])
    differences = np.array([200 * (p - r) / (p + r) for p, r in pairs])
    agreement = bland_altman(differences, np.zeros_like(differences))
    shown = [*differences, *(limit for limit in (agreement.low, agreement.high) if math.isfinite(limit))]
    reach = _rounded_up(max([SMALLEST_REACH_PERCENT, *(abs(value) * 1.08 for value in shown)]))
    low, high = (means.min(), means.max()) if pairs else (1.0, 10.0)
    powers = range(
        math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1) + 1
    )
    x = Axis(10.0 ** powers[0], 10.0 ** powers[-1], tuple(10.0**p for p in powers), "mean volume (ml)", True)
    y = Axis(-reach, reach, ticks_between(-reach, reach), "predicted - reference (% of mean)")
    page, frame = _square(title, x, y, SQUARE_PIXELS + 160, 190)
    frame.draw.line([frame.at(x.low, 0), frame.at(x.high, 0)], fill=FAINT, width=SCALE)
    levels = (("bias", agreement.bias, 0), ("+1.96 SD", agreement.high, -1), ("-1.96 SD", agreement.low, 1))
    for name, value, away in levels:
        if math.isfinite(value):
            _draw_level(frame, f"{name} {value:+.1f} %", value, agreement.bias, away)
    for mean, difference in zip(means, differences, strict=True):
        frame.dot(float(mean), float(difference), COLOURS[0], DOT_PIXELS + 1)
    save_page(page, path)


def draw_calibration(path: Path, title: str, curves: Mapping[str, Calibration]) -> None:
    """Reliability: the share of prompts that are there against their presence score.

    Args:
        curves: one a system.

    Raises:
        OutputError: the file can't be written.
    """
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    x, y = Axis(0, 1, ticks, "presence score"), Axis(0, 1, ticks, "share that is there")
    page, frame = _square(title, x, y, SQUARE_PIXELS, 40 + 30 * len(curves), legend_below=len(curves))
    _draw_dashes(frame, frame.at(0, 0), frame.at(1, 1))
    for i, (system, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = [frame.at(one.mean_score, one.share_there) for one in curve.bins]
        if len(points) > 1:
            frame.draw.line(points, fill=colour, width=2 * SCALE)
        for one in curve.bins:
            frame.dot(one.mean_score, one.share_there, colour, 3 + 2 * math.log10(one.count))
        prompts = sum(one.count for one in curve.bins)
        name, font = _label(system)
        words = f"{name}: ECE {curve.expected_error:.3f}, {prompts} prompts"
        at = (frame.left, frame.bottom + (74 + 28 * i) * SCALE)
        frame.draw.rectangle((at[0], at[1] - 6 * SCALE, at[0] + 12 * SCALE, at[1] + 6 * SCALE), fill=colour)
        frame.draw.text((at[0] + 20 * SCALE, at[1]), words, font=font, fill=INK, anchor="lm")
    save_page(page, path)


# Rows lie where they are drawn, not along an axis of values.
_ROWS = Axis(0, 1, (), "")


def _draw_box(frame: Frame, values: Sequence[float], middle: int, colour: Colour) -> None:
    if not values:
        text = "no value"
        frame.draw.text((frame.left + 6 * SCALE, middle), text, font=_font(14), fill=FAINT, anchor="lm")
        return
    first, median, third = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (third - first)
    low = min(value for value in values if value >= first - reach)
    high = max(value for value in values if value <= third + reach)
    half = (ROW_PIXELS // 2 - 3) * SCALE
    x = {name: frame.at(value, 0)[0] for name, value in (("low", low), ("high", high), ("median", median))}
    box = (frame.at(first, 0)[0], middle - half, frame.at(third, 0)[0], middle + half)
    if len(values) >= FEWEST_FOR_BOX:
        frame.draw.line((x["low"], middle, x["high"], middle), fill=colour, width=SCALE)
        for end in (x["low"], x["high"]):
            frame.draw.line((end, middle - half // 2, end, middle + half // 2), fill=colour, width=SCALE)
        frame.draw.rectangle(box, fill=_lighter(colour), outline=colour, width=SCALE)
    for value in values:
        reach_pixels = 3 * SCALE
        at = frame.at(value, 0)[0]
        dot = (at - reach_pixels, middle - reach_pixels, at + reach_pixels, middle + reach_pixels)
        frame.draw.ellipse(dot, fill=colour, outline=PAPER, width=SCALE // 2)
    if len(values) >= FEWEST_FOR_BOX:
        frame.draw.line((x["median"], middle - half, x["median"], middle + half), fill=INK, width=2 * SCALE)


def _draw_level(frame: Frame, words: str, value: float, bias: float, away: int) -> None:
    """A dashed line at a value of y, with its words right of the plot and clear of the bias's words."""
    left, down = frame.at(frame.x.low, value)
    _draw_dashes(frame, (left, down), (frame.right, down))
    clear = frame.at(frame.x.low, bias)[1] + away * ROW_PIXELS * SCALE
    at = (frame.right + 10 * SCALE, away * max(away * down, away * clear) if away else down)
    frame.draw.text(at, words, font=_font(16), fill=INK, anchor="lm")


def _draw_dashes(frame: Frame, start: tuple[int, int], stop: tuple[int, int]) -> None:
    a, b = np.array(start), np.array(stop)
    count = max(2, round(float(np.linalg.norm(b - a)) / (6 * SCALE)))
    stops = np.linspace(a, b, count + 1)
    for i in range(0, count, 2):
        frame.draw.line([tuple(stops[i]), tuple(stops[i + 1])], fill=FAINT, width=SCALE)


def _square(
    title: str, x: Axis, y: Axis, width: int, right: int, *, legend_below: int = 0
) -> tuple[Image.Image, Frame]:
    """A page with one plot on it, both axes drawn."""
    left, top = MARGIN_PIXELS + 92, MARGIN_PIXELS + 40
    size = (left + width + right, top + SQUARE_PIXELS + 76 + 28 * legend_below)
    page, draw = blank_page(*size)
    right_side, bottom = (left + width) * SCALE, (top + SQUARE_PIXELS) * SCALE
    frame = Frame(draw, left * SCALE, top * SCALE, right_side, bottom, x, y)
    _draw_title(draw, title, left)
    draw_x_axis(frame)
    for tick in y.ticks:
        _, down = frame.at(x.low, tick)
        draw.line((frame.left, down, frame.right, down), fill=GRID, width=SCALE)
        text = tick_text(tick)
        draw.text((frame.left - 8 * SCALE, down), text, font=_font(16), fill=FAINT, anchor="rm")
    draw.rectangle((frame.left, frame.top, frame.right, frame.bottom), outline=FAINT, width=SCALE)
    draw_upright(page, y.label, MARGIN_PIXELS * SCALE, (frame.top + frame.bottom) // 2)
    return page, frame


def draw_x_axis(frame: Frame) -> None:
    for tick in frame.x.ticks:
        across, _ = frame.at(tick, frame.y.low)
        frame.draw.line((across, frame.top, across, frame.bottom), fill=GRID, width=SCALE)
        at = (across, frame.bottom + 8 * SCALE)
        frame.draw.text(at, tick_text(tick), font=_font(16), fill=FAINT, anchor="mt")
    frame.draw.line((frame.left, frame.bottom, frame.right, frame.bottom), fill=FAINT, width=SCALE)
    at = ((frame.left + frame.right) // 2, frame.bottom + 34 * SCALE)
    frame.draw.text(at, frame.x.label, font=_font(), fill=INK, anchor="mt")


def draw_upright(page: Image.Image, text: str, left: int, middle: int) -> None:
    """Text that runs upwards."""
    font = _font()
    strip = Image.new("RGB", (round(font.getlength(text)) + 8, (TEXT_PIXELS + 10) * SCALE), PAPER)
    ImageDraw.Draw(strip).text((4, strip.height // 2), text, font=font, fill=INK, anchor="lm")
    turned = strip.rotate(90, expand=True)
    page.paste(turned, (left - turned.width // 2, middle - turned.height // 2))


def _draw_title(draw: ImageDraw.ImageDraw, title: str, left: int) -> None:
    words = drawable(title)
    at = (left * SCALE, MARGIN_PIXELS * SCALE)
    draw.text(at, words, font=_font(TEXT_PIXELS + 3, words), fill=INK, anchor="lt")


def _draw_legend(draw: ImageDraw.ImageDraw, systems: Sequence[str], left: int, top: int) -> None:
    at = left * SCALE
    for i, system in enumerate(systems):
        text, font = _label(system)
        colour = COLOURS[i % len(COLOURS)]
        draw.rectangle((at, top * SCALE, at + 12 * SCALE, (top + 12) * SCALE), fill=colour)
        draw.text((at + 20 * SCALE, (top + 6) * SCALE), text, font=font, fill=INK, anchor="lm")
        at += 50 * SCALE + round(font.getlength(text))


def blank_page(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    return page, ImageDraw.Draw(page)


def ticks_between(low: float, high: float) -> tuple[float, ...]:
    """About five round values between two ends."""
    step = _rounded_up((high - low) / 6)
    first = math.ceil(low / step - 1e-9)
    return tuple(step * i for i in range(first, math.floor(high / step + 1e-9) + 1))


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def tick_text(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:g}"


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (round(255 - (255 - part) * 0.3) for part in colour)
    return red, green, blue


def _label(name: str) -> tuple[str, Font]:
    """The name of a structure or system as it is drawn, and the font that can draw it."""
    words = drawable(name)
    font = _font(text=words)
    return shortened(words, font, LONGEST_LABEL_PIXELS * SCALE), font


def _font(pixels: int = TEXT_PIXELS, text: str = "") -> Font:
    return font_for(pixels * SCALE, text)


def save_page(page: Image.Image, path: Path) -> None:
    small = page.resize((page.width // SCALE, page.height // SCALE), Image.Resampling.LANCZOS)
    save_png(small, path, "picture")
