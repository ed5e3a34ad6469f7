"""A small torso whose answers are known, and models that make one mistake each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tests.core.conftest import tilted_affine
from textseg.dataset import Dataset, read_dataset
from textseg.errors import PromptError
from textseg.geometry import Geometry
from textseg.prompts import understand
from textseg.prompts.cleaning import clean
from textseg.prompts.lexicon import default_lexicon
from textseg.scores.overlap import PackedMask, pack
from textseg.scores.robustness import Ask
from textseg.scores.scenes import Scene, read_scene
from textseg.volume import Volume

SHAPE = (24, 20, 12)
# Canonical axes: the patient's left is at low x. Sizes differ: 4 × 5 × 3 = 60 and 4 × 5 × 2 = 40 voxels.
LEFT = (slice(2, 6), slice(3, 8), slice(4, 7))
RIGHT = (slice(17, 21), slice(4, 9), slice(6, 8))
LIVER = (slice(14, 22), slice(10, 18), slice(2, 11))
VALUES = {"left kidney": 150, "right kidney": 200, "liver": 300}
NAMES = {"background": 0, "kidney left": 1, "kidney right": 2, "liver": 3, "spleen": 4}

Mask = NDArray[np.bool_]
Read = Callable[[str], str | None]
Find = Callable[[Volume, str], Mask]


def write_torso(folder: Path, cases: Sequence[str] = ("one",), *, spleen: bool = False) -> Dataset:
    """A dataset in nnU-Net's layout, its files with x and z flipped; gives what is read of it."""
    grid = Geometry(SHAPE, tilted_affine())
    labels = np.zeros(SHAPE, np.uint8)
    for value, box in ((1, LEFT), (2, RIGHT), (3, LIVER)):
        labels[box] = value
    image = np.zeros(SHAPE, np.int16)
    for (_, intensity), box in zip(VALUES.items(), (LEFT, RIGHT, LIVER), strict=True):
        image[box] = intensity
    affine = grid.affine @ np.diag([-1.0, 1, -1, 1])
    affine[:3, 3] = grid.to_world((SHAPE[0] - 1, 0, SHAPE[2] - 1))
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in cases:
        nib.save(nib.Nifti1Image(image[::-1, :, ::-1], affine), folder / "imagesTr" / f"{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels[::-1, :, ::-1], affine), folder / "labelsTr" / f"{case}.nii.gz")
    document = {"channel_names": {"0": "CT"}, "labels": NAMES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    return read_dataset(folder)


def read_torso(dataset: Dataset, most_things: int = 9) -> Scene:
    return read_scene(dataset, dataset.cases[0], most_things=most_things, seed=0)


def model(read: Read | None = None, find: Find | None = None) -> Ask:
    """A model of a way to read words and a way to find what they mean; by default both are perfect.

    What it can't read it denies.
    """
    reads, finds = read or perfectly_read, find or perfectly_found

    def ask(volume: Volume, prompts: Sequence[str]) -> list[PackedMask | None]:
        nothing = np.zeros(volume.geometry.shape, bool)
        meanings = [reads(text) for text in prompts]
        return [pack(finds(volume, words) if words in VALUES else nothing) for words in meanings]

    return ask


def perfectly_read(text: str) -> str | None:
    return understand(text).canonical


def read_without_mercy(text: str) -> str | None:
    """Names as the lexicon has them, in a sentence or alone, but nothing that is spelt wrong."""
    lexicon = default_lexicon()
    try:
        words = clean(text).split()
    except PromptError:
        return None
    spans = [" ".join(words[a:b]) for a in range(len(words)) for b in range(len(words), a, -1)]
    found = max((span for span in spans if lexicon.find(span)), key=len, default=None)
    concept = lexicon.find(found) if found else None
    return concept.name if concept else None


def perfectly_found(volume: Volume, words: str) -> Mask:
    """By value, and kidneys by the side of the patient that they lie on, wherever the axes run."""
    if words == "liver":
        return np.asarray(volume.voxels[0] == VALUES["liver"])
    kidneys = (volume.voxels[0] == VALUES["left kidney"]) | (volume.voxels[0] == VALUES["right kidney"])
    return kidneys & (is_left(volume) == (words == "left kidney"))


def found_by_value(volume: Volume, words: str) -> Mask:
    """Knows the left kidney by its looks, on whatever side it is."""
    return np.asarray(volume.voxels[0] == VALUES[words])


def found_on_the_other_side(volume: Volume, words: str) -> Mask:
    swapped = {"left kidney": "right kidney", "right kidney": "left kidney"}
    return perfectly_found(volume, swapped.get(words, words))


def found_on_both_sides(volume: Volume, words: str) -> Mask:
    return perfectly_found(volume, words) | found_on_the_other_side(volume, words)


def found_by_index(volume: Volume, words: str) -> Mask:
    """Takes the first half of the array's first axis for the left, however the axes run."""
    kidneys = perfectly_found(volume, "left kidney") | perfectly_found(volume, "right kidney")
    first_half = np.arange(kidneys.shape[0])[:, None, None] < kidneys.shape[0] / 2
    return kidneys & (first_half == (words == "left kidney")) if words != "liver" else kidneys & False


def found_in_known_values(volume: Volume, words: str) -> Mask:
    """Gives up on a scan with any value that it has never seen."""
    seen = np.isin(volume.voxels, [0, *VALUES.values()]).all()
    return perfectly_found(volume, words) & bool(seen)


def is_left(volume: Volume) -> Mask:
    """(x, y, z): whether a voxel is left of the phantom's midplane, which lies in the world."""
    grid = Geometry(SHAPE, tilted_affine())
    middle = grid.to_world([(n - 1) / 2 for n in SHAPE])
    world = volume.geometry.to_world(np.moveaxis(np.indices(volume.geometry.shape), 0, -1))
    return np.asarray((world - middle) @ grid.directions[:, 0] < 0)
