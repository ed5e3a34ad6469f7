"""Training with marks: what is drawn on a prompt's thing, without words, and on a mask that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textseg.network.build import build_network
from textseg.network.spatial_prompts import CHANNELS, NOT_POINT, POINT, PREVIOUS
from textseg.train import lesson as lessons
from textseg.train.cases import find_places
from textseg.train.lesson import Lesson, answer, loss_parts, together, words_of
from textseg.train.loop import train
from textseg.train.marked import first_marks, next_marks, no_marks, packed, unpacked
from textseg.train.sampling import PatchSampler
from textseg.train.stream import SampleStream

SHAPE = (14, 11, 9)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def marked_plan(with_training):
    """Every present prompt has marks, half of them no words, and every step corrects."""
    plan = with_training(
        steps=3,
        warmup_steps=0,
        prompts_per_sample=3,
        marks_fraction=1.0,
        wordless_fraction=0.5,
        correction_fraction=1.0,
    )
    network = plan.network.model_copy(update={"marks_in_query": True, "spatial_channels": CHANNELS})
    return plan.model_copy(update={"network": network})


@pytest.fixture(scope="module")
def make_stream(phantom_cases, lexicon, any_vectors):
    def make(plan):
        sampler = PatchSampler([find_places(case) for case in phantom_cases], plan, lexicon)
        return SampleStream(sampler, any_vectors(sampler.targets()), plan.training.seed, 60)

    return make


def box_mask():
    mask = torch.zeros(SHAPE)
    mask[2:9, 3:8, 1:5] = 1
    return mask


def test_first_marks_mean_the_thing():
    for seed in range(20):
        maps = first_marks(box_mask(), np.random.default_rng(seed))
        assert maps.shape == (CHANNELS, *SHAPE)
        assert maps.dtype == torch.uint8
        assert maps.max() == 255
        assert maps[[PREVIOUS, 2, 4, 6]].max() == 0  # nothing says "not this"
        strongest = (maps.amax(dim=0) == 255).float()
        assert (strongest * box_mask()).sum() > 0.4 * strongest.sum()


def test_maps_survive_as_bytes():
    maps = torch.rand(CHANNELS, *SHAPE)
    assert (unpacked(packed(maps)) - maps).abs().max() <= 0.5 / 255 + 1e-6


def test_a_correction_comes_with_the_mask_that_it_corrects():
    wanted = box_mask()[None, None]
    said = torch.where(wanted > 0, 4.0, -4.0)
    said[..., 5:, :, :] = -4.0  # the far half is missed
    before = torch.zeros(1, 1, CHANNELS, *SHAPE)
    before[0, 0, POINT, 3, 4, 2] = 1
    after = next_marks(said, wanted, before, None, np.random.default_rng(0))
    assert torch.equal(after[0, 0, PREVIOUS], (said[0, 0] > 0).float())
    assert after[0, 0, POINT, 3, 4, 2] == 1  # what was drawn before stays
    new = (after - before)[0, 0, 1:].amax(dim=0)
    assert new.max() > 0
    assert (new[5:] > 0).sum() > (new[:5] > 0).sum()
    assert torch.equal(before[0, 0, PREVIOUS], torch.zeros(SHAPE))


def test_what_is_too_much_is_marked_as_not_this():
    wanted = torch.zeros(1, 1, *SHAPE)
    said = torch.full((1, 1, *SHAPE), -3.0)
    said[..., 10:13, 2:6, 2:6] = 3.0
    empty = unpacked(no_marks(SHAPE))[None, None]
    after = next_marks(said, wanted, empty, None, np.random.default_rng(1))[0, 0]
    assert after[[NOT_POINT, 2, 6]].max() > 0
    assert after[[POINT, 1, 5]].max() == 0


def test_nobody_corrects_what_nobody_labelled():
    said = torch.full((1, 1, *SHAPE), 3.0)
    valid = torch.zeros(1, *SHAPE, dtype=torch.bool)
    empty = unpacked(no_marks(SHAPE))[None, None]
    after = next_marks(said, box_mask()[None, None], empty, valid, np.random.default_rng(1))[0, 0]
    assert after[PREVIOUS].all()
    assert after[1:].max() == 0


def test_a_plan_without_marks_asks_as_before(make_stream, with_training, marked_plan):
    plan = with_training(steps=3, prompts_per_sample=3, marks_fraction=0.0, correction_fraction=0.0)
    plain, marked = make_stream(plan)[5], make_stream(marked_plan)[5]
    assert plain.marks is None
    assert plain.worded is None
    assert torch.equal(plain.image, marked.image)
    assert torch.equal(plain.masks, marked.masks)


def test_what_is_there_has_marks_and_what_is_not_has_none_and_keeps_its_words(make_stream, marked_plan):
    stream, unworded = make_stream(marked_plan), 0
    for index in range(20):
        question = stream[index]
        there = question.masks.flatten(1).any(dim=1)
        assert torch.equal(question.marks.flatten(1).any(dim=1), there)
        assert question.worded[~there].all()
        unworded += int((~question.worded).sum())
    assert unworded > 0


def test_marks_alone_are_asked_with_the_learnt_vector(make_stream, marked_plan):
    network = build_network(marked_plan)
    torch.nn.init.normal_(network.fusion.no_text)
    batch = together([make_stream(marked_plan)[i] for i in range(6)])
    words = words_of(network, batch)
    assert torch.equal(words[batch.worded], batch.text[batch.worded])
    assert (words[~batch.worded] == network.fusion.no_text).all()


def test_a_step_with_a_correction_is_half_each(make_stream, marked_plan, monkeypatch):
    torch.manual_seed(0)
    network = build_network(marked_plan).eval()
    batch = together([make_stream(marked_plan)[i] for i in range(2)])
    monkeypatch.setattr(lessons, "number_type", lambda device: torch.float32)
    seen = []

    def remembered(*args):
        seen.append(next_marks(*args))
        return seen[-1]

    monkeypatch.setattr(lessons, "next_marks", remembered)
    parts = Lesson(network, marked_plan)(batch)
    first = loss_parts(answer(network, batch, marked_plan), batch, marked_plan)
    assert parts[1].item() == pytest.approx(first[1].item())
    (maps,) = seen
    corrected = batch._replace(marks=packed(maps))
    second = loss_parts(answer(network, corrected, marked_plan), corrected, marked_plan)
    assert parts[0].item() == pytest.approx((first[0] + second[0]).item() / 2, abs=1e-3)


def test_a_network_learns_from_marks_and_goes_on_exactly(tmp_path, make_stream, marked_plan, monkeypatch):
    monkeypatch.setattr("textseg.train.lesson.fastest_type", lambda device: torch.float32)
    whole = train(marked_plan, make_stream(marked_plan), tmp_path / "whole", CPU, workers=0)
    train(marked_plan, make_stream(marked_plan), tmp_path / "pieces", CPU, minutes=0.0, workers=0)
    pieces = train(marked_plan, make_stream(marked_plan), tmp_path / "pieces", CPU, workers=0)
    for name, weights in whole.network.state_dict().items():
        assert torch.allclose(pieces.network.state_dict()[name], weights, atol=1e-6), name
    begun = build_network(marked_plan).state_dict()
    moved = {n for n, w in whole.network.state_dict().items() if not torch.equal(w, begun[n])}
    assert any(name.startswith("marks.") for name in moved)
    assert any(".spatial." in name for name in moved)
