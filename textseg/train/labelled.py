"""From somebody's own dataset to training cases: their labels, their words, their sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from textseg.dataset import Component, Dataset, DatasetCase, Label, meant_component
from textseg.errors import DatasetError
from textseg.plan import Plan
from textseg.prompts import Lexicon, understand
from textseg.scan import LabelMap, read_label_map, read_scan
from textseg.train.cases import Case, CaseFacts, Split, Target
from textseg.train.gather import CaseJob, image_case, label_map_case, tissues_of, with_unions
from textseg.volume import Modality

MIXTURE = "own"


@dataclass(frozen=True)
class Singled:
    """One component that a sentence means; values: the new value of its voxels for each old one."""

    component: Component
    values: Mapping[int, int]


def dataset_jobs(
    dataset: Dataset, plan: Plan, lexicon: Lexicon, held_back: Collection[str] = ()
) -> tuple[list[CaseJob], dict[Target, tuple[str, ...]]]:
    """How to make every case of a dataset, and the words of its targets.

    Args:
        dataset: checked before; cases with missing files are left out.
        plan: its spacing for the labels' group of the lexicon is the cases' spacing.
        held_back: the ids of cases for validation.

    Raises:
        DatasetError: the dataset's channels are not those of the plan, or it does not tell the modality of a
            case.
    """
    if dataset.layout == "nnunet":
        _refuse_other_channels(dataset, plan)
    meant = label_targets(dataset.labels, lexicon)
    targets = {name: target for name, (target, _) in meant.items()}
    words = dict(meant.values())
    group = common_group(dataset, plan)
    jobs = []
    for case in dataset.cases:
        if case.whole:
            split: Split = "validation" if case.id in held_back else "train"
            job, said = _job(dataset, case, targets, plan, lexicon, group, split)
            jobs.append(job)
            words |= said
    return jobs, words


def label_targets(labels: Mapping[str, Label], lexicon: Lexicon) -> dict[str, tuple[Target, tuple[str, ...]]]:
    """What each label asks for, and its words; one that the lexicon takes for another is a thing of its own.

    "Enhancing tumor" and "non-enhancing tumor" are one finding to the lexicon, and two to their dataset.
    """
    targets = {name: label_target(label, lexicon) for name, label in labels.items()}
    every = list(targets.values())
    found: dict[str, tuple[Target, tuple[str, ...]]] = {}
    for name, label in labels.items():
        # Words from the lexicon are those of what it took the label for.
        said = (name.replace("_", " "),) if label.words_from == "lexicon" else label.words
        apart = every.count(targets[name]) > 1 and understand(said[0], lexicon).unused
        found[name] = (Target(None, None, name), said) if apart else (targets[name], label.words)
    return found


def label_target(label: Label, lexicon: Lexicon) -> Target:
    """What a label's plainest words ask for; a thing of its own where the lexicon does not know them."""
    prompt = understand(label.words[0], lexicon)
    if not prompt.known:
        return Target(None, None, label.name)
    return Target(
        prompt.structure.id if prompt.structure else None, prompt.finding.id if prompt.finding else None
    )


def common_group(dataset: Dataset, plan: Plan) -> str:
    """The lexicon's group that most labels belong to; the plan's default where it knows none of them."""
    groups = [label.group for label in dataset.labels.values() if label.group in plan.groups]
    known = [group for group in groups if group is not None]
    return max(known, key=known.count) if known else plan.default_group


def split_cases(dataset: Dataset, every_nth: int = 5) -> frozenset[str]:
    """Every n-th case, in the order of their ids, to be held back for validation; none of fewer than n."""
    return frozenset(
        case.id for case in [case for case in dataset.cases if case.whole][every_nth - 1 :: every_nth]
    )


def _job(
    dataset: Dataset,
    case: DatasetCase,
    targets: Mapping[str, Target],
    plan: Plan,
    lexicon: Lexicon,
    group: str,
    split: Split,
) -> tuple[CaseJob, dict[Target, tuple[str, ...]]]:
    known = (
        case.values if case.complete is None else {n: v for n, v in case.values.items() if n in case.complete}
    )
    values: dict[Target, set[int]] = {}
    for name, found in known.items():
        values.setdefault(targets[name], set()).update(found)
    singled, said = _sentences(case, targets, values, dataset.ignore)
    spoken = {target: values.pop(target) for target in said}
    facts = CaseFacts(
        name=case.id,
        group=group,
        mixture=MIXTURE,
        split=split,
        spacing_mm=plan.spacing_for(group),
        modality=None if dataset.layout == "labelmaps" else _modality(dataset, case, plan),
        targets=with_unions(values, lexicon) + [(t, tuple(sorted(v))) for t, v in spoken.items()],
        tissues=tissues_of(case.values) if dataset.layout == "labelmaps" else {},
        ignore=dataset.ignore,
    )
    assert case.labels is not None
    images = tuple(path for path in case.images if path is not None)
    make = partial(_read, facts, images, case.labels, tuple(singled), plan)
    return CaseJob(facts, case.files, make), said


def _sentences(
    case: DatasetCase, targets: Mapping[str, Target], values: dict[Target, set[int]], ignore: int | None
) -> tuple[list[Singled], dict[Target, tuple[str, ...]]]:
    """What the case's sentences single out, and their words; `values` gets their targets and new values."""
    singled: list[Singled] = []
    said: dict[Target, tuple[str, ...]] = {}
    unused = 1 + max([ignore or 0, *(value for found in case.values.values() for value in found)])
    for sentence in case.sentences:
        meant = targets[sentence.label]
        if meant not in values:
            continue
        target = Target(None, None, f"{case.id}: {sentence.text}")
        said[target] = (sentence.text,)
        if sentence.component is None:
            values[target] = set(values[meant])
            continue
        fresh = {old: unused + i for i, old in enumerate(sorted(values[meant]))}
        unused += len(fresh)
        singled.append(Singled(sentence.component, fresh))
        for found in values.values():
            found |= {fresh[old] for old in found if old in fresh}
        values[target] = set(fresh.values())
    return singled, said


def _read(
    facts: CaseFacts,
    images: Sequence[Path],
    labels: Path,
    singled: Sequence[Singled],
    plan: Plan,
) -> Case:
    label_map = _with_singled(read_label_map(labels), singled)
    if facts.modality is None:
        return label_map_case(facts, label_map)
    return image_case(facts, [read_scan(image) for image in images], label_map, plan)


def _with_singled(label_map: LabelMap, singled: Sequence[Singled]) -> LabelMap:
    labels = np.asarray(label_map.labels).astype(np.int32)
    for one in singled:
        mask = meant_component(np.isin(labels, list(one.values)), label_map.geometry, one.component)
        for old, new in one.values.items():
            labels[mask & (labels == old)] = new
    return replace(label_map, labels=labels)


def _refuse_other_channels(dataset: Dataset, plan: Plan) -> None:
    names = [channel.name for channel in dataset.channels]
    if len(names) != len(plan.channels):
        raise DatasetError(
            f"The plan {plan.name!r} is for {len(plan.channels)} channel(s) ({', '.join(plan.channels)}), "
            f"but {dataset.name} has {len(names)} ({', '.join(names)}). "
            "Make a plan for this dataset with `textseg plan`."
        )
    told = [channel.modality for channel in dataset.channels]
    meant = plan.channel_modalities
    if meant is None and len({modality for modality in told if modality}) > 1:
        raise DatasetError(
            f"Channels of different modalities need a plan that tells them apart, but {plan.name!r} has no "
            f"channel_modalities, and {dataset.name} has {' and '.join(names)}. Write them into the plan."
        )
    for name, modality, planned in zip(names, told, meant or (), strict=False):
        if modality not in (None, planned):
            raise DatasetError(
                f"The plan {plan.name!r} is for channels of {', '.join(meant or ())}, in this order, but the "
                f"channel {name!r} of {dataset.name} is {modality}. "
                "Make a plan for this dataset with `textseg plan`."
            )


def _modality(dataset: Dataset, case: DatasetCase, plan: Plan) -> Modality:
    """Of the first channel; the other ones have the same, unless the plan tells each one's."""
    if plan.channel_modalities is not None:
        return plan.channel_modalities[0]
    told = [channel.modality for channel in dataset.channels if channel.modality is not None]
    modality = case.modality or (told[0] if told else None)
    if modality is None:
        raise DatasetError(
            f"Training needs to know whether images are CT, MR or PET, but neither the channel "
            f"{dataset.channels[0].name!r} nor the case {case.id} tells. Write it into channel_names of "
            "dataset.json."
        )
    return modality
