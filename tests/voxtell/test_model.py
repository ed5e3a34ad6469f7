"""A VoxTell folder as a model: found by its files, asked in words, masks back on the scan's own grid."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.voxtell.tiny_folder import LABELS, write_bank
from textseg.errors import ModelError, OutputError, PromptError
from textseg.inference import Segmenter
from textseg.models import find_model
from textseg.network.voxtell.flow import segment_like_voxtell
from textseg.network.voxtell.folder import convert, load_voxtell
from textseg.network.voxtell.plan import BANK_FILE
from textseg.network.voxtell.text import load_text
from textseg.network.weights import file_hash
from textseg.prompts import understand
from textseg.scan import read_scan

# Left to right and head to foot, sheared a little, three different spacings.
AFFINE = np.array([[-1.6, 0.1, 0, 60], [0.1, 2.1, 0.2, -40], [0, -0.2, -3.0, 90], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    voxels = np.zeros((26, 21, 18), np.int16)
    voxels[3:-2, 1:-4, 2:] = np.random.default_rng(2).integers(1, 400, (21, 16, 16))
    voxels[5:10, 9:15, 4:9] += 900
    path = tmp_path_factory.mktemp("scan") / "head.nii.gz"
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.fixture(scope="module")
def segmenter(shared_folder):
    return Segmenter(shared_folder, device="cpu")


def test_a_processor_computes_as_exactly_as_voxtells_own_code(shared_folder, monkeypatch):
    monkeypatch.setattr("textseg.device.fastest_type", lambda device: torch.bfloat16)
    assert Segmenter(shared_folder, device="cpu").compute.dtype == torch.float32


def test_a_released_folder_and_a_converted_one_are_models(folder, tmp_path):
    convert(folder, tmp_path / "small")
    for path, weights in ((folder, "checkpoint_final.pth"), (tmp_path / "small", "network.safetensors")):
        model = find_model(path)
        assert (model.kind, model.plan_name, model.licence) == ("voxtell", "VoxTell", "CC BY-NC-SA")
        assert set(model.files) == {"plans.json", weights, BANK_FILE}
        assert model.sha256[weights] == file_hash(model.files[weights])
        assert model.size_bytes > 1000
        with pytest.raises(ModelError, match=r"have a plan, but .* one of VoxTell"):
            _ = model.plan


def test_the_folder_above_a_model_is_refused_with_its_name(folder):
    with pytest.raises(ModelError, match=rf"Did you mean {folder.name} in it"):
        find_model(folder.parent)


def test_a_folder_of_nnunet_is_not_taken_for_voxtells(folder):
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(ModelError):
        Segmenter(folder, device="cpu")


def test_masks_are_those_of_voxtells_own_way(segmenter, shared_folder, scan, cpu):
    result = segmenter(scan, ["LIVER", "spleen"])
    network = load_voxtell(shared_folder)
    text = load_text(shared_folder, network.text_width).embed(["liver", "spleen"])
    expected, presence = segment_like_voxtell(read_scan(scan), network, text, cpu)
    assert result.masks.shape == (2, 26, 21, 18)
    assert 0.01 < result.masks.mean() < 0.9
    assert np.abs(result.presence - presence).max() < 1e-5
    # Another memory layout rounds otherwise.
    assert (result.masks != expected).mean() < 1e-3
    assert [found.asked for found in result.found] == ["liver", "spleen"]


def test_files_and_record_are_those_of_any_model(segmenter, shared_folder, scan, tmp_path):
    *masks, record_path = segmenter(scan, ["liver", "Lt. kidney"]).save(tmp_path / "out", write_empty=True)
    assert all(np.array_equal(nib.load(mask).affine, nib.load(scan).affine) for mask in masks)
    record = json.loads(record_path.read_text(encoding="utf-8"))
    assert record["model"]["kind"] == "voxtell"
    assert record["model"]["licence"] == "CC BY-NC-SA"
    checkpoint = shared_folder / "fold_0" / "checkpoint_final.pth"
    assert record["model"]["sha256"]["checkpoint_final.pth"] == file_hash(checkpoint)
    assert [prompt["asked"] for prompt in record["prompts"]] == ["liver", "left kidney"]
    assert record["prompts"][1]["structure"] == "left_kidney"


def test_a_converted_folder_gives_the_same_masks(segmenter, folder, scan, cpu, tmp_path):
    convert(folder, tmp_path / "small")
    converted = Segmenter(tmp_path / "small", device="cpu")
    converted.compute = cpu
    prompts = ["aorta", "liver"]
    assert np.array_equal(converted(scan, prompts).masks, segmenter(scan, prompts).masks)


def test_converting_replaces_nothing_unasked(folder, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "plans.json").write_text("precious")
    with pytest.raises(OutputError, match=r"already holds plans\.json"):
        convert(folder, tmp_path / "small")
    assert (tmp_path / "small" / "plans.json").read_text(encoding="utf-8") == "precious"
    assert len(convert(folder, tmp_path / "small", overwrite=True)) == 3


# ---- words that the bank lacks ----


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("left kidney", "left kidney"),
        ("  Left   KIDNEY ", "left kidney"),
        ("lt. kidney", "left kidney"),
        ("ren sinister", "left kidney"),
        ("the patient's liver", "liver"),
        ("A small cyst in the RIGHT kidney", "a small cyst in the right kidney"),
    ],
)
def test_a_prompt_is_asked_in_words_of_the_bank(text, asked, shared_folder, tiny):
    assert load_text(shared_folder, tiny.text).wording(understand(text)) == asked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("right kidney", ['"right kidney"', "left kidney"]),
        ("rt kidney", ['"rt kidney" (read as "right kidney")']),
        ("a huge liver", ['"a huge liver"', '"liver"']),
        ("left liver", ['"left liver"']),
        ("qqqq", ['"qqqq"', "--structures"]),
    ],
)
def test_a_prompt_without_a_vector_is_refused_with_what_is_near(text, words, segmenter, scan):
    with pytest.raises(PromptError) as error:
        segmenter(scan, ["liver", text])
    for word in (*words, "Qwen3-Embedding-4B", "textseg[llm]"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_finding_of_a_structure_is_asked_in_words_of_the_bank(folder, tiny):
    write_bank(
        folder / "embeddings" / BANK_FILE,
        tiny.text,
        ("tumor of the left kidney", "effusion", "pleural effusion"),
    )
    text = load_text(folder, tiny.text)
    assert text.wording(understand("left renal tumour")) == "tumor of the left kidney"
    assert text.wording(understand("the pleural effusions")) == "pleural effusion"
    with pytest.raises(PromptError):
        text.wording(understand("right renal tumour"))
    with pytest.raises(PromptError):
        text.wording(understand("left pleural effusion"))


def test_an_encoder_is_asked_in_the_prompts_own_words(folder, tiny, scan):
    class Lengths:
        name, width = "lengths", tiny.text
        asked: list[str]

        def embed(self, texts):
            self.asked = list(texts)
            return torch.ones((len(texts), tiny.text))

    encoder = Lengths()
    result = Segmenter(folder, device="cpu", text_encoder=encoder)(scan, ["Lt. Kidney and Liver", "liver"])
    assert [found.asked for found in result.found] == ["lt. kidney and liver", "liver"]
    assert [text.rpartition("Query: ")[2] for text in encoder.asked] == ["lt. kidney and liver"]
    assert not result.found[0].prompt.known


def test_a_way_of_writing_asks_no_encoder(folder, tiny, scan):
    class Refusing:
        name, width = "refusing", tiny.text

        def embed(self, texts):
            raise AssertionError(f"asked for {texts}")

    prompts = ["lt. kidney", "ren sinister", "the patient's liver"]
    text = load_text(folder, tiny.text, Refusing())
    assert [text.wording(understand(prompt)) for prompt in prompts] == ["left kidney", "left kidney", "liver"]
    # What means another thing is asked as it is.
    assert text.wording(understand("a huge liver")) == "a huge liver"
    assert text.wording(understand("rt. kidney")) == "rt. kidney"
    result = Segmenter(folder, device="cpu", text_encoder=Refusing())(scan, prompts[:1])
    assert result.found[0].asked == "left kidney"


def test_the_second_run_of_a_new_prompt_loads_no_language_model(folder, tiny, scan, tmp_path, monkeypatch):
    """A prompt that no bank has: the first process asks the language model, any later one the cache."""
    made = []

    def embed(self, texts):
        made.extend(texts)
        return torch.stack([torch.full((tiny.text,), float(len(text))) for text in texts])

    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"hidden_size": tiny.text}))
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("textseg.network.voxtell.text.find_local", lambda source: tmp_path / "qwen")
    monkeypatch.setattr("textseg.network.voxtell.text.find_spec", lambda module: True)
    monkeypatch.setattr("textseg.embeddings.language.LanguageEncoder.embed", embed)
    masks = [Segmenter(folder, device="cpu")(scan, "a huge liver").masks for _ in range(2)]
    assert len(made) == 1
    assert made[0].endswith("Query: a huge liver")
    assert np.array_equal(*masks)


def test_a_prompt_of_the_bank_loads_no_language_model(folder, tiny, scan, tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("a language model was loaded")

    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"hidden_size": tiny.text}))
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("textseg.network.voxtell.text.find_local", lambda source: tmp_path / "qwen")
    monkeypatch.setattr("textseg.network.voxtell.text.find_spec", lambda module: True)
    monkeypatch.setattr("textseg.embeddings.language.LanguageEncoder._loaded", refuse)
    segmenter = Segmenter(folder, device="cpu")
    assert [found.asked for found in segmenter(scan, ["Left kidney", "aorta"]).found] == [
        "left kidney",
        "aorta",
    ]
    with pytest.raises(AssertionError, match="was loaded"):
        segmenter(scan, "right kidney")


def test_a_folder_without_a_bank_says_so(folder, tmp_path):
    shutil.rmtree(folder / "embeddings")
    with pytest.raises(ModelError, match="no bank"):
        Segmenter(folder, device="cpu")
    assert BANK_FILE not in find_model(folder).files
    assert len(LABELS) == 5
