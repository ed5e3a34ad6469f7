"""One case of a dataset, ready to be asked about: the scan, what is in it, and what is surely not."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from textseg.dataset import Dataset, DatasetCase, Label, Sentence, meant_component
from textseg.errors import DatasetError, GeometryError
from textseg.prompts.lexicon import Lexicon, default_lexicon
from textseg.scan import read_label_map, read_scan
from textseg.scores.overlap import Mask, PackedMask, pack
from textseg.scores.wordings import Meaning, meaning_of
from textseg.volume import Volume, guess_modality

# Fewer voxels say nothing of a drop.
FEWEST_VOXELS = 10
# What can't be in a scan whose labels are all of one region. Torso scans of whole bodies show a brain: those
# that are longer are not asked.
FAR_FROM_HEAD = ("liver", "spleen", "left kidney", "urinary bladder")
FAR_FROM_TORSO = ("left hippocampus", "right caudate nucleus", "cerebellum", "left thalamus")
HEAD_GROUPS = frozenset({"brain", "hippocampus", "head_neck"})
TORSO_GROUPS = frozenset({"torso", "limbs"})
LONGEST_TORSO_MM = 800.0


@dataclass(frozen=True, eq=False)
class Thing:
    """A structure that is in the scan, by its canonical words, and where it is (on the scene's grid)."""

    label: Label
    meaning: Meaning
    reference: PackedMask

    @property
    def name(self) -> str:
        return self.label.name

    @property
    def words(self) -> str:
        return self.meaning.words


@dataclass(frozen=True)
class Missing:
    """Words for something that is not in the scan, and how that is known."""

    words: str
    test: str


@dataclass(frozen=True, eq=False)
class Said:
    """A sentence of the dataset about this case, and the mask that it means."""

    text: str
    thing: Thing
    reference: PackedMask


@dataclass(frozen=True, eq=False)
class Scene:
    """A case: its scan in canonical axis order with its modality set, and all that is known of it.

    Args:
        things: what is asked for, in the order of the dataset's labels.
        missing: what is asked for though it is not there.
        said: the dataset's own sentences about things that are asked for.
        ignored: voxels (x, y, z) that nobody labelled; None where there are none.
    """

    case: str
    volume: Volume
    things: tuple[Thing, ...]
    missing: tuple[Missing, ...]
    said: tuple[Said, ...]
    ignored: Mask | None = None

    def random(self, seed: int, *of: str) -> np.random.Generator:
        """Chance that depends on the seed, this case and these words alone, in whatever order they come."""
        return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in (self.case, *of))])


def read_scene(
    dataset: Dataset, case: DatasetCase, *, most_things: int, seed: int, lexicon: Lexicon | None = None
) -> Scene:
    """Read a case.

    Args:
        dataset, case: see `read_dataset`; the case has all its files.
        most_things: so many structures at most, drawn by the seed; left and right come together.
        seed: of the choice.

    Raises:
        ScanError: a file can't be read.
        GeometryError: the label map lies on another grid than the scan.
        DatasetError: a sentence means a component that is not there.
    """
    lexicon = lexicon or default_lexicon()
    volume = read_scan([path for path in case.images if path is not None])
    assert case.labels is not None
    label_map = read_label_map(case.labels)
    if not label_map.geometry.is_close(volume.geometry):
        raise GeometryError(
            f"A label map lies on its scan's grid, but that of {case.id} is {label_map.geometry} and the "
            f"scan {volume.geometry}."
        )
    labels = volume.geometry.canonical_order().apply(label_map.labels)
    modality = case.modality or dataset.channels[0].modality or volume.modality
    volume = replace(volume.canonical(), modality=modality or guess_modality(volume.voxels))
    known = [label for name, label in dataset.labels.items() if name in case.values]
    packed = {label.name: pack(np.isin(labels, case.values[label.name])) for label in known}
    things = tuple(
        Thing(label, meaning_of(label.words[0], lexicon), packed[label.name])
        for label in known
        if packed[label.name].voxels >= FEWEST_VOXELS and _is_complete(label, case)
    )
    scene = Scene(
        case.id,
        volume,
        things,
        _missing(known, packed, things, case, volume, lexicon),
        (),
        labels == dataset.ignore if dataset.ignore is not None and (labels == dataset.ignore).any() else None,
    )
    chosen = _chosen(things, most_things, scene.random(seed, "things"), lexicon)
    return replace(scene, things=chosen, said=_said(case.sentences, chosen, volume))


def check_probe_cases(dataset: Dataset, cases: Sequence[DatasetCase]) -> None:
    """Refuse a dataset that has nothing to ask about.

    Raises:
        DatasetError: there are no cases, or they have no images.
    """
    if dataset.layout == "labelmaps" or not dataset.channels:
        raise DatasetError(
            f"Probing needs scans and their labels, but {dataset.folder} holds label maps alone. "
            "Give a dataset in nnU-Net's layout."
        )
    if not cases:
        raise DatasetError(
            f"Probing needs a case with all its files, but {dataset.folder} has none of those."
        )


def _is_complete(label: Label, case: DatasetCase) -> bool:
    return case.complete is None or label.name in case.complete


def _missing(
    known: Sequence[Label],
    packed: dict[str, PackedMask],
    things: Sequence[Thing],
    case: DatasetCase,
    volume: Volume,
    lexicon: Lexicon,
) -> tuple[Missing, ...]:
    """What the labels say is not there, and what lies far from all that they name."""
    there = {thing.words for thing in things}
    found = []
    # A case that lists its complete labels says nothing of the others: unknown, not absent.
    for label in known if case.complete is None else [one for one in known if one.name in case.complete]:
        if not packed[label.name].voxels:
            meaning = meaning_of(label.words[0], lexicon)
            other_side = meaning.mirrored(lexicon) in there
            found.append(Missing(meaning.words, "the other side's" if other_side else "labelled elsewhere"))
    groups = {label.group for label in known}
    far: tuple[str, ...] = ()
    if groups and groups <= HEAD_GROUPS:
        far = FAR_FROM_HEAD
    height_mm = float(np.ptp(volume.geometry.corners_mm()[:, 2]))
    if groups and groups <= TORSO_GROUPS and height_mm <= LONGEST_TORSO_MM:
        far = FAR_FROM_TORSO
    return (*found, *(Missing(words, "of another region") for words in far))


def _chosen(
    things: Sequence[Thing], most: int, random: np.random.Generator, lexicon: Lexicon
) -> tuple[Thing, ...]:
    """At most so many, each with its mirror image, which laterality needs."""
    by_words = {thing.words: thing for thing in things}
    chosen: set[str] = set()
    for at in random.permutation(len(things)):
        if len(chosen) < most:
            other = things[at].meaning.mirrored(lexicon)
            chosen |= {things[at].words} | ({other} & by_words.keys() if other else set())
    return tuple(thing for thing in things if thing.words in chosen)


def _said(sentences: Sequence[Sentence], things: Sequence[Thing], volume: Volume) -> tuple[Said, ...]:
    by_label = {thing.name: thing for thing in things}
    found = []
    for sentence in sentences:
        thing = by_label.get(sentence.label)
        if thing is not None:
            reference = thing.reference
            if sentence.component is not None:
                whole = reference.whole()
                reference = pack(meant_component(whole, volume.geometry, sentence.component))
            found.append(Said(sentence.text, thing, reference))
    return tuple(found)
