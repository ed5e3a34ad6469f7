"""The whole recipe on arrays that are made in a moment: stop, go on, save, score, write the card."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_model import write_tiny_model
from textseg.device import Compute
from textseg.embeddings.text_plan import EncoderPlan
from textseg.errors import DatasetError
from textseg.models import CARD_FILE, find_model
from textseg.network.weights import NETWORK_FILE, load_network
from textseg.train.card import SCORES_FILE
from textseg.train.cases import write_case, write_index
from textseg.train.checkpoint import STATE_FILE, Best
from textseg.train.export import RunPlaces, export_run, keep_beside
from textseg.train.recipe import INTRODUCTION_FILE, make_stream, run_recipe, save_model, write_scored_card
from textseg.train.validation import Verdict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory, phantom_cases):
    folder = tmp_path_factory.mktemp("arrays")
    for case in phantom_cases:
        write_case(case, folder)
    write_index([case.facts for case in phantom_cases], folder)
    return folder


def test_a_recipe_runs_in_pieces_to_a_model_with_a_card(tmp_path, model, arrays, with_training, lexicon):
    plan = with_training(steps=2, prompts_per_sample=3)
    for steps_done in (1, 2):
        trained = run_recipe(plan, model, arrays, tmp_path, lexicon, CPU, minutes=0.0, workers=0)
        assert torch.load(tmp_path / STATE_FILE, weights_only=True)["step"] == steps_done
    save_model(trained.network, plan, model, trained.steps)
    again = load_network(find_model(model).path, plan).state_dict()
    for name, weights in trained.network.state_dict().items():
        torch.testing.assert_close(again[name], weights, atol=1e-2, rtol=1e-2)

    introduction = tmp_path / INTRODUCTION_FILE
    introduction.write_text(
        "# Tiny, {facts[batch]} of {facts[patch]}, {facts[steps]} steps\n", encoding="utf-8"
    )
    compute, progress = Compute(CPU, torch.float32), []
    scores = write_scored_card(
        trained,
        plan,
        model,
        arrays,
        lexicon,
        compute,
        introduction=introduction,
        progress=lambda done, of: progress.append((done, of)),
    )
    assert set(progress) == {(1, 1)}
    # Held back is one phantom, drawn as CT and as MR.
    assert {score.case for score in scores} == {"torso_validation"}
    assert len({score.kind for score in scores}) == 2
    card = (model / CARD_FILE).read_text(encoding="utf-8")
    assert card.startswith("# Tiny, 2 of 16 × 16 × 16, 2 steps\n")
    assert "| liver |" in card
    assert (
        json.loads((model / SCORES_FILE).read_text(encoding="utf-8"))["facts"]["hours"]
        == trained.seconds / 3600
    )


def test_a_model_without_an_introduction_gets_a_plain_one(tmp_path, model, arrays, with_training, lexicon):
    plan = with_training(steps=1, prompts_per_sample=2)
    trained = run_recipe(plan, model, arrays, tmp_path, lexicon, CPU, workers=0)
    write_scored_card(trained, plan, model, arrays, lexicon, Compute(CPU, torch.float32))
    card = (model / CARD_FILE).read_text(encoding="utf-8")
    assert card.startswith("# Model card: textseg tiny\n")
    assert "1 steps of 2 patches" in card


def test_a_validated_recipe_gives_its_best_weights_and_the_card_says_which(
    tmp_path, model, arrays, with_training, lexicon
):
    plan = with_training(steps=3, prompts_per_sample=2, validate_every=2)
    steps = []
    trained = run_recipe(plan, model, arrays, tmp_path, lexicon, CPU, workers=0, report=steps.append)
    assert [step.dice is None for step in steps] == [True, False, False]
    assert trained.best.step in (2, 3)
    assert trained.best.dice == max(steps[1].dice, steps[2].dice)
    write_scored_card(trained, plan, model, arrays, lexicon, Compute(CPU, torch.float32))
    assert f"average of step {trained.best.step} of 3" in (model / CARD_FILE).read_text(encoding="utf-8")
    facts = json.loads((model / SCORES_FILE).read_text(encoding="utf-8"))["facts"]
    assert (facts["best_step"], facts["validation_dice"]) == (trained.best.step, trained.best.dice)


def test_the_best_weights_are_exported(tmp_path, model, arrays, with_training, lexicon, monkeypatch):
    class Falling:
        """In place of the held-back regions: each network is worse than the one before."""

        regions = (None,)

        def __init__(self, *_):
            self.left = iter((0.9, 0.4, 0.2))

        def __call__(self, network):
            return Verdict(next(self.left), ())

    monkeypatch.setattr("textseg.train.recipe.HeldBack", Falling)
    plan = with_training(steps=3, prompts_per_sample=2, validate_every=1)
    places = RunPlaces(tmp_path / "model", tmp_path / "run", arrays, model)
    keep_beside(places, plan)
    trained = run_recipe(plan, model, arrays, places.run, lexicon, CPU, workers=0)
    assert trained.best == Best(1, 0.9)
    assert export_run(places.run, places.model, float32=True) == 3
    exported = load_file(places.model / NETWORK_FILE)
    for name, weights in trained.network.state_dict().items():
        assert torch.equal(exported[name], weights)


def test_a_recipe_without_held_back_cases_gives_its_last_average(
    tmp_path, model, with_training, lexicon, phantom_cases
):
    write_case(phantom_cases[0], tmp_path)
    write_index([phantom_cases[0].facts], tmp_path)
    plan = with_training(steps=1, prompts_per_sample=2, validate_every=1)
    trained = run_recipe(plan, model, tmp_path, tmp_path / "run", lexicon, CPU, workers=0)
    assert trained.best is None


def test_a_run_goes_on_with_its_own_plan_alone(tmp_path, model, arrays, with_training, lexicon):
    plan = with_training(steps=2, prompts_per_sample=2)
    run_recipe(plan, model, arrays, tmp_path, lexicon, CPU, minutes=0.0, workers=0)
    other = with_training(steps=2, prompts_per_sample=2, seed=7)
    with pytest.raises(DatasetError, match="another one"):
        run_recipe(other, model, arrays, tmp_path, lexicon, CPU, workers=0)


def test_cases_that_are_held_back_are_never_trained_on(model, arrays, plan, lexicon):
    stream = make_stream(plan, model, arrays, lexicon)
    used = [place.case.facts.name for places in stream.sampler.by_mixture.values() for place in places]
    assert used == ["torso_train"]
    assert len(stream) == plan.training.steps * plan.training.batch


def test_arrays_without_a_case_to_train_on_are_refused(tmp_path, model, plan, lexicon, phantom_cases):
    held_back = phantom_cases[1]
    write_case(held_back, tmp_path)
    write_index([held_back.facts], tmp_path)
    with pytest.raises(DatasetError, match="mixture"):
        make_stream(plan, model, tmp_path, lexicon)


def test_training_takes_the_encoder_that_the_plan_chooses(
    tmp_path,
    arrays,
    with_training,
    lexicon,
    monkeypatch,
):
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    calls = []

    class Words:
        """In place of a language model: a vector from each text's letters."""

        width, name = 24, "words"

        def embed(self, texts):
            calls.append(len(texts))
            rows = [torch.randn(24, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
            return torch.stack(rows)

    monkeypatch.setattr("textseg.embeddings.choice._foreign", lambda *_: Words())
    source = "some/encoder"
    plan = with_training(steps=1, prompts_per_sample=2)
    text = plan.text.model_copy(
        update={"vector_width": 24, "encoder": EncoderPlan(kind="mean", source=str(source))}
    )
    network = plan.network.model_copy(update={"text_width": 24})
    plan = plan.model_copy(update={"text": text, "network": network})
    model = tmp_path / "model"
    model.mkdir()
    trained = run_recipe(plan, model, arrays, tmp_path / "run", lexicon, CPU, workers=0)
    write_scored_card(trained, plan, model, arrays, lexicon, Compute(CPU, torch.float32))
    assert len(calls) == 1  # the cards' words are among those of training, and so on disk
    assert "the text encoder" in (model / CARD_FILE).read_text(encoding="utf-8")
