"""The network gives what a plain one gives, runs once what prompts share, and refuses what does not fit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from tests.voxtell.tiny_folder import FLAT, ODD, SHALLOW, Tiny, plain_logits, released_weights, write_folder
from textseg.errors import ModelError, PlanError, PromptError
from textseg.network.voxtell.folder import load_voxtell
from textseg.network.voxtell.network import VoxTellNetwork
from textseg.network.voxtell.plan import VoxTellPlan, is_voxtell_folder, read_voxtell_plan


def image_of(tiny, batch=1):
    return torch.randn((batch, 1, *tiny.patch), generator=torch.Generator().manual_seed(2))


def text_of(tiny, prompts=4):
    return torch.randn((prompts, tiny.text), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "tiny", [Tiny(), SHALLOW, ODD, FLAT], ids=["four stages", "three stages", "odd sizes", "two stages"]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_saved_changes_no_logit(tiny, channels_last, tmp_path):
    network = load_voxtell(write_folder(tmp_path, tiny))
    image, text = image_of(tiny, batch=2), text_of(tiny)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    with torch.inference_mode():
        network = network.to(memory_format=layout)
        decoded = network.decode(network.encode(image.contiguous(memory_format=layout)), text)
        expected = plain_logits(released_weights(tiny), tiny, image, text)
    assert network.memory_stage == tiny.memory_stage
    assert len(decoded.logits) == len(expected) == len(tiny.widths) - 1
    for ours, plain in zip(decoded.logits, expected, strict=True):
        assert ours.shape == plain.shape
        # Different images and prompts give quite different logits, so agreement means something.
        assert plain.std() > 0.1
        assert (ours - plain).abs().max() <= 1e-5 * max(1.0, float(plain.abs().max()))
    prompts = expected[0].flatten(2)
    assert (prompts[:, 0] - prompts[:, 1]).abs().max() > 0.1
    assert torch.equal(decoded.presence, decoded.logits[0].amax(dim=(2, 3, 4)))


@torch.inference_mode()
def test_a_prompt_alone_gives_what_it_gives_among_others(network, tiny):
    features, text = network.encode(image_of(tiny)), text_of(tiny)
    together = network.decode(features, text).logits[0]
    for index in range(len(text)):
        alone = network.decode(features, text[index : index + 1]).logits[0]
        assert torch.allclose(alone[:, 0], together[:, index], atol=3e-5)


@torch.inference_mode()
def test_every_image_of_a_batch_may_have_its_own_prompts(network, tiny):
    image, text = image_of(tiny, batch=2), text_of(tiny)
    per_image = torch.stack([text[:2], text[2:]])
    both = network.decode(network.encode(image), per_image).logits[0]
    second = network.decode(network.encode(image[1:]), text[2:]).logits[0]
    assert torch.allclose(both[1], second[0], atol=3e-5)


@torch.inference_mode()
def test_the_first_decoder_stage_and_the_skips_run_once_for_all_prompts(tiny, shared_folder):
    network = load_voxtell(shared_folder)
    calls = {"first": 0, "second": 0}
    stages = network.decoder.stages
    stages[0].register_forward_hook(lambda *_: calls.__setitem__("first", calls["first"] + 1))
    stages[1].register_forward_hook(lambda *_: calls.__setitem__("second", calls["second"] + 1))
    features = network.encode(image_of(tiny))
    network.decode(features, text_of(tiny, 3))
    network.decode(features, text_of(tiny, 2))
    assert calls == {"first": 1, "second": 5}
    skips_and_first = [tuple(x.shape[1:]) for x in features.trunk]
    assert skips_and_first == [(4, 16, 24, 16), (6, 16, 12, 8), (10, 8, 6, 4)]


@torch.inference_mode()
def test_a_skip_is_convolved_once_however_many_prompts_there_are(tiny, shared_folder, monkeypatch):
    """Counted in channels: of the skips' halves, and of what any prompt's own convolutions read."""
    network = load_voxtell(shared_folder)
    convolved = []
    plain = torch.nn.functional.conv3d

    def counting(x, weight, *rest, **options):
        convolved.append(weight.shape[1])
        return plain(x, weight, *rest, **options)

    # Only where a convolution is called by hand, in halves; whole layers are not counted.
    functional = SimpleNamespace(**{**vars(torch.nn.functional), "conv3d": counting})
    monkeypatch.setattr("textseg.network.voxtell.network.F", functional)
    features = network.encode(image_of(tiny))
    # The skips' halves of all stages, and the upsampled half of the first.
    assert sorted(convolved) == sorted([*tiny.widths[:-1], tiny.widths[-2]])
    convolved.clear()
    network.decode(features, text_of(tiny, 3))
    # Without the skips: half of what the weights of the first convolutions have.
    assert sorted(convolved) == sorted(tiny.widths[:-2] * 3)


@torch.inference_mode()
def test_all_prompts_of_a_call_go_through_the_transformer_together(network, tiny):
    seen = []
    handle = network.transformer_decoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape))
    )
    network.decode(network.encode(image_of(tiny)), text_of(tiny, 5))
    handle.remove()
    assert seen == [(1, 5, tiny.query)]


@torch.inference_mode()
def test_in_bfloat16_logits_stay_close(network, tiny):
    image, text = image_of(tiny), text_of(tiny)
    exact = network.decode(network.encode(image), text).logits[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network.decode(network.encode(image), text).logits[0].float()
    assert (rough - exact).abs().mean() < 0.05 * exact.std()


def test_the_released_sizes_leave_339_million_numbers_of_440():
    # Every width of the release; the names and shapes from which the network reads the rest.
    arguments = {
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": 3,
        "strides": [1, 2, 2, 2, 2, 2],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": 1,
        "conv_bias": True,
        "conv_op": "torch.nn.Conv3d",
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": None,
    }
    plan = VoxTellPlan.model_validate(
        {
            "patch_size": [192, 192, 192],
            "normalization_schemes": ["ZScoreNormalization"],
            "architecture": arguments,
        }
    )
    with torch.device("meta"):
        weights = {
            "pos_embed": torch.empty(12**3, 1, 2048),
            "project_bottleneck_embed.0.weight": torch.empty(2048, 320),
            "project_text_embed.0.weight": torch.empty(2048, 2560),
        }
        for stage, width in enumerate((32, 64, 128, 256, 320)):
            name = f"project_to_decoder_channels.{stage}"
            weights[f"{name}.0.weight"] = torch.empty(2048, 2048)
            weights[f"{name}.2.weight"] = torch.empty(width * (32 if stage else 1), 2048)
        for layer in range(6):
            weights[f"transformer_decoder.layers.{layer}.linear1.weight"] = torch.empty(2048, 2048)
        network = VoxTellNetwork(plan, weights)
    assert network.memory_stage == 4
    numbers = {
        part: sum(p.numel() for name, p in network.named_parameters() if name.startswith(part)) / 1e6
        for part in ("encoder", "decoder", "transformer_decoder", "project", "")
    }
    rounded = {part: round(count, 1) for part, count in numbers.items()}
    assert rounded == {
        "encoder": 90.3,
        "decoder": 12.2,
        "transformer_decoder": 151.1,
        "project": 85.7,
        "": 339.3,
    }


# ---- what does not fit ----


def test_a_window_of_another_size_is_refused(network):
    with pytest.raises(ModelError, match=r"\(16, 24, 16\) that it was trained on, got \(16, 16, 16\)"):
        network.encode(torch.zeros(1, 1, 16, 16, 16))


@pytest.mark.parametrize("spatial", [None, torch.zeros(1, 1, 7, 16, 24, 16)])
def test_clicks_are_refused(network, tiny, spatial):
    text = None if spatial is None else text_of(tiny, 1)
    with pytest.raises(PromptError, match="text and no points"):
        network.decode(network.encode(image_of(tiny)), text, spatial)


def changed(folder, change):
    """The folder with its weights changed by a function."""
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    change(content["network_weights"])
    torch.save(content, path)
    return folder


def test_wrong_shapes_are_shown_in_a_table(folder):
    def change(weights):
        weights["encoder.stages.1.blocks.0.conv2.norm.weight"] = torch.ones(7)
        del weights["transformer_decoder.norm.bias"]
        weights["presence.weight"] = torch.ones(1)

    with pytest.raises(ModelError) as error:
        load_voxtell(changed(folder, change))
    lines = str(error.value).splitlines()
    assert "3 tensor(s)" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == [
        "tensor",
        "encoder.stages.1.blocks.0.conv2.norm.weight",
        "transformer_decoder.norm.bias",
        "presence.weight",
    ]
    assert lines[2].split("  ", 1)[1].split() == ["(6,)", "(7,)"]


def test_nan_in_the_weights_is_refused_by_name(folder):
    def change(weights):
        weights["decoder.transpconvs.1.bias"][0] = torch.nan

    with pytest.raises(ModelError, match=r"decoder\.transpconvs\.1\.bias holds NaN"):
        load_voxtell(changed(folder, change))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("pos_embed", (50, 1, 32), "position for each voxel of one stage, 6144 or 1536 or 192 or 16 .* 50"),
        ("pos_embed", (192, 1, 36), "8 heads, .* got 36"),
        ("pos_embed", (192,), r"pos_embed has shape \(192,\)"),
        ("project_text_embed.0.weight", None, "project_text_embed.0.weight is missing"),
    ],
)
def test_tensors_that_tell_no_width_are_refused(folder, name, shape, message):
    def change(weights):
        del weights[name]
        if shape is not None:
            weights[name] = torch.ones(shape)

    with pytest.raises(ModelError, match=message):
        load_voxtell(changed(folder, change))


def test_a_folder_without_weights_says_what_it_lacks(folder):
    assert is_voxtell_folder(folder)
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    assert not is_voxtell_folder(folder)
    with pytest.raises(ModelError, match="has neither"):
        load_voxtell(folder)


def test_one_number_in_the_plan_stands_for_all_stages(folder, tiny):
    plan = read_voxtell_plan(folder)
    path = folder / "plans.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    arguments = document["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments.update(kernel_sizes=3, n_blocks_per_stage=2, n_conv_per_stage_decoder=1, nonlin_kwargs=None)
    path.write_text(json.dumps(document))
    spread = read_voxtell_plan(folder).architecture
    assert spread.kernel_sizes == ((3, 3, 3),) * 4
    assert (spread.n_blocks_per_stage, spread.n_conv_per_stage_decoder) == ((2,) * 4, (1,) * 3)
    assert spread.nonlin_kwargs.negative_slope == 0.01
    assert spread.strides == plan.architecture.strides == tiny.strides


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_op": "torch.nn.BatchNorm3d"}, "norm_op"),
        ({"dropout_op": "torch.nn.Dropout3d"}, "dropout_op"),
        ({"strides": [1, 2, 2]}, "one entry a stage"),
        ({"strides": [2, 2, 2, 2]}, "first stage has stride"),
        ({"strides": [1, 5, 2, 2]}, "can't be divided"),
        ({"kernel_sizes": 2}, "odd sizes"),
        ({"n_conv_per_stage_decoder": [1]}, "every stage but the coarsest"),
        ({"features_per_stage": "many"}, "features_per_stage"),
    ],
    ids=str,
)
def test_a_plan_of_another_network_is_refused(folder, changes, message):
    path = folder / "plans.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes)
    path.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=message):
        read_voxtell_plan(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"configurations": {}}'])
def test_a_plan_that_is_none_is_refused(folder, content):
    path = folder / "plans.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(PlanError, match=r"plans\.json"):
        read_voxtell_plan(folder)
