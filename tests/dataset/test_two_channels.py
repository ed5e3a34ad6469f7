"""A CT and a PET of each case, and voxels that nobody labelled: from a dataset to a mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.dataset.small_dataset import AFFINE, SHAPE, image, label_map, save, write_json, write_small_dataset
from tests.dataset.two_channel_model import write_pet_ct_model
from tests.tiny_model import TEXT_WIDTH
from textseg.dataset import read_dataset
from textseg.dataset_check import check_dataset
from textseg.errors import PlanError
from textseg.inference import Segmenter
from textseg.models import plans_folder
from textseg.network.build import build_network
from textseg.network.weights import save_network
from textseg.plan import Plan, read_plan, write_plan
from textseg.prompts import default_lexicon
from textseg.train.cases import Place, find_places, read_case
from textseg.train.gather import make_cases
from textseg.train.labelled import dataset_jobs
from textseg.train.lesson import Question, answer, loss_of, together
from textseg.train.loop import training_step
from textseg.train.sampling import PatchSampler
from textseg.train.stream import SampleStream

CPU = torch.device("cpu")
IGNORE = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pet_ct_model(tmp_path_factory.mktemp("models") / "pet_ct")


@pytest.fixture(scope="module")
def plan(model: Path) -> Plan:
    """The model's plan, with voxels small enough for a small dataset."""
    plan = read_plan(model)
    torso = plan.groups["torso"].model_copy(update={"spacing_mm": (2.0, 2.0, 3.0)})
    recipe = plan.training.model_copy(update={"mixture": {"own": 1.0}, "batch": 2})
    return plan.model_copy(update={"groups": plan.groups | {"torso": torso}, "training": recipe})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CT and PET; the kidney tumour is hot, and beside the right kidney lies what nobody labelled."""
    folder = write_small_dataset(tmp_path / "set", cases=("a", "b"), channels=("CT", "PET"))
    labels = label_map()
    uptake = np.where(labels == 3, 12, 1).astype(np.float32)
    labels[12:17, 16:20, 3:8] = IGNORE
    for case in ("a", "b"):
        save(uptake, folder / "imagesTr" / f"{case}_0001.nii.gz")
        save(labels, folder / "labelsTr" / f"{case}.nii.gz")
    document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    write_json(document | {"labels": document["labels"] | {"ignore": IGNORE}}, folder / "dataset.json")
    return folder


def placed(folder: Path, plan: Plan) -> list[Place]:
    dataset = read_dataset(folder)
    assert [p for p in check_dataset(dataset) if p.severity == "error"] == []
    jobs, _ = dataset_jobs(dataset, plan, default_lexicon())
    arrays = folder.with_name("arrays")
    return [find_places(read_case(facts, arrays)) for facts in make_cases(jobs, arrays, plan)]


def question(places: list[Place], plan: Plan) -> Question:
    """A batch of the first two samples, with one random vector a target."""
    sampler = PatchSampler(places, plan, default_lexicon())
    generator = torch.Generator().manual_seed(3)
    vectors = {target: torch.randn(1, TEXT_WIDTH, generator=generator) for target in sampler.targets()}
    stream = SampleStream(sampler, vectors, 0, 2)
    batch: Question = together([stream[0], stream[1]])
    return batch


def test_two_modalities_go_from_a_dataset_through_training_to_masks(
    folder: Path, plan: Plan, model: Path, tmp_path: Path
) -> None:
    batch = question(placed(folder, plan), plan)
    assert batch.image.shape == (2, 2, *plan.training.patch_voxels)
    assert batch.valid is not None
    assert not batch.valid.all()
    torch.manual_seed(0)
    network = build_network(plan)
    before = [parameter.clone() for parameter in network.encoder.parameters()]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = training_step(network.train(), optimiser, batch, plan, CPU).loss
    assert np.isfinite(float(loss))
    moved = [not torch.equal(*pair) for pair in zip(before, network.encoder.parameters(), strict=True)]
    assert any(moved)

    save_network(network, model, {})
    ct = save(image(0), tmp_path / "scans/ct.nii.gz")
    # The PET lies elsewhere: its grid is shifted and cut off, its first axis runs the other way.
    shifted = AFFINE @ np.array([[-1, 0, 0, 18], [0, 1, 0, 3], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    uptake = np.where(label_map() == 3, 12, 1).astype(np.float32)[18::-1, 3:]
    pet = save(uptake, tmp_path / "scans/pet.nii.gz", shifted)
    result = Segmenter(model, device="cpu")([ct, pet], ["left kidney", "kidney tumor"])
    assert result.masks.shape == (2, *SHAPE)
    assert np.allclose(result.geometry.affine, nib.load(ct).affine)
    second = result.record()["scan"]["channels"][1]
    assert (second["name"], second["regridded"]) == ("PET", True)
    on_grid = result.volume.voxels[1]
    hot = np.zeros(SHAPE, bool)
    hot[:19, 3:] = (label_map() == 3)[:19, 3:]
    assert np.array_equal(on_grid > 6, hot)


def test_what_lies_under_ignore_changes_no_gradient(folder: Path, plan: Plan) -> None:
    """The same patches, with the unlabelled voxels' masks and shares changed at will."""
    batch = question(placed(folder, plan), plan)
    assert batch.valid is not None
    random = torch.Generator().manual_seed(1)
    drawn = torch.rand(batch.masks.shape, generator=random).round()
    masks = torch.where(batch.valid[:, None], batch.masks, drawn)
    shares = torch.where(batch.valid, batch.shares, torch.ones_like(batch.shares))
    perturbed = batch._replace(masks=masks, shares=shares)
    assert not torch.equal(masks, batch.masks)
    assert not torch.equal(shares, batch.shares)
    torch.manual_seed(0)
    network = build_network(plan).train()

    def gradients(asked: Question) -> list[torch.Tensor]:
        loss = loss_of(answer(network, asked, plan), asked, plan)
        return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))

    for one, other in zip(gradients(batch), gradients(perturbed), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    seen = gradients(perturbed._replace(valid=None))
    assert not all(
        one is None or torch.equal(one, other) for one, other in zip(seen, gradients(batch), strict=True)
    )


def test_a_map_of_what_is_known_goes_to_the_device_only_if_something_is_not(folder: Path, plan: Plan) -> None:
    batch = question(placed(folder, plan), plan)
    there = batch.to(CPU)
    assert there.valid is not None
    assert batch.valid is not None
    assert torch.equal(there.valid, batch.valid)
    assert torch.equal(there.shares, batch.shares)
    assert batch._replace(valid=torch.ones_like(batch.valid)).to(CPU).valid is None
    assert batch._replace(valid=None).to(CPU).valid is None


def test_unlabelled_voxels_are_known_in_no_sample_and_asked_in_none(folder: Path, plan: Plan) -> None:
    places = placed(folder, plan)
    assert all(place.case.facts.ignore == IGNORE for place in places)
    assert all(IGNORE not in values for place in places for _, values in place.case.facts.targets)
    plain = [replace(p, case=replace(p.case, facts=replace(p.case.facts, ignore=None))) for p in places]
    known = question(plain, plan).valid
    assert known is not None
    assert known.all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channel_modalities": ("ct",)}, "one entry a channel"),
        ({"channel_modalities": ("ct", "us")}, "'ct', 'mr' or 'pet'"),
        ({"intensity": {}}, "a rule for each of the channel_modalities"),
    ],
)
def test_a_plan_whose_channels_do_not_fit_together_is_refused(
    plan: Plan, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    write_json(plan.model_dump(mode="json") | changes, tmp_path / "plan.json")
    with pytest.raises(PlanError, match=said):
        read_plan(tmp_path)


def test_a_plan_keeps_the_modalities_of_its_channels(plan: Plan, tmp_path: Path) -> None:
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path)
    assert again.channel_modalities == ("ct", "pet")
    assert again.modalities("mr") == ("ct", "pet")
    assert read_plan(plans_folder() / "default").modalities("mr") == ("mr",)
