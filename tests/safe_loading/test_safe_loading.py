"""Checkpoints of others are read whole or refused in a sentence, and nothing in them ever runs."""

from __future__ import annotations

import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from textseg.errors import ModelError
from textseg.safe_loading import (
    check_finite,
    check_fit,
    compare_shapes,
    load_checkpoint,
    load_fitting,
    network_weights,
)


def weights(prefix=""):
    return OrderedDict(
        {f"{prefix}conv.weight": torch.arange(24.0).reshape(2, 3, 4), f"{prefix}norm.bias": torch.ones(2)}
    )


def saved(tmp_path, content, **options):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, **options)
    return path


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, marker, function=os.mkdir):
        self.call = (function, (str(marker),))

    def __reduce__(self):
        return self.call


# ---- what is read ----

TRAINING = {
    "nnU-Net, VoxTell, nnInteractive": {
        "network_weights": weights(),
        "optimizer_state": {
            "state": {0: {"momentum_buffer": torch.zeros(3)}},
            "param_groups": [{"lr": 0.01}],
        },
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice": [[np.float32(0.25), np.float64(1)]]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 3,
        "init_args": {"fold": 0, "device": torch.device("cuda"), "plans": {"patch_size": [64, 64, 64]}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    },
    "STU-Net": {
        "epoch": 4,
        "state_dict": weights(),
        "plot_stuff": ([np.float64(1)], np.arange(3)),
        "best_stuff": (),
    },
    "SAT": {"step": 10, "model_state_dict": weights("module."), "optimizer_state_dict": {"state": {}}},
    "MONAI handlers": {"model": weights("module._orig_mod."), "optimizer": {"state": {}}},
    "MONAI bundles and SAM": weights(),
}


@pytest.mark.parametrize("content", TRAINING.values(), ids=TRAINING.keys())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_the_network_is_found_in_every_known_layout(content, zipped, tmp_path):
    checkpoint = load_checkpoint(saved(tmp_path, content, _use_new_zipfile_serialization=zipped))
    found = network_weights(checkpoint)
    assert list(found) == ["conv.weight", "norm.bias"]
    assert all(torch.equal(found[name], tensor) for name, tensor in weights().items())


def test_facts_are_plain_values(tmp_path):
    checkpoint = load_checkpoint(saved(tmp_path, TRAINING["nnU-Net, VoxTell, nnInteractive"]))
    assert checkpoint.facts == {
        "optimizer_state": {"param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [0.5], "dice": [[0.25, 1.0]]},
        "_best_ema": 0.75,
        "current_epoch": 3,
        "init_args": {"fold": 0, "device": "cuda", "plans": {"patch_size": [64, 64, 64]}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": [0, 1, 2],
    }
    assert type(checkpoint.facts["_best_ema"]) is float
    assert "optimizer_state/state/0/momentum_buffer" in checkpoint.tensors


@pytest.mark.parametrize("code", "?bhilqBHILQefd")
def test_numpy_numbers_of_every_size_are_facts(code, tmp_path):
    content = {"weight": torch.ones(1), "one": np.dtype(code).type(1), "many": np.ones((2, 2), code)}
    facts = load_checkpoint(saved(tmp_path, content)).facts
    assert facts == {"one": 1, "many": [[1, 1], [1, 1]]}


def test_numbers_pickled_by_numpy_1_are_read(tmp_path):
    path = saved(tmp_path, {"weight": torch.ones(1), "one": np.float64(1)})
    _rewrite(path, lambda name, content: content.replace(b"numpy._core", b"numpy.core"))
    assert load_checkpoint(path).facts == {"one": 1.0}


def test_parameters_come_without_gradients(tmp_path):
    path = saved(tmp_path, {"weight": torch.nn.Parameter(torch.ones(2))})
    tensor = load_checkpoint(path).tensors["weight"]
    assert not tensor.requires_grad


def test_tensors_that_share_memory_are_read_each(tmp_path):
    weight = torch.randn(4, 5)
    found = load_checkpoint(saved(tmp_path, {"a": weight, "b": weight, "c": weight[1:3]})).tensors
    assert all(
        torch.equal(found[name], tensor)
        for name, tensor in {"a": weight, "b": weight, "c": weight[1:3]}.items()
    )


def test_safetensors_are_read_too(tmp_path):
    path = tmp_path / "network.safetensors"
    save_file(dict(weights()), path)
    assert list(network_weights(load_checkpoint(path))) == ["conv.weight", "norm.bias"]


def test_what_torch_allows_is_afterwards_as_it_was(tmp_path):
    before = list(torch.serialization.get_safe_globals())
    load_checkpoint(saved(tmp_path, TRAINING["STU-Net"]))
    with pytest.raises(ModelError):
        load_checkpoint(saved(tmp_path, {"a": Path("b")}))
    assert torch.serialization.get_safe_globals() == before


def test_what_the_caller_allowed_stays_allowed(tmp_path):
    with torch.serialization.safe_globals([np.dtype]):
        load_checkpoint(saved(tmp_path, TRAINING["STU-Net"]))
        assert np.dtype in torch.serialization.get_safe_globals()


def test_threads_do_not_take_each_others_types_away(tmp_path):
    path = saved(tmp_path, TRAINING["nnU-Net, VoxTell, nnInteractive"])
    failures = []

    def read():
        try:
            for _ in range(10):
                load_checkpoint(path)
        except ModelError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- what could run ----


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["torch zip", "old torch", "bare pickle"])
def test_a_pickle_that_would_run_code_does_not_and_is_named(form, protocol, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "checkpoint.pth"
    content = {"network_weights": weights(), "logging": Runs(marker)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"logging": Runs(marker)}, protocol))
    else:
        zipped = form == "torch zip"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"asks for (posix|nt)\.mkdir, which could run code") as error:
        load_checkpoint(path)
    assert not marker.exists()
    assert "\n" not in str(error.value)


def test_the_malicious_pickle_of_these_tests_does_run_where_it_is_trusted(tmp_path):
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (Path("a"), r"pathlib\S*Path"),
        (np.array([{}], dtype=object), "numpy"),
        (np.datetime64("2026-01-01"), "numpy"),
        (threading.Thread, r"threading\.Thread"),
        (eval, "eval"),
        (slice(1, 2), "slice"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_not_plain_is_named(value, name, tmp_path):
    with pytest.raises(ModelError, match=rf"asks for [^,]*{name}"):
        load_checkpoint(saved(tmp_path, {"weight": torch.ones(1), "extra": value}))


def test_harmless_content_in_another_protocol_is_refused_as_that(tmp_path):
    with pytest.raises(ModelError, match="protocol 2"):
        load_checkpoint(saved(tmp_path, {"weight": torch.ones(1)}, pickle_protocol=4))


def test_a_program_is_refused_as_such(tmp_path):
    # What tells a TorchScript archive from a checkpoint.
    path = saved(tmp_path, {"weight": torch.ones(1)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("checkpoint/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(ModelError, match="TorchScript"):
        load_checkpoint(path)


# ---- what is damaged, or made to be too large ----


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(kept, zipped, tmp_path):
    content = {"network_weights": {"weight": torch.randn(300, 300)}, "logging": [np.float64(1)]}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ModelError, match=r"can't be read \(.+\)\. Fetch it again") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 20, 200])
def test_a_truncated_safetensors_file_is_refused(kept, tmp_path):
    path = tmp_path / "network.safetensors"
    save_file(dict(weights()), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="Fetch it again"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"\x00" * 100, b"not weights at all", b"\x80\x02}q\x00.", b"\x1f\x8b\x08"]
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "."])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(ModelError, match="can be read"):
        load_checkpoint(tmp_path / name)


def test_bytes_changed_within_the_tensors_are_noticed(tmp_path):
    path = saved(tmp_path, {"weight": torch.zeros(1000)})
    content = bytearray(path.read_bytes())
    place = content.index(bytes(4000))
    content[place + 2000] = 1
    path.write_bytes(content)
    try:
        tensor = load_checkpoint(path).tensors["weight"]
    except ModelError:
        return
    # Some versions of torch don't look at the checksum; the shape at least is right.
    assert tensor.shape == (1000,)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = saved(tmp_path, {"weight": torch.zeros(1_000_000)})
    _rewrite(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(ModelError, match=r"unpacks to 4,\d{3},\d{3}; it is not read"):
        load_checkpoint(path)


def test_a_checkpoint_of_very_many_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("textseg.safe_loading.MOST_ENTRIES", 10)
    path = saved(tmp_path, {str(n): torch.zeros(1) for n in range(20)})
    with pytest.raises(ModelError, match="at most 10 entries"):
        load_checkpoint(path)


def test_one_number_spread_over_a_huge_shape_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"weight of .* has shape \(1000000, 1000000\)"):
        load_checkpoint(saved(tmp_path, {"weight": torch.zeros(1).expand(1_000_000, 1_000_000)}))


def test_a_tensor_that_claims_more_than_the_file_brings_is_refused(tmp_path):
    path = saved(tmp_path, {"weight": torch.arange(4.0)})
    # The number of elements, in the storage and in the shape: 4 becomes 65535.
    larger = {b"K\x04tq": b"M\xff\xfftq", b"K\x04\x85": b"M\xff\xff\x85"}

    def claim(name, content):
        for old, new in larger.items() if name.endswith("data.pkl") else ():
            assert old in content
            content = content.replace(old, new)
        return content

    _rewrite(path, claim)
    with pytest.raises(ModelError):
        load_checkpoint(path)


def test_lists_without_end_are_refused(tmp_path):
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ModelError, match="a few levels deep"):
        load_checkpoint(saved(tmp_path, {"weight": torch.ones(1), "log": endless}))


def test_lists_that_multiply_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("textseg.safe_loading.MOST_VALUES", 10_000)
    log: list[object] = [1]
    for _ in range(40):
        log = [log, log]
    with pytest.raises(ModelError, match="a few levels deep"):
        load_checkpoint(saved(tmp_path, {"weight": torch.ones(1), "log": log}))


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_that_are_not_plain_are_refused(tensor, tmp_path):
    with pytest.raises(ModelError, match="plain tensors, but section/weight"):
        load_checkpoint(saved(tmp_path, {"section": {"weight": tensor}}))


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], 7])
def test_a_checkpoint_without_names_is_refused(content, tmp_path):
    with pytest.raises(ModelError, match="tensors by name"):
        load_checkpoint(saved(tmp_path, content))


def test_a_checkpoint_without_a_network_says_what_it_has(tmp_path):
    checkpoint = load_checkpoint(saved(tmp_path, {"optimizer": {"buffer": torch.ones(1)}, "ema": weights()}))
    with pytest.raises(ModelError, match="has optimizer, ema"):
        network_weights(checkpoint)
    with pytest.raises(ModelError, match="no tensor at all"):
        network_weights(load_checkpoint(saved(tmp_path, {"epoch": 3})))


# ---- what does not fit ----


def test_what_differs_is_a_table():
    expected = {
        "a": torch.ones(2, 3),
        "long.name": torch.ones(4),
        "same": torch.ones(1),
        "gone": torch.ones(1),
    }
    found = {
        "a": torch.ones(3, 2),
        "long.name": torch.ones(4, 1),
        "same": torch.ones(1),
        "new": torch.tensor(1),
    }
    assert compare_shapes(expected, found) == [
        "tensor     expected  found",
        "a          (2, 3)    (3, 2)",
        "long.name  (4,)      (4, 1)",
        "gone       (1,)      -",
        "new        -         ()",
    ]
    assert compare_shapes(expected, expected) == []


def test_a_long_table_is_cut():
    expected = {str(n): torch.ones(1) for n in range(30)}
    with pytest.raises(ModelError, match=r"30 tensor\(s\) of here") as error:
        check_fit(expected, {}, Path("here"), most=5)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 1 + 5 + 1
    assert lines[-1] == "... and 25 more"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    tensors = {name: torch.full((2,), value) for name in "abcde"} | {
        "whole": torch.ones(2, dtype=torch.int64)
    }
    with pytest.raises(ModelError, match="a, b, c and 2 more hold NaN or infinity"):
        check_finite(tensors, Path("here"))
    with pytest.raises(ModelError, match="e holds NaN"):
        check_fit(tensors, tensors | {name: torch.ones(2) for name in "abcd"}, Path("here"))
    check_finite({"whole": tensors["whole"]}, Path("here"))


# ---- our own ----


def test_own_weights_come_as_float32_and_whole_numbers_as_they_are(tmp_path):
    path = tmp_path / "network.safetensors"
    save_file({"a": torch.ones(2, 3).half(), "steps": torch.tensor(7)}, path)
    found = load_fitting(path, {"a": torch.empty(2, 3), "steps": torch.tensor(0)})
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a": torch.float32,
        "steps": torch.int64,
    }


def test_misfits_of_own_weights_are_one_sentence(tmp_path):
    path = tmp_path / "network.safetensors"
    save_file({"a": torch.ones(2, 3), "new": torch.ones(1)}, path)
    expected = {"gone": torch.ones(1), "a": torch.ones(3, 2), "lost": torch.ones(1)}
    with pytest.raises(ModelError) as error:
        load_fitting(path, expected)
    assert str(error.value) == (
        f"A model's weights must fit its plan, but in {path} gone is missing; a is (2, 3) instead of (3, 2); "
        "lost is missing and 1 more."
    )


def _rewrite(path, change, compression=zipfile.ZIP_STORED):
    """The archive again, each entry changed by a function of its name and content."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
