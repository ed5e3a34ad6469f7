"""Encoders that begin with other people's weights: exactly where they can, honestly where they can't."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.tiny_model import tiny_plan
from textseg.errors import ModelError
from textseg.models import find_model
from textseg.network.build import build_network
from textseg.network.weights import load_network
from textseg.plan import Plan
from textseg.train.checkpoint import STATE_FILE
from textseg.train.loop import fresh
from textseg.train.start import (
    ENCODER_FILE,
    TABLE_FILE,
    keep_report,
    put_into,
    read_encoder_weights,
    started_from,
)

WIDTHS = (8, 8, 16)
# Of stage 0, 1, 2 along x, y, z: unequal, so that swapped axes are noticed.
KERNELS = ((3, 3, 1), (3, 3, 3), (3, 3, 3))
STRIDES = ((1, 1, 1), (2, 2, 1), (2, 1, 2))


def planned(norm="instance", **network: Any) -> Plan:
    plan = tiny_plan()
    changes = {
        "width_ratios": (1, 1, 2),
        "strides": STRIDES,
        "kernels": KERNELS,
        "blocks_per_stage": (1, 2, 1),
        "norm": norm,
    }
    return plan.model_copy(update={"network": plan.network.model_copy(update=changes | network)})


def arguments(norm, order):
    """What dynamic_network_architectures builds such an encoder from; its axis k is our axis order[k]."""
    along = [[size[axis] for axis in order] for size in STRIDES]
    return {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": WIDTHS,
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[size[axis] for axis in order] for size in KERNELS],
        "strides": along,
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "return_skips": True,
    }


def random_weights(network):
    """Every weight, bias and statistic at random: none that is 0 or 1 hides a mistake."""
    generator = torch.Generator().manual_seed(4)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.normal_(std=0.4, generator=generator)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return network.eval()


def checkpoint(encoder, path, transposed=None, reader="SimpleITKIO"):
    """As nnU-Net saves it, with a decoder that is not looked at."""
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    weights["decoder.seg_layers.0.weight"] = torch.zeros(2, 8, 1, 1, 1)
    configuration = {"spacing": [3.0, 2.0, 1.5], "normalization_schemes": ["CTNormalization"]}
    plans = {"configurations": {"3d_fullres": configuration}, "image_reader_writer": reader}
    if transposed:
        plans["transpose_forward"] = list(transposed)
    facts = {"plans": plans, "configuration": "3d_fullres"}
    torch.save({"network_weights": weights, "init_args": facts}, path)
    return path


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("transposed", [None, (1, 0, 2), (2, 0, 1)])
def test_a_residual_encoder_of_nnunet_gives_the_same_features(tmp_path, norm, transposed):
    residual = pytest.importorskip("dynamic_network_architectures.building_blocks.residual_encoders")
    order = [2 - axis for axis in transposed or (0, 1, 2)]
    kind = nn.InstanceNorm3d if norm == "instance" else nn.BatchNorm3d
    options = arguments(kind, order) | {"n_blocks_per_stage": (1, 2, 1)}
    theirs = random_weights(residual.ResidualEncoder(**options))
    weights = read_encoder_weights(checkpoint(theirs, tmp_path / "checkpoint_final.pth", transposed))
    torch.manual_seed(1)
    network = build_network(planned(norm)).eval()
    report = put_into(weights, network)
    assert all(row.taken for row in report.rows if row.ours)
    assert report.numbers == report.of_numbers
    # (batch, channel, x, y, z) and, for theirs, with its axes.
    image = torch.randn(1, 1, 16, 12, 8)
    there = [2 + axis for axis in order]
    with torch.no_grad():
        ours, expected = network.encoder(image), theirs(image.permute(0, 1, *there))
    for feature, other in zip(ours, expected, strict=True):
        back = [2 + order.index(axis) for axis in range(3)]
        torch.testing.assert_close(feature, other.permute(0, 1, *back), rtol=1e-4, atol=1e-4)


def test_a_trained_folder_of_nnunet_is_a_source_and_its_second_names_do_not_confuse(tmp_path):
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    options = arguments(nn.InstanceNorm3d, (2, 1, 0)) | {"n_blocks_per_stage": (1, 2, 1)}
    del options["return_skips"]
    theirs = random_weights(
        unet.ResidualEncoderUNet(**options, num_classes=2, n_conv_per_stage_decoder=1, deep_supervision=True)
    )
    weights = theirs.state_dict()
    assert any(name.startswith("decoder.encoder.") for name in weights)
    assert any(".all_modules." in name for name in weights)
    (tmp_path / "fold_0").mkdir()
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_text("{}")
    torch.save({"network_weights": weights}, tmp_path / "fold_0" / "checkpoint_final.pth")
    found = read_encoder_weights(tmp_path)
    own_decoder = [name for name in weights if re.match(r"decoder\.(?!encoder)", name)]
    assert found.others == len(own_decoder)
    network = build_network(planned())
    report = put_into(found, network)
    assert report.numbers == report.of_numbers
    left = [row for row in report.rows if row.ours is None]
    assert left
    assert all(row.theirs.endswith("conv.bias") and "norm follows" in row.why for row in left)


def test_a_plain_encoder_gives_what_fits_and_says_what_does_not(tmp_path):
    plain = pytest.importorskip("dynamic_network_architectures.building_blocks.plain_conv_encoder")
    options = arguments(nn.InstanceNorm3d, (2, 1, 0)) | {"n_conv_per_stage": 2}
    theirs = random_weights(plain.PlainConvEncoder(**options))
    weights = read_encoder_weights(checkpoint(theirs, tmp_path / "a.pth"))
    network = build_network(planned())
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    report = put_into(weights, network)
    after, there = network.encoder.state_dict(), theirs.state_dict()

    def turned(name):
        return there[name].permute(0, 1, 4, 3, 2)

    assert torch.equal(after["stem.conv.weight"], turned("stages.0.0.convs.0.conv.weight"))
    assert torch.equal(after["stages.0.0.first.conv.weight"], turned("stages.0.0.convs.1.conv.weight"))
    assert torch.equal(after["stages.2.0.first.conv.weight"], turned("stages.2.0.convs.0.conv.weight"))
    assert torch.equal(after["stages.2.0.conv.weight"], turned("stages.2.0.convs.1.conv.weight"))
    assert torch.equal(after["stages.2.0.norm.bias"], there["stages.2.0.convs.1.norm.bias"])
    rows = {row.ours: row for row in report.rows}
    for name in ("stages.0.0.conv.weight", "stages.1.1.conv.weight", "stages.2.0.shortcut.1.weight"):
        assert torch.equal(after[name], before[name])
        assert not rows[f"encoder.{name}"].taken
    assert any("not the same function" in note for note in report.notes)
    assert any("1.5 x 2 x 3 mm" in note and "CTNormalization" in note for note in report.notes)
    assert any("left and right" in note for note in report.notes)
    assert any("1 tensors" in note for note in report.notes)


def stunet_weights(widths, depth):
    """The names and shapes of a STU-Net's state dict, at random; kernels 3 x 3 x 3."""
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for stage, (into, width) in enumerate(zip((1, *widths), widths, strict=False)):
        for block in range(depth):
            channels = {"1": into if block == 0 else width, "2": width}
            edges = {"1": 3, "2": 3}
            if block == 0:
                channels["3"], edges["3"] = into, 1
            for number, edge in edges.items():
                name = f"conv_blocks_context.{stage}.{block}"
                shape = (width, channels[number], edge, edge, edge)
                weights[f"{name}.conv{number}.weight"] = torch.randn(shape, generator=generator)
                weights[f"{name}.conv{number}.bias"] = torch.randn(width, generator=generator)
                if number != "3":
                    weights[f"{name}.norm{number}.weight"] = torch.randn(width, generator=generator)
                    weights[f"{name}.norm{number}.bias"] = torch.randn(width, generator=generator)
    weights["conv_blocks_localization.0.0.conv1.weight"] = torch.randn(8, 16, 3, 3, 3, generator=generator)
    return weights


def test_a_stunet_gives_what_fits_and_says_what_does_not(tmp_path):
    theirs = stunet_weights((8, 8, 16, 16), 2)
    torch.save({"state_dict": theirs, "epoch": 4000}, tmp_path / "small_ep4k.model")
    network = build_network(planned(kernels=None, blocks_per_stage=(2, 2, 1)))
    report = put_into(read_encoder_weights(tmp_path / "small_ep4k.model"), network)
    after = network.encoder.state_dict()

    def turned(name):
        return theirs[f"conv_blocks_context.{name}.weight"].permute(0, 1, 4, 3, 2)

    assert torch.equal(after["stem.conv.weight"], turned("0.0.conv1"))
    assert torch.equal(after["stages.0.0.first.conv.weight"], turned("0.0.conv2"))
    assert torch.equal(after["stages.0.1.conv.weight"], turned("0.1.conv2"))
    assert torch.equal(after["stages.2.0.first.conv.weight"], turned("2.0.conv1"))
    assert torch.equal(after["stages.2.0.shortcut.1.weight"], turned("2.0.conv3"))
    rows = {row.theirs: row for row in report.rows}
    # Stage 3 and the second block of stage 2 have no place; where widths stay, ours has no projection.
    for name in ("3.0.conv1", "2.1.conv1", "1.0.conv3", "0.0.conv3"):
        assert not rows[f"conv_blocks_context.{name}.weight"].taken
    assert "average" in rows["conv_blocks_context.2.0.conv3.weight"].why
    assert "norm follows" in rows["conv_blocks_context.2.0.conv1.bias"].why
    assert any("no stem" in note for note in report.notes)


def test_our_own_model_gives_encoder_and_trunk_by_its_name():
    default = find_model("default")
    theirs = load_network(default.path, default.plan).state_dict()
    network = build_network(default.plan)
    fusion = network.fusion.state_dict()["no_text"].clone()
    report = put_into(read_encoder_weights("default"), network)
    assert all(row.taken for row in report.rows)
    for name, value in network.state_dict().items():
        if name.startswith(("encoder.", "trunk.")):
            assert torch.equal(value, theirs[name])
    assert torch.equal(network.fusion.state_dict()["no_text"], fusion)
    assert "textseg" in report.summary
    assert "100%" in report.summary


def test_of_another_plan_only_what_fits_is_taken(tmp_path):
    torch.manual_seed(1)
    wide = build_network(planned(width_ratios=(1, 1, 3)))
    save_file(dict(wide.state_dict()), tmp_path / ENCODER_FILE)
    network = build_network(planned())
    report = put_into(read_encoder_weights(tmp_path), network)
    rows = {row.ours: row for row in report.rows}
    assert rows["encoder.stages.1.1.conv.weight"].taken
    assert rows["trunk.merges.0.conv.weight"].taken
    assert not rows["encoder.stages.2.0.first.conv.weight"].taken
    assert rows["encoder.stages.2.0.first.conv.weight"].why == "theirs is 24x8x3x3x3"
    assert 0 < report.numbers < report.of_numbers
    lines = report.table()
    assert lines[0].split() == ["ours", "theirs", "shape", "taken", "why"]
    assert len(lines) == len(report.rows) + 1
    assert len({line.index(" yes ") for line in lines if " yes " in line}) == 1


def test_weights_of_other_widths_are_refused_with_both(tmp_path):
    save_file(stunet_weights((24, 40), 1), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"are 24 40 wide and the plan's are 8 8 16"):
        put_into(read_encoder_weights(tmp_path / "weights.safetensors"), build_network(planned()))


def test_a_file_without_an_encoder_is_refused(tmp_path):
    save_file({"head.weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"none of them.*head\.weight"):
        read_encoder_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    weights = stunet_weights((8, 8), 1)
    weights["conv_blocks_context.1.0.norm1.bias"][2] = bad
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"conv_blocks_context\.1\.0\.norm1\.bias"):
        read_encoder_weights(tmp_path / "weights.safetensors")


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return ran.write_text, ("",)

    torch.save({"network_weights": Trap()}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="could run code"):
        read_encoder_weights(tmp_path / "a.pth")
    assert not ran.exists()


def test_a_run_begins_with_the_weights_and_trains_all_that_it_would(tmp_path):
    plan = planned()
    save_file(stunet_weights((8, 8, 16), 1), tmp_path / "weights.safetensors")
    weights = read_encoder_weights(tmp_path / "weights.safetensors")
    reports = []
    one, two = (started_from(weights, report=reports.append)(plan) for _ in range(2))
    plain = fresh(plan)
    assert len(reports) == 2
    started, again, without = (each.network.state_dict() for each in (one, two, plain))
    differs = {name for name in started if not torch.equal(started[name], without[name])}
    assert differs
    assert all(name.startswith("encoder.") for name in differs)
    assert all(torch.equal(started[name], again[name]) for name in started)
    trained = {id(p) for group in one.groups for p in group["params"]}
    assert trained == {id(p) for p in one.network.parameters()}


def test_a_run_does_not_go_on_from_another_encoder(tmp_path):
    reports = []
    for number, width in enumerate((8, 16)):
        path = tmp_path / f"{number}.safetensors"
        save_file(stunet_weights((8, 8, width), 1), path)
        reports.append(put_into(read_encoder_weights(path), build_network(planned())))
    keep_report(reports[0], tmp_path / "run")
    keep_report(reports[0], tmp_path / "run")
    table = (tmp_path / "run" / TABLE_FILE).read_text(encoding="utf-8")
    assert table.startswith(reports[0].summary)
    assert all(line in table for line in reports[0].table())
    with pytest.raises(ModelError, match=r"begun with, .*0\.safetensors, but got .*1\.safetensors"):
        keep_report(reports[1], tmp_path / "run")


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no\.pth.*neither"):
        read_encoder_weights(tmp_path / "no.pth")


def test_a_run_that_was_begun_without_weights_does_not_go_on_with_some(tmp_path):
    save_file(stunet_weights((8, 8, 16), 1), tmp_path / "weights.safetensors")
    report = put_into(read_encoder_weights(tmp_path / "weights.safetensors"), build_network(planned()))
    (tmp_path / STATE_FILE).write_bytes(b"")
    with pytest.raises(ModelError, match="was begun without other weights"):
        keep_report(report, tmp_path)
