"""A converted folder is smaller, holds no pickle, and gives the same logits bit for bit."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import safe_open

from tests.voxtell.tiny_folder import ODD, released_weights, write_bank, write_folder
from textseg.errors import ModelError, OutputError
from textseg.network.voxtell.folder import convert, load_voxtell
from textseg.network.voxtell.plan import BANK_FILE, CONVERTED_FILE, is_voxtell_folder
from textseg.network.voxtell.text import load_text


@torch.inference_mode()
def logits(folder, tiny):
    network = load_voxtell(folder)
    image = torch.randn((1, 1, *tiny.patch), generator=torch.Generator().manual_seed(2))
    text = load_text(folder, network.text_width).embed(["Liver", "spleen"])
    return network.decode(network.encode(image), text).logits


def test_the_same_logits_bit_for_bit(folder, tiny, tmp_path):
    before = logits(folder, tiny)
    convert(folder, tmp_path / "converted" / "voxtell")
    after = logits(tmp_path / "converted" / "voxtell", tiny)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_same_bits_with_other_sizes(tmp_path):
    before = logits(write_folder(tmp_path / "odd", ODD), ODD)
    convert(tmp_path / "odd", tmp_path / "converted")
    after = logits(tmp_path / "converted", ODD)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.skipif(os.name != "posix", reason="Other systems keep permissions otherwise.")
def test_whoever_may_read_new_files_may_read_it(folder, tmp_path):
    (tmp_path / "new").touch()
    for path in convert(folder, tmp_path / "converted"):
        assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_its_tensors_lie_in_memory_as_if_read_from_the_released_file(folder, tmp_path):
    # Where they lie in a safetensors file, products of matrices are rounded otherwise.
    convert(folder, tmp_path / "converted")
    weights = load_voxtell(tmp_path / "converted").state_dict()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in weights.values())


def test_it_holds_a_plan_a_bank_and_each_tensor_once(folder, tiny, tmp_path):
    out = tmp_path / "converted"
    convert(folder, out)
    assert sorted(path.name for path in out.iterdir()) == [CONVERTED_FILE, "plans.json", BANK_FILE]
    assert is_voxtell_folder(out)
    released = released_weights(tiny)
    with safe_open(out / CONVERTED_FILE, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(kept) < set(released)
    assert all(torch.equal(tensor, released[name]) for name, tensor in kept.items())
    pointers = {name: tensor.data_ptr() for name, tensor in released.items()}
    assert len({pointers[name] for name in kept}) == len(kept)
    dropped = {pointers[name] for name in released} - {pointers[name] for name in kept}
    never_run = {name for name, pointer in pointers.items() if pointer in dropped}
    assert {name for name in never_run if not name.startswith("transformer_decoder")} == {
        "decoder.seg_layers.2.weight",
        "decoder.seg_layers.2.bias",
    }
    assert {name.split(".")[3] for name in never_run if name.startswith("transformer")} == {
        "self_attn",
        "norm1",
    }


def test_a_converted_folder_can_be_converted_again(folder, tiny, tmp_path):
    convert(folder, tmp_path / "once")
    convert(tmp_path / "once", tmp_path / "twice")
    for before, after in zip(logits(tmp_path / "once", tiny), logits(tmp_path / "twice", tiny), strict=True):
        assert torch.equal(before, after)


def test_the_bank_beside_the_folder_comes_along(folder, tiny, tmp_path):
    bank = folder / "embeddings" / BANK_FILE
    write_bank(folder.parent / "embeddings" / folder.name / BANK_FILE, tiny.text, ("heart",))
    bank.unlink()
    convert(folder, tmp_path / "converted")
    assert load_text(tmp_path / "converted", tiny.text).prompts == ("heart",)


def test_a_folder_that_can_not_be_read_leaves_nothing_behind(folder, tmp_path):
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="Fetch it again"):
        convert(folder, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_folder_is_not_converted_into_itself(folder):
    with pytest.raises(OutputError, match="beside"):
        convert(folder, folder / ".." / folder.name)


def test_a_place_that_can_not_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*can't"):
        convert(folder, tmp_path / "file" / "converted")
