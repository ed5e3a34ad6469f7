"""Text meets image: each prompt's vector looks at the coarsest features and becomes a query."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from textseg.plan import NetworkPlan


class QueryLayer(nn.Module):
    """Pre-norm cross-attention from queries to image tokens, then a small feed-forward network.

    There is no attention between prompts: what one prompt gives never depends on which others are asked.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """queries (batch, prompts, width), tokens and positions (batch or 1, tokens, width) → queries."""
        query = self._split(self.to_query(self.norm_query(queries)))
        key = self._split(self.to_key(tokens + positions))
        value = self._split(self.to_value(tokens))
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        queries = queries + self.to_out(seen.transpose(1, 2).flatten(2))
        out: Tensor = queries + self.hidden(self.norm_hidden(queries))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Query(NamedTuple):
    """What a prompt asks of the image's features.

    seen: (batch, prompts, query width) its words after they looked at the image, with entries of about unit
    size; words: (batch, prompts, text width) as they came, of about length one.
    """

    seen: Tensor
    words: Tensor


class TextFusion(nn.Module):
    """Text vectors and the coarsest image features → one query and one presence logit a prompt."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        width = plan.query_width
        # Text vectors have length one: unscaled, each entry is a sixteenth, and the image drowns the words.
        self.text_scale = plan.text_width**0.5
        self.project_text = nn.Linear(plan.text_width, width)
        self.no_text = nn.Parameter(torch.zeros(plan.text_width))
        self.project_image = nn.Linear(plan.widths[-1], width)
        self.norm_image = nn.LayerNorm(width)
        self.layers = nn.ModuleList(QueryLayer(width, plan.query_heads) for _ in range(plan.query_layers))
        self.norm = nn.LayerNorm(width)
        self.presence = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, text: Tensor, coarsest: Tensor, marked: Tensor | None = None) -> tuple[Query, Tensor]:
        """text (batch, prompts, text width), coarsest (batch, channels, x, y, z).

        Args:
            marked: (batch, prompts, width) what lies under a prompt's marks, see `SpatialQuery`.

        Returns:
            the queries and presence logits (batch, prompts).
        """
        tokens = self.norm_image(self.project_image(coarsest.flatten(2).transpose(1, 2)))
        positions = wave_positions(coarsest.shape[2:], tokens.shape[-1]).to(tokens)
        queries = self.project_text(text * self.text_scale)
        if marked is not None:
            queries = queries + marked
        for layer in self.layers:
            queries = layer(queries, tokens, positions)
        queries = self.norm(queries)
        return Query(queries, text), self.presence(queries).squeeze(-1)


def wave_positions(shape: torch.Size | tuple[int, ...], width: int) -> Tensor:
    """Sine and cosine positions (1, x · y · z, width) of a grid's cells, measured from its centre.

    As Vaswani et al. 2017, a third of the channels for each axis, so a window of any size gets positions.
    """
    channels = width // 6
    rates = torch.exp(torch.arange(channels) * (-math.log(100.0) / max(1, channels - 1)))
    waves = []
    for size in shape:
        angles = (torch.arange(size) - (size - 1) / 2)[:, None] * rates
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    x, y, z = (wave.shape[0] for wave in waves)
    grid = torch.cat(
        [
            waves[0][:, None, None].expand(x, y, z, -1),
            waves[1][None, :, None].expand(x, y, z, -1),
            waves[2][None, None, :].expand(x, y, z, -1),
        ],
        dim=-1,
    ).reshape(1, x * y * z, -1)
    return nn.functional.pad(grid, (0, width - grid.shape[-1]))
