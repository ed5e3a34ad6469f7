"""The numbers of the text tower, as the plan holds them; loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator


class EncoderPlan(BaseModel):
    """Another project's text encoder in place of our tower.

    Args:
        kind: "last_token" for language models that speak at the end (Qwen3-Embedding), "mean" for BERT and
            its kin (BioLORD), "open_clip" for the text tower of a CLIP.
        source: a folder, also beside the plan, or a name on the hub such as "Qwen/Qwen3-Embedding-4B"; for
            open_clip also "ViT-B-32:laion2b_s34b_b79k", an architecture with the tag or file of its weights.
        wording: what is asked; "{prompt}" stands for the prompt.
        longest_tokens: what a text is cut to; open_clip's own limit counts for its towers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["last_token", "mean", "open_clip"]
    source: str = Field(min_length=1)
    wording: str = "{prompt}"
    longest_tokens: PositiveInt = 512

    @field_validator("wording")
    @classmethod
    def wording_holds_the_prompt(cls, wording: str) -> str:
        if "{prompt}" not in wording:
            raise ValueError('wording must hold "{prompt}"')
        return wording

    def word(self, prompt: str) -> str:
        # Not str.format: a wording may hold other braces.
        return self.wording.replace("{prompt}", prompt)


class TextPlan(BaseModel):
    """Every number of the text tower and its vocabulary.

    Args:
        vocabulary_size: the most tokens a vocabulary may have.
        width: of the vectors that travel through the transformer, one a token.
        layers: of the transformer.
        heads: of attention in every layer.
        hidden: width inside the two-layer network of every layer.
        longest_tokens: what a text is cut to, the start token included.
        vector_width: of the vector that comes out for a text.
        encoder: another encoder that gives vectors of that width in place of the tower, whose sizes then
            describe nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary_size: int = Field(gt=0)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    longest_tokens: int = Field(gt=1)
    vector_width: int = Field(gt=0)
    encoder: EncoderPlan | None = None

    @model_validator(mode="after")
    def heads_share_the_width(self) -> TextPlan:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self
