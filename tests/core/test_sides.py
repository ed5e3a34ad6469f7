"""A mirrored scan swaps left and right, and a network that does not is found out."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.tiny_model import TEXT_WIDTH, write_tiny_model
from textseg.device import Compute
from textseg.geometry import AxisOrder, Geometry
from textseg.inference import Segmenter
from textseg.prompts import understand
from textseg.sides import check_sides, left_right_axis, mirror, with_side_swapped
from textseg.sliding import Answer
from textseg.volume import Volume

SHAPE = (30, 36, 20)
# x runs to the patient's right: the large block is on the left, the small one on the right.
LARGE = (slice(4, 12), slice(10, 24), slice(5, 14))
SMALL = (slice(20, 25), slice(14, 21), slice(8, 13))
LEFT, RIGHT = -1.0, 1.0
AS_IT_IS = AxisOrder((0, 1, 2), (False, False, False))


class SideWords:
    """A text encoder that hears sides and nothing else."""

    name, width = "side words", TEXT_WIDTH

    def embed(self, texts):
        heard = [("right" in text) * RIGHT + ("left" in text) * LEFT for text in texts]
        return torch.tensor([[each] * TEXT_WIDTH for each in heard])


class Stub:
    """In place of the windows: a network whose answer to a side is known."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, network, image, text, *rest):
        bright = (image[0] > 1.5).numpy()
        marked = np.stack([self.answer(bright, float(side)) for side in text[:, 0]])
        return Answer(torch.where(torch.from_numpy(marked), 10.0, -10.0), torch.full((len(text),), 0.9))


def half(shape, side):
    """The half of a canonical grid that lies on a side of the patient."""
    x = np.arange(shape[0])[:, None, None]
    return np.broadcast_to(x < shape[0] / 2 if side == LEFT else x >= shape[0] / 2, shape)


def by_the_patient(bright, side):
    return bright & half(bright.shape, side) if side else bright


def by_the_picture(bright, side):
    """The larger block is the left one, wherever it lies."""
    parts, count = ndimage.label(bright)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    return parts == 1 + (sizes.argmax() if side == LEFT else sizes.argmin())


def deaf(bright, side):
    return bright


def unsure_of_the_right(bright, side):
    found = by_the_patient(bright, side)
    if side == RIGHT:
        found[:, found.shape[1] // 2 :] = False
    return found


def finds_nothing(bright, side):
    return np.zeros_like(bright)


def only_on_the_left(bright, side):
    return by_the_patient(bright, side) & (side == LEFT)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    model = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    segmenter = Segmenter(model, device="cpu", text_encoder=SideWords())
    masks = segmenter.plan.masks.model_copy(update={"smallest_part": 0.0})
    segmenter.plan = segmenter.plan.model_copy(update={"masks": masks})
    segmenter.compute = Compute(torch.device("cpu"), torch.float32)
    return segmenter


@pytest.fixture(scope="module")
def geometry():
    affine = np.array([[2.0, 0.3, 0, -31], [-0.4, 2.2, 0, 12], [0.1, 0, 3.0, 400], [0, 0, 0, 1]])
    return Geometry(SHAPE, Geometry(SHAPE, affine).right_angled().affine)


@pytest.fixture(scope="module")
def hounsfield():
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[2:-4, 3:-2, 1:-2] = 0
    voxels[LARGE] = voxels[SMALL] = 900
    return voxels


@pytest.fixture
def checked(segmenter, monkeypatch, hounsfield, geometry):
    def check(answer, *prompts, order=AS_IT_IS):
        monkeypatch.setattr("textseg.inference.segment_windows", Stub(answer))
        scan = Volume(np.ascontiguousarray(order.apply(hounsfield)), geometry.reordered(order))
        return check_sides(segmenter(scan, prompts), segmenter)

    return check


def test_a_network_that_knows_left_and_right_agrees_in_every_axis_order(checked):
    for axes, flipped in product(permutations((0, 1, 2)), product((False, True), repeat=3)):
        result = checked(by_the_patient, "left kidney", "right lung", order=AxisOrder(axes, flipped))
        assert result.masks.any(axis=(1, 2, 3)).all()
        for check in result.sides:
            assert check.dice == pytest.approx(1, abs=0.02)
            assert check.same_words_dice == pytest.approx(0, abs=0.02)
            assert check.warning is None


def test_the_same_words_find_the_other_side_in_the_mirrored_scan(checked):
    left, right = checked(by_the_patient, "left kidney", "right kidney").sides
    assert (left.asked, right.asked) == ("right kidney", "left kidney")
    # The left block is the large one: what is asked for the right of the mirrored scan is as large.
    assert left.volume_ml > 3 * right.volume_ml


def test_a_network_that_goes_by_the_picture_swaps_sides(checked):
    (check,) = checked(by_the_picture, "left kidney").sides
    assert check.dice == 0
    assert check.same_words_dice == pytest.approx(1, abs=0.02)
    assert "may be swapped for 'left kidney'" in check.warning


def test_a_network_that_does_not_hear_the_side_is_told_of(checked):
    (check,) = checked(deaf, "left kidney").sides
    assert check.dice == pytest.approx(1, abs=0.02)
    assert "are not told apart for 'left kidney'" in check.warning


def test_sides_that_agree_in_part_only_are_told_of(checked):
    (check,) = checked(unsure_of_the_right, "left kidney").sides
    assert 0.1 < check.dice < 0.8
    assert "must agree with Dice 0.8 or more" in check.warning
    assert f"got {check.dice:.2f}" in check.warning


def test_what_is_found_on_one_side_alone_is_told_of(checked):
    (check,) = checked(only_on_the_left, "left kidney").sides
    assert check.dice == 0
    assert check.warning is not None


def test_what_is_found_in_neither_agrees(checked):
    (check,) = checked(finds_nothing, "left kidney").sides
    assert (check.dice, check.same_words_dice, check.warning) == (None, None, None)
    assert "nothing is found in either" in str(check)


def test_what_has_no_side_is_compared_but_never_warned_about(checked):
    # The picture's largest and smallest block: asked without a side it takes the small one.
    (check,) = checked(by_the_picture, "liver").sides
    assert (check.asked, check.sided, check.same_words_dice) == ("liver", False, None)
    assert check.dice == pytest.approx(1, abs=0.02)
    assert check.warning is None


def test_the_record_holds_the_check_of_each_prompt(checked):
    result = checked(by_the_picture, "left kidney", "liver")
    kidney, liver = result.record()["prompts"]
    assert kidney["mirrored"]["asked"] == "right kidney"
    assert kidney["mirrored"]["dice"] == 0
    assert "swapped" in kidney["mirrored"]["warning"]
    assert liver["mirrored"]["warning"] is None


def test_a_record_without_the_check_says_nothing_of_it(segmenter, monkeypatch, hounsfield, geometry):
    monkeypatch.setattr("textseg.inference.segment_windows", Stub(deaf))
    record = segmenter(Volume(hounsfield, geometry), "left kidney").record()
    assert "mirrored" not in record["prompts"][0]


def test_a_mirrored_scan_keeps_its_grid_and_mirrored_twice_is_itself(hounsfield, geometry):
    for axes in permutations((0, 1, 2)):
        order = AxisOrder(axes, (True, False, True))
        scan = Volume(order.apply(hounsfield), geometry.reordered(order))
        mirrored = mirror(scan)
        assert mirrored.geometry == scan.geometry
        assert left_right_axis(scan) == axes.index(0)
        assert not np.array_equal(mirrored.voxels, scan.voxels)
        assert np.array_equal(mirror(mirrored).voxels, scan.voxels)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("left kidney", "right kidney"),
        ("Tumour of the RIGHT kidney!", "Tumour of the left kidney!"),
        ("kidney, left", "kidney, right"),
        ("LK", "right kidney"),
        ("kidney (L)", "right kidney"),
        ("RLL nodule", "left lower lobe of lung nodule"),
        ("linke Niere", "right Niere"),
        ("riñón derecho", "riñón left"),
        ("left tumor", "right tumor"),
        ("left florb", "right florb"),
        ("left liver", "right liver"),
        ("liver", "liver"),
        ("both kidneys", "both kidneys"),
        ("left ventricle", "left ventricle"),
        ("right middle lobe", "right middle lobe"),
    ],
)
def test_a_prompt_about_the_other_side(text, other):
    prompt = understand(text)
    assert with_side_swapped(prompt) == other
    if prompt.known:
        again = understand(with_side_swapped(understand(other)))
        assert (again.structure, again.finding, again.side) == (prompt.structure, prompt.finding, prompt.side)
