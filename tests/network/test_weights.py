"""Weights on disk: there and back, and one sentence about a file that is not what it should be."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from textseg.errors import ModelError
from textseg.network.build import build_network
from textseg.network.weights import NETWORK_FILE, file_hash, load_network, save_network


@pytest.fixture
def saved(network, tmp_path):
    """The folder of a network that was saved."""
    save_network(network, tmp_path, {"license": "CC0-1.0"})
    return tmp_path


def changed(folder, change):
    """Let `change` work on the tensors of the saved file."""
    weights = load_file(folder / NETWORK_FILE)
    change(weights)
    save_file(weights, folder / NETWORK_FILE)


def test_weights_come_back_as_float16_has_them(network, saved, plan, image, text):
    loaded = load_network(saved, plan)
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        back = loaded.state_dict()[name]
        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor.half().float() if tensor.is_floating_point() else tensor)
    with torch.no_grad():
        ours, theirs = loaded(image, text).logits[0], network(image, text).logits[0]
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_saving_again_gives_the_same_file(saved, plan, tmp_path):
    again = tmp_path / "again"
    save_network(load_network(saved, plan), again, {"license": "CC0-1.0"})
    assert file_hash(again / NETWORK_FILE) == file_hash(saved / NETWORK_FILE)


def test_weights_are_small_on_disk_and_carry_their_metadata(network, saved):
    with safe_open(saved / NETWORK_FILE, "pt") as file:
        assert file.metadata() == {"license": "CC0-1.0"}
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}
    assert [path.name for path in saved.iterdir()] == [NETWORK_FILE]


def test_a_network_in_any_layout_is_saved(network, plan, tmp_path):
    save_network(network.to(memory_format=torch.channels_last_3d), tmp_path, {})
    weights = load_network(tmp_path, plan).state_dict()
    assert torch.equal(weights["encoder.stem.conv.weight"], network.encoder.stem.conv.weight.half().float())


def test_values_too_large_for_float16_are_kept(network, plan, tmp_path):
    network.encoder.stem.norm.running_var[2] = 1e6
    save_network(network, tmp_path, {})
    assert load_network(tmp_path, plan).encoder.stem.norm.running_var[2] == 1e6


def refused(folder, plan, *words):
    with pytest.raises(ModelError) as error:
        load_network(folder, plan)
    message = str(error.value)
    for word in (*words, str(folder)):
        assert word in message
    assert message.endswith(".") or message.endswith("?")
    assert "\n" not in message


def test_a_missing_file_is_named(plan, tmp_path):
    refused(tmp_path, plan, NETWORK_FILE, "Is it complete?")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(keep, saved, plan):
    path = saved / NETWORK_FILE
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, plan, "must be a whole safetensors file")


def test_a_file_of_another_kind_is_refused(plan, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / NETWORK_FILE)
    refused(tmp_path, plan, "must be a whole safetensors file")


def test_a_folder_in_its_place_is_refused(plan, tmp_path):
    (tmp_path / NETWORK_FILE).mkdir()
    refused(tmp_path, plan)


def test_a_tensor_of_another_shape_is_named(saved, plan):
    changed(saved, lambda weights: weights.update({"fusion.no_text": torch.zeros(31)}))
    refused(saved, plan, "fusion.no_text is (31,) instead of (32,)")


def test_an_unknown_and_a_missing_tensor_are_named(saved, plan):
    changed(saved, lambda weights: weights.update({"fusion.other": weights.pop("fusion.no_text")}))
    refused(saved, plan, "fusion.no_text is missing", "fusion.other is unknown")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_named(value, saved, plan):
    changed(saved, lambda weights: weights["fusion.no_text"].__setitem__(3, value))
    refused(saved, plan, "fusion.no_text holds NaN or infinity")


def test_a_network_of_another_plan_is_refused_in_one_sentence(saved, plan):
    wider = plan.model_copy(update={"network": plan.network.model_copy(update={"width": 16})})
    refused(saved, wider, "instead of", "more")


def test_the_hash_is_that_of_the_file(saved):
    content = (saved / NETWORK_FILE).read_bytes()
    assert file_hash(saved / NETWORK_FILE) == hashlib.sha256(content).hexdigest()


def test_loading_does_not_touch_torchs_random_numbers_more_than_building(saved, plan):
    torch.manual_seed(0)
    build_network(plan)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_network(saved, plan)
    assert torch.equal(torch.rand(3), expected)
