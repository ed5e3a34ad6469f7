"""Models on disk: found by name or folder, and a clear word where a file is missing."""

from __future__ import annotations

import shutil

import pytest

from tests.nnunet.tiny_nnunet import write_nnunet
from textseg import models
from textseg.errors import ModelError, PlanError, ScanError
from textseg.models import WEIGHTS_FILES, find_model, plans_folder, shipped_models
from textseg.plan import read_plan


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
