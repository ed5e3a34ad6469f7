"""What is left and right in a mirrored patch: by the lexicon, by a dataset's own words, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_model import write_tiny_model
from tests.train.test_labelled import write_dataset
from textseg.dataset import read_dataset
from textseg.embeddings.encoder import load_own_encoder
from textseg.plan import read_plan
from textseg.prompts import default_lexicon, understand
from textseg.train.cases import CaseFacts, Target
from textseg.train.gather import make_cases
from textseg.train.labelled import dataset_jobs
from textseg.train.mirror import Mirror
from textseg.train.recipe import make_stream

LEXICON = default_lexicon()


def own(name: str) -> Target:
    return Target(None, None, name)


def name_of(target: Target, words: dict[Target, tuple[str, ...]] | None = None) -> Target | None:
    return Mirror([target], LEXICON, words).names[target]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target("left_kidney"), Target("right_kidney")),
        (Target("right_kidney", "tumor"), Target("left_kidney", "tumor")),
        (Target("kidneys"), Target("kidneys")),
        (Target("liver"), Target("liver")),
        (Target(None, "soft_tissue_sarcoma"), Target(None, "soft_tissue_sarcoma")),
        # Called so wherever they lie, or on one side alone: no name in a mirrored patch.
        (Target("left_heart_ventricle"), None),
        (Target("left_lobe_of_liver", "tumor"), None),
        (Target("right_middle_lobe_of_lung"), None),
        (own("odd thing"), own("odd thing")),
    ],
)
def test_a_target_in_a_mirrored_patch(target: Target, name: Target | None) -> None:
    assert name_of(target) == name


def test_own_words_with_a_side_are_swapped() -> None:
    target = own("a: tumor of the left kidney")
    mirror = Mirror([target], LEXICON, {target: ("a tumor of the left kidney", "Lt renal mass")})
    name = mirror.names[target]
    assert name is not None
    assert name != target
    assert mirror.words == {name: ("tumor of right kidney", "right renal mass")}


def test_own_labels_of_both_sides_become_one_another() -> None:
    left, right = own("blob_L"), own("blob_R")
    words = {left: ("left blob",), right: ("Blob, right", "right blob"), own("rest"): ("rest",)}
    mirror = Mirror(words, LEXICON, words | {right: ("right blob",)})
    assert mirror.names == {left: right, right: left, own("rest"): own("rest")}
    assert mirror.words == {}


@pytest.mark.parametrize(
    "text",
    ["nodule in the middle lobe of the right lung", "thrombus in the left ventricle", "left-to-right shunt"],
)
def test_own_words_whose_side_can_not_be_swapped_have_no_mirror_image(text: str) -> None:
    target = own("thing")
    assert name_of(target, {target: (text,)}) is None


def test_a_finding_that_a_dataset_calls_by_a_side_has_no_mirror_image() -> None:
    target = Target(None, "tumor")
    assert name_of(target, {target: ("tumor",)}) == target
    assert name_of(target, {target: ("tumor", "left sided tumor")}) is None


def test_a_mirrored_case_keeps_its_values_and_leaves_out_what_has_no_name() -> None:
    targets = [
        (Target("left_kidney"), (1,)),
        (Target("right_kidney"), (2,)),
        (Target("left_heart_ventricle"), (3,)),
    ]
    facts = CaseFacts("a", "torso", "own", "train", (1.0, 1.0, 1.0), "ct", targets)
    mirrored = Mirror([target for target, _ in targets], LEXICON).facts(facts)
    assert mirrored.targets == [(Target("right_kidney"), (1,)), (Target("left_kidney"), (2,))]
    assert mirrored.name == "a"


def test_training_has_the_vectors_of_words_about_the_other_side(tmp_path: Path) -> None:
    text = "the odd lump left of the aorta"
    said = own(f"a: {text}")
    prompts = {"cases": {"a": [{"text": text, "label": "odd thing"}]}}
    model, arrays = write_tiny_model(tmp_path / "model"), tmp_path / "arrays"
    plan = read_plan(model)
    training = plan.training.model_copy(update={"mirror_fraction": 1.0, "mixture": {"own": 1.0}})
    plan = plan.model_copy(update={"training": training})
    dataset = read_dataset(write_dataset(tmp_path / "set", prompts=prompts), LEXICON)
    jobs, words = dataset_jobs(dataset, plan, LEXICON)
    make_cases(jobs, arrays, plan, words=words)
    vectors = make_stream(plan, model, arrays, LEXICON).vectors
    (image,) = (target for target in vectors if target.own and target.own.startswith("mirror image"))
    encoder = load_own_encoder(model, plan.text)
    mirrored = understand("odd lump right of aorta", LEXICON).canonical
    torch.testing.assert_close(vectors[image], encoder.embed([mirrored]))
    assert not torch.allclose(vectors[image], vectors[said])
