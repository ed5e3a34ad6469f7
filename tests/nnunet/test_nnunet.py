"""A trained nnU-Net gives to the voxel what nnunetv2 gives, for labels that are asked for in words."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from textseg_cli.main import app
from typer.testing import CliRunner

from tests.nnunet.tiny_nnunet import LABELS, REGIONS, dataset, plans, write_nnunet
from textseg.errors import ModelError, PromptError, ScanError
from textseg.inference import Segmenter
from textseg.models import find_model
from textseg.network.nnunet_folder import find_checkpoints, is_nnunet_folder, read_nnunet_folder
from textseg.prompts import clean, understand
from textseg.prompts.understanding import Prompt
from textseg.scan import read_scan

# Sagittal slices, left to right and head to foot, three different spacings.
AFFINE = np.array([[0, 0, -2.4, 30], [1.5, 0, 0, -20], [0, -1.8, 0, 90], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    voxels = np.zeros((21, 26, 17), np.int16)
    voxels[2:-3, 1:-2, 3:] = np.random.default_rng(1).integers(-300, 500, (16, 23, 14))
    voxels[5:12, 9:20, 6:11] += 700
    path = tmp_path_factory.mktemp("scan") / "abdomen.nii.gz"
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_nnunet(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture
def bare(tmp_path):
    """The files of a folder without any network, for what needs none."""
    return write_bare(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", LABELS)


def write_bare(folder, labels):
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset(dict(labels))))
    return folder


def by_nnunetv2(folder, scan, probabilities=False):
    """(x, y, z) in the file's own axes, as its predictor and its reader give them."""
    predicting = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = predicting.nnUNetPredictor(
            device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), None)
        reader = predictor.plans_manager.image_reader_writer_class()
        image, properties = reader.read_images([str(scan)])
        answer = predictor.predict_single_npy_array(image, properties, None, None, probabilities)
        if probabilities:
            return answer[1]
        written = scan.parent / "by_nnunetv2.nii.gz"
        reader.write_seg(answer, str(written), properties)
    return np.asarray(nib.load(written).dataobj)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_masks_are_those_of_nnunetv2_to_the_voxel(reader, scan, tmp_path):
    folder = write_nnunet(tmp_path, reader=reader)
    expected = by_nnunetv2(folder, scan)
    result = Segmenter(folder, device="cpu")(scan, ["left kidney", "kidney, right", "liver", "thing"])
    assert [found.asked for found in result.found] == ["kidney_left", "Kidney Right", "liver", "thing"]
    assert len(np.unique(expected)) > 3
    for number, mask in enumerate(result.masks, start=1):
        assert np.array_equal(mask, expected == number)
        assert result.presence[number - 1] == float(mask.any())


def test_one_fold_without_mirroring_is_as_exact(scan, tmp_path):
    folder = write_nnunet(tmp_path, folds=1, mirrored=None)
    expected = by_nnunetv2(folder, scan)
    masks = Segmenter(folder, device="cpu")(scan, ["left kidney", "right kidney", "liver", "thing"]).masks
    assert masks.any()
    assert np.array_equal((masks * np.arange(1, 5)[:, None, None, None]).sum(axis=0), expected)


def test_plans_of_2023_are_as_exact(scan, tmp_path):
    folder = write_nnunet(tmp_path, folds=1, old_plans=True)
    assert (
        "architecture"
        not in json.loads((folder / "plans.json").read_text(encoding="utf-8"))["configurations"]["3d_fullres"]
    )
    expected = by_nnunetv2(folder, scan)
    masks = Segmenter(folder, device="cpu")(scan, ["left kidney", "right kidney", "liver", "thing"]).masks
    assert masks.any()
    assert np.array_equal((masks * np.arange(1, 5)[:, None, None, None]).sum(axis=0), expected)


def test_a_network_trained_here_finds_what_it_was_taught_and_is_exact(tmp_path):
    folder = write_nnunet(tmp_path, folds=1, trained=True)
    truth = {"left kidney": (slice(4, 11), slice(8, 15), slice(5, 9))}
    truth["liver"] = (slice(13, 19), slice(16, 23), slice(9, 14))
    voxels = np.random.default_rng(3).normal(0, 30, (21, 26, 17)).astype(np.int16)
    voxels[truth["left kidney"]] += 400
    voxels[truth["liver"]] -= 400
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "taught.nii.gz")
    expected = by_nnunetv2(folder, tmp_path / "taught.nii.gz")
    result = Segmenter(folder, device="cpu")(tmp_path / "taught.nii.gz", list(truth))
    for mask, label, place in zip(result.masks, (1, 3), truth.values(), strict=True):
        assert np.array_equal(mask, expected == label)
        there = np.zeros(mask.shape, bool)
        there[place] = True
        assert 2 * (mask & there).sum() / (mask.sum() + there.sum()) > 0.7


def test_regions_may_overlap(scan, tmp_path):
    folder = write_nnunet(tmp_path, labels=dict(REGIONS), folds=1)
    probabilities = by_nnunetv2(folder, scan, probabilities=True)
    kidney, tumour = Segmenter(folder, device="cpu")(scan, ["kidneys", "kidney tumor"]).masks
    assert np.array_equal(kidney, probabilities[0].transpose(2, 1, 0) > 0.5)
    assert np.array_equal(tumour, probabilities[1].transpose(2, 1, 0) > 0.5)
    assert (kidney & tumour).any()


def test_the_record_names_model_labels_and_licence(folder, scan, tmp_path):
    *_, record_path = Segmenter(folder, device="cpu")(scan, ["lt. kidney"]).save(tmp_path, write_empty=True)
    record = json.loads(record_path.read_text(encoding="utf-8"))
    assert record["prompts"][0]["asked"] == "kidney_left"
    assert (record["model"]["kind"], record["model"]["licence"]) == ("nnunet", "CC0-1.0")
    assert set(record["model"]["sha256"]) == {
        "plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth",
    }  # fmt: skip


def test_nothing_is_printed(folder, scan, capfd):
    Segmenter(folder, device="cpu")(scan, "liver")
    assert capfd.readouterr().out == ""


def test_too_many_channels_are_refused(folder, scan):
    with pytest.raises(ScanError, match=r"takes 1 channel\(s\) \(channel 0\), got 2"):
        Segmenter(folder, device="cpu")(read_scan([scan, scan]), "liver")


# ---- labels in words ----


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("left kidney", "kidney_left"),
        ("KIDNEY_LEFT", "kidney_left"),
        ("ren sinister", "kidney_left"),
        ("right kidney", "Kidney Right"),
        ("the patient's liver", "liver"),
        ("Thing", "thing"),
    ],
)
def test_a_label_is_found_by_its_name_and_by_what_it_means(text, label, bare):
    assert read_nnunet_folder(bare).label_for(understand(text)) == label


@pytest.mark.parametrize(
    ("text", "near"),
    [("spleen", "kidney_left"), ("kidneys", "kidney_left"), ("left kidney tumor", "kidney_left"),
     ("a liver with gugu", "liver"), ("background", "kidney_left")],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_the_labels(text, near, bare):
    try:
        prompt = understand(text)
    except PromptError:
        prompt = Prompt(text, clean(text), None, None)
    with pytest.raises(PromptError, match=rf"Did you mean .*{near}"):
        read_nnunet_folder(bare).label_for(prompt)


def test_two_labels_of_one_meaning_are_asked_for_by_name(tmp_path):
    folder = read_nnunet_folder(write_bare(tmp_path / "two", {"background": 0, "liver": 1, "hepar": 2}))
    assert folder.label_for(understand("hepar")) == "hepar"
    with pytest.raises(PromptError, match="Did you mean liver, hepar"):
        folder.label_for(understand("the liver"))


TOTALSEGMENTATOR = (
    "kidney_right", "kidney_left", "adrenal_gland_left", "lung_upper_lobe_left", "lung_upper_lobe_right",
    "esophagus", "urinary_bladder", "kidney_cyst_left", "vertebrae_L1", "vertebrae_L2", "vertebrae_T12",
    "vertebrae_C1", "inferior_vena_cava", "portal_vein_and_splenic_vein", "iliac_vena_left", "clavicula_left",
    "hip_left", "femur_right", "rib_left_1", "rib_left_12", "rib_right_1", "sternum", "autochthon_left",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("left kidney", "kidney_left"),
        ("rt. kidney", "kidney_right"),
        ("left suprarenal gland", "adrenal_gland_left"),
        ("upper lobe of the left lung", "lung_upper_lobe_left"),
        ("oesophagus", "esophagus"),
        ("bladder", "urinary_bladder"),
        ("cyst in the left kidney", "kidney_cyst_left"),
        ("L1 vertebra", "vertebrae_L1"),
        ("vertebrae_L1", "vertebrae_L1"),
        ("first lumbar vertebra", "vertebrae_L1"),
        ("T12", "vertebrae_T12"),
        ("atlas", "vertebrae_C1"),
        ("IVC", "inferior_vena_cava"),
        ("portal vein and splenic vein", "portal_vein_and_splenic_vein"),
        ("left iliac vein", "iliac_vena_left"),
        ("left collarbone", "clavicula_left"),
        ("left hip bone", "hip_left"),
        ("right thigh bone", "femur_right"),
        ("first left rib", "rib_left_1"),
        ("12th left rib", "rib_left_12"),
        ("breastbone", "sternum"),
        ("left autochthon", "autochthon_left"),
    ],
)
def test_the_labels_of_totalsegmentator_are_found_in_words(text, label, tmp_path):
    labels = {"background": 0} | {name: value for value, name in enumerate(TOTALSEGMENTATOR, start=1)}
    model = find_model(write_bare(tmp_path / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres", labels))
    (prompt,) = model.read_prompts([text])
    assert read_nnunet_folder(model.path).label_for(prompt) == label


@pytest.mark.parametrize("text", ["portal vein", "kidney", "L3 vertebra", "rib", "left kidney tumor"])
def test_what_totalsegmentator_lacks_is_not_guessed(text, tmp_path):
    labels = {"background": 0} | {name: value for value, name in enumerate(TOTALSEGMENTATOR, start=1)}
    folder = read_nnunet_folder(write_bare(tmp_path / "bare", labels))
    with pytest.raises(PromptError, match="Did you mean"):
        folder.label_for(understand(text))


# ---- folders ----


@pytest.mark.parametrize("key", ["licence", "license"])
def test_the_licence_is_the_datasets(key, bare):
    document = json.loads((bare / "dataset.json").read_text(encoding="utf-8"))
    del document["licence"]
    (bare / "dataset.json").write_text(json.dumps(document))
    assert find_model(bare).licence is None
    (bare / "dataset.json").write_text(json.dumps(document | {key: "CC BY 4.0"}))
    assert find_model(bare).licence == "CC BY 4.0"


def test_a_trained_folder_is_a_model(bare):
    model = find_model(bare)
    assert (model.kind, model.plan_name) == ("nnunet", "nnU-Net")
    assert "4 label(s)" in model.summary
    (bare / "inference_info.json").write_text("{}")
    assert not is_nnunet_folder(bare)


def test_models_show_lists_its_labels(bare):
    result = CliRunner().invoke(app, ["models", "show", str(bare)])
    assert result.exit_code == 0, result.output
    assert "kidney_left, Kidney Right, liver, thing" in result.stdout
    assert "CC0-1.0" in result.stdout


def test_final_checkpoints_of_numbered_folds_come_first(bare):
    for name in (
        "fold_all/checkpoint_final.pth",
        "fold_3/checkpoint_best.pth",
        "fold_2/checkpoint_final.pth",
    ):
        (bare / name).parent.mkdir(exist_ok=True)
        (bare / name).write_bytes(b"")
    assert [path.parent.name for path in find_checkpoints(bare)] == ["fold_0", "fold_2"]
    for fold in (0, 2):
        (bare / f"fold_{fold}" / "checkpoint_final.pth").unlink()
    assert [path.parent.name for path in find_checkpoints(bare)] == ["fold_all"]
    (bare / "fold_all" / "checkpoint_final.pth").unlink()
    assert [path.parent.name for path in find_checkpoints(bare)] == ["fold_3"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"labels": 3}', '{"labels": {"a": "b"}}'])
def test_a_dataset_file_that_says_nothing_is_refused(content, bare):
    (bare / "dataset.json").write_text(content)
    with pytest.raises(ModelError, match=r"dataset\.json"):
        read_nnunet_folder(bare)


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_nothing_in_a_checkpoint_runs(bare, tmp_path):
    torch.save({"network_weights": {}, "logging": Runs(tmp_path / "ran")}, find_checkpoints(bare)[0])
    with pytest.raises(ModelError, match="could run code"):
        Segmenter(bare, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network_class_name", "os.system"),
        ("network_class_name", "dynamic_network_architectures.architectures.unet.os.System"),
        ("conv_op", "builtins.eval"),
        ("norm_op", "torch.nn.parallel.distributed.os.system"),
        ("nonlin", "torch.nn.functional.relu"),
    ],
)
def test_a_plan_that_names_other_code_is_refused(key, value, bare):
    document = plans()
    architecture = document["configurations"]["3d_fullres"]["architecture"]
    (architecture if key == "network_class_name" else architecture["arch_kwargs"])[key] = value
    (bare / "plans.json").write_text(json.dumps(document))
    torch.save({"network_weights": {"a": torch.ones(1)}}, find_checkpoints(bare)[0])
    with pytest.raises(ModelError, match=rf"asks for '{value}', so nothing of it was run"):
        Segmenter(bare, device="cpu")


def test_weights_that_do_not_fit_are_named(folder, tmp_path):
    other = write_nnunet(tmp_path, labels={"background": 0, "liver": 1}, folds=1)
    (other / "dataset.json").write_text((folder / "dataset.json").read_text(encoding="utf-8"))
    with pytest.raises(
        ModelError, match=r"(?s)must fit their network.*decoder\.seg_layers\.0\.weight"
    ) as error:
        Segmenter(other, device="cpu")
    assert "(5, 6, 1, 1, 1)" in str(error.value)


def test_a_reader_of_pictures_is_refused(bare):
    (bare / "plans.json").write_text(json.dumps(plans("NaturalImage2DIO")))
    with pytest.raises(ModelError, match="was trained with NaturalImage2DIO"):
        Segmenter(bare, device="cpu")


def test_the_missing_extra_is_named(bare, monkeypatch):
    torch.save({"network_weights": {"a": torch.ones(1)}}, find_checkpoints(bare)[0])
    for name in [name for name in sys.modules if name.split(".")[0] == "nnunetv2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    with pytest.raises(ModelError, match=r'pip install "textseg\[train\]"'):
        Segmenter(bare, device="cpu")
