"""Images from label maps: random contrast, texture, bias, blur and noise over drawn anatomy.

MR after SynthSeg (Billot et al. 2023): every tissue gets a random brightness, so a network learns shapes and
not one scanner's contrast. CT keeps to densities in HU, which physics fixes, and varies them as contrast
medium, patients and scanners do. `tissues.json` holds the densities. PET gets a random uptake for every
tissue, since tracers differ, mostly low and seldom high, seen through a wide blur.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from textseg.volume import Modality

AIR_HU = -1000.0
# A lung or one of its lobes, and how often it is collapsed, consolidated or drowned.
AIRY = re.compile(r"\blung\b")
WITHOUT_AIR = 0.06
# How often a head's tissues have about the order of brightness of a T1, and how many of these the reverse
# one, which is about that of a T2; the rest have one by chance, which is learnt last.
LIKE_T1, LIKE_T2 = 0.75, 0.35
SIDES = re.compile(r"\b(left|right)\b\s*")


@dataclass(frozen=True)
class Tissue:
    """Mean value and spread of one label in one image; `gas`: may hold pockets of air."""

    mean: float
    texture: float
    gas: bool = False


def synthesise(
    labels: Tensor, names: Mapping[int, str], modality: Modality, random: np.random.Generator
) -> Tensor:
    """An image (x, y, z) float32 for labels (x, y, z) int64: HU for CT, SUV for PET, arbitrary units for MR.

    Args:
        labels: 0 is air.
        names: the tissue of each label value; a value without a name gets a contrast of its own.
    """
    values = [int(value) for value in torch.unique(labels) if value != 0]
    if modality == "ct":
        tissues = _ct_tissues(values, names, random)
        air = Tissue(AIR_HU, 8.0)
    elif modality == "pet":
        tissues = _pet_tissues(values, names, random)
        air = Tissue(0.0, 0.0)
    else:
        tissues = _mr_tissues(values, names, random)
        air = Tissue(float(random.uniform(0, 0.06)), 0.01)
    image = _painted(labels, {0: air, **tissues}, random)
    degraded = {"ct": _degraded_ct, "pet": _degraded_pet, "mr": _degraded_mr}[modality]
    return degraded(image, random)


def _painted(labels: Tensor, tissues: Mapping[int, Tissue], random: np.random.Generator) -> Tensor:
    size = max(tissues) + 1
    mean, texture, gas = torch.zeros(size), torch.zeros(size), torch.zeros(size, dtype=torch.bool)
    for value, tissue in tissues.items():
        mean[value], texture[value], gas[value] = tissue.mean, tissue.texture, tissue.gas
    fine, coarse = (smooth_noise(tuple(labels.shape), cells, random) for cells in (3, 10))
    image = mean[labels] + texture[labels] * (0.6 * fine + 0.8 * coarse)
    pockets = gas[labels] & (smooth_noise(tuple(labels.shape), 6, random) > random.uniform(0.6, 2.0))
    return torch.where(pockets, torch.full_like(image, AIR_HU + 60), image)


def _ct_tissues(
    values: list[int], names: Mapping[int, str], random: np.random.Generator
) -> dict[int, Tissue]:
    # In half of the patients contrast medium lifts vessels, heart and kidneys together.
    medium = abs(random.normal(60, 60)) if random.random() < 0.5 else 0.0
    drawn: dict[str, Tissue] = {}
    tissues = {}
    for value in values:
        name = SIDES.sub("", names.get(value, f"unnamed {value}"))
        if name not in drawn:
            row = _row("ct", name)
            lift = medium * random.uniform(0.5, 1.0) if row.get("vessel") else 0.0
            mean = random.normal(row["mean"], row["sd"]) + lift
            drawn[name] = Tissue(mean, row["texture"] * random.uniform(0.4, 1.4), bool(row.get("gas")))
        # Left and right are nearly the same tissue, never exactly.
        mean = drawn[name].mean + random.normal(0, 4)
        if AIRY.search(name):
            mean = _with_or_without_air(mean, random)
        tissues[value] = Tissue(mean, drawn[name].texture, drawn[name].gas)
    return tissues


def _with_or_without_air(mean: float, random: np.random.Generator) -> float:
    """A lung's density in HU, seldom that of a collapsed, consolidated or drowned one."""
    # Far ahead in the same sequence, so that everything else is drawn as where lungs are never without air.
    ahead = copy.deepcopy(random)
    ahead.bit_generator.advance(2**32)  # type: ignore[attr-defined]
    return float(ahead.uniform(-400, 40)) if ahead.random() < WITHOUT_AIR else mean


def _mr_tissues(
    values: list[int], names: Mapping[int, str], random: np.random.Generator
) -> dict[int, Tissue]:
    like_t1 = random.random() < LIKE_T1
    inverted = like_t1 and random.random() < LIKE_T2
    drawn: dict[str, Tissue] = {}
    tissues = {}
    for value in values:
        name = SIDES.sub("", names.get(value, f"unnamed {value}"))
        if name not in drawn:
            drawn[name] = _mr_tissue(name, random, like_t1=like_t1, inverted=inverted)
        tissues[value] = Tissue(drawn[name].mean + random.normal(0, 0.01), drawn[name].texture)
    return tissues


def _mr_tissue(name: str, random: np.random.Generator, *, like_t1: bool, inverted: bool) -> Tissue:
    air = _row("mr_air", name)
    if air and random.random() >= WITHOUT_AIR:  # air is dark in every sequence
        return Tissue(abs(random.normal(air["mean"], air["sd"])), air["texture"])
    row = _row("t1_brain", name) if like_t1 else {}
    mean = random.normal(row["mean"], row["sd"]) if row else random.uniform(0.08, 1.0)
    texture = row.get("texture", 0.05) * random.uniform(0.3, 1.5)
    return Tissue(1.05 - mean if inverted else mean, texture)


def _pet_tissues(
    values: list[int], names: Mapping[int, str], random: np.random.Generator
) -> dict[int, Tissue]:
    drawn: dict[str, Tissue] = {}
    tissues = {}
    for value in values:
        name = SIDES.sub("", names.get(value, f"unnamed {value}"))
        if name not in drawn:
            uptake = float(random.lognormal(0.0, 0.8))
            drawn[name] = Tissue(uptake, uptake * random.uniform(0.05, 0.3))
        tissues[value] = Tissue(drawn[name].mean * random.normal(1, 0.05), drawn[name].texture)
    return tissues


def _degraded_pet(image: Tensor, random: np.random.Generator) -> Tensor:
    # Several narrow blurs make a wide one: a scanner resolves some five millimetres.
    for _ in range(4):
        image = _blurred(image.clamp_min(0), random.uniform(0.5, 1.0))
    # Counts: the noise grows with the root of what is measured.
    noise = float(random.uniform(0.02, 0.15)) * (image + 0.05).sqrt() * _white_noise(image, random)
    return (image + noise).clamp_min(0)


def _degraded_ct(image: Tensor, random: np.random.Generator) -> Tensor:
    image = _blurred(image, random.uniform(0.0, 0.7))
    image = _thick_slices(image, random)
    return image + float(random.uniform(2, 35)) * _white_noise(image, random)


def _degraded_mr(image: Tensor, random: np.random.Generator) -> Tensor:
    bias = smooth_noise(tuple(image.shape), max(image.shape) // 3, random)
    image = image * torch.exp(float(random.uniform(0, 0.3)) * bias)
    image = _blurred(image, random.uniform(0.0, 0.8))
    image = _thick_slices(image, random)
    image = image + float(random.uniform(0.0, 0.05)) * _white_noise(image, random)
    return image.clamp_min(0) ** float(random.uniform(0.7, 1.4))


def _blurred(image: Tensor, sigma_voxels: float) -> Tensor:
    """A separable Gaussian of five taps an axis; enough for sigmas below a voxel."""
    if sigma_voxels < 0.2:
        return image
    taps = torch.exp(-(torch.arange(-2, 3).float() ** 2) / (2 * sigma_voxels**2))
    taps = taps / taps.sum()
    x = image[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 5
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = 2
        # Repeated borders: zeros are soft tissue in HU and would draw a bright rim around the air.
        x = nn.functional.conv3d(nn.functional.pad(x, padding, mode="replicate"), taps.reshape(shape))
    return x[0, 0]


def _thick_slices(image: Tensor, random: np.random.Generator) -> Tensor:
    """Half of the scans are coarser along one axis: averaged over a slice, then interpolated back."""
    if random.random() < 0.5:
        return image
    axis = int(random.integers(3))
    shape = list(image.shape)
    shape[axis] = max(4, round(shape[axis] / random.uniform(1.2, 3.0)))
    thick = nn.functional.interpolate(image[None, None], size=shape, mode="area")
    return nn.functional.interpolate(thick, size=list(image.shape), mode="trilinear", align_corners=False)[
        0, 0
    ]


def smooth_noise(shape: tuple[int, ...], cell_voxels: int, random: np.random.Generator) -> Tensor:
    """A random field (x, y, z) of about unit spread that changes over about `cell_voxels`."""
    coarse = [max(2, -(-n // cell_voxels) + 1) for n in shape]
    noise = torch.from_numpy(random.standard_normal(coarse, dtype=np.float32))[None, None]
    field = nn.functional.interpolate(noise, size=list(shape), mode="trilinear", align_corners=True)[0, 0]
    return field * 1.6  # trilinear interpolation takes away about this much of the spread


def _white_noise(image: Tensor, random: np.random.Generator) -> Tensor:
    return torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32))


def _row(table: str, name: str) -> dict[str, Any]:
    for pattern, row in _table(table):
        if pattern.search(name):
            return row
    return {}


@cache
def _table(table: str) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    document = json.loads(files("textseg.train").joinpath("tissues.json").read_text(encoding="utf-8"))
    return [(re.compile(row["pattern"]), row) for row in document[table]]
