"""What a run is scored on while it learns: fixed, small, and just what a user would get."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from textseg.device import Compute
from textseg.network.build import Decoded, Features
from textseg.train.cases import Case, CaseFacts, Target, write_case, write_index
from textseg.train.validation import MOST_PROMPTS, MOST_REGIONS, WINDOWS_A_SIDE, HeldBack, is_due
from textseg.windows import place_windows

COMPUTE = Compute(torch.device("cpu"), torch.float32)
LIVER, SPLEEN, AORTA, BRAIN = Target("liver"), Target("spleen"), Target("aorta"), Target("brain")
VALUES = {LIVER: 3, SPLEEN: 7, AORTA: 9}
VECTORS = {target: torch.tensor([[float(value)]]) for target, value in VALUES.items()}
SHAPE = (40, 52, 45)


class Reader:
    """A network that marks every voxel whose image is the number asked for, and reports it if it is sure."""

    total_stride = (1, 1, 1)

    def __init__(self, sure=True):
        self.sure = sure

    def encode(self, image):
        return Features(image, (image,))

    def decode(self, features, text, spatial=None):
        same = (features.coarsest - text[None, :, 0, None, None, None]).abs() < 0.5
        presence = same.flatten(2).any(dim=2) & self.sure
        return Decoded((torch.where(same, 9.0, -9.0),), torch.where(presence, 9.0, -9.0))


@pytest.fixture
def judged(with_training):
    """Small windows, so that a case is larger than a region, and a presence that matters."""
    plan = with_training(mixture={"torso": 0.5, "brain": 0.5}, validate_every=5, steps=12)
    windows = plan.windows.model_copy(update={"size_voxels": (16, 16, 16)})
    masks = plan.masks.model_copy(update={"presence": 0.5})
    return plan.model_copy(update={"windows": windows, "masks": masks})


def make_case(name="case_1", split="validation", mixture="torso", modality="ct", shape=SHAPE, ignore=None):
    """Two boxes off the centre in a case that shows no aorta; its image is its labels."""
    labels = np.zeros(shape, np.uint8)
    labels[4:19, 20:31, 5:25] = VALUES[LIVER]
    labels[25:34, 22:30, 9:20] = VALUES[SPLEEN]
    targets = [(target, (value,)) for target, value in VALUES.items()]
    spacing = (1.0, 1.5, 2.0)
    facts = CaseFacts(name, "torso", mixture, split, spacing, modality, targets, {}, ignore)
    return Case(facts, labels, (labels.astype(np.float16),))


@pytest.fixture
def held_back(tmp_path, judged, lexicon):
    def make(*cases, vectors=VECTORS):
        for case in cases:
            write_case(case, tmp_path)
        write_index([case.facts for case in cases], tmp_path)
        return HeldBack(tmp_path, vectors, judged, lexicon, COMPUTE)

    return make


def test_a_network_that_is_right_gets_a_dice_of_one(held_back):
    verdict = held_back(make_case())(Reader())
    assert verdict.dice == 1.0
    (example,) = verdict.examples
    assert (example.dice, example.marked, example.spacing_mm) == (1.0, True, (1.0, 1.5))
    assert example.prompt in ("liver", "spleen")
    assert np.array_equal(example.reference, example.predicted)
    assert example.reference.any()
    assert example.case == "case_1, CT"


def test_a_mask_that_is_not_reported_counts_as_nothing(held_back):
    verdict = held_back(make_case())(Reader(sure=False))
    assert verdict.dice == 0.0
    assert not verdict.examples[0].marked


def test_what_is_marked_where_nothing_is_labelled_does_not_count(held_back):
    case = make_case(ignore=255)
    case.labels[:, :21] = 255
    assert held_back(case)(Reader()).dice == 1.0


def test_a_region_is_a_part_around_something_and_always_the_same(held_back, judged):
    (region,) = held_back(make_case()).regions
    (again,) = held_back(make_case()).regions
    assert region.shape == tuple(int(16 * WINDOWS_A_SIDE) for _ in range(3))
    assert torch.equal(region.image, again.image)
    assert region.asked == again.asked
    assert len(place_windows(region.shape, (16, 16, 16), judged.windows.overlap)) == 8
    *shown, absent = region.asked
    assert shown
    assert all(region.shows(i).any() for i in range(len(shown)))
    assert not region.shows(len(shown)).any()
    assert absent not in shown


def test_a_case_as_small_as_a_window_is_scored_whole(held_back):
    case = make_case()
    small = replace(case, labels=case.labels[4:18, 18:33, 6:20], images=(case.images[0][4:18, 18:33, 6:20],))
    (region,) = held_back(small).regions
    assert region.shape == (14, 15, 14)


def test_nothing_is_taken_for_absent_where_a_part_is_unknown(held_back):
    case = make_case(ignore=255)
    case.labels[case.labels == 0] = 255
    for region in held_back(case).regions:
        assert all(region.shows(i).any() for i in range(len(region.asked)))


def test_regions_come_from_each_kind_of_image_in_turn_until_they_are_enough(held_back):
    cases = [make_case(f"ct_{i}") for i in range(9)] + [make_case(f"mr_{i}", modality="mr") for i in range(2)]
    regions = held_back(*cases).regions
    # Eight windows each, and 48 in all.
    assert [region.case.facts.name for region in regions] == ["ct_0", "mr_0", "ct_1", "mr_1", "ct_2", "ct_3"]


def test_small_cases_are_no_more_than_the_most_regions(held_back):
    def small(name):
        case = make_case(name)
        return replace(
            case, labels=case.labels[4:18, 18:33, 6:20], images=(case.images[0][4:18, 18:33, 6:20],)
        )

    assert len(held_back(*(small(f"case_{i}") for i in range(20))).regions) == MOST_REGIONS


def test_only_held_back_cases_of_the_mixture_with_known_targets_are_scored(held_back):
    cases = make_case("a", split="train"), make_case("b", mixture="sarcoma"), make_case("c")
    assert [region.case.facts.name for region in held_back(*cases).regions] == ["c"]
    assert held_back(*cases, vectors={BRAIN: torch.zeros(1, 1)}).regions == []


def test_of_many_structures_some_are_asked(held_back, phantom_cases):
    known = {target: torch.zeros(1, 1) for target, _ in phantom_cases[1].facts.targets}
    facts = replace(phantom_cases[1].facts, mixture="torso")
    regions = held_back(replace(phantom_cases[1], facts=facts), vectors=known).regions
    # A label map is seen as CT and as MR.
    assert [region.modalities for region in regions] == [("ct",), ("mr",)]
    for region in regions:
        assert region.image.shape == (1, *region.shape)
        assert 1 < len(region.asked) <= MOST_PROMPTS


def test_validation_is_due_now_and_then_and_at_the_end(judged, with_training):
    assert [step for step in range(1, 13) if is_due(step, judged)] == [5, 10, 12]
    assert not any(is_due(step, with_training(steps=12)) for step in range(1, 13))
