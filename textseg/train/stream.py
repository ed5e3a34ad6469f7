"""Samples one after the other: what is asked of each patch, in which words and with which marks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from textseg.train.cases import Target
from textseg.train.lesson import Question
from textseg.train.marked import first_marks, no_marks
from textseg.train.sampling import PatchSampler


class SampleStream(Dataset[Question]):
    """Sample i of the stream is always the same, whichever process draws it.

    Of several processes each goes through every n-th sample: `first` is the sample where all of them go on,
    `rank` and `ranks` are this process and how many there are.
    """

    def __init__(
        self, sampler: PatchSampler, vectors: Mapping[Target, Tensor], seed: int, length: int
    ) -> None:
        self.sampler = sampler
        self.vectors = vectors
        self.seed = seed
        self.length = length
        self.first = 0
        self.rank, self.ranks = 0, 1

    def __len__(self) -> int:
        return (self.length - self.first) // self.ranks

    def __getitem__(self, index: int) -> Question:
        random = np.random.default_rng([self.seed, self.first + self.rank + self.ranks * index])
        sample = self.sampler.draw(random)
        text = torch.stack([self._words(target, random) for target in sample.targets])
        sharing_text = text.new_zeros(self.sampler.plan.training.sharing_prompts, text.shape[-1])
        for place, target in enumerate(sample.sharing):
            sharing_text[place] = self._words(target, random)
        asked = torch.arange(len(sharing_text)) < len(sample.sharing)
        told = Question(sample.image, text, sample.masks, sharing_text, asked, sample.shares, sample.valid)
        return self._marked(told, random)

    def _marked(self, question: Question, random: np.random.Generator) -> Question:
        """The same question, some of its prompts with marks on what they mean, and some of those unworded."""
        recipe = self.sampler.plan.training
        if not recipe.marks_fraction and not recipe.correction_fraction:
            return question
        x, y, z = question.masks.shape[1:]
        marks = torch.stack([no_marks((x, y, z))] * len(question.masks))
        worded = torch.ones(len(question.masks), dtype=torch.bool)
        for prompt, mask in enumerate(question.masks):
            if mask.any() and random.random() < recipe.marks_fraction:
                marks[prompt] = first_marks(mask, random)
                worded[prompt] = random.random() >= recipe.wordless_fraction
        return question._replace(marks=marks, worded=worded)

    def _words(self, target: Target, random: np.random.Generator) -> Tensor:
        """The canonical words half of the time, since that is what most prompts become."""
        choices = self.vectors[target]
        return choices[0] if random.random() < 0.5 else choices[int(random.integers(len(choices)))]
