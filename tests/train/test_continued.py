"""A further round: a network begins with a model's weights, and its model remembers the rounds before."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from textseg_cli.main import app
from torch import nn
from typer.testing import CliRunner

from tests.tiny_model import tiny_plan, write_tiny_model
from textseg.errors import ModelError
from textseg.network.blocks import instance_normed
from textseg.network.build import build_network
from textseg.network.weights import NETWORK_FILE, save_network
from textseg.plan import write_plan
from textseg.train.checkpoint import STATE_FILE
from textseg.train.continued import (
    BEGAN_WEIGHTS,
    ROUNDS_FILE,
    WEIGHT_SIZE,
    Round,
    continued,
    keep_beginning,
    loosen,
    read_rounds,
    rounds_in_words,
    rounds_of,
    take_over,
    write_rounds,
)

FIRST = Round(5400, 1.45, "AMD EPYC, 2 threads", "2026-11-23")
SECOND = Round(2800, 1.3, "NVIDIA H200", "2026-11-29")


@pytest.fixture
def model(tmp_path, plan):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(8)
    save_network(build_network(plan), folder, {})
    write_rounds([FIRST], folder)
    return folder


def test_a_round_begins_with_the_weights_of_the_model(model, plan, tmp_path):
    assert keep_beginning(model, plan, tmp_path / "run") == 1
    network = continued(tmp_path / "run")(plan).network
    theirs = load_file(model / NETWORK_FILE)
    loosened = {f"{name}.weight" for name, module in network.named_modules() if module in loose(network)}
    for name, weights in network.state_dict().items():
        before = theirs[name].float()
        if name in loosened:  # the same up to their size
            torch.testing.assert_close(weights / weights.norm(), before / before.norm())
        else:
            assert torch.equal(weights, before), name


def loose(network):
    return set(instance_normed(network))


def test_loosened_weights_have_one_size_and_the_network_says_the_same(plan):
    instance = plan.model_copy(update={"network": plan.network.model_copy(update={"norm": "instance"})})
    torch.manual_seed(3)
    network = build_network(instance).eval().double()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.eps = 1e-12  # what guards against division by zero weighs more against small weights
    image, text = torch.randn(1, 1, 48, 32, 32).double(), torch.randn(2, plan.network.text_width).double()
    with torch.no_grad():
        for conv in loose(network):
            conv.weight.mul_(17)
        before = network(image, text)
        loosen(network)
        after = network(image, text)
    assert len(loose(network)) > 5
    for conv in loose(network):
        assert float(conv.weight.detach().square().mean().sqrt()) == pytest.approx(WEIGHT_SIZE)
    torch.testing.assert_close(after.presence, before.presence)
    for one, other in zip(after.logits, before.logits, strict=True):
        torch.testing.assert_close(one, other)


def test_convolutions_before_a_batch_norm_are_not_loosened(plan):
    batch = plan.model_copy(update={"network": plan.network.model_copy(update={"norm": "batch"})})
    assert not loose(build_network(batch))


def test_every_parameter_of_a_further_round_learns(model, plan, tmp_path):
    keep_beginning(model, plan, tmp_path / "run")
    beginning = continued(tmp_path / "run")(plan)
    learning = {id(parameter) for group in beginning.groups for parameter in group["params"]}
    assert learning == {id(parameter) for parameter in beginning.network.parameters()}


def test_what_does_not_fit_begins_at_random(model, plan):
    wider = plan.network.model_copy(update={"width_ratios": (*plan.network.width_ratios[:2], 3)})
    network = build_network(plan.model_copy(update={"network": wider}))
    before = {name: weights.clone() for name, weights in network.state_dict().items()}
    kept = take_over(model / NETWORK_FILE, network)
    assert 0.1 < kept < 0.9
    theirs = load_file(model / NETWORK_FILE)
    after = network.state_dict()
    assert torch.equal(after["encoder.stem.conv.weight"], theirs["encoder.stem.conv.weight"].float())
    name = "encoder.stages.2.0.conv.weight"
    assert after[name].shape != theirs[name].shape
    assert torch.equal(after[name], before[name])


def test_weights_of_another_network_are_refused(model, plan):
    other = plan.network.model_copy(update={"width": 2 * plan.network.width, "query_heads": 1})
    with pytest.raises(ModelError, match="no convolution of the encoder in"):
        take_over(model / NETWORK_FILE, build_network(plan.model_copy(update={"network": other})))


def test_a_run_keeps_what_it_began_with_though_the_model_changes(model, plan, tmp_path):
    run = tmp_path / "run"
    kept = keep_beginning(model, plan, run)
    began = (run / BEGAN_WEIGHTS).read_bytes()
    torch.manual_seed(9)
    save_network(build_network(plan), model, {})
    assert keep_beginning(model, plan, run) == kept
    assert (run / BEGAN_WEIGHTS).read_bytes() == began


def test_a_run_that_was_begun_at_random_does_not_change_its_mind(model, plan, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / STATE_FILE).write_bytes(b"a state")
    with pytest.raises(ModelError, match="was begun with random weights"):
        keep_beginning(model, plan, run)


def test_a_model_remembers_the_rounds_behind_it(model, plan, tmp_path):
    keep_beginning(model, plan, tmp_path / "run")
    rounds = rounds_of(tmp_path / "run", SECOND)
    assert rounds == (FIRST, replace(SECOND, kept=1.0))
    write_rounds(rounds, model)
    assert read_rounds(model) == rounds
    table = rounds_in_words(rounds).splitlines()
    assert table[2] == "| 1 | 5400 | 1.4 | AMD EPYC, 2 threads | 2026-11-23 | 0% |"
    assert table[3] == "| 2 | 2800 | 1.3 | NVIDIA H200 | 2026-11-29 | 100% |"


def test_without_a_beginning_there_is_one_round(tmp_path):
    assert rounds_of(tmp_path, FIRST) == (FIRST,)
    assert read_rounds(tmp_path) == ()


def test_a_broken_list_of_rounds_is_told_in_a_sentence(model):
    (model / ROUNDS_FILE).write_text('{"rounds": [{"steps": 1}]}')
    with pytest.raises(ModelError, match="lists how a model was trained, but it can't be read"):
        read_rounds(model)


# ---- the command ----


def run_train(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)])


@pytest.fixture
def recipe(tmp_path, phantom_cases):
    """A plan's folder with a tower, arrays, and a model that was trained before."""
    from textseg.train.cases import write_case, write_index

    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for case in phantom_cases:
        write_case(case, arrays)
    write_index([case.facts for case in phantom_cases], arrays)
    folder = write_tiny_model(tmp_path / "tiny")
    plan = tiny_plan()
    training = plan.training.model_copy(update={"steps": 1, "prompts_per_sample": 3})
    write_plan(plan.model_copy(update={"training": training}), folder / "plan.json")
    (folder / "sources.json").write_text('{"sources": []}')
    return folder, arrays


def test_train_goes_on_from_a_model_and_writes_its_rounds(recipe, tmp_path):
    folder, arrays = recipe
    write_rounds([FIRST], folder)
    words = [folder, "--arrays", arrays, "--run", tmp_path / "run", "-o", tmp_path / "out"]
    done = run_train(*words, "--begin-with", folder, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "100% of the network begins with the weights of" in done.output
    first, second = json.loads((tmp_path / "out" / ROUNDS_FILE).read_text(encoding="utf-8"))["rounds"]
    assert (first["steps"], second["steps"], second["kept"]) == (5400, 1, 1.0)


def test_a_dataset_is_sent_to_finetune(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    done = run_train(tmp_path, "-o", tmp_path / "out", "--begin-with", "default")
    assert done.exit_code == 2
    assert "textseg finetune" in " ".join(done.output.split())
