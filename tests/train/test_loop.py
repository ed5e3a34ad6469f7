"""The training loop: it learns, it can be stopped anywhere, and it says so when it can't go on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from textseg.errors import ModelError, PlanError, TextsegError
from textseg.network.build import build_network
from textseg.plan import TrainingPlan
from textseg.train.cases import find_places
from textseg.train.checkpoint import BEST_FILE, STATE_FILE, Best, load_best
from textseg.train.deterministic import deterministic
from textseg.train.distributed import World
from textseg.train.lesson import (
    Lesson,
    answer,
    answers_from,
    look,
    loss_of,
    loss_parts,
    number_type,
    together,
)
from textseg.train.loop import Step, fresh, learning_rate, train
from textseg.train.monitor import LOG_FILE, read_log
from textseg.train.sampling import PatchSampler
from textseg.train.stream import SampleStream
from textseg.train.validation import Verdict

CPU = torch.device("cpu")
# Each call trains one step and stops.
AT_ONCE = 0.0


@pytest.fixture(autouse=True)
def _exact():
    """Sums in one order, and float32 also where the processor computes in bfloat16."""
    with deterministic():
        yield


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


def same(one, other):
    """Whether two questions are the same, in what they ask and in what they leave out."""
    parts = zip(one, other, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in parts)


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
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


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


def test_the_polynomial_falls_faster_in_the_end_and_to_nothing(plan):
    changes = {"steps": 50, "warmup_steps": 10, "learning_rate": 0.2, "schedule": "poly"}
    recipe = plan.training.model_copy(update=changes)
    rates = [learning_rate(step, recipe) for step in range(51)]
    assert rates[9:11] == pytest.approx([0.2, 0.2])
    assert rates[30] == pytest.approx(0.2 * 0.5**0.9)
    assert rates[49] == pytest.approx(0.2 * 0.025**0.9)
    assert rates[50] == 0.0


def test_plans_from_before_validation_are_never_validated(plan):
    document = plan.training.model_dump()
    del document["schedule"], document["validate_every"]
    recipe = TrainingPlan.model_validate(document)
    assert (recipe.schedule, recipe.validate_every) == ("cosine", 0)


def test_the_loss_of_a_batch_is_the_mean_over_its_samples(short, make_stream):
    """One sample shows all that it is asked for and the other nothing, so they count different prompts."""
    stream = make_stream(short)
    one, other = stream[0], stream[1]
    other = other._replace(masks=torch.zeros_like(other.masks))
    torch.manual_seed(3)
    network = build_network(short)

    def loss(*questions):
        batch = together(questions)
        return loss_parts(answer(network, batch, short), batch, short)

    assert one.masks.any()
    torch.testing.assert_close(loss(one, other), (loss(one) + loss(other)) / 2)
    batch = together([one, other])
    torch.testing.assert_close(loss_of(answer(network, batch, short), batch, short), loss(one, other).sum())


def test_training_computes_in_float32_in_deterministic_mode_alone(monkeypatch):
    monkeypatch.setattr("textseg.train.lesson.fastest_type", lambda device: torch.bfloat16)
    assert number_type(CPU) == torch.float32
    torch.use_deterministic_algorithms(False)
    assert number_type(CPU) == torch.bfloat16


def test_a_step_without_the_finest_scale_teaches_the_others_alone(with_training, make_stream):
    plan = with_training(full_scale_fraction=1e-9, marks_fraction=1.0, correction_fraction=1.0)
    torch.manual_seed(0)
    network = build_network(plan)
    stream = make_stream(plan)
    lesson = Lesson(network, plan)
    parts = lesson(together([stream[0], stream[1]]))
    parts.sum().backward()
    assert bool(parts.isfinite().all())
    finest = ("trunk.ups.0.", "trunk.merges.0.", "trunk.blocks.0.", "decoder.scales.0.")
    taught = {name: p.grad is not None for name, p in network.named_parameters() if name != "fusion.no_text"}
    assert {name for name, was in taught.items() if not was} == {n for n in taught if n.startswith(finest)}
    assert not all(taught.values())


def test_the_finest_scale_runs_as_often_as_the_plan_says(with_training, make_stream, monkeypatch):
    skipped = []

    def watched(network, question, without):
        skipped.append(without)
        return look(network, question, without)

    monkeypatch.setattr("textseg.train.lesson.look", watched)
    plan = with_training(full_scale_fraction=0.3)
    lesson, question = Lesson(build_network(plan), plan), together([make_stream(plan)[0]])
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(60):
            lesson(question)
    assert 0.55 < sum(skipped) / 60 < 0.85


def test_a_scale_that_is_skipped_changes_nothing_of_the_coarser_ones(with_training, make_stream):
    plan = with_training()
    network, question = build_network(plan).eval(), together([make_stream(plan)[0]])
    with torch.no_grad():
        whole, short = (
            answers_from(network, look(network, question, skipped), question, plan) for skipped in (0, 1)
        )
    for one, other in zip(whole, short, strict=True):
        assert len(other.logits) == len(one.logits) - 1
        for a, b in zip(one.logits[1:], other.logits, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(one.presence, other.presence)


# Stopping and going on.


@pytest.mark.parametrize(
    ("norm", "recipe"),
    [("batch", {}), ("instance", {}), ("instance", {"optimiser": "muon", "full_scale_fraction": 0.5})],
)
def test_a_run_in_pieces_ends_with_the_weights_of_one_in_one_go(tmp_path, short, make_stream, norm, recipe):
    plan = with_norm(short, norm)
    plan = plan.model_copy(update={"training": plan.training.model_copy(update=recipe)})
    whole = train(plan, make_stream(plan), tmp_path / "whole", CPU, workers=0)
    for steps_done in range(1, plan.training.steps + 1):
        last = train(plan, make_stream(plan), tmp_path / "pieces", CPU, minutes=AT_ONCE, workers=0)
        assert state_of(tmp_path / "pieces")["step"] == steps_done
    assert_equal(last.network.state_dict(), whole.network.state_dict())
    one, other = (state_of(tmp_path / run) for run in ("whole", "pieces"))
    assert_equal(one["network"], other["network"])
    assert one["loss"] == other["loss"]


def test_a_worker_draws_the_same_samples(tmp_path, short, make_stream):
    here, there = (
        train(short, make_stream(short), tmp_path / str(workers), CPU, minutes=AT_ONCE, workers=workers)
        for workers in (0, 1)
    )
    assert_equal(here.network.state_dict(), there.network.state_dict())


def test_chance_in_a_step_is_the_same_after_a_stop(tmp_path, short, make_stream, monkeypatch):
    """A network that drops out, say, must not depend on how often it was stopped."""

    def noisy(network, question, skipped):
        image = question.image + torch.rand_like(question.image)
        return look(network, question._replace(image=image), skipped)

    monkeypatch.setattr("textseg.train.lesson.look", noisy)
    whole = train(short, make_stream(short), tmp_path / "whole", CPU, workers=0)
    train(short, make_stream(short), tmp_path / "pieces", CPU, minutes=AT_ONCE, workers=0)
    torch.rand(7)
    pieces = train(short, make_stream(short), tmp_path / "pieces", CPU, workers=0)
    assert_equal(pieces.network.state_dict(), whole.network.state_dict())


def test_a_run_that_has_ended_gives_its_weights_again(tmp_path, short, make_stream):
    ended = train(short, make_stream(short), tmp_path, CPU, workers=0)
    again = train(short, make_stream(short), tmp_path, CPU, workers=0)
    assert again.steps == ended.steps == short.training.steps
    assert_equal(again.network.state_dict(), ended.network.state_dict())


def test_the_time_of_all_pieces_counts(tmp_path, short, make_stream):
    kept = [0.0]
    for steps in (1, 2, 3):
        piece = train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
        kept.append(state_of(tmp_path)["seconds"])
        assert piece.steps == steps
        assert kept[-2] < kept[-1] <= piece.seconds


def test_every_step_is_reported_and_logged(tmp_path, short, make_stream):
    steps = []
    for _ in range(2):
        train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0, report=steps.append)
    train(short, make_stream(short), tmp_path, CPU, workers=0, report=steps.append)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert {step.of for step in steps} == {4}
    assert [step.learning_rate for step in steps] == [learning_rate(n, short.training) for n in range(4)]
    assert [step.loss for step in steps] == pytest.approx([sum(step.parts) for step in steps])
    smoothed = steps[0].loss
    for step in steps[1:]:
        smoothed = 0.98 * smoothed + 0.02 * step.loss
        assert step.smoothed == pytest.approx(smoothed)
    assert steps[-1].left_s == 0 < steps[2].left_s
    rows = read_log(tmp_path / LOG_FILE)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    for column in ("loss", "smoothed", "learning_rate", "seconds"):
        logged = [float(row[column]) for row in rows]
        assert logged == pytest.approx([getattr(step, column) for step in steps], rel=1e-3)


def test_a_progress_line_has_loss_dice_and_what_is_left():
    step = Step(3, 9, 1.5, (1.0, 0.5), 0.4123, 0.001, 0.2, 59.6, None)
    assert str(step) == "loss 0.412, 60 s left"
    assert str(replace(step, dice=0.805, left_s=119.0)) == "loss 0.412, Dice 0.81, 2 min left"
    assert str(replace(step, left_s=3900.0)) == "loss 0.412, 1 h 05 min left"


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_kept(tmp_path, short, make_stream):
    train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
    before = (tmp_path / STATE_FILE).read_bytes()
    stream = make_stream(short)
    stream.vectors = {target: vectors * math.nan for target, vectors in stream.vectors.items()}
    with pytest.raises(TextsegError, match=r"nan .*at step 2\b.*state\.pt is of step 1\b.*learning rate"):
        train(short, stream, tmp_path, CPU, workers=0)
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path, short, make_stream, monkeypatch):
    """The loss is still finite then, and a state saved after that step would be lost for ever."""

    def flat(network, question, skipped):
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient: gradient * math.inf)
        return look(network, question, skipped)

    networks = []

    def begin(plan):
        networks.append(fresh(plan))
        return networks[-1]

    monkeypatch.setattr("textseg.train.lesson.look", flat)
    with pytest.raises(TextsegError, match=r"at step 1\. No state was saved yet"):
        train(short, make_stream(short), tmp_path, CPU, workers=0, begin=begin)
    assert_equal(networks[0].network.state_dict(), fresh_weights(short))


def test_a_state_that_is_damaged_or_of_another_network_is_refused(tmp_path, short, make_stream):
    train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
    wider = short.model_copy(update={"network": short.network.model_copy(update={"width": 16})})
    with pytest.raises(ModelError, match=r"state\.pt"):
        train(wider, make_stream(wider), tmp_path, CPU, workers=0)
    (tmp_path / STATE_FILE).write_bytes((tmp_path / STATE_FILE).read_bytes()[:1000])
    with pytest.raises(ModelError, match="whole state"):
        train(short, make_stream(short), tmp_path, CPU, workers=0)


# Best and last.


def judge(*dice):
    """Verdicts in this order, whatever the network."""
    left = iter(dice)
    return lambda network: Verdict(next(left), ())


@pytest.fixture(scope="module")
def validated(with_training):
    return with_training(steps=4, warmup_steps=2, prompts_per_sample=3, validate_every=1)


def test_the_best_average_comes_out_and_the_last_stays_in_the_state(tmp_path, validated, make_stream):
    averages = []

    def keep(network):
        averages.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return Verdict((0.1, 0.6, 0.6, 0.3)[len(averages) - 1], ())

    trained = train(validated, make_stream(validated), tmp_path, CPU, workers=0, validate=keep)
    # Of equals the later one.
    assert trained.best == Best(3, 0.6)
    assert trained.steps == 4
    assert_equal(trained.network.state_dict(), averages[2])
    assert_equal(state_of(tmp_path)["averaged"], averages[3])
    assert [row["dice"] for row in read_log(tmp_path / LOG_FILE)] == ["0.1", "0.6", "0.6", "0.3"]
    again = train(validated, make_stream(validated), tmp_path, CPU, workers=0)
    assert again.best == trained.best
    assert_equal(again.network.state_dict(), averages[2])


def test_the_best_of_an_earlier_piece_is_kept(tmp_path, validated, make_stream):
    for dice in (0.9, 0.2):
        stream = make_stream(validated)
        trained = train(validated, stream, tmp_path, CPU, minutes=AT_ONCE, workers=0, validate=judge(dice))
    assert (trained.best, trained.steps) == (Best(1, 0.9), 2)


def test_a_run_that_begins_anew_knows_no_best(tmp_path, validated, make_stream):
    train(validated, make_stream(validated), tmp_path, CPU, minutes=AT_ONCE, workers=0, validate=judge(0.9))
    (tmp_path / STATE_FILE).unlink()
    stream = make_stream(validated)
    again = train(validated, stream, tmp_path, CPU, minutes=AT_ONCE, workers=0, validate=judge(0.2))
    assert again.best == Best(1, 0.2)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path, short, make_stream):
    left = tmp_path / f".{STATE_FILE}.0123abcd.part"
    left.write_bytes(b"half a state")
    train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
    assert not left.exists()


def test_validation_is_due_every_so_many_steps_and_at_the_end(tmp_path, with_training, make_stream):
    plan = with_training(steps=4, prompts_per_sample=2, validate_every=3)
    steps = []
    train(plan, make_stream(plan), tmp_path, CPU, workers=0, validate=judge(0.5, 0.25), report=steps.append)
    assert [step.dice for step in steps] == [None, None, 0.5, 0.25]


def test_validation_changes_nothing_of_the_training(tmp_path, short, validated, make_stream):
    def disturbing(network):
        torch.rand(3)
        return Verdict(0.5, ())

    train(short, make_stream(short), tmp_path / "without", CPU, workers=0)
    train(validated, make_stream(validated), tmp_path / "with", CPU, workers=0, validate=disturbing)
    assert_equal(state_of(tmp_path / "without")["network"], state_of(tmp_path / "with")["network"])


def test_a_run_that_is_never_validated_gives_its_last_average(tmp_path, short, make_stream):
    trained = train(short, make_stream(short), tmp_path, CPU, workers=0, validate=judge())
    assert trained.best is None
    assert not (tmp_path / BEST_FILE).exists()
    assert load_best(tmp_path, trained.network) is None
    assert_equal(trained.network.state_dict(), state_of(tmp_path)["averaged"])


# What is kept of the weights.


def test_the_first_average_forgets_most_of_the_random_start(tmp_path, short, make_stream):
    train(short, make_stream(short), tmp_path, CPU, minutes=AT_ONCE, workers=0)
    state, start = state_of(tmp_path), fresh_weights(short)
    for name, mean in state["averaged"].items():
        torch.testing.assert_close(mean, 0.1 * start[name] + 0.9 * state["network"][name])


def test_the_average_follows_its_plan(tmp_path, short, make_stream):
    plan = short.model_copy(update={"training": short.training.model_copy(update={"ema": 0.0})})
    averaged = train(plan, make_stream(plan), tmp_path, CPU, workers=0).network
    assert_equal(averaged.state_dict(), state_of(tmp_path)["network"])
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
    assert same(stream[1], whole[4])
    question, recipe = whole[0], short.training
    assert question.image.shape == (1, *recipe.patch_voxels)
    assert len(question.text) == len(question.masks) == recipe.prompts_per_sample
    assert len(question.sharing_text) == len(question.asked) == recipe.sharing_prompts


def test_processes_share_out_the_stream_in_turn(make_stream, short):
    whole, stream = make_stream(short), make_stream(short)
    stream.first, stream.ranks = 2, 2
    for stream.rank in (0, 1):
        assert len(stream) == (len(whole) - 2) // 2
        for index in range(len(stream)):
            assert same(stream[index], whole[2 + stream.rank + 2 * index])


def test_a_batch_that_can_not_be_shared_out_is_refused(tmp_path, short, make_stream):
    with pytest.raises(PlanError, match="multiple of 3"):
        train(short, make_stream(short), tmp_path / "run", CPU, world=World(0, 3))
    assert not (tmp_path / "run").exists()


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
