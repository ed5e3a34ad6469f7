"""Scores of held-back cases, by a stub network whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from textseg.device import Compute
from textseg.network.build import Decoded, Features
from textseg.train.cases import Case, CaseFacts, Target, write_case, write_index
from textseg.train.evaluate import evaluate

COMPUTE = Compute(torch.device("cpu"), torch.float32)
SHAPE = (20, 14, 11)
LIVER, SPLEEN, SPECK, KIDNEY = Target("liver"), Target("spleen"), Target("gallbladder"), Target("left_kidney")
BRIGHTNESS = {LIVER: 2.0, SPLEEN: 4.0, SPECK: 6.0, KIDNEY: 8.0}
# The canonical words say the brightness that is meant; a paraphrase would ask for another one.
VECTORS = {target: torch.tensor([[value], [-99.0]]) for target, value in BRIGHTNESS.items()}


class Stub:
    """Finds what is as bright in the first channel as the prompt says, by `logit`; sure if it did."""

    total_stride = (1, 1, 1)

    def __init__(self, logit=10.0):
        self.logit = logit
        self.images = []

    def encode(self, image):
        self.images.append(image.clone())
        return Features(image[:, :1], ())

    def decode(self, features, text, spatial=None):
        hit = (features.coarsest - text[:, 0].reshape(1, -1, 1, 1, 1)).abs() < 0.5
        logits = torch.where(hit, self.logit, -10.0)
        return Decoded((logits,), torch.where(hit.flatten(2).any(dim=2), 3.0, -3.0))


def make_case(name="one", mixture="torso", split="validation", targets=None):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 3:9, 1:6] = 1
    labels[12:16, 3:9, 1:6] = 2
    labels[17, 12, :5] = 3
    image = np.zeros(SHAPE, np.float16)
    for value, brightness in zip((1, 2, 3), BRIGHTNESS.values(), strict=False):
        image[labels == value] = brightness
    # The lower half of the spleen is missed.
    image[12:14][labels[12:14] == 2] = 0
    named = [(LIVER, (1,)), (SPLEEN, (2,)), (SPECK, (3,)), (KIDNEY, (4,))] if targets is None else targets
    return Case(CaseFacts(name, "torso", mixture, split, (3.0, 3.0, 3.0), "ct", named), labels, (image,))


@pytest.fixture
def score(tmp_path, plan):
    """Scores of cases by a stub."""

    def run(cases, network=None, plan=plan, **more):
        for case in cases:
            write_case(case, tmp_path)
        write_index([case.facts for case in cases], tmp_path)
        return list(evaluate(network or Stub(), VECTORS, tmp_path, plan, COMPUTE, **more))

    return run


def test_what_is_found_is_scored_by_its_overlap(score):
    scores = {entry.target: entry for entry in score([make_case()])}
    assert scores[LIVER].dice == 1.0
    assert scores[LIVER].voxels == scores[LIVER].predicted_voxels == 6 * 6 * 5
    assert scores[LIVER].presence == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert scores[SPLEEN].dice == pytest.approx(2 * 60 / (60 + 120))
    assert {entry.case for entry in scores.values()} == {"one"}
    assert {entry.kind for entry in scores.values()} == {"torso ct"}


def test_what_is_not_there_is_scored_for_presence_alone(score):
    scores = {entry.target: entry for entry in score([make_case()])}
    assert scores[KIDNEY].dice is None
    assert scores[KIDNEY].voxels == scores[KIDNEY].predicted_voxels == 0
    assert scores[KIDNEY].presence < 0.1


def test_a_few_voxels_are_too_few_for_a_dice(score):
    (speck,) = (entry for entry in score([make_case()]) if entry.target == SPECK)
    assert speck.voxels == 5
    assert speck.dice is None


def test_masks_are_cut_at_the_plans_threshold(score, plan):
    strict = plan.model_copy(update={"masks": plan.masks.model_copy(update={"threshold": 0.9})})
    # A logit of 1 is a probability of 0.73.
    for used, found in ((plan, True), (strict, False)):
        liver = score([make_case()], Stub(logit=1.0), used)[0]
        assert (liver.predicted_voxels > 0) == found


def test_only_the_chosen_cases_are_scored(score):
    cases = [
        make_case("one"),
        make_case("two", mixture="brain"),
        make_case("three", split="train"),
        make_case("four", targets=[(Target("never_asked"), (1,))]),
    ]
    assert {entry.case for entry in score(cases)} == {"one", "two"}
    assert {entry.case for entry in score(cases, mixtures=["brain"])} == {"two"}
    assert {entry.case for entry in score(cases, split="train")} == {"three"}


def test_voxels_that_nobody_labelled_do_not_count(score):
    case = make_case()
    labels, image = case.labels.copy(), case.images[0].copy()
    # Where half of the spleen was missed nobody labelled, and something as bright as one is marked there.
    labels[12:14][labels[12:14] == 2] = 9
    image[12:14][labels[12:14] == 9] = BRIGHTNESS[SPLEEN]
    ignoring = Case(replace(case.facts, ignore=9), labels, (image,))
    scores = {entry.target: entry for entry in score([ignoring])}
    assert scores[SPLEEN].dice == 1.0
    assert scores[SPLEEN].voxels == scores[SPLEEN].predicted_voxels == 60
    assert scores[LIVER].dice == 1.0
    # It may lie where nobody labelled, so neither yes nor no is right.
    assert KIDNEY not in scores


def test_several_channels_are_seen_together(score, plan):
    changes = {"channels": ("ct", "pet"), "channel_modalities": ("ct", "pet")}
    case = make_case()
    pet = (case.labels == 2).astype(np.float16)
    stub = Stub()
    two = replace(case, images=(*case.images, pet))
    scores = score([two], stub, plan.model_copy(update=changes))
    assert {entry.kind for entry in scores} == {"torso ct + pet"}
    (image,) = stub.images[:1]
    assert image.shape[1] == 2
    assert not torch.equal(image[:, 0], image[:, 1])


def test_a_label_map_is_drawn_once_where_the_plan_says_what_its_channels_are(score, plan):
    changes = {"channels": ("ct", "pet"), "channel_modalities": ("ct", "pet")}
    case = make_case()
    drawn = Case(replace(case.facts, modality=None, tissues={1: "liver", 2: "spleen"}), case.labels)
    stub = Stub()
    scores = score([drawn], stub, plan.model_copy(update=changes))
    assert {entry.kind for entry in scores} == {"torso ct + pet (synthesised)"}
    ct, pet = stub.images[0][0]
    assert float(ct.min()) < -3
    assert float(pet.min()) > -1


def test_label_maps_are_drawn_as_the_same_image_each_time(score):
    case = make_case()
    tissues = {1: "liver", 2: "spleen", 3: "gallbladder"}
    facts = replace(case.facts, modality=None, tissues=tissues)
    torso = Case(facts, case.labels)
    stubs = Stub(), Stub()
    scores = [score([torso], stub) for stub in stubs]
    assert {entry.kind for entry in scores[0]} == {"torso ct (synthesised)", "torso mr (synthesised)"}
    first, again = (stub.images for stub in stubs)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    brain = Case(replace(facts, group="brain", mixture="brain"), case.labels)
    assert {entry.kind for entry in score([brain])} == {"brain mr (synthesised)"}


def test_a_group_that_is_looked_at_mirrored_is_scored_so(score, plan):
    """The stub is asked for what things are in a mirror image; where that is wrong the two cancel out."""
    group = plan.groups["torso"].model_copy(update={"mirrored": True})
    looking = plan.model_copy(update={"groups": {**plan.groups, "torso": group}})
    stub = Stub()
    right = {entry.target: entry for entry in score([make_case()], stub, looking)}
    assert right[LIVER].dice == 1.0
    assert len(stub.images) == 2
    assert torch.equal(stub.images[0].flip(2), stub.images[1])
    wrong = {entry.target: entry for entry in score([make_case()], Stub(), looking, mirrored={LIVER: SPLEEN})}
    assert wrong[LIVER].dice < 0.2
    assert wrong[SPLEEN].dice == right[SPLEEN].dice
