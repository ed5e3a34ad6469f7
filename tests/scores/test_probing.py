"""Many cases: which, what is kept of them, and how a real model is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.scores.probe_phantom import SHAPE, found_on_the_other_side, model, write_torso
from textseg.dataset import Dataset
from textseg.errors import DatasetError, PromptError
from textseg.geometry import Geometry
from textseg.inference import Segmenter
from textseg.models import ModelFolder
from textseg.prompts import Prompt, understand
from textseg.scores.overlap import PackedMask
from textseg.scores.probing import Probe, ask_with, choose_cases, probe_cases
from textseg.scores.robustness import Ask
from textseg.volume import Volume

SUITES = ("paraphrases", "laterality", "absent", "crops")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_torso(tmp_path / "torso", ["a_CT", "b_CT", "c_MR"])


class Counted:
    """A model that counts its calls, and is stopped at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls = 0
        self.stop_at = stop_at
        self.ask = model(find=found_on_the_other_side)

    def __call__(self, volume: Volume, prompts: Sequence[str]) -> Sequence[PackedMask | None]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return self.ask(volume, prompts)


def test_cases_are_drawn_by_the_seed_and_kept_in_order(dataset: Dataset) -> None:
    assert [case.id for case in choose_cases(dataset, 9, 0)] == ["a_CT", "b_CT", "c_MR"]
    assert [case.id for case in choose_cases(dataset, 9, 0, ["*_CT"])] == ["a_CT", "b_CT"]
    drawn = {tuple(case.id for case in choose_cases(dataset, 2, seed)) for seed in range(20)}
    assert drawn == {("a_CT", "b_CT"), ("a_CT", "c_MR"), ("b_CT", "c_MR")}
    with pytest.raises(DatasetError, match="No case of torso with all its files is called"):
        choose_cases(dataset, 2, 0, ["d_?"])


def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(dataset: Dataset, tmp_path: Path) -> None:
    whole, stopped, again = Counted(), Counted(stop_at=7), Counted()
    probe = Probe(SUITES, wordings=1)
    expected = probe_cases(dataset, dataset.cases, cast(Ask, whole), probe)
    with pytest.raises(KeyboardInterrupt):
        probe_cases(dataset, dataset.cases, cast(Ask, stopped), probe, folder=tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out" / "cases").iterdir())
    assert kept == ["a_CT.json", "b_CT.json"]
    found = probe_cases(dataset, dataset.cases, cast(Ask, again), probe, folder=tmp_path / "out")
    assert repr(found) == repr(expected)
    # Of a case: words, mirror, two crops. Of the second case words and mirror were done; its canonical masks
    # are asked for again, and both crops.
    assert (whole.calls, again.calls) == (3 * 4, 3 + 4)
    third = Counted()
    probe_cases(dataset, dataset.cases, cast(Ask, third), probe, folder=tmp_path / "out")
    assert third.calls == 0


def test_other_questions_are_asked_anew(dataset: Dataset, tmp_path: Path) -> None:
    case, probe = dataset.cases[:1], Probe(("absent",), seed=1)
    probe_cases(dataset, case, model(), probe, folder=tmp_path, model={"name": "one"})
    for changed, name in ((replace(probe, seed=2), "one"), (probe, "two")):
        counted = Counted()
        probe_cases(dataset, case, cast(Ask, counted), changed, folder=tmp_path, model={"name": name})
        assert counted.calls == 1
    kept = tmp_path / "cases" / "a_CT.json"
    assert json.loads(kept.read_text(encoding="utf-8"))["settings"]["model"] == {"name": "two"}
    kept.write_text("{", encoding="utf-8")
    assert probe_cases(dataset, case, model(), probe, folder=tmp_path)


def test_time_left_is_that_of_what_this_run_has_done(dataset: Dataset, tmp_path: Path) -> None:
    told: list[tuple[str, float, float | None]] = []
    probe = Probe(("absent",))
    probe_cases(dataset, dataset.cases[:1], model(), probe, folder=tmp_path)
    probe_cases(
        dataset,
        dataset.cases,
        model(),
        probe,
        folder=tmp_path,
        progress=lambda stage, share, left: told.append((stage, share, left)),
    )
    assert told[0] == ("case 2 of 3 (b_CT): reading", pytest.approx(1 / 3), None)
    assert told[-1][1:] == (1, 0)
    assert all(left is None or left >= 0 for _, _, left in told)


class Segmenting:
    """In place of a `Segmenter`: notes what it is asked, and refuses texts with "zzz" in them."""

    def __init__(self, kind: str) -> None:
        self.model = cast(ModelFolder, self)
        self.kind = kind
        self.asked: list[list[str]] = []

    def read_prompts(self, texts: Sequence[str]) -> list[Prompt]:
        return [understand(text) for text in texts]

    def __call__(self, volume: Volume, prompts: Sequence[str]) -> Any:
        if any("zzz" in text for text in prompts):
            raise PromptError("No.")
        self.asked.append(list(prompts))
        self.masks = np.zeros((len(prompts), *volume.geometry.shape), bool)
        for mask, text in zip(self.masks, prompts, strict=True):
            mask[: len(text), 0, 0] = True
        return self


@pytest.fixture
def scan() -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), Geometry(SHAPE, np.eye(4)), modality="ct")


def test_texts_that_our_models_read_alike_are_asked_once(scan: Volume) -> None:
    ours, theirs = Segmenting("textseg"), Segmenting("voxtell")
    texts = ["liver", "the liver", "spleen", "liver please"]
    sizes = {}
    for stub in (ours, theirs):
        masks = ask_with(cast(Segmenter, stub))(scan, texts)
        sizes[stub.kind] = [mask.voxels for mask in masks if mask]
    assert [sorted(asked) for asked in ours.asked] == [["liver", "spleen"]]
    assert sizes["textseg"] == [5, 5, 6, 5]
    assert sorted(theirs.asked[0]) == sorted(texts)
    assert sizes["voxtell"] == [5, 9, 6, 12]


def test_refused_prompts_are_found_and_not_asked_again(scan: Volume) -> None:
    stub = Segmenting("nnunet")
    ask = ask_with(cast(Segmenter, stub))
    texts = ["liver", "zzz", "spleen", "left left right", "aorta"]
    assert [mask and mask.voxels for mask in ask(scan, texts)] == [5, None, 6, None, 5]
    calls = len(stub.asked)
    ask(scan, texts)
    assert len(stub.asked) == calls + 1
    assert ask(scan, []) == []


def test_memory_bounds_a_call(scan: Volume) -> None:
    stub = Segmenting("voxtell")
    ask_with(cast(Segmenter, stub), most_bytes=2 * scan.voxels[0].size)(scan, list("bcdef"))
    assert [len(asked) for asked in stub.asked] == [2, 2, 1]
