"""The text tower: a small transformer from tokens to one vector a prompt, and its weights on disk."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.embeddings.text_plan import TextPlan
from textseg.safe_loading import load_fitting
from textseg.safe_saving import save_tensors

WEIGHTS_FILE = "text_tower.safetensors"

# Embeddings start this small so that the first layers see the sum of token and place, not one of them.
EMBEDDING_SD = 0.02


class TextTower(nn.Module):
    """Token ids to unit vectors (prompts, vector_width).

    A pre-norm transformer and the mean over a prompt's tokens. Padding is masked in attention and in the
    mean, so a prompt has the same vector alone as in a batch beside longer ones.

    Args:
        plan: every size.
        dropout: of the token embeddings while training; none in `eval()`.
    """

    def __init__(self, plan: TextPlan, dropout: float = 0.0) -> None:
        super().__init__()
        self.plan = plan
        self.tokens = nn.Embedding(plan.vocabulary_size, plan.width)
        self.places = nn.Embedding(plan.longest_tokens, plan.width)
        self.layers = nn.ModuleList(TowerLayer(plan) for _ in range(plan.layers))
        self.norm = nn.LayerNorm(plan.width)
        self.project = nn.Linear(plan.width, plan.vector_width, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.tokens.weight, std=EMBEDDING_SD)
        nn.init.normal_(self.places.weight, std=EMBEDDING_SD)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (prompts, vector_width), float32.

        Args:
            ids: (prompts, tokens) int64; what stands in padded places does not matter.
            mask: (prompts, tokens) bool, True where there is a token; at least one a prompt.
        """
        states = self.dropout(self.tokens(ids) + self.places.weight[: ids.shape[1]])
        attended = mask[:, None, None, :]
        for layer in self.layers:
            states = layer(states, attended)
        states = self.norm(states).float()
        weights = mask[:, :, None].float()
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return F.normalize(self.project(mean).float(), dim=-1)


class TowerLayer(nn.Module):
    """One pre-norm layer: attention over the tokens, then a two-layer network on each of them."""

    def __init__(self, plan: TextPlan) -> None:
        super().__init__()
        self.heads = plan.heads
        self.attention_norm = nn.LayerNorm(plan.width)
        self.attention_in = nn.Linear(plan.width, 3 * plan.width)
        self.attention_out = nn.Linear(plan.width, plan.width)
        self.network_norm = nn.LayerNorm(plan.width)
        self.network_in = nn.Linear(plan.width, plan.hidden)
        self.network_out = nn.Linear(plan.hidden, plan.width)

    def forward(self, states: Tensor, attended: Tensor) -> Tensor:
        states = states + self._attention(self.attention_norm(states), attended)
        network: Tensor = self.network_out(F.gelu(self.network_in(self.network_norm(states))))
        return states + network

    def _attention(self, states: Tensor, attended: Tensor) -> Tensor:
        prompts, tokens, width = states.shape
        parts = self.attention_in(states).view(prompts, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        # Written out: for prompts this short torch's fused attention takes twice as long to train on a CPU
        # (bfloat16, two cores, batch 256: 0.36 s instead of 0.12 s a step of 12 tokens).
        scores = (query / (width // self.heads) ** 0.5) @ key.transpose(-1, -2)
        shares = scores.masked_fill(~attended, -torch.inf).softmax(dim=-1).to(value.dtype)
        mixed: Tensor = self.attention_out((shares @ value).transpose(1, 2).reshape(prompts, tokens, width))
        return mixed


def save_tower(tower: TextTower, folder: Path, metadata: dict[str, str]) -> None:
    """Write the weights as float16; a reader finds the old file or the new one, never a half."""
    weights = {name: tensor.detach().half().contiguous() for name, tensor in tower.state_dict().items()}
    save_tensors(weights, metadata, folder / WEIGHTS_FILE)


def load_tower(folder: Path, plan: TextPlan) -> TextTower:
    """The tower whose weights lie in a model's folder, in float32, ready to embed.

    Raises:
        ModelError: the file is missing or cut off, does not fit the plan, or has values that aren't finite.
    """
    tower = TextTower(plan)
    tower.load_state_dict(load_fitting(folder / WEIGHTS_FILE, tower.state_dict()))
    return tower.eval()
