"""The numbers of the text tower, as the plan holds them; loads no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary_size: int = Field(gt=0)
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    longest_tokens: int = Field(gt=1)
    vector_width: int = Field(gt=0)

    @model_validator(mode="after")
    def heads_share_the_width(self) -> TextPlan:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self
