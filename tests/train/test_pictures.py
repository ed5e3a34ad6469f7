"""Pictures of a training: what is drawn where. How they look is for eyes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from textseg.errors import OutputError
from textseg.scores.figures import COLOURS
from textseg.train.pictures import PREDICTED, REFERENCE, TILE_PIXELS, Curve, draw_curves, draw_examples
from textseg.train.validation import Example

NOTHING = Curve("validation Dice", [], [])


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def where(image, colour, tolerance=40):
    """(rows, columns) of the pixels in nearly this colour."""
    return np.argwhere(np.abs(image - np.array(colour)).max(axis=2) < tolerance)


@pytest.fixture
def example():
    """Slices with unequal sides; the reference lies to the patient's right and in front, the model's not."""
    reference, predicted = np.zeros((2, 20, 30), bool)
    reference[13:18, 22:28] = True
    predicted[2:6, 3:8] = True
    image = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)
    return Example("case_7, CT", "spleen", (1.0, 0.5), image, reference, predicted, 0.0, True)


def test_a_curve_falls_to_the_right_and_the_best_is_ringed(tmp_path):
    steps = list(range(1, 101))
    loss = Curve("smoothed loss", steps, [2.0 / step + 0.1 for step in steps])
    draw_curves(
        tmp_path / "curve.png", "A run", loss, Curve("validation Dice", [25, 50, 100], [0.2, 0.9, 0.5])
    )
    image = pixels(tmp_path / "curve.png")
    line = where(image, COLOURS[0])
    left, right = line[line[:, 1].argmin()], line[line[:, 1].argmax()]
    assert left[0] < right[0]
    ring, dice = where(image, COLOURS[1]), where(image, COLOURS[2])
    # Step 50 lies in the middle, and above all other values.
    assert ring[:, 1].mean() == pytest.approx((left[1] + right[1]) / 2, abs=15)
    assert ring[:, 0].mean() == pytest.approx(dice[:, 0].min(), abs=10)


def test_a_run_that_is_not_validated_has_one_panel(tmp_path):
    loss = Curve("smoothed loss", [1, 2], [1.0, 0.5])
    draw_curves(tmp_path / "one.png", "A run", loss, NOTHING)
    draw_curves(tmp_path / "two.png", "A run", loss, Curve("validation Dice", [2], [0.5]))
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert one.shape[0] < two.shape[0]
    assert not len(where(one, COLOURS[2]))
    assert len(where(two, COLOURS[2]))


@pytest.mark.parametrize("steps", [0, 1, 5000])
def test_any_number_of_steps_is_drawn(tmp_path, steps):
    loss = Curve("smoothed loss", list(range(1, steps + 1)), [0.5] * steps)
    draw_curves(tmp_path / "curve.png", "A run", loss, NOTHING)
    assert bool(len(where(pixels(tmp_path / "curve.png"), COLOURS[0]))) == (steps > 0)


def test_the_right_side_is_on_the_left_and_the_front_up(tmp_path, example):
    draw_examples(tmp_path / "examples.png", "Step 5", [example])
    image = pixels(tmp_path / "examples.png")[-TILE_PIXELS - 80 :]
    reference, predicted = where(image, REFERENCE, 10), where(image, PREDICTED, 10)
    # High x is the patient's right side, drawn on the left; high y is the front, drawn on top.
    assert reference[:, 1].max() < predicted[:, 1].min()
    assert reference[:, 0].max() < predicted[:, 0].min()
    # 5 voxels of 1 mm by 6 voxels of 0.5 mm.
    height, width = np.ptp(reference, axis=0) + 1
    assert width / height == pytest.approx(5 / 3, rel=0.1)


def test_examples_stand_in_rows_of_three(tmp_path, example):
    draw_examples(tmp_path / "three.png", "Step 5", [example] * 3)
    draw_examples(tmp_path / "four.png", "Step 5", [example] * 4)
    three, four = pixels(tmp_path / "three.png"), pixels(tmp_path / "four.png")
    assert three.shape[1] == four.shape[1]
    assert four.shape[0] > three.shape[0] + TILE_PIXELS
    assert len(where(four, REFERENCE, 10)) == pytest.approx(
        4 / 3 * len(where(three, REFERENCE, 10)), rel=0.05
    )


def test_an_empty_slice_and_words_that_no_font_has_are_drawn(tmp_path, example):
    empty = np.zeros((20, 30), bool)
    odd = Example(
        "case_8", "левая почка, sehr lang " * 9, (1.0, 1.0), 0 * example.image, empty, empty, None, False
    )
    draw_examples(tmp_path / "examples.png", "Step 5", [odd])
    assert not len(where(pixels(tmp_path / "examples.png")[70:], PREDICTED, 10))


def test_a_place_that_can_not_be_written_to_is_told(tmp_path, example):
    with pytest.raises(OutputError, match="picture"):
        draw_examples(tmp_path / "missing" / "examples.png", "Step 5", [example])
