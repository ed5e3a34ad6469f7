"""Random language models and CLIPs of a few thousand numbers, in the folders that their libraries write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

WORDS = ("[PAD]", "[UNK]", "left", "right", "kidney", "liver", "a", "small", "tumor", "of", "the", "query")
WIDTH = 24


def let_torchvision_be_imported() -> None:
    """A torchvision built for CUDA lacks two operators beside another torch; nothing here runs them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            library.define(schema)
        # The declarations go with the object.
        _kept.append(library)
    except ModuleNotFoundError:
        return


_kept: list[torch.library.Library] = []


def write_language_model(folder: Path, kind: str) -> Path:
    """A "qwen" or "bert" with random weights and a tokenizer of twelve words."""
    let_torchvision_be_imported()
    transformers = pytest.importorskip("transformers", reason="Needs the extra llm.")
    torch.manual_seed(3)
    if kind == "qwen":
        config = transformers.Qwen3Config(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )
        model = transformers.Qwen3Model(config)
    else:
        config = transformers.BertConfig(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
        model = transformers.BertModel(config)
    for parameter in model.parameters():
        # Fresh models hardly tell words apart.
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(folder)
    return folder


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def write_clip(folder: Path) -> Path:
    """A CLIP with random weights, as open_clip keeps one in a folder."""
    let_torchvision_be_imported()
    open_clip = pytest.importorskip("open_clip", reason="Needs the extra clip.")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(5)
    from safetensors.torch import save_file

    model = open_clip.CLIP(**config)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def write_clip_of_bert(folder: Path, bert: Path, name: str) -> Path:
    """A CLIP whose text tower is a BERT, in a folder as BiomedCLIP's: the BERT's tokenizer, not its config.

    Args:
        bert: from `write_language_model`.
        name: what the CLIP's configuration calls it.
    """
    open_clip = pytest.importorskip("open_clip", reason="Needs the extra clip.")
    folder.mkdir(parents=True, exist_ok=True)
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    text = {
        "hf_model_name": name,
        "hf_tokenizer_name": name,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 16,
    }
    config = {"embed_dim": WIDTH // 2, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    for path in bert.glob("*token*.json"):
        shutil.copy(path, folder)
    torch.manual_seed(6)
    from safetensors.torch import save_file

    local = {**text, "hf_model_name": str(bert), "hf_model_pretrained": True}
    model = open_clip.CustomTextCLIP(WIDTH // 2, vision, local)
    for parameter in model.text.proj.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
