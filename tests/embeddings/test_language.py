"""Language models as text encoders: their pooling, and that nothing of them stays in memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.embeddings.tiny_language import (
    WIDTH,
    let_torchvision_be_imported,
    write_clip,
    write_clip_of_bert,
    write_language_model,
)
from textseg.embeddings.clip import OpenClipEncoder
from textseg.embeddings.language import LanguageEncoder
from textseg.embeddings.local import find_local, fingerprint, need_local
from textseg.errors import ModelError

TEXTS = ["left kidney", "liver", "a small tumor of the left kidney", "the right kidney"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("models") / "qwen", "qwen")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@torch.no_grad()
def states_of(folder: Path, text: str) -> Tensor:
    """The last layer's states (tokens, width) of one text alone, by the library itself."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval().float()
    states: Tensor = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
    return states


def test_qwen_gives_the_state_of_the_last_token(qwen: Path) -> None:
    encoder = LanguageEncoder(qwen, "last_token", dtype=torch.float32)
    vectors = encoder.embed(TEXTS)
    assert vectors.shape == (4, encoder.width) == (4, WIDTH)
    assert vectors.dtype == torch.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        torch.testing.assert_close(vector, states_of(qwen, text)[-1], atol=1e-4, rtol=1e-4)
    assert (vectors[0] - vectors[3]).abs().max() > 0.1


def test_bert_gives_the_mean_over_the_tokens(bert: Path) -> None:
    vectors = LanguageEncoder(bert, "mean").embed(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        torch.testing.assert_close(vector, states_of(bert, text).mean(dim=0), atol=1e-4, rtol=1e-4)
    assert (vectors[0] - vectors[3]).abs().max() > 0.01


def test_qwen_runs_in_bfloat16_and_gives_float32(qwen: Path) -> None:
    half = LanguageEncoder(qwen, "last_token")
    vectors = half.embed(TEXTS)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, vectors.bfloat16().float())
    assert half.name != LanguageEncoder(qwen, "last_token", dtype=torch.float32).name


def test_many_texts_come_back_in_their_order(bert: Path) -> None:
    encoder = LanguageEncoder(bert, "mean")
    many = [TEXTS[n % 4] for n in range(40)]
    together, four = encoder.embed(many), encoder.embed(TEXTS)
    torch.testing.assert_close(together, four.repeat(10, 1), atol=1e-4, rtol=1e-4)
    assert encoder.embed([]).shape == (0, WIDTH)


def test_a_long_text_is_cut(bert: Path) -> None:
    encoder = LanguageEncoder(bert, "mean", longest_tokens=3)
    assert torch.equal(encoder.embed(["left kidney of the liver"]), encoder.embed(["left kidney of"]))


def test_the_model_is_gone_after_use(qwen: Path) -> None:
    import gc

    transformers = pytest.importorskip("transformers")
    encoder = LanguageEncoder(qwen, "last_token")
    encoder.embed(TEXTS)
    assert not [each for each in gc.get_objects() if type(each) is transformers.Qwen3Model]


def test_the_name_follows_the_files(qwen: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen, tmp_path / "qwen"))
    name = LanguageEncoder(copy, "last_token").name
    (copy / ".cache").mkdir()
    (copy / ".cache" / "download.lock").write_text("")
    assert LanguageEncoder(copy, "last_token").name == name
    assert LanguageEncoder(copy, "mean").name != name
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert LanguageEncoder(copy, "last_token").name != name


def test_ends_of_a_large_file_and_its_time_tell_it_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textseg.embeddings.local.SMALL_BYTES", 10)
    monkeypatch.setattr("textseg.embeddings.local.END_BYTES", 4)
    marks = set()
    for content in (b"a" * 100, b"a" * 99 + b"b", b"b" + b"a" * 99, b"a" * 101):
        (tmp_path / "weights").write_bytes(content)
        marks.add(fingerprint(tmp_path))
    assert len(marks) == 4


# ---- what can be missing ----


def model_folder(folder: Path) -> Path:
    """Enough of a language model to make an encoder, none of its weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": WIDTH, "model_type": "qwen3"}))
    return folder


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    encoder = LanguageEncoder(model_folder(tmp_path / "qwen"), "last_token")
    with pytest.raises(ModelError, match=r'pip install "textseg\[llm\]"'):
        encoder.embed(["liver"])
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r'pip install "textseg\[clip\]"'):
        OpenClipEncoder("ViT-B-32:openai")


def test_a_library_that_can_not_be_imported_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    with pytest.raises(
        ModelError, match=r"nms does not exist\)\. Are torch and torchvision builds for each other"
    ):
        OpenClipEncoder("ViT-B-32:openai")


def test_weights_that_are_not_there_are_said_so(tmp_path: Path) -> None:
    let_torchvision_be_imported()
    pytest.importorskip("transformers")
    encoder = LanguageEncoder(model_folder(tmp_path / "qwen"), "last_token")
    with pytest.raises(ModelError, match="is one that transformers can load") as error:
        encoder.embed(["liver"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [None, "{", "[]", "{}"])
def test_a_folder_that_is_no_language_model_is_refused(config: str | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json"):
        LanguageEncoder(tmp_path, "mean")


def test_an_encoder_is_looked_for_beside_the_plan_and_among_the_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    for place in (tmp_path / "model" / "encoder", tmp_path / "cache" / "weights" / "some-encoder-1b"):
        place.mkdir(parents=True)
    assert find_local("encoder", tmp_path / "model") == tmp_path / "model" / "encoder"
    assert find_local(str(tmp_path / "model" / "encoder")) == tmp_path / "model" / "encoder"
    assert find_local("Nobody/Some-Encoder-1B") == tmp_path / "cache" / "weights" / "some-encoder-1b"
    assert find_local("encoder") is None
    assert find_local("nobody/has-this-encoder") is None
    with pytest.raises(ModelError, match=r"hf download nobody/has-this-encoder"):
        need_local("nobody/has-this-encoder")


# ---- CLIP ----


def test_a_clip_in_a_folder_gives_the_vectors_of_its_text_tower(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    open_clip = pytest.importorskip("open_clip")
    encoder = OpenClipEncoder("clip", beside=tmp_path)
    vectors = encoder.embed(TEXTS)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(vectors, model.encode_text(tokens))
    assert encoder.width == vectors.shape[1] == WIDTH
    assert (vectors[0] - vectors[3]).abs().max() > 1e-3
    assert OpenClipEncoder(str(folder)).name == encoder.name
    assert encoder.embed([]).shape == (0, WIDTH)


def test_a_clip_is_named_by_architecture_and_file(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    open_clip = pytest.importorskip("open_clip")
    architecture = tmp_path / "architectures" / "tiny-clip.json"
    architecture.parent.mkdir()
    architecture.write_text(
        json.dumps(json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"])
    )
    open_clip.add_model_config(architecture)
    encoder = OpenClipEncoder(f"tiny-clip:{folder / 'open_clip_model.safetensors'}")
    assert torch.equal(encoder.embed(TEXTS), OpenClipEncoder(str(folder)).embed(TEXTS))
    with pytest.raises(ModelError, match="no architecture"):
        OpenClipEncoder("no-such-clip:openai")
    with pytest.raises(ModelError, match="must lie on this machine"):
        OpenClipEncoder("tiny-clip:no-such-tag")


def test_a_clip_without_its_width_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match="embed_dim"):
        OpenClipEncoder(str(tmp_path))


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line at all: whatever asks the hub fails at once."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def expected_of_bert(folder: Path, bert: Path, text: str) -> Tensor:
    """A CLIP's vector of one text by hand: the first token's last state through two layers."""
    from safetensors.torch import load_file

    weights = load_file(folder / "open_clip_model.safetensors")
    transformers = pytest.importorskip("transformers")
    tokens = transformers.AutoTokenizer.from_pretrained(bert)([text], return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(bert, add_pooling_layer=False).eval()
    with torch.no_grad():
        first = model(**tokens).last_hidden_state[0, 0]
    hidden = torch.nn.functional.gelu(weights["text.proj.0.weight"] @ first)
    return weights["text.proj.2.weight"] @ hidden


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("place", ["fetched", "beside the weights"])
def test_a_clip_whose_text_tower_is_a_bert_is_built_without_the_hub(
    place: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    folder = write_clip_of_bert(tmp_path / "biomed", bert, "nobody/Tiny-BERT")
    encoder = OpenClipEncoder(str(folder))
    with pytest.raises(ModelError, match=r"config\.json of nobody/Tiny-BERT, which is not on this machine"):
        encoder.embed(TEXTS)
    where = folder if place == "beside the weights" else tmp_path / "cache" / "weights" / "tiny-bert"
    where.mkdir(parents=True, exist_ok=True)
    shutil.copy(bert / "config.json", where)
    vectors = encoder.embed(TEXTS)
    assert vectors.shape == (4, encoder.width) == (4, WIDTH // 2)
    for text, vector in zip(TEXTS, vectors, strict=True):
        torch.testing.assert_close(vector, expected_of_bert(folder, bert, text), atol=1e-4, rtol=1e-4)
    assert (vectors[0] - vectors[3]).abs().max() > 0.01


@pytest.mark.usefixtures("_no_network")
def test_a_named_clip_takes_the_tokenizer_of_a_fetched_bert(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    folder = write_clip_of_bert(tmp_path / "biomed", bert, "nobody/Tiny-BERT")
    shutil.copytree(bert, tmp_path / "cache" / "weights" / "tiny-bert")
    open_clip = pytest.importorskip("open_clip")
    architecture = tmp_path / "architectures" / "tiny-bert-clip.json"
    architecture.parent.mkdir()
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    architecture.write_text(json.dumps(config))
    open_clip.add_model_config(architecture)
    named = OpenClipEncoder(f"tiny-bert-clip:{folder / 'open_clip_model.safetensors'}")
    torch.testing.assert_close(named.embed(TEXTS), OpenClipEncoder(str(folder)).embed(TEXTS))


def test_weights_of_a_clip_that_would_run_code_do_not(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {}, "x": Runs(tmp_path / "ran")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="one that open_clip can load"):
        OpenClipEncoder(str(folder)).embed(TEXTS)
    assert not (tmp_path / "ran").exists()


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_weights_of_a_language_model_that_would_run_code_do_not(qwen: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen, tmp_path / "qwen"))
    (folder / "model.safetensors").unlink()
    torch.save({"x": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="one that transformers can load"):
        LanguageEncoder(folder, "last_token").embed(TEXTS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("_no_network")
def test_language_models_in_folders_ask_no_network(qwen: Path, bert: Path) -> None:
    assert LanguageEncoder(qwen, "last_token").embed(TEXTS).isfinite().all()
    assert LanguageEncoder(bert, "mean").embed(TEXTS).isfinite().all()


def test_bfloat16_is_never_blown_up_to_float32(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too: 4 B parameters are 8 GB so, and 16 in float32."""
    loaded = LanguageEncoder._loaded
    seen: list[torch.dtype] = []

    def watched(self: LanguageEncoder) -> object:
        tokenizer, model = loaded(self)
        seen.extend(parameter.dtype for parameter in model.parameters())
        return tokenizer, model

    monkeypatch.setattr(LanguageEncoder, "_loaded", watched)
    LanguageEncoder(qwen, "last_token").embed(TEXTS)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.gpu
def test_qwen_runs_on_a_gpu_and_leaves_it(qwen: Path) -> None:
    on_gpu = LanguageEncoder(qwen, "last_token", device=torch.device("cuda")).embed(TEXTS)
    on_cpu = LanguageEncoder(qwen, "last_token").embed(TEXTS)
    assert on_gpu.device.type == "cpu"
    assert torch.nn.functional.cosine_similarity(on_gpu, on_cpu).min() > 0.99
    assert torch.cuda.memory_allocated() == 0
