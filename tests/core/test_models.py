"""Models on disk: found by name or folder, and a clear word where a file is missing."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

from tests.nnunet.tiny_nnunet import write_nnunet
from textseg import models
from textseg.errors import ModelError, PlanError, ScanError
from textseg.models import WEIGHTS_FILES, find_model, plans_folder, shipped_models
from textseg.plan import read_plan
from textseg.registry.entries import NOTE_FILE, all_entries


@pytest.fixture
def model(tmp_path):
    """A complete folder: a real plan, files of weights without any."""
    return complete(tmp_path / "mine")


def complete(folder):
    folder.mkdir(parents=True)
    shutil.copy(plans_folder() / "default" / "plan.json", folder)
    for name in WEIGHTS_FILES:
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package with two complete models and one plan without weights."""
    for name in ("zebra", "default"):
        complete(tmp_path / "plans" / name)
    (tmp_path / "plans" / "bare").mkdir()
    shutil.copy(plans_folder() / "default" / "plan.json", tmp_path / "plans" / "bare")
    monkeypatch.setattr(models, "plans_folder", lambda: tmp_path / "plans")
    return tmp_path / "plans"


def test_a_model_takes_the_channels_of_its_plan_and_no_others(model):
    found = find_model(model)
    assert found.channels == ("image",)
    found.check_channels(1)
    for count in (0, 2):
        with pytest.raises(PlanError, match=rf"takes 1 channel\(s\) \(image\), got {count}\."):
            found.check_channels(count)


def test_an_nnunet_takes_the_channels_of_its_dataset(tmp_path):
    found = find_model(write_nnunet(tmp_path, folds=1, channels=2))
    assert found.channels == ("channel 0", "channel 1")
    found.check_channels(2)
    with pytest.raises(ScanError, match=r"takes 2 channel\(s\) \(channel 0, channel 1\), got 1\."):
        found.check_channels(1)


def test_the_package_ships_its_plans():
    assert {path.parent.name for path in plans_folder().glob("*/plan.json")} >= {"default", "medium", "large"}


def test_a_folder_that_is_complete_is_a_model(model):
    for given in (model, str(model)):
        found = find_model(given)
        assert found.name == "mine"
        assert found.path == model
        assert found.plan == read_plan(model)
        assert found.card == ""
    (model / "card.md").write_text("# Größe", encoding="utf-8")
    assert find_model(model).card == "# Größe"


@pytest.mark.parametrize("name", ["plan.json", *WEIGHTS_FILES])
def test_a_missing_file_is_named(name, model):
    (model / name).unlink()
    with pytest.raises(ModelError, match=rf"has no {name}\.$"):
        find_model(model)


def test_all_missing_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no plan\.json and no network\.safetensors and no"):
        find_model(tmp_path)


def test_shipped_models_are_those_with_weights_the_default_first(shipped):
    assert [model.name for model in shipped_models()] == ["default", "zebra"]
    assert find_model("zebra").path == shipped / "zebra"
    with pytest.raises(ModelError, match=r"bare has no network\.safetensors"):
        find_model("bare")


def test_an_unknown_model_is_refused_with_the_names_there_are(shipped):
    with pytest.raises(ModelError, match=r"shipped one \(default, zebra\) or a folder, got 'lion'"):
        find_model("lion")


def test_without_any_shipped_model_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "plans_folder", lambda: tmp_path)
    with pytest.raises(ModelError, match=r"shipped one \(none\)"):
        find_model("default")


def test_a_shipped_name_goes_before_a_folder_of_that_name_here(shipped, tmp_path, monkeypatch):
    complete(tmp_path / "here" / "zebra")
    monkeypatch.chdir(tmp_path / "here")
    assert find_model("zebra").path == shipped / "zebra"
    assert find_model("./zebra").path.resolve() == tmp_path / "here" / "zebra"


# ---- licences ----


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("# A\n\n**Licence of the weights** CC BY-SA 4.0, because of the data. More.", "CC BY-SA 4.0"),
        ("**Licence of the weights** CC BY 4.0. The code stays Apache-2.0.", "CC BY 4.0"),
        ("**Licence of the weights**: MIT", "MIT"),
        ("**Licence** of something else: MIT", None),
        (None, None),
    ],
)
def test_a_licence_is_the_cards(card, licence, model):
    if card is not None:
        (model / "card.md").write_text(card, encoding="utf-8")
    assert find_model(model).licence == licence


def test_a_licence_in_the_file_of_the_weights_comes_first(model):
    (model / "card.md").write_text("**Licence of the weights** MIT")
    header = json.dumps({"__metadata__": {"license": "CC BY 4.0"}}).encode()
    (model / "network.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert find_model(model).licence == "CC BY 4.0"


def test_every_shipped_model_tells_its_licence():
    assert all(model.licence for model in shipped_models())


# ---- what the registry has besides models ----


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("entry", [e for e in all_entries() if e.kind != "model"], ids=lambda e: e.name)
def test_an_entry_that_is_no_model_says_how_it_is_used(entry, fetched, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    if fetched:
        entry.place.mkdir(parents=True)
        (entry.place / NOTE_FILE).write_text("{}")
    with pytest.raises(ModelError) as error:
        find_model(entry.name)
    said = str(error.value)
    assert entry.use in said
    assert ("is on this machine" in said) == fetched
    assert (f"textseg weights fetch {entry.name}" in said) != fetched


def test_a_fetched_model_that_lost_a_file_is_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    entry = next(entry for entry in all_entries() if entry.kind == "model")
    entry.model_folder.mkdir(parents=True)
    (entry.place / NOTE_FILE).write_text("{}")
    with pytest.raises(ModelError, match=rf"weights fetch {entry.name}` --again"):
        find_model(entry.name)
