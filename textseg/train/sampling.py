"""What a training step sees: a patch cut out of a case, bent and noisy, and the prompts asked of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from textseg.errors import DatasetError
from textseg.normalise import normalise
from textseg.plan import Plan
from textseg.prompts import Lexicon
from textseg.train.augment import augmented, happens
from textseg.train.cases import FEWEST_VOXELS, Case, CaseFacts, Place, Target, Words
from textseg.train.couch import with_couch
from textseg.train.ends import ended, scanned_part
from textseg.train.lesions import LESION_WORDS, Lesion, add_lesion
from textseg.train.mirror import Mirror
from textseg.train.stripped import stripped
from textseg.train.synth import smooth_noise, synthesise
from textseg.volume import Modality

# How often a label map is drawn as CT; the rest as MR of random contrast.
CT_FRACTION: Mapping[str, float] = {"torso": 0.75, "head_neck": 0.8, "phantom": 0.7, "brain": 0.0}
# Groups of the lexicon that lie so far from a mixture's cases that these can't show them: what a case does
# not name is unknown, what can't be there is absent.
FAR_GROUPS: Mapping[str, frozenset[str]] = {
    "torso": frozenset({"brain", "hippocampus"}),
    "phantom": frozenset({"brain", "hippocampus"}),
    "brain": frozenset({"torso", "limbs", "sarcoma"}),
    "hippocampus": frozenset({"torso", "limbs", "sarcoma"}),
    "sarcoma": frozenset({"brain", "hippocampus"}),
}


# Skull stripping leaves more or less of it.
FLUID = "cerebrospinal_fluid"

# How patches are bent: the cells of a displacement field and how far it reaches, both in voxels, in a patch
# of 64 voxels an edge or more; smaller ones are bent less. Wide, since the torsos are few: a liver is to come
# in other shapes than its owner's.
BENDING = ((32, 4.0), (12, 1.6))
BENT_EDGE = 64


@dataclass(frozen=True, eq=False)
class Sample:
    """image (channels, x, y, z) float32; targets and masks (prompts, x, y, z) float32, empty for the absent.

    sharing are structures that exclude each other, and shares (x, y, z) int64 is k where the k-th of them is,
    0 where none is. valid (x, y, z) bool is False in voxels that nobody labelled.
    """

    image: Tensor
    targets: tuple[Target, ...]
    masks: Tensor
    sharing: tuple[Target, ...]
    shares: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Shown:
    """A thing that a patch shows: how many voxels of it, and its mask (x, y, z) float32 for whoever asks.

    A torso shows a hundred things of which four are asked for.
    """

    voxels: int
    mask: Callable[[], Tensor]


class PatchSampler:
    """Draws training samples of one plan from placed cases, by the mixture's weights.

    Args:
        words: what a dataset calls some of its targets; the sampler's `words` are those of mirrored ones too.

    Raises:
        DatasetError: no case belongs to the plan's mixture and shows what it names, or one has images of
            another number of channels than the plan.
    """

    def __init__(
        self, places: Sequence[Place], plan: Plan, lexicon: Lexicon, words: Words | None = None
    ) -> None:
        self.plan = plan
        self.lexicon = lexicon
        self.core = frozenset(plan.training.core)
        self.by_mixture: dict[str, list[Place]] = {}
        for place in places:
            if place.centres:  # a case that shows nothing it names has no place to draw a patch around
                self.by_mixture.setdefault(place.case.facts.mixture, []).append(place)
        weights = {name: plan.training.mixture.get(name, 0.0) for name in self.by_mixture}
        if not any(weights.values()):
            raise DatasetError(
                f"Training needs cases of the plan's mixture ({', '.join(plan.training.mixture)}), "
                f"got cases of {', '.join(weights) or 'nothing'}. Were they gathered for another plan?"
            )
        for place in places:
            if len(place.case.images) not in (0, len(plan.channels)):
                raise DatasetError(
                    f"Cases for this plan have {len(plan.channels)} channel(s) ({', '.join(plan.channels)}), "
                    f"but {place.case.facts.name} has {len(place.case.images)}. Gather them again for it."
                )
        self.names = list(weights)
        self.weights = np.array(list(weights.values())) / sum(weights.values())
        self.strangers = self._targets_by_group()
        self.words: dict[Target, Sequence[str]] = dict(words or {})
        self.mirror = self._mirror()

    def targets(self) -> list[Target]:
        """Everything that may be asked, present or absent."""
        cases = [place.case.facts for places in self.by_mixture.values() for place in places]
        named = {target for facts in cases for target, _ in facts.targets}
        organs = {organ for facts in cases for organ in self._organs(facts.targets)}
        lesions = {Target(organ, word) for organ in organs for word in LESION_WORDS}
        every = named | lesions | (set(self.mirror.words) if self.mirror else set())
        return sorted(every | {self._mirrored(target) for target in every}, key=lambda target: target.key)

    def _mirror(self) -> Mirror | None:
        """What everything is called in mirrored patches, if the plan has any."""
        if not self.plan.training.mirror_fraction:
            return None
        cases = [place.case.facts for places in self.by_mixture.values() for place in places]
        mirror = Mirror({target for facts in cases for target, _ in facts.targets}, self.lexicon, self.words)
        self.words |= mirror.words
        return mirror

    def draw(self, random: np.random.Generator) -> Sample:
        """One sample for a training step; the same generator state gives the same sample."""
        mixture = self.names[random.choice(len(self.names), p=self.weights)]
        places = self.by_mixture[mixture]
        place = places[random.integers(len(places))]
        wanted: Target | None
        wanted, centre = self._centre(place, random)
        strangers = self._far_from(place)
        recipe = self.plan.training
        if strangers and random.random() < recipe.stranger_fraction:
            return self._strange(place, centre, strangers, random)
        labels, images = _cut(place, centre, recipe.patch_voxels, random)
        if self.mirror and self._may_be_mirrored(place) and random.random() < recipe.mirror_fraction:
            # Canonical axes: x runs from left to right.
            labels, images = labels.flip(0), [image.flip(0) for image in images]
            place = _mirrored_place(place, self.mirror)
            wanted = self.mirror.names[wanted]
        is_head_map = place.case.facts.group == "brain" and not place.case.images
        if is_head_map and happens(recipe.stripped_fraction, random):
            labels = stripped(labels, *self._brain_of(place), random)
        images, modalities, lesion = self._images(place.case, labels, images, random)
        if happens(recipe.slab_fraction, random):
            wanted_values = dict(place.case.facts.targets).get(wanted, ()) if wanted else ()
            labels, images, lesion = _as_slab(labels, images, lesion, wanted_values, random)
        image = self._scanned(images, modalities, random)
        present, absent = self._answers(place, labels, lesion, random)
        targets, masks = self._chosen(present, absent, wanted, random)
        sharing, shares = self._shared(place, labels, random)
        return Sample(image, targets, masks, sharing, shares, _labelled(place.case, labels))

    def _may_be_mirrored(self, place: Place) -> bool:
        groups = self.plan.training.mirror_groups
        return not groups or place.case.facts.group in groups

    def _brain_of(self, place: Place) -> tuple[frozenset[int], frozenset[int]]:
        """The label values of a head's brain, and of the fluid around it."""
        brain: set[int] = set()
        fluid: set[int] = set()
        for target, values in place.case.facts.targets:
            if self._group(target) == "brain":
                brain.update(values)
            if target.structure == FLUID:
                fluid.update(values)
        return frozenset(brain), frozenset(fluid)

    def _strange(
        self, place: Place, centre: np.ndarray, strangers: list[Target], random: np.random.Generator
    ) -> Sample:
        """A patch as it looks at the voxel size of a distant part of the body, asked for that part alone.

        Whoever asks a torso for a hippocampus looks at it in voxels of a millimetre.
        """
        group = self._spacing_group(strangers[random.integers(len(strangers))])
        fitting = [target for target in strangers if self._spacing_group(target) == group]
        zoom = np.divide(self.plan.spacing_for(group), place.case.facts.spacing_mm)
        labels, images = _cut(place, centre, self.plan.training.patch_voxels, random, zoom)
        images, modalities, _ = self._images(place.case, labels, images, random)
        shuffled = [fitting[i] for i in random.permutation(len(fitting))]
        targets, masks = self._chosen({}, shuffled, None, random)
        image = self._scanned(images, modalities, random)
        # What can't be there is in no unlabelled voxel either: all of the patch is known.
        known = torch.ones_like(labels, dtype=torch.bool)
        return Sample(image, targets, masks, (), torch.zeros_like(labels), known)

    def _shared(
        self, place: Place, labels: Tensor, random: np.random.Generator
    ) -> tuple[tuple[Target, ...], Tensor]:
        """Structures of the case that exclude each other, larger ones first, and who has which voxel.

        Drawn at random, so that now the kidneys are one thing and now the left one and the right one are two.
        """
        counts = torch.bincount(labels.flatten(), minlength=1).numpy()
        named = place.case.facts.targets
        sizes = [sum(int(counts[v]) for v in values if v < len(counts)) for _, values in named]
        weights = [self._weight(t, max(n, 0.1)) for (t, _), n in zip(named, sizes, strict=True)]
        chosen: list[Target] = []
        index = np.zeros(max(len(counts), 1 + max((max(v) for _, v in named), default=0)), np.int64)
        for i in _drawn(weights, len(weights), random):
            target, values = named[i]
            if len(chosen) < self.plan.training.sharing_prompts and not index[list(values)].any():
                chosen.append(target)
                index[list(values)] = len(chosen)
        return tuple(chosen), torch.from_numpy(index)[labels]

    def _centre(self, place: Place, random: np.random.Generator) -> tuple[Target, np.ndarray]:
        """A target and a point near it; a larger one a little more often, since it is learnt first."""
        targets = list(place.centres)
        weights = [self._weight(t, place.voxels[t]) for t in targets]
        target = targets[_drawn(weights, 1, random)[0]]
        centre = place.centres[target][random.integers(len(place.centres[target]))]
        reach = np.array(self.plan.training.patch_voxels) * 0.3
        return target, centre + random.uniform(-reach, reach)

    def _images(
        self, case: Case, labels: Tensor, images: list[Tensor], random: np.random.Generator
    ) -> tuple[list[Tensor], tuple[Modality, ...], Lesion | None]:
        """The normalised channels of the patch, real or synthesised, what they are, and the lesion put in.

        A label map's channels are drawn one after the other, so each has a contrast of its own.
        """
        facts = case.facts
        modalities = self._modalities(facts, random)
        if not case.images:
            images = [synthesise(labels, facts.tissues, modality, random) for modality in modalities]
            if facts.mixture in ("torso", "phantom") and happens(self.plan.training.couch_fraction, random):
                images = [
                    with_couch(image, labels, random) if modality == "ct" else image
                    for image, modality in zip(images, modalities, strict=True)
                ]
        lesion = None
        if facts.mixture in ("torso", "phantom") and random.random() < 0.35:
            images, lesion = self._with_lesion(case, labels, images, modalities, random)
        if not case.images:
            images = [
                normalise(image, self.plan.intensity[modality])
                for image, modality in zip(images, modalities, strict=True)
            ]
        return images, modalities, lesion

    def _scanned(
        self, images: Sequence[Tensor], modalities: Sequence[Modality], random: np.random.Generator
    ) -> Tensor:
        """The channels (channels, x, y, z) as one scanner or another might have given them."""
        changed = [
            augmented(image, modality, self.plan.training, random)
            for image, modality in zip(images, modalities, strict=True)
        ]
        return torch.stack([_varied(image, random) for image in changed])

    def _modalities(self, facts: CaseFacts, random: np.random.Generator) -> tuple[Modality, ...]:
        """Of each channel; a label map may be drawn as CT or as MR unless the plan decides."""
        modality = facts.modality
        if modality is None and self.plan.channel_modalities is None:
            modality = "ct" if random.random() < CT_FRACTION.get(facts.mixture, 0.5) else "mr"
        return self.plan.modalities(modality or "mr")

    def _with_lesion(
        self,
        case: Case,
        labels: Tensor,
        images: Sequence[Tensor],
        modalities: Sequence[Modality],
        random: np.random.Generator,
    ) -> tuple[list[Tensor], Lesion | None]:
        """The same lesion in every channel, each with a contrast of its own."""
        organs = self._organs(case.facts.targets)
        ct = self.plan.intensity.get("ct")
        values_per_hu = 1.0 / ct.sd if case.images and ct is not None and ct.sd else 1.0
        shape = copy.deepcopy(random)
        painted: list[Tensor] = []
        lesion: Lesion | None = None
        for image, modality in zip(images, modalities, strict=True):
            # From the same state comes the same place and shape; only what follows them differs.
            state = copy.deepcopy(shape) if painted else random
            changed, found = add_lesion(image, labels, organs, modality, values_per_hu, state)
            if painted and found is not None:
                assert lesion is not None
                assert found.mask.equal(lesion.mask)
                changed = image + _contrast(changed - image, modality, random)
            painted.append(changed)
            lesion = lesion or found
        return painted, lesion

    def _organs(self, targets: Sequence[tuple[Target, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
        bases = {
            "liver",
            "kidney",
            "spleen",
            "pancreas",
            "lung",
            "urinary_bladder",
            "adrenal_gland",
            "stomach",
        }
        return {
            target.structure: labels
            for target, labels in targets
            if target.structure
            and not target.finding
            and not self.lexicon.concepts[target.structure].parts
            and self.lexicon.concepts[target.structure].base in bases
        }

    def _answers(
        self, place: Place, labels: Tensor, lesion: Lesion | None, random: np.random.Generator
    ) -> tuple[dict[Target, Shown], list[Target]]:
        """Masks of what the patch shows, and what it is known not to show, near misses first."""
        counts = torch.bincount(labels.flatten())
        present: dict[Target, Shown] = {}
        unseen: list[Target] = []
        for target, values in place.case.facts.targets:
            voxels = int(sum(counts[value] for value in values if value < len(counts)))
            if voxels >= FEWEST_VOXELS:
                present[target] = Shown(voxels, partial(_mask, labels, values))
            elif voxels == 0:
                unseen.append(target)
        near: list[Target] = []
        organs = self._organs(place.case.facts.targets)
        if lesion is not None:
            mask = lesion.mask
            present[Target(lesion.organ, lesion.finding)] = Shown(int(mask.sum()), lambda: mask)
            near.append(self._mirrored(Target(lesion.organ, lesion.finding)))
        elif place.case.facts.mixture in ("torso", "phantom"):
            seen = [organ for organ in organs if Target(organ) in present]
            near += [Target(organ, str(random.choice(LESION_WORDS))) for organ in seen]
        near = [target for target in near if target not in present]
        others = [t for t in unseen if self._mirrored(t) in present]
        if happens(self.plan.training.neighbour_fraction, random):
            others += self._neighbours(unseen, present)
        strangers = self._far_from(place)
        far = [strangers[random.integers(len(strangers))] for _ in range(2)] if strangers else []
        near_misses, rest = near + others, unseen + far
        random.shuffle(near_misses)
        random.shuffle(rest)
        return present, near_misses + rest

    def _neighbours(self, unseen: Sequence[Target], present: Mapping[Target, Shown]) -> list[Target]:
        """Of the unseen those that belong to something present, or with it to something larger.

        The tumour of an organ that is there without one, the next vertebra, another lobe.
        """
        seen = {name for target in present for name in self._belongings(target)}
        return [target for target in unseen if seen & self._belongings(target)]

    def _belongings(self, target: Target) -> set[str]:
        if target.structure is None:
            return set()
        return {target.structure, *self.lexicon.concepts[target.structure].parents}

    def _weight(self, target: Target, voxels: float) -> float:
        """How often a target is asked: by the square root of its size, and more often in the core.

        Drawn evenly, two thirds of all prompts would be single ribs, vessels and nerves, which are learnt
        last; drawn by size, they would never be asked.
        """
        name = target.structure if target.finding is None else target.finding
        in_core = name in self.core and (target.structure is None or target.finding is None)
        return math.sqrt(voxels) * (self.plan.training.core_weight if in_core else 1.0)

    def _mirrored(self, target: Target) -> Target:
        if target.structure is None:
            return target
        return replace(target, structure=self.lexicon.mirrored(self.lexicon.concepts[target.structure]).id)

    def _chosen(
        self,
        present: dict[Target, Shown],
        absent: list[Target],
        wanted: Target | None,
        random: np.random.Generator,
    ) -> tuple[tuple[Target, ...], Tensor]:
        """As many prompts as the plan says; the wanted target and lesions always, some of them absent."""
        training = self.plan.training
        room = training.prompts_per_sample
        first = [t for t in present if t == wanted or t.finding is not None]
        others = [t for t in present if t not in first]
        weights = [self._weight(t, present[t].voxels) for t in others]
        others = [others[i] for i in _drawn(weights, min(len(others), room), random)]
        absent_room = max(1, round(room * training.absent_fraction)) if absent else 0
        asked = (first + others)[: room - absent_room]
        asked_absent = list(dict.fromkeys(absent))[: room - len(asked)]
        targets = asked + asked_absent
        while len(targets) < room:  # too few things to ask: ask again, in other words
            targets.append(targets[int(random.integers(len(targets)))])
        empty = torch.zeros(training.patch_voxels)
        masks = [present[target].mask() if target in present else empty for target in targets]
        return tuple(targets), torch.stack(masks)

    def _targets_by_group(self) -> dict[str, list[Target]]:
        """For each mixture, targets of distant parts of the body, which its cases can't show."""
        named = {target for places in self.by_mixture.values() for p in places for target in p.centres}
        every = sorted(named, key=lambda target: target.key)
        return {
            name: [target for target in every if self._group(target) in FAR_GROUPS.get(name, ())]
            for name in self.names
        }

    def _group(self, target: Target) -> str | None:
        """The lexicon's group; the neck's spine counts to the head, which may show it."""
        if target.own:
            return None
        concept = self.lexicon.concepts[target.structure or target.finding or ""]
        return "head_neck" if "cervical_spine" in (concept.id, *concept.parents) else concept.group

    def _spacing_group(self, target: Target) -> str:
        return self.lexicon.concepts[target.structure or target.finding or ""].group

    def _far_from(self, place: Place) -> list[Target]:
        """Distant targets for one case; none for a whole body, which shows more than it names."""
        whole_body = Target("brain") in place.centres and place.case.facts.mixture != "brain"
        return [] if whole_body else self.strangers[place.case.facts.mixture]


def _drawn(weights: Sequence[float], count: int, random: np.random.Generator) -> list[int]:
    """Indices drawn without repeats, each by its weight."""
    if count == 0:
        return []
    shares = np.asarray(weights, dtype=np.float64)
    return [int(i) for i in random.choice(len(shares), size=count, replace=False, p=shares / shares.sum())]


def _mirrored_place(place: Place, mirror: Mirror) -> Place:
    """A case by what its labels are called in a mirrored patch; its voxels stay where they are."""
    return replace(place, case=replace(place.case, facts=mirror.facts(place.case.facts)))


def _labelled(case: Case, labels: Tensor) -> Tensor:
    """Voxels (x, y, z) bool of a patch that somebody labelled, if only as background."""
    ignore = case.facts.ignore
    return torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore


def _as_slab(
    labels: Tensor,
    images: list[Tensor],
    lesion: Lesion | None,
    wanted: Sequence[int],
    random: np.random.Generator,
) -> tuple[Tensor, list[Tensor], Lesion | None]:
    """A patch of which only a slab was scanned, with air around it; all of it where that hides the wanted.

    What lies beyond is labelled 0: it is known not to be there, since a window's padding is no anatomy.
    """
    part = scanned_part(labels.shape, random)
    seen = ended(labels, part, 0)
    if wanted and int(_mask(seen, wanted).sum()) < FEWEST_VOXELS:
        return labels, images, lesion
    if lesion is not None:
        mask = ended(lesion.mask, part, 0.0)
        if float(mask.sum()) < FEWEST_VOXELS:
            return labels, images, lesion
        lesion = replace(lesion, mask=mask)
    return seen, [ended(image, part, float(image.min())) for image in images], lesion


def _mask(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Where a label map (x, y, z) has one of some values, float32."""
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask.float()


def _cut(
    place: Place,
    centre: np.ndarray,
    shape: Sequence[int],
    random: np.random.Generator,
    zoom: np.ndarray | float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """A turned, scaled and bent patch around a voxel: labels int64 and the channels, if there are any.

    Each patch voxel is `zoom` voxels of the case wide.
    """
    case = place.case
    grid = _patch_positions(centre, shape, zoom, random)
    # Axis by axis: over the last axis of an array NumPy takes ten times as long.
    low = np.array([math.floor(grid[..., axis].min()) - 1 for axis in range(3)])
    high = np.array([math.ceil(grid[..., axis].max()) + 2 for axis in range(3)])
    start = np.clip(low, 0, np.array(case.labels.shape) - 1)
    stop = np.clip(high, start + 1, case.labels.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    unit = (2 * (grid - start) + 1) / (stop - start) - 1
    where = torch.from_numpy(unit[None, ..., ::-1].astype(np.float32).copy())
    labels = _sampled(case.labels[x, y, z], where, "nearest", fill=0.0).round().long()
    images = [
        _sampled(image[x, y, z], where, "bilinear", fill=air)
        for image, air in zip(case.images, place.air, strict=True)
    ]
    return labels, images


def _sampled(voxels: np.ndarray, where: Tensor, mode: str, fill: float) -> Tensor:
    source = torch.from_numpy(voxels.astype(np.float32))[None, None] - fill
    sampled = nn.functional.grid_sample(source, where, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled[0, 0] + fill


def _patch_positions(
    centre: np.ndarray, shape: Sequence[int], zoom: np.ndarray | float, random: np.random.Generator
) -> np.ndarray:
    """Where in the case each patch voxel lies: (x, y, z, 3) in voxels of the case."""
    angles = random.normal(0, np.deg2rad(8), 3)
    scale = np.exp(random.normal(0, 0.10) + random.normal(0, 0.06, 3))
    matrix = _rotation(angles) * scale
    axes = [np.arange(n) - (n - 1) / 2 for n in shape]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    positions = offsets @ matrix.T
    size = min(1.0, float(np.mean(shape)) / BENT_EDGE)
    for cell, reach in BENDING:
        strength = size * reach * abs(random.normal(0.6, 0.4))
        for axis in range(3):
            positions[..., axis] += strength * smooth_noise(tuple(shape), cell, random).numpy()
    return np.asarray(positions * zoom + centre)


def _rotation(angles: np.ndarray) -> np.ndarray:
    (a, b, c), (d, e, f) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    about_y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    about_z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)


def _contrast(change: Tensor, modality: Modality, random: np.random.Generator) -> Tensor:
    """What a lesion does to a further channel: in MR darker or brighter by itself, in PET mostly brighter."""
    if modality == "ct":
        return change
    brighter = random.random() < (0.5 if modality == "mr" else 0.9)
    sign = 1.0 if float(change.sum()) >= 0 else -1.0
    return change * (sign if brighter else -sign)


def _varied(image: Tensor, random: np.random.Generator) -> Tensor:
    """Brightness, contrast and noise, small: in a patch the body's statistics are never quite the scan's."""
    gain, shift, noise = random.normal(1, 0.1), random.normal(0, 0.1), abs(random.normal(0, 0.05))
    white = torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32))
    return image * float(gain) + float(shift) + float(noise) * white
