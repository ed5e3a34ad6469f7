"""Suites on models that make one mistake each: the drop is known, and only the right suite shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.scores.probe_phantom import (
    VALUES,
    found_by_index,
    found_by_value,
    found_in_known_values,
    found_on_both_sides,
    found_on_the_other_side,
    model,
    read_torso,
    read_without_mercy,
    write_torso,
)
from textseg.scores.observations import SUITES, Observation, Suite
from textseg.scores.overlap import pack
from textseg.scores.robustness import Ask, probe_scene
from textseg.scores.scenes import Scene


@pytest.fixture(scope="module")
def torso(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return read_torso(write_torso(tmp_path_factory.mktemp("probe") / "Dataset009_Torso"))


def probed(scene: Scene, ask: Ask, *suites: Suite) -> list[Observation]:
    done = probe_scene(scene, ask, suites or SUITES, wordings_each=3, seed=1)
    return [each for _, observations in done for each in observations]


def drops(observations: list[Observation], test: str) -> dict[str, float]:
    """The largest drop of each structure in a test."""
    found: dict[str, float] = {}
    for each in observations:
        if each.test == test:
            found[each.structure] = max(found.get(each.structure, -1.0), each.drop)
    return found


def test_a_perfect_model_loses_nothing_where_nothing_is_to_be_lost(torso: Scene) -> None:
    found = probed(torso, model(), "paraphrases", "laterality", "absent", "sentences", "orientation", "crops")
    assert {each.suite for each in found} == set(SUITES) - {"spacing", "noise"}
    assert all(each.canonical == each.dice == 1 for each in found)
    assert all(each.same == 1 for each in found if np.isfinite(each.same))
    assert {each.test for each in found if each.suite == "paraphrases"} == {
        "synonym",
        "word order",
        "typing error",
        "language",
    }


def test_a_model_that_reads_no_typing_error_is_caught_there_and_nowhere_else(torso: Scene) -> None:
    found = probed(torso, model(read=read_without_mercy), "paraphrases", "sentences", "laterality")
    assert drops(found, "typing error") == {"kidney left": 1, "kidney right": 1, "liver": 1}
    # Of other languages it reads the plain names alone.
    others = [each for each in found if each.test not in ("typing error", "language")]
    assert {each.drop for each in others} == {0}


def test_sides_that_are_exchanged_are_caught(torso: Scene) -> None:
    found = probed(torso, model(find=found_on_the_other_side), "laterality")
    assert drops(found, "the side that is asked") == {"kidney left": 1, "kidney right": 1}


def test_both_sides_for_one_are_caught_by_the_part_that_is_too_much(torso: Scene) -> None:
    found = drops(probed(torso, model(find=found_on_both_sides), "laterality"), "the side that is asked")
    # 60 and 40 voxels: Dice 2 · 60 / (100 + 60) and 2 · 40 / (100 + 40).
    assert found == {"kidney left": pytest.approx(1 - 120 / 160), "kidney right": pytest.approx(1 - 80 / 140)}


def test_a_mirrored_scan_must_swap_sides(torso: Scene) -> None:
    by_looks = probed(torso, model(find=found_by_value), "laterality")
    assert drops(by_looks, "the side that is asked") == {"kidney left": 0, "kidney right": 0}
    assert drops(by_looks, "mirrored scan") == {"kidney left": 1, "kidney right": 1}
    mirrored = [each for each in by_looks if each.test == "mirrored scan"]
    assert [each.prompt for each in mirrored] == ["right kidney", "left kidney"]


def test_masks_of_what_is_not_there_are_false_alarms(torso: Scene) -> None:
    eager = model(read=lambda text: "liver")
    found = probed(torso, eager, "absent")
    assert {each.prompt: each.test for each in found} == {
        "spleen": "labelled elsewhere",
        "left hippocampus": "of another region",
        "right caudate nucleus": "of another region",
        "cerebellum": "of another region",
        "left thalamus": "of another region",
    }
    assert {each.drop for each in found} == {1}
    liver_ml = 8 * 8 * 9 * torso.volume.geometry.voxel_volume_mm3 / 1000
    assert found[0].predicted_ml == pytest.approx(liver_ml)


def test_a_model_that_trusts_the_order_of_axes_is_caught(torso: Scene) -> None:
    found = probed(torso, model(find=found_by_index), "orientation")
    of_left = [each.drop for each in found if each.structure == "kidney left"]
    # A third of the orders keep x first; of those, half run the other way.
    assert len(of_left) == 47
    assert sum(drop == 1 for drop in of_left) >= 8
    assert sum(drop == 0 for drop in of_left) >= 7


def test_a_model_that_knows_only_clean_values_loses_all_to_noise_and_nothing_to_crops(torso: Scene) -> None:
    found = probed(torso, model(find=found_in_known_values), "noise", "crops")
    noise = [each for each in found if each.suite == "noise"]
    assert {each.test for each in noise} == {
        "slight noise",
        "noise",
        "strong noise",
        "low contrast",
        "high contrast",
    }
    assert {each.drop for each in noise} == {1}
    assert {each.drop for each in found if each.suite == "crops"} == {0}


def test_a_crop_asks_only_for_what_it_shows(torso: Scene) -> None:
    found = probed(torso, model(), "crops")
    shown = {
        test: {each.structure for each in found if each.test == test} for test in ("head half", "foot half")
    }
    # Cut at plane 6 of 2 to 11: the left kidney's planes are 4 to 6, the right one's 6 and 7.
    assert shown == {"head half": set(torso_names()), "foot half": {"kidney left", "liver"}}


def test_a_refused_prompt_is_an_empty_mask_and_said_so(torso: Scene) -> None:
    def refuses(volume: object, prompts: list[str]) -> list[None]:
        return [None for _ in prompts]

    found = probed(torso, refuses, "paraphrases")  # type: ignore[arg-type]
    assert all(each.refused and each.dice == each.canonical == 0 and each.same == 1 for each in found)


def test_the_seed_decides_everything(torso: Scene) -> None:
    once, again = (probed(torso, model(), "paraphrases", "sentences") for _ in range(2))
    assert once == again
    other = [
        each
        for _, observations in probe_scene(torso, model(), ("paraphrases",), wordings_each=3, seed=2)
        for each in observations
    ]
    assert [each.prompt for each in other] != [each.prompt for each in once if each.suite == "paraphrases"]


def test_words_cost_one_call_and_progress_reaches_the_end(torso: Scene) -> None:
    calls: list[int] = []
    shares: list[float] = []

    def counted(volume: object, prompts: list[str]) -> object:
        calls.append(len(prompts))
        return model()(volume, prompts)  # type: ignore[arg-type]

    done = probe_scene(
        torso,
        counted,  # type: ignore[arg-type]
        ("paraphrases", "absent", "sentences", "crops"),
        2,
        0,
        lambda stage, share: shares.append(share),
    )
    assert [suites for suites, _ in done] == [("paraphrases", "absent", "sentences"), ("crops",)]
    # The phantom is no larger than its own close-up, which would be the scan itself.
    assert len(calls) == 1 + 2
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)


def test_an_ignored_voxel_counts_for_nobody(tmp_path: Path) -> None:
    scene = read_torso(write_torso(tmp_path / "data"))
    everywhere = np.ones(scene.volume.geometry.shape, bool)
    others = everywhere & ~sum((thing.reference.whole() for thing in scene.things), start=~everywhere)

    def all_of_it(volume: object, prompts: list[str]) -> object:
        return [pack(everywhere) for _ in prompts]

    (liver,) = (thing for thing in scene.things if thing.name == "liver")
    alone = replace(scene, things=(liver,), ignored=others)
    found = probed(alone, all_of_it, "paraphrases")  # type: ignore[arg-type]
    # What is left of it is the liver and both kidneys.
    assert found
    assert all(each.canonical == pytest.approx(2 * 576 / (576 + 676)) for each in found)


def torso_names() -> list[str]:
    assert list(VALUES) == ["left kidney", "right kidney", "liver"]
    return ["kidney left", "kidney right", "liver"]
