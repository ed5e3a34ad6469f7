"""Lesions put into organs: an uneven ball, brighter or darker than what it grows in, and the word for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textseg.train.synth import smooth_noise
from textseg.volume import Modality

LESION_WORDS = ("tumor", "mass", "lesion", "cyst")
FEWEST_ORGAN_VOXELS = 300


@dataclass(frozen=True, eq=False)
class Lesion:
    """organ and finding are lexicon ids; mask (x, y, z) float32."""

    organ: str
    finding: str
    mask: Tensor


def add_lesion(
    image: Tensor,
    labels: Tensor,
    organs: Mapping[str, tuple[int, ...]],
    modality: Modality,
    values_per_hu: float,
    random: np.random.Generator,
) -> tuple[Tensor, Lesion | None]:
    """The image with a lesion in one of the organs that it shows, or unchanged where none is large enough.

    Args:
        image: (x, y, z) in HU, in MR units, or already normalised.
        labels: (x, y, z) int64.
        organs: lexicon id and label values of the organs that may bear one.
        values_per_hu: of a CT: 1 for one in HU, 1 / sd for one that was divided by its plan's sd.
    """
    shown = {organ: _mask(labels, values) for organ, values in organs.items()}
    large = [organ for organ, mask in shown.items() if int(mask.sum()) >= FEWEST_ORGAN_VOXELS]
    if not large:
        return image, None
    organ = large[random.integers(len(large))]
    ball = _uneven_ball(shown[organ], random)
    if int(ball.sum()) < 20:
        return image, None
    cystic = random.random() < 0.35
    finding = "cyst" if cystic else LESION_WORDS[random.integers(3)]
    inside = image[shown[organ]]
    shift = _shift(inside, modality, cystic, values_per_hu, random)
    texture = 0.0 if cystic else 0.25 * abs(shift)
    painted = image + ball * (shift + texture * smooth_noise(tuple(image.shape), 4, random))
    return painted, Lesion(organ, finding, ball)


def paint_ball(image: Tensor, centre: tuple[int, int, int], radius_voxels: float, shift: float) -> Tensor:
    """The image (x, y, z) with a plain ball around a voxel made brighter or darker by `shift`."""
    distance = _distance_from(torch.tensor([float(c) for c in centre]), torch.ones(3), tuple(image.shape))
    return torch.where(distance < radius_voxels, image + shift, image)


def _distance_from(centre: Tensor, stretch: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(x, y, z) distances in voxels from a point, along stretched axes."""
    axes = [torch.arange(n).float() for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    distance: Tensor = ((grid - centre) * stretch).norm(dim=-1)
    return distance


def _mask(labels: Tensor, values: tuple[int, ...]) -> Tensor:
    mask = labels == values[0]
    for value in values[1:]:
        mask = mask | (labels == value)
    return mask


def _uneven_ball(organ: Tensor, random: np.random.Generator) -> Tensor:
    """A ball with a wavy surface around a point of the organ, most of it inside of the organ."""
    where = torch.nonzero(organ)
    centre = where[int(random.integers(len(where)))].float()
    radius = float(random.uniform(2.0, 7.0))
    stretch = torch.from_numpy(random.uniform(0.8, 1.25, 3).astype(np.float32))
    distance = _distance_from(centre, stretch, tuple(organ.shape))
    wavy = distance + 0.15 * radius * smooth_noise(tuple(organ.shape), 5, random)
    ball = wavy < radius
    bulges = random.random() < 0.3
    return (ball if bulges else ball & organ).float()


def _shift(
    inside: Tensor, modality: Modality, cystic: bool, values_per_hu: float, random: np.random.Generator
) -> float:
    """By how much the lesion differs from its organ, in the image's values."""
    if modality == "ct":
        mean_hu = float(inside.mean()) / values_per_hu
        if mean_hu < -400:  # lung: a solid nodule
            shift = random.uniform(20, 60) - mean_hu
        elif cystic:
            shift = random.uniform(0, 20) - mean_hu
        else:
            shift = random.choice([-1, -1, 1]) * random.uniform(25, 90)
        return float(shift * values_per_hu)
    spread = max(float(inside.std()), 0.05)
    return float(random.choice([-1, 1]) * random.uniform(1.5, 5.0) * spread)
