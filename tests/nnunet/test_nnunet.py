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


# ---- folders ----


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
    (other / "dataset.json").write_text((folder / "dataset.json").read_text())
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
