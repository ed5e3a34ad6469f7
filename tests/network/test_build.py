"""The whole network: encode once, decode once a prompt, fold for inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.network.conftest import SHAPE, lived_in
from textseg.models import plans_folder
from textseg.network.build import build_network, count_parameters, fold_batch_norm, for_inference
from textseg.plan import read_plan


def close(one, other, tolerance=1e-5):
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip(one, other, strict=True))


def answers(decoded):
    return (*decoded.logits, decoded.presence)


def with_norm(plan, norm):
    return plan.model_copy(update={"network": plan.network.model_copy(update={"norm": norm})})


# ---- encode once, decode per prompt ----


def test_logits_at_every_scale_have_their_sizes(network, image, text):
    decoded = network(image, text)
    assert [tuple(x.shape) for x in decoded.logits] == [
        (2, 5, 16, 24, 8), (2, 5, 8, 12, 8), (2, 5, 4, 6, 4)
    ]  # fmt: skip
    assert decoded.presence.shape == (2, 5)


def test_encoding_and_decoding_is_the_whole_network(network, image, text):
    features = network.encode(image)
    assert close(answers(network.decode(features, text)), answers(network(image, text)), 0)
    assert features.coarsest.shape == (2, 16, 4, 6, 4)
    assert [x.shape[1] for x in features.trunk] == [8, 8, 16]


@torch.no_grad()
def test_one_encoding_serves_every_prompt_and_is_not_changed(network, image, text):
    features = network.encode(image)
    kept = [x.clone() for x in (features.coarsest, *features.trunk)]
    first = answers(network.decode(features, text))
    network.decode(features, text.flip(0))
    assert close(answers(network.decode(features, text)), first, 0)
    assert close((features.coarsest, *features.trunk), kept, 0)


@torch.no_grad()
def test_prompts_do_not_influence_each_other(network, image, text):
    together = answers(network(image, text))
    order = [3, 0, 4, 1, 2]
    shuffled = answers(network(image, text[order]))
    assert close(shuffled, [x[:, order] for x in together])
    halves = [answers(network(image, part)) for part in text.split(2)]
    assert close([torch.cat(parts, dim=1) for parts in zip(*halves, strict=True)], together)


@torch.no_grad()
def test_images_do_not_influence_each_other(network, image, text):
    assert close(answers(network(image[1:], text)), [x[1:] for x in answers(network(image, text))])


@torch.no_grad()
def test_images_may_have_prompts_of_their_own(network, image, text):
    own = torch.stack([text, text.flip(0)])
    logits, *_ = network(image, own).logits
    assert torch.allclose(logits[0], network(image[:1], text).logits[0][0], atol=1e-5)
    assert torch.allclose(logits[1], network(image[1:], text.flip(0)).logits[0][0], atol=1e-5)


@torch.no_grad()
def test_other_words_give_other_logits_at_every_scale(network, image, text):
    for logits in answers(network(image, text)):
        for one in range(5):
            for other in range(one):
                assert (logits[:, one] - logits[:, other]).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_the_gradient_of_every_scale_reaches_the_words(scale, network, image, text):
    text = text.clone().requires_grad_()
    nn.init.normal_(network.decoder.scales[scale].kernel.by_sight.weight)
    network(image, text).logits[scale].square().mean().backward()
    assert text.grad.abs().amax(dim=1).min() > 0
    assert network.fusion.project_text.weight.grad.abs().max() > 0
    assert network.decoder.scales[scale].kernel.by_sight.weight.grad.abs().max() > 0
    assert network.encoder.stem.conv.weight.grad.abs().max() > 0


def test_every_parameter_learns_from_text_and_clicks_together(network, image, text):
    spatial = torch.rand(2, 5, network.spatial_channels, *SHAPE)
    decoded = network(image, text, spatial)
    sum(x.square().mean() for x in answers(decoded)).backward()
    still = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert still == ["fusion.no_text"]
    network(image, None).presence.sum().backward()
    assert network.fusion.no_text.grad.abs().max() > 0


@torch.no_grad()
def test_without_text_the_learnt_vector_stands_in(network, image):
    spatial = torch.rand(2, 3, network.spatial_channels, *SHAPE)
    for scale in network.decoder.scales:
        nn.init.normal_(scale.spatial.weight)
        nn.init.normal_(scale.correction.weight)
    alone = network(image, None, spatial)
    written = network(image, network.fusion.no_text.expand(3, -1), spatial)
    assert alone.logits[0].shape == (2, 3, *SHAPE)
    assert close(answers(alone), answers(written), 0)
    network.fusion.no_text.add_(1)
    assert not torch.allclose(network(image, None, spatial).logits[0], alone.logits[0])
    assert network(image, None).logits[0].shape == (2, 1, *SHAPE)


@torch.no_grad()
def test_no_spatial_prompts_are_empty_maps(network, image, text):
    for scale in network.decoder.scales:
        nn.init.normal_(scale.spatial.weight)
        nn.init.normal_(scale.correction.weight)
    empty = torch.zeros(2, 5, network.spatial_channels, *SHAPE)
    assert close(answers(network(image, text, empty)), answers(network(image, text)), 0)
    full = torch.ones_like(empty)
    assert not torch.allclose(network(image, text, full).logits[0], network(image, text).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 4, 2), (32, 8, 16), (20, 4, 6)], ids=str)
def test_windows_of_any_multiple_of_the_strides_fit(shape, network, text):
    assert network.total_stride == (4, 4, 2)
    logits = network(torch.randn(1, 1, *shape), text).logits
    assert logits[0].shape == (1, 5, *shape)
    assert logits[2].shape == (1, 5, shape[0] // 4, shape[1] // 4, shape[2] // 2)


@torch.no_grad()
def test_channels_come_from_the_plan(plan, text):
    network = build_network(plan.model_copy(update={"channels": ("t1", "t2", "flair")})).eval()
    assert network(torch.randn(1, 3, *SHAPE), text).logits[0].shape == (1, 5, *SHAPE)


def test_the_same_seed_builds_the_same_network(plan):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_network(plan).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["encoder.stem.conv.weight"], states[2]["encoder.stem.conv.weight"])


@torch.no_grad()
def test_a_fresh_network_finds_little():
    torch.manual_seed(0)
    network = build_network(read_plan(plans_folder() / "default"))
    text = nn.functional.normalize(torch.randn(5, 256), dim=1)
    logits = network(torch.randn(1, 1, 32, 32, 32), text).logits[0]
    assert logits.sigmoid().mean() < 0.35


def test_kernels_of_three_everywhere_are_what_null_means(plan):
    cubes = plan.model_copy(update={"network": plan.network.model_copy(update={"kernels": ((3, 3, 3),) * 3})})
    states = []
    for one in (plan, cubes):
        torch.manual_seed(1)
        states.append(build_network(one).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@torch.no_grad()
def test_kernels_change_no_size_and_spare_weights(sliced_plan, network, image, text):
    sliced = lived_in(build_network(sliced_plan))
    assert [x.shape for x in answers(sliced(image, text))] == [x.shape for x in answers(network(image, text))]
    assert count_parameters(sliced) < count_parameters(network)
    before = answers(sliced(image, text))
    assert close(answers(for_inference(sliced, torch.device("cpu"))(image, text)), before, 1e-4)


# ---- for inference ----


def count_norms(network):
    return sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())


@torch.no_grad()
def test_folding_the_norms_changes_no_value(network, image, text):
    before = answers(network(image, text))
    assert count_norms(network) > 8
    folded = fold_batch_norm(network)
    assert folded is network
    assert count_norms(folded) == 0
    assert close(answers(folded(image, text)), before, 1e-4)
    assert before[0].std() > 0.01


@torch.no_grad()
def test_folding_twice_is_folding_once(network, image, text):
    before = answers(fold_batch_norm(network)(image, text))
    assert close(answers(fold_batch_norm(network)(image, text)), before, 0)


@torch.no_grad()
def test_folding_the_default_network_changes_no_value():
    torch.manual_seed(0)
    plan = read_plan(plans_folder() / "default")
    network = lived_in(build_network(with_norm(plan, "batch")))
    image, text = torch.randn(1, 1, 32, 16, 16), torch.randn(2, 256)
    before = answers(network(image, text))
    assert close(answers(fold_batch_norm(network)(image, text)), before, 1e-4)
    assert count_norms(network) == 0


@torch.no_grad()
def test_folding_leaves_instance_norms_alone(plan, image, text):
    network = build_network(with_norm(plan, "instance")).eval()
    before = answers(network(image, text))
    assert close(answers(fold_batch_norm(network)(image, text)), before, 0)


@torch.no_grad()
def test_bfloat16_is_close(network, image, text):
    before = answers(network(image, text))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = answers(fold_batch_norm(network)(image, text))
    for ours, theirs in zip(after, before, strict=True):
        assert ours.shape == theirs.shape
        # Eight bits a value, over a dozen layers.
        assert (ours.float() - theirs).abs().max() < 0.1 * theirs.abs().max()
        assert (ours.float() - theirs).abs().mean() < 0.02 * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_what_inference_runs_gives_the_same_values(norm, plan, image, text):
    network = lived_in(build_network(with_norm(plan, norm)))
    before = answers(network(image, text))
    ready = for_inference(network, torch.device("cpu"))
    assert not ready.training
    assert count_norms(ready) == 0
    assert ready.encoder.stages[1][0].conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert close(answers(ready(image, text)), before, 1e-4)


@torch.no_grad()
def test_the_layout_in_memory_changes_no_value(network, image, text):
    channels_last = image.contiguous(memory_format=torch.channels_last_3d)
    assert close(answers(network(channels_last, text)), answers(network(image, text)), 1e-5)


# ---- the one dial ----


def test_three_sizes_come_from_one_dial():
    counts = {}
    for size in ("default", "medium", "large"):
        counts[size] = count_parameters(build_network(read_plan(plans_folder() / size)))
    assert counts["default"] < 12_500_000, "in float16 the default model must stay below 25 MB"
    # Convolutions grow with the square of the width; what depends on the text's width with the width itself.
    for smaller, larger in (("default", "medium"), ("medium", "large")):
        assert 3.5 < counts[larger] / counts[smaller] <= 4


def test_the_hundredth_prompt_is_cheap():
    network = build_network(read_plan(plans_folder() / "default"))
    assert count_parameters(network.decoder) < 0.1 * count_parameters(network)
