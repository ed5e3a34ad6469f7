"""Text meets image: queries that depend on their own words, on the image, and on no other prompt."""

from __future__ import annotations

import pytest
import torch

from textseg.network.text_fusion import TextFusion, wave_positions


@pytest.fixture
def fusion(plan):
    torch.manual_seed(3)
    return TextFusion(plan.network).eval()


@pytest.fixture
def coarsest(plan):
    generator = torch.Generator().manual_seed(2)
    return torch.randn((2, plan.network.widths[-1], 4, 6, 3), generator=generator)


@pytest.fixture
def words(text):
    """The same five prompts for both images."""
    return text.expand(2, -1, -1)


def test_there_is_one_query_and_one_presence_a_prompt(fusion, words, coarsest, plan):
    queries, presence = fusion(words, coarsest)
    assert queries.seen.shape == (2, 5, plan.network.query_width)
    assert queries.words.shape == words.shape
    assert presence.shape == (2, 5)


def test_the_words_go_round_the_image_untouched(fusion, words, coarsest):
    queries, _ = fusion(words, coarsest)
    assert torch.allclose(queries.words / queries.words.norm(dim=-1, keepdim=True), words, atol=1e-6)
    other, _ = fusion(words, coarsest + 1)
    assert torch.equal(other.words, queries.words)


def test_prompts_do_not_see_each_other(fusion, words, coarsest):
    (queries, _), presence = fusion(words, coarsest)
    order = [3, 0, 4, 1, 2]
    (shuffled, _), shuffled_presence = fusion(words[:, order], coarsest)
    assert torch.allclose(shuffled, queries[:, order], atol=1e-5)
    assert torch.allclose(shuffled_presence, presence[:, order], atol=1e-5)
    (alone, _), _ = fusion(words[:, 2:3], coarsest)
    assert torch.allclose(alone, queries[:, 2:3], atol=1e-5)


def test_a_query_depends_on_its_words_and_on_the_image(fusion, words, coarsest):
    (queries, _), presence = fusion(words, coarsest)
    assert (queries[0, 0] - queries[0, 1]).abs().max() > 0.1
    assert (queries[0] - queries[1]).abs().amax(dim=-1).min() > 1e-3
    assert (presence[0] - presence[1]).abs().min() > 1e-4


def test_a_query_depends_on_where_things_are(fusion, words, coarsest):
    (queries, _), _ = fusion(words, coarsest)
    (mirrored, _), _ = fusion(words, coarsest.flip(2))
    assert (queries - mirrored).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("shape", [(4, 6, 3), (1, 1, 1), (7, 2, 5)], ids=str)
@pytest.mark.parametrize("width", [12, 32, 192, 5])
def test_positions_have_a_row_a_cell_for_any_grid_and_width(shape, width):
    x, y, z = shape
    assert wave_positions(shape, width).shape == (1, x * y * z, width)


def test_positions_tell_all_cells_of_a_grid_apart():
    positions = wave_positions((5, 7, 4), 24)[0]
    distances = torch.cdist(positions, positions) + torch.eye(len(positions)) * 9
    assert distances.min() > 0.05


def test_positions_are_measured_from_the_centre():
    # The middle of a window is the same place in windows of different sizes: sin 0 and cos 0.
    for shape in ((3, 5, 7), (9, 5, 1)):
        middle = wave_positions(shape, 12).reshape(*shape, 12)[tuple(n // 2 for n in shape)]
        assert torch.allclose(middle, torch.tensor([0.0, 0, 1, 1] * 3))
    small, large = wave_positions((3, 3, 3), 12).reshape(3, 3, 3, 12), wave_positions((5, 5, 5), 12)
    assert torch.allclose(large.reshape(5, 5, 5, 12)[1:4, 1:4, 1:4], small)


def test_positions_follow_the_order_of_the_tokens():
    grid = wave_positions((3, 4, 5), 12).reshape(3, 4, 5, 12)
    assert torch.equal(grid[1, :, :, :4], grid[1, :1, :1, :4].expand(4, 5, 4))
    assert torch.equal(grid[:, 2, :, 4:8], grid[:1, 2, :1, 4:8].expand(3, 5, 4))
    assert torch.equal(grid[:, :, 3, 8:], grid[:1, :1, 3, 8:].expand(3, 4, 4))
    assert not torch.equal(grid[0, 0, 0, :4], grid[1, 0, 0, :4])
