"""The plan: one document owns every number, and a wrong one is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from textseg.errors import PlanError
from textseg.plan import IntensityPlan, read_plan, write_plan

PLANS = Path(__file__).resolve().parents[2] / "plans"


@pytest.fixture
def document():
    """The default plan as JSON, free to change."""
    return json.loads((PLANS / "default" / "plan.json").read_text(encoding="utf-8"))


def written(folder, document, name="plan.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def changed(document, **sections):
    """The document with some keys of its sections replaced."""
    return document | {name: document[name] | change for name, change in sections.items()}


# ---- there and back ----


@pytest.mark.parametrize("size", ["default", "medium", "large"])
def test_a_plan_comes_back_as_it_was_written(size, tmp_path):
    plan = read_plan(PLANS / size)
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path)
    assert again == plan.model_copy(update={"extends": None})
    assert read_plan(tmp_path / "plan.json") == again
    write_plan(again, tmp_path / "twice.json")
    assert (tmp_path / "twice.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_a_plan_is_read_from_a_path_in_words(tmp_path):
    assert read_plan(str(PLANS / "default")) == read_plan(PLANS / "default" / "plan.json")


def test_text_in_brackets_comes_back_too(default_plan, tmp_path):
    plan = default_plan.model_copy(
        update={"summary": "As in [ 1 ], [  2,  3 ] {\n[\n 4\n]}", "channels": ("[ a ]",)}
    )
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path) == plan


def test_a_size_is_on_one_line(default_plan, tmp_path):
    write_plan(default_plan, tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    assert '"size_voxels": [80, 64, 48]' in text
    assert '"kernels": null' in text


def test_a_plan_that_can_not_be_written_leaves_the_old_one(default_plan, tmp_path, monkeypatch):
    write_plan(default_plan, tmp_path / "plan.json")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_plan(default_plan.model_copy(update={"name": "other"}), tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert read_plan(tmp_path) == default_plan


def test_a_plan_without_kernels_has_cubes(document, tmp_path):
    assert "kernels" not in document["network"]
    network = read_plan(written(tmp_path, document)).network
    assert network.kernels is None
    assert network.stage_kernels == ((3, 3, 3),) * 5


def test_kernels_come_back(document, tmp_path):
    flat = [[3, 3, 1], [3, 1, 3], *[[3, 3, 3]] * 3]
    plan = read_plan(written(tmp_path, changed(document, network={"kernels": flat})))
    assert plan.network.stage_kernels[:2] == ((3, 3, 1), (3, 1, 3))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path) == plan


def test_a_plan_is_frozen(default_plan):
    with pytest.raises(ValidationError, match="frozen"):
        default_plan.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        default_plan.network.width = 32


# ---- extends ----


def test_the_three_sizes_differ_in_one_dial_and_their_names(default_plan):
    for size, width in (("medium", 32), ("large", 64)):
        plan = read_plan(PLANS / size)
        assert plan.network.width == width
        same = plan.network.model_copy(update={"width": default_plan.network.width})
        assert same == default_plan.network
        named = {"network": default_plan.network, "name": default_plan.name, "summary": default_plan.summary}
        assert plan.model_copy(update=named | {"extends": None}) == default_plan


def test_extending_merges_sections_and_replaces_values(document, tmp_path):
    written(tmp_path, document, "base/plan.json")
    written(tmp_path, {"extends": "base/plan.json", "masks": {"threshold": 0.4}}, "middle.json")
    last = {
        "extends": "middle.json",
        "channels": ["t1", "t2"],
        "groups": {"brain": {"spacing_mm": [1, 1, 1]}},
    }
    plan = read_plan(written(tmp_path, last))
    assert plan.masks.threshold == 0.4
    assert plan.masks.presence == document["masks"]["presence"]
    assert plan.channels == ("t1", "t2")
    assert plan.groups["brain"].spacing_mm == (1, 1, 1)
    assert plan.spacing_for("hippocampus") == tuple(document["groups"]["hippocampus"]["spacing_mm"])
    assert plan.network.width == document["network"]["width"]


def test_a_plan_that_extends_itself_is_refused(tmp_path):
    written(tmp_path, {"extends": "b.json"}, "a.json")
    written(tmp_path, {"extends": "a.json"}, "b.json")
    with pytest.raises(PlanError, match="can't extend itself"):
        read_plan(tmp_path / "a.json")
    with pytest.raises(PlanError, match="can't extend itself"):
        read_plan(written(tmp_path, {"extends": "c.json"}, "c.json"))


@pytest.mark.parametrize("base", ["nowhere.json", 5, ["a.json"], {}])
def test_a_base_that_is_none_is_refused(base, tmp_path):
    with pytest.raises(PlanError):
        read_plan(written(tmp_path, {"extends": base}))


# ---- documents that are no plan ----


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "null", '"plan"', "\x00\x01"])
def test_a_file_that_is_no_json_object_is_refused(content, tmp_path):
    with pytest.raises(PlanError, match="A plan is a JSON"):
        read_plan(written(tmp_path, content))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(PlanError, match="JSON"):
        read_plan(tmp_path)


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere\.json can't: No such file"):
        read_plan(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match=r"plan\.json can't"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("section", "change", "where"),
    [
        ("network", {"widht": 16}, "network.widht"),
        ("network", {"width": "wide"}, "network.width"),
        ("network", {"width": 12}, "network.width"),
        ("network", {"width": None}, "network.width"),
        ("network", {"norm": "layer"}, "network.norm"),
        ("network", {"strides": [[1, 1, 1], [2, 2, 2]]}, "one entry a stage"),
        ("network", {"strides": [[2, 2, 2]] * 5}, "first stage has stride"),
        ("network", {"strides": [[1, 1, 1], [0, 2, 2], *[[2, 2, 2]] * 3]}, "network.strides"),
        ("network", {"strides": [[1, 1, 1], [-2, 2, 2], *[[2, 2, 2]] * 3]}, "network.strides"),
        ("network", {"strides": [[1, 1, 1], [2, 2], *[[2, 2, 2]] * 3]}, "network.strides"),
        (
            "network",
            {"strides": [], "width_ratios": [], "blocks_per_stage": [], "prompt_channels": []},
            "stage",
        ),
        ("network", {"kernels": [[3, 3, 3]] * 4}, "kernels need one entry a stage"),
        ("network", {"kernels": []}, "kernels need one entry a stage"),
        ("network", {"trunk_blocks": [1] * 5}, "trunk_blocks need one entry a stage but the coarsest"),
        ("network", {"trunk_blocks": [1, 1, 1, -1]}, "network.trunk_blocks"),
        (
            "network",
            {"kernels": [[3, 3, 2], *[[3, 3, 3]] * 4]},
            "network.kernels.0.2: Input should be 1 or 3",
        ),
        ("network", {"kernels": [*[[3, 3, 3]] * 4, [5, 3, 3]]}, "network.kernels.4.0"),
        ("network", {"kernels": [*[[3, 3, 3]] * 4, [3, 3]]}, "network.kernels.4"),
        ("network", {"blocks_per_stage": [1, 1, 2, 2, 0]}, "0 at the finest of several stages"),
        ("network", {"blocks_per_stage": [0, 0, 2, 2, 2]}, "0 at the finest of several stages"),
        ("network", {"prompt_channels": [8, 0, 8, 8, 8]}, "0 at the finest of several stages"),
        ("network", {"prompt_channels": [-8, 8, 8, 8, 8]}, "network.prompt_channels"),
        ("network", {"width_ratios": [1, 2, 4, 8, -12]}, "network.width_ratios"),
        ("network", {"query_heads": 5}, "multiple of query_heads"),
        ("network", {"text_width": 128}, "must equal text.vector_width"),
        ("windows", {"size_voxels": [96, 96, 100]}, "can't be divided by the strides"),
        ("windows", {"size_voxels": [96, 96, 0]}, "windows.size_voxels"),
        ("windows", {"size_voxels": [96, 96, -96]}, "windows.size_voxels"),
        ("windows", {"overlap": 1.0}, "windows.overlap"),
        ("windows", {"sigma_fraction": 0}, "windows.sigma_fraction"),
        ("training", {"patch_voxels": [64, 60, 64]}, "can't be divided by the strides"),
        ("training", {"patch_voxels": [0, 64, 64]}, "training.patch_voxels"),
        ("training", {"mirror_groups": ["brain", "brian"]}, "'brian' of training.mirror_groups"),
        ("masks", {"threshold": 1.0}, "masks.threshold"),
        ("masks", {"presence": -0.1}, "masks.presence"),
        ("groups", {"brain": {"spacing_mm": [1, 0, 1]}}, "groups.brain.spacing_mm"),
        ("groups", {"brain": {"spacing_mm": [1, -1, 1]}}, "groups.brain.spacing_mm"),
        ("groups", {"brain": {"spacing_mm": [1, float("nan"), 1]}}, "groups.brain.spacing_mm"),
        ("groups", {"brain": {"spacing_mm": [1, float("inf"), 1]}}, "groups.brain.spacing_mm"),
        ("intensity", {"us": {}}, "intensity.us"),
        ("text", {"heads": 5}, "multiple of heads"),
    ],
)
def test_a_wrong_value_is_refused_and_named_in_one_sentence(section, change, where, document, tmp_path):
    with pytest.raises(PlanError) as error:
        read_plan(written(tmp_path, changed(document, **{section: change})))
    assert where in str(error.value)
    assert str(error.value).startswith("The plan ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"format": "textseg-plan-2"}, "format"),
        ({"channels": []}, "channels"),
        ({"default_group": "spleen"}, "default_group 'spleen'"),
        ({"groups": {}}, "default_group"),
        ({"margin_mm": -1}, "margin_mm"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_wrong_value_at_the_top_is_refused_too(change, where, document, tmp_path):
    with pytest.raises(PlanError, match=where):
        read_plan(written(tmp_path, document | change))


def test_a_missing_section_is_named(document, tmp_path):
    del document["windows"]
    with pytest.raises(PlanError, match="windows: Field required"):
        read_plan(written(tmp_path, document))


@pytest.mark.parametrize(
    "change",
    [
        {"limits": (100.0, -100.0)},
        {"limits": (5.0, 5.0)},
        {"limits": (-1.0, 99.0), "limits_are": "percentiles"},
        {"limits": (1.0, 101.0), "limits_are": "percentiles"},
        {"limits": (0.0, float("nan"))},
        {"sd": 0.0},
        {"sd": -2.0},
    ],
    ids=str,
)
def test_intensities_that_make_no_sense_are_refused(change):
    sound = {"limits": (-100.0, 100.0), "limits_are": "values", "mean": 0.0, "sd": 50.0, "body_above": 0.0}
    IntensityPlan(**sound)
    with pytest.raises(ValidationError):
        IntensityPlan(**(sound | change))


# ---- what follows from the numbers ----


def test_widths_and_strides_follow_from_the_dial(default_plan):
    assert default_plan.network.widths == (16, 32, 64, 128, 192)
    assert default_plan.network.query_width == 192
    assert default_plan.network.total_stride == (16, 16, 16)


def test_strides_multiply_by_axis(document, tmp_path):
    flat = {"strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2], [1, 2, 2], [2, 2, 1]]}
    plan = read_plan(written(tmp_path, changed(document, network=flat)))
    assert plan.network.total_stride == (8, 16, 4)


def test_spacing_follows_the_group_and_else_the_default_group(default_plan):
    assert default_plan.spacing_for("brain") == (2.0, 2.0, 2.0)
    assert default_plan.spacing_for(None) == default_plan.groups["torso"].spacing_mm
    assert default_plan.spacing_for("toes") == default_plan.groups["torso"].spacing_mm
