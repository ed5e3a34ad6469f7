"""Going on from trained weights: what moves, what stays, and what a merged model gives."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch

from tests.tiny_model import TEXT_WIDTH, tiny_plan
from tests.train.test_labelled import write_dataset
from textseg.dataset import read_dataset
from textseg.network.build import build_network
from textseg.train.cases import find_places
from textseg.train.finetune import (
    LAYER_DECAY,
    Tuned,
    add_low_rank,
    confusable,
    finetune_plan,
    merge_low_rank,
    tuned_from,
)
from textseg.train.loop import train
from textseg.train.sampling import PatchSampler
from textseg.train.stream import SampleStream

CPU = torch.device("cpu")


@pytest.fixture
def trained():
    torch.manual_seed(5)
    return build_network(tiny_plan())


@pytest.fixture
def tune(tmp_path, trained, with_training, phantom_cases, lexicon, any_vectors, monkeypatch):
    """Three steps from the trained network; gives the network after them."""
    monkeypatch.setattr("textseg.train.lesson.fastest_type", lambda device: torch.float32)
    plan = with_training(steps=3, warmup_steps=0, prompts_per_sample=2, ema=0.0)

    def run(tuned):
        sampler = PatchSampler([find_places(case) for case in phantom_cases], plan, lexicon)
        stream = SampleStream(sampler, any_vectors(sampler.targets()), 1, 3 * plan.training.batch)
        begin = tuned_from(lambda: copy.deepcopy(trained), tuned, rank=2)
        return train(plan, stream, tmp_path / tuned, CPU, begin=begin, workers=0).network

    return run


def moved(before, after):
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def test_everything_moves_when_everything_is_tuned(trained, tune):
    changed = moved(trained.state_dict(), tune(Tuned.EVERYTHING).state_dict())
    assert {name.split(".")[0] for name in changed} == {"encoder", "trunk", "fusion", "decoder", "marks"}


def test_only_the_decoder_and_the_text_side_move_when_the_decoder_is_tuned(trained, tune):
    changed = moved(trained.state_dict(), tune(Tuned.DECODER).state_dict())
    assert {name.split(".")[0] for name in changed} == {"fusion", "decoder", "marks"}


def test_low_rank_additions_move_the_text_side_and_the_coarsest_stage_by_their_rank(trained, tune):
    merged = merge_low_rank(tune(Tuned.LORA))
    before, after = trained.state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    changed = moved(before, after)
    assert changed
    last = len(trained.encoder.stages) - 1
    parts = re.compile(rf"fusion\.|decoder\.scales\.\d\.kernel\.|encoder\.stages\.{last}\.")
    assert all(parts.match(name) for name in changed)
    assert any(".by_words." in name for name in changed)
    for name in changed:
        difference = (after[name] - before[name]).flatten(1).double()
        assert int((torch.linalg.svdvals(difference) > 1e-6).sum()) <= 2


def test_merging_changes_nothing_that_a_network_says(trained):
    generator = torch.Generator().manual_seed(1)
    for parameter in add_low_rank(trained, 2):
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    image = torch.randn(1, 1, 16, 16, 16, generator=generator)
    text = torch.randn(2, TEXT_WIDTH, generator=generator)
    with torch.no_grad():
        apart = trained.eval()(image, text)
        merged = merge_low_rank(trained)(image, text)
    torch.testing.assert_close(merged.logits[0], apart.logits[0])
    torch.testing.assert_close(merged.presence, apart.presence)


def test_additions_start_without_an_effect(trained):
    before = copy.deepcopy(trained.state_dict())
    add_low_rank(trained, 4)
    after = merge_low_rank(trained).state_dict()
    assert not moved(before, after)


def test_earlier_stages_learn_slower(trained, plan):
    beginning = tuned_from(lambda: trained, Tuned.EVERYTHING)(plan)
    share = {id(p): group["share"] for group in beginning.groups for p in group["params"]}
    assert len(share) == len(list(trained.parameters()))
    order = [trained.encoder.stem, *trained.encoder.stages, trained.trunk, trained.decoder]
    shares = [share[id(next(part.parameters()))] for part in order]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] == pytest.approx(LAYER_DECAY ** (2 + len(trained.encoder.stages)))


@pytest.fixture
def dataset(tmp_path, lexicon):
    labels = {"background": 0, "left kidney": 1, "right kidney": 2, "left hippocampus": 3, "odd thing": 4}
    return read_dataset(write_dataset(tmp_path / "set", labels=labels), lexicon)


def test_all_that_a_dataset_labels_is_looked_for_at_one_voxel_size(plan, dataset):
    tuned = finetune_plan(plan, dataset, 40)
    torso = plan.spacing_for("torso")
    assert {tuned.spacing_for(group) for group in ("torso", "brain", None)} == {torso}
    assert plan.spacing_for("brain") != torso
    assert tuned.spacing_for("sarcoma") == plan.spacing_for("sarcoma")


def test_new_weights_take_no_shortcuts_that_the_old_ones_were_found_to_bear(plan, dataset):
    windows = plan.windows.model_copy(update={"exit_below": -5.0})
    masks = plan.masks.model_copy(update={"smallest_part": 0.2})
    proven = plan.model_copy(update={"windows": windows, "masks": masks})
    tuned = finetune_plan(proven, dataset, 40)
    assert (tuned.windows.exit_below, tuned.masks.smallest_part) == (None, 0.0)
    assert tuned == finetune_plan(proven.for_other_weights(), dataset, 40)


def test_the_plan_of_a_finetuning_rehearses_if_asked(plan, dataset):
    tuned = finetune_plan(plan, dataset, 40)
    assert tuned.training.steps == 40
    assert tuned.training.mixture == {"own": 1.0}
    assert finetune_plan(plan, dataset, 40, rehearse=0.25).training.mixture == {"own": 0.75, "phantom": 0.25}
    assert tuned.network == plan.network


@pytest.mark.parametrize(
    ("trained_with", "tuned", "optimiser", "share"),
    [
        ("muon", Tuned.EVERYTHING, "muon", 1.0),
        ("muon", Tuned.DECODER, "muon", 1.0),
        ("muon", Tuned.LORA, "adamw", 0.2),
        ("adamw", Tuned.EVERYTHING, "adamw", 0.2),
    ],
)
def test_adamw_learns_slower_in_a_finetuning_and_muon_does_not(
    with_training, dataset, trained_with, tuned, optimiser, share
):
    plan = with_training(optimiser=trained_with)
    recipe = finetune_plan(plan, dataset, 40, tuned=tuned).training
    assert recipe.optimiser == optimiser
    assert recipe.learning_rate == pytest.approx(share * plan.training.learning_rate)
    assert finetune_plan(plan, dataset, 40, tuned=tuned, learning_rate=0.1).training.learning_rate == 0.1


def test_a_finetuning_is_validated_now_and_then_or_as_its_plan_says(plan, dataset, with_training):
    intervals = [finetune_plan(plan, dataset, steps).training.validate_every for steps in (40, 5000)]
    assert intervals == [100, 250]
    own = with_training(validate_every=30)
    assert finetune_plan(own, dataset, 5000).training.validate_every == 30


def test_prompts_with_nearly_the_same_vector_are_named():
    vectors = {"a": [1.0, 0.0], "b": [0.999, 0.02], "c": [0.0, 1.0], "d": [0.01, 1.0]}

    class Encoder:
        def embed(self, texts):
            return torch.tensor([vectors[text] for text in texts])

    pairs = confusable({name: name for name in vectors}, Encoder())
    assert {(one, other) for one, other, _ in pairs} == {("a", "b"), ("c", "d")}
    assert [cosine for *_, cosine in pairs] == sorted((c for *_, c in pairs), reverse=True)
    assert np.allclose([cosine for *_, cosine in pairs], 1, atol=1e-3)
