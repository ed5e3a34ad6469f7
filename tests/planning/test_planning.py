"""Plans made from fingerprints: what follows from the data, what from the budget, what from the base plan."""

from __future__ import annotations

import builtins
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.planning.conftest import make_fingerprint
from textseg import planning
from textseg.errors import OutputError, PlanError
from textseg.fingerprint import Fingerprint, Intensities, LabelFingerprint
from textseg.models import plans_folder
from textseg.network.build import build_network
from textseg.plan import Plan, read_plan
from textseg.planning import (
    Planned,
    intensity_rules,
    make_plan,
    parse_memory,
    parse_spacing,
    read_reasons,
    with_measured,
    write_planned,
)
from textseg.topology import median_shape, working_spacing
from textseg.train.memory import estimate_training_memory

pytest.importorskip("nnunetv2", reason="Needs the extra textseg[train].")
from textseg.train.augment import USUAL_FRACTIONS

SMALL = make_fingerprint([((35, 51, 35), (1.0, 1.0, 1.0))] * 3)
THICK = make_fingerprint([((96, 80, 14), (1.0, 1.0, 5.0))] * 20)
CT = make_fingerprint([((160, 150, 120), (1.5, 1.5, 1.5))] * 40, modality="ct")
SMALL_CT = make_fingerprint([((35, 51, 35), (1.0, 1.0, 1.0))] * 3, modality="ct")

PET_CT = SMALL_CT.model_copy(
    update={
        "channels": ("CT", "PET"),
        "cases": tuple(case.model_copy(update={"modalities": ("ct", "pet")}) for case in SMALL_CT.cases),
        "intensities": (
            *SMALL_CT.intensities,
            SMALL_CT.intensities[0].model_copy(
                update={"channel": "PET", "modality": "pet", "mean": 3.0, "low": 0.1, "high": 12.0}
            ),
        ),
    }
)


@pytest.fixture(scope="module")
def base() -> Plan:
    return read_plan(plans_folder() / "default")


@pytest.fixture(scope="module")
def small(base: Plan) -> Planned:
    return make_plan(SMALL, 8 * 10**9, base, 4)


@functools.cache
def ct_planned(memory: int, bytes_per_value: int = 4) -> Planned:
    """Larger images, which memory limits."""
    return make_plan(CT, memory, read_plan(plans_folder() / "default"), bytes_per_value)


def why(planned: Planned, what: str) -> str:
    return next(reason.why for reason in planned.reasons if reason.what == what)


def test_a_plan_is_valid_and_builds_a_network(small: Planned) -> None:
    assert Plan.model_validate_json(small.plan.model_dump_json()) == small.plan
    assert build_network(small.plan).total_stride == (8, 8, 8)
    assert small.plan.training.patch_voxels == small.plan.windows.size_voxels == (40, 56, 40)
    assert len(small.plan.network.widths) == len(small.plan.network.strides) == 4


def test_a_dataset_with_one_label_is_not_asked_for_many(small: Planned, base: Plan) -> None:
    recipe = small.plan.training
    assert (recipe.prompts_per_sample, recipe.sharing_prompts) == (2, 1)
    assert recipe.prompts_per_sample < base.training.prompts_per_sample
    labels = {f"label {i}": SMALL.labels["liver"] for i in range(40)}
    many = make_plan(SMALL.model_copy(update={"labels": labels}), 8 * 10**9, base, 4).plan.training
    assert many.prompts_per_sample == base.training.prompts_per_sample
    assert many.sharing_prompts == base.training.sharing_prompts


def test_what_does_not_follow_from_data_is_the_base_plans(small: Planned, base: Plan) -> None:
    assert small.plan.text == base.text
    assert small.plan.masks == base.for_other_weights().masks
    assert small.plan.windows.exit_below is None
    same = base.training.model_dump()
    changed = {name for name, value in small.plan.training.model_dump().items() if value != same[name]}
    sizes = {"patch_voxels", "batch", "deep_supervision", "sharing_scales"}
    # Small networks train at all scales in every step.
    steps = {"full_scale_fraction"}
    asked = {"mixture", "mirror_groups", "core", "prompts_per_sample", "sharing_prompts"}
    assert changed <= sizes | steps | asked | set(USUAL_FRACTIONS)


def test_patches_of_ones_own_data_are_mirrored_and_degraded(small: Planned) -> None:
    recipe = small.plan.training
    assert {name: getattr(recipe, name) for name in USUAL_FRACTIONS} == USUAL_FRACTIONS
    assert recipe.mirror_fraction > 0


def test_names_groups_and_channels_are_the_datasets(small: Planned) -> None:
    plan = small.plan
    assert (plan.name, plan.channels, plan.default_group) == ("dataset900_test", ("scan",), "torso")
    assert plan.spacing_for("torso") == plan.spacing_for("brain") == (1.0, 1.0, 1.0)
    assert plan.training.mixture == {"dataset900_test": 1.0}


def test_labels_that_nobody_knows_make_a_group_of_their_own(base: Plan) -> None:
    unknown = LabelFingerprint(group=None, cases=3, median_ml=1.0, smallest_ml=1.0)
    fingerprint = SMALL.model_copy(update={"labels": {"zorblax": unknown}})
    plan = planning._skeleton(fingerprint, base, (1.0, 1.0, 1.0))
    assert plan.default_group == "dataset900_test"


@pytest.mark.parametrize("memory", [4 * 10**9, 15 * 10**8])
def test_the_estimate_stays_below_the_budget(memory: int) -> None:
    planned = ct_planned(memory)
    estimated = estimate_training_memory(planned.plan, 4)
    assert estimated == planned.estimated
    assert 0.2 * memory < estimated.total <= 0.9 * memory


def test_more_memory_gives_a_larger_patch_and_no_thinner_network() -> None:
    little, much = (ct_planned(memory).plan for memory in (15 * 10**8, 4 * 10**9))
    assert math.prod(little.training.patch_voxels) < math.prod(much.training.patch_voxels)
    assert little.network.width <= much.network.width


def test_half_the_bytes_a_value_leave_room_for_more() -> None:
    full, half = (ct_planned(4 * 10**9, size).plan for size in (4, 2))
    assert (full.network.width, full.training.batch) < (half.network.width, half.training.batch)


def test_a_batch_shows_no_more_than_a_twentieth_of_the_dataset(base: Plan, small: Planned) -> None:
    assert small.plan.training.batch == 2  # nnU-Net's smallest, though three cases are few
    many = make_fingerprint([((35, 51, 35), (1.0, 1.0, 1.0))] * 200)
    planned = make_plan(many, 8 * 10**9, base, 4)
    voxels = planned.plan.training.batch * math.prod(planned.plan.training.patch_voxels)
    assert planned.plan.training.batch == round(0.05 * 200 * 35 * 51 * 35 / (40 * 56 * 40))
    assert voxels == pytest.approx(0.05 * 200 * 35 * 51 * 35, rel=0.1)
    assert "5% of all voxels" in why(planned, "batch")


def test_a_budget_that_no_step_fits_is_refused(base: Plan) -> None:
    with pytest.raises(PlanError, match="--memory"):
        make_plan(SMALL, 3 * 10**8, base, 4)


def test_images_that_are_too_small_to_halve_are_refused(base: Plan) -> None:
    with pytest.raises(PlanError, match=r"a patch to be halved.*got 7 × 6 × 5"):
        make_plan(make_fingerprint([((7, 6, 5), (1.0, 1.0, 1.0))]), 8 * 10**9, base, 4)


def test_a_coarse_axis_has_flat_kernels(base: Plan, capfd: pytest.CaptureFixture[str]) -> None:
    planned = make_plan(THICK, 10**9, base, 4, width=8)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")  # planning itself is silent, and so is nnunetv2
    network = planned.plan.network
    assert network.strides[1] == (2, 2, 1)
    assert network.stage_kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert "not mixed along" in why(planned, "kernels")
    built = build_network(planned.plan)
    assert built.total_stride[2] < built.total_stride[0]
    assert built.encoder.stem.conv.kernel_size == (3, 3, 1)


def test_equal_spacings_have_cubes_for_kernels(small: Planned) -> None:
    assert set(small.plan.network.stage_kernels) == {(3, 3, 3)}
    assert "no axis is twice as coarse" in why(small, "kernels")


def test_a_spacing_that_was_asked_for_is_taken(base: Plan, small: Planned) -> None:
    coarse = make_plan(SMALL, 8 * 10**9, base, 4, spacing_mm=(1.0, 1.0, 2.0))
    assert coarse.plan.spacing_for("torso") == (1.0, 1.0, 2.0)
    assert coarse.plan.training.patch_voxels[2] < small.plan.training.patch_voxels[2]
    assert "asked for; by nnU-Net's rule it would be 1 × 1 × 1 mm" in why(coarse, "spacing")


@pytest.mark.parametrize(("text", "spacing"), [("3", (3, 3, 3)), ("1,1.5, 5", (1, 1.5, 5))])
def test_a_spacing_is_one_number_or_three(text: str, spacing: tuple[float, ...]) -> None:
    assert parse_spacing(text) == spacing


@pytest.mark.parametrize("text", ["", "1,2", "0", "1,-1,1", "inf", "nan", "3mm", "1 1 1"])
def test_no_other_text_is_a_spacing(text: str) -> None:
    with pytest.raises(PlanError, match="one or three positive numbers in mm"):
        parse_spacing(text)


def test_a_width_that_was_asked_for_is_taken(base: Plan, small: Planned) -> None:
    thin = make_plan(SMALL, 8 * 10**9, base, 4, width=16)
    assert (small.plan.network.width, thin.plan.network.width) == (32, 16)
    assert thin.plan.training.patch_voxels == small.plan.training.patch_voxels
    assert "16 was asked for" in why(thin, "widths")
    assert "asked for" not in why(small, "widths")


@pytest.mark.parametrize("width", [0, 12, 40])
def test_a_width_that_is_none_is_refused(base: Plan, width: int) -> None:
    with pytest.raises(PlanError, match=f"one of 8, 16, 24, 32, got {width}"):
        make_plan(SMALL, 8 * 10**9, base, 4, width=width)


def test_ct_is_clipped_and_scaled_by_its_foreground(base: Plan) -> None:
    rule = intensity_rules(SMALL_CT, base)["ct"]
    assert (rule.limits, rule.limits_are, rule.mean, rule.sd) == ((-41.0, 199.5), "values", 104.5, 39.25)
    assert rule.body_above == base.intensity["ct"].body_above


def test_mr_is_normalised_by_the_base_plans_rule(small: Planned, base: Plan) -> None:
    assert small.plan.intensity == {"mr": base.intensity["mr"]}


def test_channels_of_several_modalities_have_a_rule_each(base: Plan) -> None:
    plan = planning._skeleton(PET_CT, base, (1.0, 1.0, 1.0))
    assert plan.channel_modalities == ("ct", "pet")
    assert list(plan.intensity) == ["ct", "pet"]
    # The percentiles of one channel are not the other one's.
    assert (plan.intensity["ct"].limits, plan.intensity["ct"].mean) == ((-41.0, 199.5), 104.5)
    assert plan.intensity["pet"] == base.intensity["pet"]
    [channels] = [one for one in planning._reasons_of_intensity(plan, PET_CT) if one.what == "channels"]
    assert channels.value == "CT: CT, PET: PET"


def test_cases_of_several_modalities_leave_a_channel_open(base: Plan) -> None:
    """One channel that is a CT here and an MR there: each case is normalised as what it is."""
    both = SMALL_CT.model_copy(update={"cases": (*SMALL_CT.cases, *SMALL.cases)})
    plan = planning._skeleton(both, base, (1.0, 1.0, 1.0))
    assert (plan.channel_modalities, list(plan.intensity)) == (None, ["ct", "mr"])


def test_channels_whose_modalities_change_from_case_to_case_are_refused(base: Plan) -> None:
    first, second, *rest = PET_CT.cases
    turned = second.model_copy(update={"id": "turned", "modalities": ("pet", "ct")})
    with pytest.raises(PlanError, match="case_0 has CT and PET and turned PET and CT"):
        planning._skeleton(PET_CT.model_copy(update={"cases": (first, turned, *rest)}), base, (1, 1, 1))


def test_channels_of_one_modality_share_one_rule(base: Plan) -> None:
    [first] = SMALL_CT.intensities
    second = Intensities.model_validate(
        {**first.model_dump(), "channel": "venous", "mean": 124.5, "low": -60.0}
    )
    both = SMALL_CT.model_copy(
        update={
            "channels": ("scan", "venous"),
            "intensities": (first, second),
            "cases": tuple(case.model_copy(update={"modalities": ("ct", "ct")}) for case in SMALL_CT.cases),
        }
    )
    rule = intensity_rules(both, base)["ct"]
    assert (rule.limits, rule.mean) == ((-60.0, 199.5), 114.5)
    assert rule.sd == pytest.approx(math.hypot(39.25, 10), abs=0.01)


def test_label_maps_keep_the_base_plans_intensities(base: Plan) -> None:
    maps = SMALL.model_copy(update={"layout": "labelmaps", "channels": (), "intensities": ()})
    assert intensity_rules(maps, base) == base.intensity


def test_an_anisotropic_axis_takes_its_tenth_percentile() -> None:
    spacings = [3.0, 5.0, 5.0, 5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]
    mixed = make_fingerprint([((256, 240, 28), (1.0, 1.1, z)) for z in spacings])
    spacing, reason = working_spacing(mixed.cases)
    assert spacing == (1.0, 1.1, 5.0)
    assert "tenth percentile" in reason


def test_a_coarse_axis_with_many_voxels_takes_its_median() -> None:
    cubes = make_fingerprint([((120, 110, 100), (1.0, 1.0, z)) for z in (3.0, 5.0, 6.0)])
    assert working_spacing(cubes.cases)[0] == (1.0, 1.0, 5.0)


def test_the_median_shape_is_that_of_resampled_crops() -> None:
    cases = make_fingerprint([((100, 80, 40), (1.0, 1.0, 2.0)), ((50, 90, 61), (2.0, 1.0, 1.0))]).cases
    assert median_shape(cases, (1.0, 2.0, 1.0)) == (100.0, 42.5, 70.5)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("24 GiB", 24 * 2**30), ("800mb", 8 * 10**8), ("1.5G", 15 * 10**8), ("1tb", 10**12)],
)
def test_sizes_of_memory_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "-8GB", "0GB", "8 apples", "8GBB", "8kb"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="a number and a unit"):
        parse_memory(text)


def test_a_plan_comes_back_as_it_was_written(small: Planned, tmp_path: Path) -> None:
    measured = with_measured(small, 3 * 10**9)
    write_planned(measured, tmp_path / "out", "Dataset900_Test")
    assert read_plan(tmp_path / "out") == small.plan
    assert read_reasons(tmp_path / "out") == measured.reasons
    assert measured.reasons[-1].value == "3.00 GB of 8.00 GB"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plan.json", "planning.json"]
    text = (tmp_path / "out" / "plan.json").read_text(encoding="utf-8")
    assert '"patch_voxels": [40, 56, 40]' in text
    assert (
        json.loads((tmp_path / "out" / "planning.json").read_text(encoding="utf-8"))["measured_bytes"]
        == 3 * 10**9
    )


def test_reasons_that_an_older_version_wrote_are_read(small: Planned, tmp_path: Path) -> None:
    write_planned(small, tmp_path, "Dataset900_Test")
    path = tmp_path / "planning.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"kernels": [[3, 3, 3]]}))
    assert read_reasons(tmp_path) == small.reasons


def test_a_folder_that_is_a_file_is_refused(small: Planned, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        write_planned(small, tmp_path / "out", "Dataset900_Test")


def test_without_nnunet_the_extra_is_named(base: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("nnunetv2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="nnunetv2")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PlanError, match=r'nnunetv2 can\'t be imported.*pip install "textseg\[train\]"'):
        make_plan(SMALL, 8 * 10**9, base, 4)


def test_fingerprints_are_frozen() -> None:
    assert Fingerprint.model_validate_json(SMALL.model_dump_json()) == SMALL
