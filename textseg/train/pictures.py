"""Pictures of a training: its curves, and masks beside their reference. PNG, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from textseg.destination import save_png
from textseg.geometry import Scalar
from textseg.lettering import drawable, font_for, shortened
from textseg.report.preview import BACKGROUND, FILL_OPACITY, FRAME, PLANES
from textseg.report.preview import FAINT as GREY
from textseg.report.preview import INK as LIGHT
from textseg.scores.figures import (
    COLOURS,
    FAINT,
    GRID,
    INK,
    MARGIN_PIXELS,
    PAPER,
    SCALE,
    Axis,
    Colour,
    Frame,
    blank_page,
    draw_upright,
    draw_x_axis,
    save_page,
    tick_text,
    ticks_between,
)
from textseg.train.validation import Bools, Example

CURVE_WIDTH = 760
PANEL_HEIGHT = 300
# A curve of more points than pixels is only slower to draw.
MOST_POINTS = 1500
TILE_PIXELS = 300
TILES_ACROSS = 3
LINE_PIXELS = 22
LEGEND = "reference", "model"
REFERENCE: Colour = (64, 190, 255)
PREDICTED: Colour = (255, 165, 40)


@dataclass(frozen=True)
class Curve:
    """A line of a training's picture: at which steps it has which values."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


def draw_curves(path: Path, title: str, loss: Curve, dice: Curve) -> None:
    """Write a PNG of the loss over the steps and, where a run is validated, Dice below it.

    The best Dice is marked, since its weights are the ones that are kept.

    Raises:
        OutputError: the file can't be written.
    """
    validated = len(dice.steps) > 0
    left, top = MARGIN_PIXELS + 92, MARGIN_PIXELS + 44
    panels = 2 if validated else 1
    height = top + panels * PANEL_HEIGHT + (panels - 1) * 34 + 84
    page, draw = blank_page(left + CURVE_WIDTH + 2 * MARGIN_PIXELS + 20, height)
    at = (left * SCALE, MARGIN_PIXELS * SCALE)
    _write(draw, at, title, 20 * SCALE, INK, CURVE_WIDTH * SCALE)
    last = max([1, *loss.steps, *dice.steps])
    steps = Axis(0, last, ticks_between(0, last), "steps")
    shown = _thinned(loss)
    finite = [value for value in shown.values if math.isfinite(value)] or [0.0, 1.0]
    highest = max(*finite, 1e-3)
    losses = Axis(0, highest * 1.05, ticks_between(0, highest * 1.05), loss.name)
    upper = _panel(page, draw, left, top, steps, losses, labelled=not validated)
    _draw_line(upper, shown, COLOURS[0])
    if validated:
        below = top + PANEL_HEIGHT + 34
        lower = _panel(
            page, draw, left, below, steps, Axis(0, 1, ticks_between(0, 1), dice.name), labelled=True
        )
        _draw_line(lower, dice, COLOURS[2])
        for step, value in zip(dice.steps, dice.values, strict=True):
            lower.dot(step, value, COLOURS[2], 3)
        _mark_best(lower, dice)
    save_page(page, path)


def draw_examples(path: Path, title: str, examples: Sequence[Example]) -> None:
    """Write a PNG of axial slices, the patient's right on the viewer's left, with both outlines on each.

    Raises:
        OutputError: the file can't be written.
    """
    tiles = [_tile(example) for example in examples]
    across = min(TILES_ACROSS, max(1, len(tiles)))
    rows = math.ceil(len(tiles) / across)
    gap, tile_height = 14, TILE_PIXELS + 2 * LINE_PIXELS + 6
    head = gap + 2 * LINE_PIXELS + 18
    width = across * TILE_PIXELS + (across + 1) * gap
    page = Image.new("RGB", (width, head + rows * (tile_height + gap)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    _write(draw, (gap, gap), title, 18, LIGHT, width - 2 * gap)
    _draw_legend(draw, gap, gap + LINE_PIXELS + 8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        page.paste(tile, (gap + column * (TILE_PIXELS + gap), head + row * (tile_height + gap)))
    save_png(page, path, "picture of examples")


def _panel(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    x: Axis,
    y: Axis,
    *,
    labelled: bool,
) -> Frame:
    """An empty plot; the axis of steps is only written below the last one."""
    bottom, right = top + PANEL_HEIGHT, left + CURVE_WIDTH
    frame = Frame(draw, left * SCALE, top * SCALE, right * SCALE, bottom * SCALE, x, y)
    if labelled:
        draw_x_axis(frame)
    else:
        for tick in x.ticks:
            across, _ = frame.at(tick, y.low)
            draw.line((across, frame.top, across, frame.bottom), fill=GRID, width=SCALE)
    for tick in y.ticks:
        _, down = frame.at(x.low, tick)
        draw.line((frame.left, down, frame.right, down), fill=GRID, width=SCALE)
        at = (frame.left - 8 * SCALE, down)
        draw.text(at, tick_text(round(tick, 9)), font=font_for(16 * SCALE), fill=FAINT, anchor="rm")
    draw.rectangle((frame.left, frame.top, frame.right, frame.bottom), outline=FAINT, width=SCALE)
    draw_upright(page, y.label, MARGIN_PIXELS * SCALE, (frame.top + frame.bottom) // 2)
    return frame


def _draw_line(frame: Frame, curve: Curve, colour: Colour) -> None:
    points = [
        frame.at(step, value)
        for step, value in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(value)
    ]
    if len(points) > 1:
        frame.draw.line(points, fill=colour, width=2 * SCALE, joint="curve")
    elif points:
        frame.dot(curve.steps[0], curve.values[0], colour)


def _mark_best(frame: Frame, dice: Curve) -> None:
    """A ring around the best value, the latest of equal ones, and its words where there is room for them."""
    best = max(range(len(dice.values)), key=lambda i: (dice.values[i], dice.steps[i]))
    across, down = frame.at(dice.steps[best], dice.values[best])
    reach = 7 * SCALE
    ring = (across - reach, down - reach, across + reach, down + reach)
    frame.draw.ellipse(ring, outline=COLOURS[1], width=2 * SCALE)
    words, font = f"best {dice.values[best]:.3f}, step {dice.steps[best]}", font_for(16 * SCALE)
    half = font.getlength(words) / 2 + 6 * SCALE
    at = min(max(across, frame.left + half), frame.right - half)
    under = down + 26 * SCALE if down + 40 * SCALE < frame.bottom else down - 24 * SCALE
    box = frame.draw.textbbox((at, under), words, font=font, anchor="mm")
    frame.draw.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), fill=PAPER)
    frame.draw.text((at, under), words, font=font, fill=INK, anchor="mm")


def _thinned(curve: Curve) -> Curve:
    every = max(1, math.ceil(len(curve.steps) / MOST_POINTS))
    kept = sorted({*range(0, len(curve.steps), every), len(curve.steps) - 1} if curve.steps else ())
    return Curve(curve.name, [curve.steps[i] for i in kept], [curve.values[i] for i in kept])


def _draw_legend(draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    font = font_for(16)
    for name, colour in zip(LEGEND, (REFERENCE, PREDICTED), strict=True):
        draw.line((left, top + 8, left + 22, top + 8), fill=colour, width=3)
        draw.text((left + 30, top + 8), name, font=font, fill=LIGHT, anchor="lm")
        left += 60 + round(font.getlength(name))


def _tile(example: Example) -> Image.Image:
    """The slice with both outlines, and below it the prompt and how it went."""
    picture = _outlined(example)
    tile = Image.new("RGB", (TILE_PIXELS, TILE_PIXELS + 2 * LINE_PIXELS + 6), BACKGROUND)
    tile.paste(picture, ((TILE_PIXELS - picture.width) // 2, (TILE_PIXELS - picture.height) // 2))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, TILE_PIXELS - 1, TILE_PIXELS - 1), outline=FRAME)
    _write(draw, (0, TILE_PIXELS + 6), example.prompt, 16, LIGHT, TILE_PIXELS)
    below, went = TILE_PIXELS + 6 + LINE_PIXELS, f"{_how_it_went(example)}   "
    _write(draw, (0, below), went, 15, LIGHT, TILE_PIXELS)
    left = round(font_for(15).getlength(went))
    _write(draw, (left, below), example.case, 15, GREY, TILE_PIXELS - left)
    return tile


def _how_it_went(example: Example) -> str:
    if example.dice is not None:
        return f"Dice {example.dice:.2f}" + ("" if example.marked else ", not found")
    return "not there, but marked" if example.marked else "not there, none given"


def _outlined(example: Example) -> Image.Image:
    size = _picture_size(example)
    low, high = np.percentile(example.image, (0.5, 99.5))
    grey = np.clip((_seen(example.image) - low) / max(float(high - low), 1e-6), 0, 1)
    picture = Image.fromarray((255 * grey).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.stack([np.asarray(picture)] * 3, axis=-1).astype(np.float32)
    reference, predicted = (_stretched(_seen(mask), size) for mask in (example.reference, example.predicted))
    # The reference is filled too, so that it is seen where both lines are one.
    pixels[reference] = (1 - FILL_OPACITY) * pixels[reference] + FILL_OPACITY * np.array(COLOURS[0])
    pixels[_rim(reference, 2)] = REFERENCE
    pixels[_rim(predicted, 2)] = PREDICTED
    return Image.fromarray(pixels.astype(np.uint8))


def _seen(plane: NDArray[Scalar]) -> NDArray[Scalar]:
    """An axial plane (x, y) as a radiologist sees it (rows, columns)."""
    return PLANES[0].cut(plane[:, :, None], (0, 0, 0))


def _picture_size(example: Example) -> tuple[int, int]:
    """Width and height in pixels of a slice that fills its tile, in the patient's proportions."""
    sides_mm = [n * mm for n, mm in zip(example.image.shape, example.spacing_mm, strict=True)]
    scale = TILE_PIXELS / max(sides_mm)
    width, height = (max(1, round(side * scale)) for side in sides_mm)
    return width, height


def _stretched(mask: Bools, size: tuple[int, int]) -> Bools:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    large: Bools = np.asarray(picture) > 0
    return large


def _rim(mask: Bools, width: int) -> Bools:
    """The inner border of a mask (rows, columns), so many pixels wide."""
    inside: Bools = binary_erosion(mask, iterations=width, border_value=1)
    return mask & ~inside


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, pixels: int, colour: Colour, room: int
) -> None:
    """Text from its left top corner, cut where there is no more room."""
    words = drawable(text)
    font = font_for(pixels, words)
    draw.text(at, shortened(words, font, room), font=font, fill=colour, anchor="lt")
