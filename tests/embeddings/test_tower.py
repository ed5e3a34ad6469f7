from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from textseg.embeddings.text_plan import TextPlan
from textseg.embeddings.tower import WEIGHTS_FILE, TextTower, load_tower, save_tower
from textseg.errors import ModelError

PLAN = TextPlan(
    vocabulary_size=300, width=24, layers=2, heads=3, hidden=40, longest_tokens=12, vector_width=16
)


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(3)
    return TextTower(PLAN).eval()


@pytest.fixture
def folder(tower: TextTower, tmp_path: Path) -> Path:
    save_tower(tower, tmp_path, {"steps": "0"})
    return tmp_path


def prompts() -> tuple[Tensor, Tensor]:
    """Three prompts of 2, 7 and 12 tokens; what stands in the padded places is noise."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, PLAN.vocabulary_size, (3, 12), generator=generator)
    mask = torch.arange(12)[None] < torch.tensor([2, 7, 12])[:, None]
    return ids, mask


@torch.no_grad()
def test_a_prompt_has_the_same_vector_alone_as_beside_longer_ones(tower: TextTower) -> None:
    ids, mask = prompts()
    together = tower(ids, mask)
    for place, length in enumerate([2, 7, 12]):
        alone = tower(ids[place : place + 1, :length], mask[place : place + 1, :length])
        torch.testing.assert_close(together[place], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_vectors_are_unit_float32_and_the_same_each_time(tower: TextTower) -> None:
    vectors = tower(*prompts())
    assert vectors.shape == (3, PLAN.vector_width)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert torch.equal(vectors, tower(*prompts()))


@torch.no_grad()
def test_the_order_of_tokens_matters(tower: TextTower) -> None:
    mask = torch.ones((1, 3), dtype=torch.bool)
    one, other = tower(torch.tensor([[4, 5, 6]]), mask), tower(torch.tensor([[6, 5, 4]]), mask)
    assert not torch.allclose(one, other, atol=1e-4)


@torch.no_grad()
def test_weights_go_to_disk_and_back_as_float16(tower: TextTower, folder: Path) -> None:
    loaded = load_tower(folder, PLAN)
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS_FILE).values()} == {torch.float16}
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(loaded(*prompts()), tower(*prompts()), atol=2e-3, rtol=0)


def test_saving_leaves_nothing_but_the_weights(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == [WEIGHTS_FILE]


def test_missing_weights_are_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        load_tower(tmp_path, PLAN)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_truncated_weights_are_a_model_error_in_one_line(folder: Path, kept: float) -> None:
    path = folder / WEIGHTS_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(ModelError, match="must be a whole safetensors file") as caught:
        load_tower(folder, PLAN)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    other = PLAN.model_copy(update={"vector_width": 8})
    with pytest.raises(ModelError, match=r"project\.weight is \(16, 24\) instead of \(8, 24\)") as caught:
        load_tower(folder, other)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_weights_are_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    weights["surplus"] = weights.pop("norm.bias")
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"norm\.bias is missing; surplus is unknown"):
        load_tower(folder, PLAN)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    weights["places.weight"][3, 2] = value
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"places\.weight holds NaN or infinity"):
        load_tower(folder, PLAN)
