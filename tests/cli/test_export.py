"""`textseg export`: a run becomes a model that predicts without the run and its dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Run, Stub
from tests.train.test_labelled import write_dataset
from textseg.errors import ModelError
from textseg.models import find_model
from textseg.train.cases import Target
from textseg.train.checkpoint import BEST_FILE
from textseg.train.export import TAUGHT_FILE, read_taught

CASES = {"cases": {"a": [{"text": "the lump that the patient feels", "label": "odd thing"}]}}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take longer to start than these cases to prepare."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture
def tuned(textseg: Run, tiny_model: Path, tmp_path: Path) -> Path:
    """A low-rank fine-tuning that was stopped after one of two steps; gives its run."""
    labels = {"labels": {"odd thing": ["wibble wobble", "odd wibble"]}}
    dataset = write_dataset(tmp_path / "set", prompts=labels | CASES)
    options = ("--from", tiny_model, "-o", tmp_path / "mine", "--steps", "2", "--what", "lora")
    assert textseg("finetune", dataset, *options, "--device", "cpu", "--minutes", "0").exit_code == 0
    shutil.rmtree(dataset)
    return tmp_path / "mine.run"


def test_an_exported_model_is_that_of_the_run_and_predicts_alone(
    textseg: Run, tuned: Path, tmp_path: Path, scan: Path, stub: Stub
) -> None:
    result = textseg("export", tuned, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "a run of 1 step\n" in result.stdout
    trained, exported = (load_file(tmp_path / name / "network.safetensors") for name in ("mine", "out"))
    assert trained.keys() == exported.keys()
    assert all(torch.equal(trained[name], exported[name]) for name in trained)
    shutil.rmtree(tuned)
    shutil.rmtree(tmp_path / "mine")
    card = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert "1 of 2 steps" in card
    assert "not been scored" in card
    assert textseg("models", "show", tmp_path / "out").exit_code == 0
    assert textseg("predict", scan, "odd wibble", "--model", tmp_path / "out", "-o", tmp_path).exit_code == 0


def test_float32_keeps_what_float16_rounds(textseg: Run, tuned: Path, tmp_path: Path) -> None:
    for name, options in (("half", ()), ("full", ("--float32",))):
        assert textseg("export", tuned, "-o", tmp_path / name, *options).exit_code == 0
    half, full = (load_file(tmp_path / name / "network.safetensors") for name in ("half", "full"))
    assert {tensor.dtype for tensor in full.values()} == {torch.float32}
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert all(torch.equal(full[name].half(), half[name]) for name in half)
    assert not all(torch.equal(full[name], half[name].float()) for name in half)


def test_a_model_carries_what_it_was_taught_and_no_sentence_about_a_patient(
    textseg: Run, tuned: Path, tmp_path: Path
) -> None:
    assert textseg("export", tuned, "-o", tmp_path / "out").exit_code == 0
    taught = read_taught(tmp_path / "out")
    assert taught.keys() == {Target("left_kidney"), Target(None, None, "odd thing")}
    assert taught[Target(None, None, "odd thing")] == ("wibble wobble", "odd wibble")
    assert taught[Target("left_kidney")][0] == "left kidney"
    text = (tmp_path / "out" / TAUGHT_FILE).read_text(encoding="utf-8")
    assert "patient feels" not in text
    assert json.loads(text)["format"] == "textseg-taught-1"


def test_an_exported_card_is_that_of_the_run_once_it_has_ended(
    textseg: Run, tiny_model: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "set", cases=("a", "b", "c"))
    options = ("--from", tiny_model, "-o", tmp_path / "mine", "--steps", "1", "--hold-back", "3")
    assert textseg("finetune", dataset, *options, "--device", "cpu").exit_code == 0
    assert textseg("export", tmp_path / "mine.run", "-o", tmp_path / "out").exit_code == 0
    cards = [(tmp_path / name / "card.md").read_text(encoding="utf-8") for name in ("mine", "out")]
    assert cards[0] == cards[1]
    assert "| odd thing |" in cards[0]


def test_export_replaces_no_model_unasked_and_needs_a_run(textseg: Run, tuned: Path, tmp_path: Path) -> None:
    assert textseg("export", tuned, "-o", tmp_path / "out").exit_code == 0
    refused = textseg("export", tuned, "-o", tmp_path / "out")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "--overwrite" in refused.stderr
    assert textseg("export", tuned, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    no_run = textseg("export", tmp_path / "mine", "-o", tmp_path / "other")
    assert (no_run.exit_code, len(no_run.stderr.splitlines())) == (2, 1)
    assert "Did you mean" in no_run.stderr
    assert not (tmp_path / "other").exists()


def test_a_damaged_state_is_one_sentence(textseg: Run, tuned: Path, tmp_path: Path) -> None:
    (tuned / "state.pt").write_bytes(b"no state")
    result = textseg("export", tuned, "-o", tmp_path / "out")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_the_best_weights_are_exported_unless_the_last_are_asked_for(
    textseg: Run, tiny_model: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "set", cases=("a", "b", "c"))
    options = ("--from", tiny_model, "-o", tmp_path / "mine", "--steps", "2", "--hold-back", "3")
    assert textseg("finetune", dataset, *options, "--device", "cpu").exit_code == 0
    run = tmp_path / "mine.run"
    # As if step 1 had done better, with weights that are told from any others.
    best = {name: torch.zeros(tensor.shape) for name, tensor in _averaged(run).items()}
    save_file(best, run / BEST_FILE, {"step": "1", "dice": "0.5"})
    assert textseg("export", run, "-o", tmp_path / "best").exit_code == 0
    assert not any(tensor.any() for tensor in load_file(tmp_path / "best" / "network.safetensors").values())
    assert textseg("export", run, "-o", tmp_path / "last", "--last").exit_code == 0
    assert any(tensor.any() for tensor in load_file(tmp_path / "last" / "network.safetensors").values())
    card = (tmp_path / "last" / "card.md").read_text(encoding="utf-8")
    assert "not been scored" in card
    assert "average at step 2" in card


def _averaged(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, dict[str, torch.Tensor]] = torch.load(run / "state.pt", weights_only=True)
    return state["averaged"]


def test_a_model_understands_its_own_labels_where_the_lexicon_would_not(
    textseg: Run, tiny_model: Path, tmp_path: Path
) -> None:
    labels = {"background": 0, "enhancing tumor": 1, "non-enhancing tumor": 2}
    dataset = write_dataset(tmp_path / "set", labels=labels)
    options = ("--from", tiny_model, "-o", tmp_path / "mine", "--steps", "2", "--device", "cpu")
    result = textseg("finetune", dataset, *options, "--minutes", "0")
    assert result.exit_code == 0, result.output
    assert textseg("export", tmp_path / "mine.run", "-o", tmp_path / "out").exit_code == 0
    for name in ("mine", "out"):
        prompts = find_model(tmp_path / name).read_prompts(
            ["the Non-enhancing tumors", "enhancing tumor", "liver"]
        )
        assert [prompt.canonical for prompt in prompts] == ["non enhancing tumor", "enhancing tumor", "liver"]
    (tmp_path / "out" / TAUGHT_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="taught"):
        find_model(tmp_path / "out").read_prompts(["liver"])
