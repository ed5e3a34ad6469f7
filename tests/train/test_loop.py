"""The training loop: it learns, it can be stopped anywhere, and it says so when it can't go on."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from textseg.errors import TextsegError
from textseg.network.build import build_network
from textseg.train.cases import find_places
from textseg.train.loop import LOG_FILE, STATE_FILE, SampleStream, learning_rate, train
from textseg.train.sampling import PatchSampler

CPU = torch.device("cpu")
# Each call trains one step and stops.
AT_ONCE = 0.0


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """float32 also where the processor computes in bfloat16, and one thread: sums in one order."""
    monkeypatch.setattr("textseg.train.loop.fastest_type", lambda device: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def short(with_training):
    """A recipe of four steps, the last of them with frozen norms."""
    return with_training(steps=4, warmup_steps=2, prompts_per_sample=3)


@pytest.fixture(scope="module")
def make_stream(phantom_cases, lexicon, any_vectors):
    """The samples of both phantoms for a plan's recipe."""

    def make(plan):
        places = [find_places(case) for case in phantom_cases]
        sampler = PatchSampler(places, plan, lexicon)
        recipe = plan.training
        return SampleStream(sampler, any_vectors(sampler.targets()), recipe.seed, recipe.steps * recipe.batch)

    return make


def with_norm(plan, norm):
    return plan.model_copy(update={"network": plan.network.model_copy(update={"norm": norm})})


def state_of(run):
    return torch.load(run / STATE_FILE, weights_only=True)


def fresh_weights(plan):
    torch.manual_seed(plan.training.seed)
    return build_network(plan).state_dict()


def assert_equal(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=tolerance)


# Learning.


class OnlyTwo:
    """In place of a sampler: two patches again and again."""

    def __init__(self, sampler):
        self.plan = sampler.plan
        self.samples = [sampler.draw(np.random.default_rng(seed)) for seed in (1, 2)]

    def draw(self, random):
        return self.samples[int(random.integers(2))]


def test_a_tiny_network_learns_two_patches_by_heart(tmp_path, with_training, make_stream):
    plan = with_training(steps=60, warmup_steps=5, learning_rate=0.01, prompts_per_sample=4, batch=2, ema=0.5)
    stream = make_stream(plan)
    stream.sampler = OnlyTwo(stream.sampler)
    losses = []
    train(plan, stream, tmp_path, CPU, workers=0, report=lambda step: losses.append(step.loss))
    # What is reported is smoothed over about fifty steps; this takes the smoothing away.
    each = [losses[0]] + [(now - 0.98 * before) / 0.02 for before, now in pairwise(losses)]
    assert np.mean(each[-5:]) < 0.5 * np.mean(each[:3])


def test_the_rate_warms_up_and_falls_to_a_hundredth(plan):
    recipe = plan.training.model_copy(update={"steps": 50, "warmup_steps": 10, "learning_rate": 0.2})
    rates = [learning_rate(step, recipe) for step in range(50)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[9:11] == pytest.approx([0.2, 0.2])
    assert np.allclose(np.diff(rates[:10]), 0.02)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[30] == pytest.approx(0.2 * (0.01 + 0.99 / 2))
    assert learning_rate(50, recipe) == pytest.approx(0.002)


def test_a_recipe_without_warm_up_starts_at_its_rate(plan):
    recipe = plan.training.model_copy(update={"steps": 5, "warmup_steps": 0})
    assert learning_rate(0, recipe) == recipe.learning_rate


# Stopping and going on.


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_run_in_pieces_ends_with_the_weights_of_one_in_one_go(tmp_path, short, make_stream, norm):
    plan = with_norm(short, norm)
    whole = train(plan, make_stream(plan), tmp_path / "whole", CPU, workers=0)
    for steps_done in range(1, plan.training.steps + 1):
        last = train(plan, make_stream(plan), tmp_path / "pieces", CPU, minutes=AT_ONCE, workers=0)
        assert state_of(tmp_path / "pieces")["step"] == steps_done
    assert_equal(last.network.state_dict(), whole.network.state_dict(), 1e-6)
    one, other = (state_of(tmp_path / run) for run in ("whole", "pieces"))
    assert_equal(one["network"], other["network"], 1e-6)


def test_a_worker_draws_the_same_samples(tmp_path, short, make_stream):
    here, there = (
        train(short, make_stream(short), tmp_path / str(workers), CPU, minutes=AT_ONCE, workers=workers)
        for workers in (0, 1)
    )
    assert_equal(here.network.state_dict(), there.network.state_dict(), 1e-6)


def test_a_run_that_has_ended_gives_its_weights_again(tmp_path, short, make_stream):
    ended = train(short, make_stream(short), tmp_path, CPU, workers=0)
    again = train(short, make_stream(short), tmp_path, CPU, workers=0)
    assert again.steps == ended.steps == short.training.steps
    assert_equal(again.network.state_dict(), ended.network.state_dict())


def test_the_time_of_all_pieces_counts(tmp_path, short, make_stream):
    pieces = [train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0) for _ in range(3)]
    assert [piece.steps for piece in pieces] == [1, 2, 3]
    assert 0 < pieces[0].seconds < pieces[1].seconds < pieces[2].seconds
    assert state_of(tmp_path)["seconds"] == pytest.approx(pieces[2].seconds, abs=1)


def test_every_step_is_reported_and_every_piece_logged(tmp_path, short, make_stream):
    steps = []
    for _ in range(2):
        train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0, report=steps.append)
    train(short, make_stream(short), tmp_path, CPU, workers=0, report=steps.append)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert {step.of for step in steps} == {4}
    assert [step.learning_rate for step in steps] == [learning_rate(n, short.training) for n in range(4)]
    with (tmp_path / LOG_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "4"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([steps[i].loss for i in (0, 1, 3)], abs=1e-5)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(
        [steps[i].learning_rate for i in (0, 1, 3)], rel=1e-4
    )


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_kept(tmp_path, short, make_stream):
    train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
    before = state_of(tmp_path)["network"]
    stream = make_stream(short)
    stream.vectors = {target: vectors * math.nan for target, vectors in stream.vectors.items()}
    with pytest.raises(TextsegError, match=r"step 1\b.*learning rate"):
        train(short, stream, tmp_path, CPU, workers=0)
    assert_equal(state_of(tmp_path)["network"], before)


# What is kept of the weights.


def test_the_first_average_forgets_most_of_the_random_start(tmp_path, short, make_stream):
    train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
    state, start = state_of(tmp_path), fresh_weights(short)
    for name, mean in state["averaged"].items():
        torch.testing.assert_close(mean, 0.1 * start[name] + 0.9 * state["network"][name])


def test_the_average_follows_its_plan(tmp_path, short, make_stream):
    plan = short.model_copy(update={"training": short.training.model_copy(update={"ema": 0.0})})
    averaged = train(plan, make_stream(plan), tmp_path, CPU, workers=0).network
    assert_equal(averaged.state_dict(), state_of(tmp_path)["network"], 1e-6)
    assert not averaged.training
    assert not any(parameter.requires_grad for parameter in averaged.parameters())


def test_frozen_norms_keep_their_statistics(tmp_path, with_training, make_stream):
    for fraction in (0.0, 1.0):
        plan = with_norm(with_training(steps=2, prompts_per_sample=2, frozen_norm_fraction=fraction), "batch")
        run = tmp_path / str(fraction)
        train(plan, make_stream(plan), run, CPU, workers=0)
        state = state_of(run)
        means = [name for name in state["network"] if name.endswith("running_mean")]
        assert means
        moved = [bool(state["network"][name].any()) for name in means]
        assert any(moved) == (fraction == 0.0)
        # The averaged network takes over the statistics as they are.
        for name in means:
            assert torch.equal(state["averaged"][name], state["network"][name])


# The stream.


def test_a_stream_goes_on_where_it_is_told_to(make_stream, short):
    stream = make_stream(short)
    whole = [stream[index] for index in range(len(stream))]
    stream.first = 3
    assert len(stream) == len(whole) - 3
    for one, other in zip(stream[1], whole[4], strict=True):
        assert torch.equal(one, other)
    question, recipe = whole[0], short.training
    assert question.image.shape == (1, *recipe.patch_voxels)
    assert len(question.text) == len(question.masks) == recipe.prompts_per_sample
    assert len(question.sharing_text) == len(question.asked) == recipe.sharing_prompts


def test_who_shares_a_patch_is_asked_and_nothing_else(make_stream, short):
    stream = make_stream(short)
    for index in range(len(stream)):
        question = stream[index]
        number = int(question.asked.sum())
        assert question.asked.tolist() == [True] * number + [False] * (len(question.asked) - number)
        assert question.sharing_text[:number].any(dim=1).all()
        assert not question.sharing_text[number:].any()
        assert int(question.shares.max()) <= number


def test_half_of_the_words_are_the_canonical_ones(make_stream, short):
    stream = make_stream(short)
    sample = stream.sampler.draw(np.random.default_rng(0))
    only = replace(sample, targets=sample.targets[:1], masks=sample.masks[:1], sharing=())
    stream.sampler = OnlyTwo(stream.sampler)
    stream.sampler.samples = [only, only]
    stream.vectors = {only.targets[0]: torch.arange(6.0)[:, None]}
    stream.length = 600
    words = [int(stream[index][1]) for index in range(600)]
    assert set(words) == set(range(6))
    # Half of the time for sure, and by chance as often as any other words.
    assert words.count(0) / 600 == pytest.approx(0.5 + 0.5 / 6, abs=0.06)
