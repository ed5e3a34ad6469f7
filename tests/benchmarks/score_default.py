"""Scores and probes a model on every labelled set that the default was not trained on, for its card.

    python tests/benchmarks/score_default.py WORK [--cases N] [--probe-cases N] [--skip-probe] [--save]
        [--card plans/default/card.md]

The cases are those that `plans/default/sources.json` holds back: hippocampus crops, sarcomas by kind of
image, two CTs of which only what is drawn in full is scored, and a head whose labels have FreeSurfer's
numbers; and the FLAIR and T2 of a patient with multiple sclerosis. Each is asked for the labels' own names,
and for four things that lie elsewhere in a body. WORK gets for every set a dataset of links, the masks,
`textseg score`'s report and `textseg probe`'s; a run that was stopped goes on from there. In the end one JSON
document and a section in Markdown for the card are written there, and beside this program with --save; --card
puts the section at the end of a card, in place of an older one. It is to take about a quarter of an hour on
two cores, so no probe begins after --minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from textseg.atomic import write_bytes
from textseg.dataset import ANNOTATED_FILE, DATASET_FILE, IMAGES, LABELS, read_dataset
from textseg.device import processor_name
from textseg.inference import Segmenter
from textseg.models import plans_folder
from textseg.scores.cases import Scoring, score_pairs
from textseg.scores.inputs import Names, find_pairs
from textseg.scores.measures import COLUMNS, EMPTY_RULE, LESION_COLUMNS, Rules, StructureScore
from textseg.scores.observations import SUITES, Observation, Suite
from textseg.scores.presence import auroc, calibration
from textseg.scores.probing import Probe, ask_with, choose_cases, probe_cases
from textseg.scores.report import write_report
from textseg.scores.robustness_report import EXPLANATIONS, WHOLE_SUITE, Lost, losses, write_robustness
from textseg.scores.scenes import FAR_FROM_HEAD, FAR_FROM_TORSO, HEAD_GROUPS
from textseg.scores.statistics import Estimate
from textseg.scores.tables import ALL, Table, detection_of, estimate_of, number, structures_of
from textseg.train import gather
from textseg.version import __version__
from textseg.volume import Modality

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results"
HEADING = "## Scored and probed on real scans that are held back"
FORMAT = "textseg-score-default-1"
# What the sets are called in the card.
TITLES = {
    "Dataset001_Hippocampus": "Hippocampus, T1 crops",
    "Dataset002_Sarcoma": "Soft tissue sarcoma",
    "Dataset004_PartlyLabelledCT": "Chest and abdomen CT",
    "brain_t1": "Head T1, FreeSurfer's labels",
}
MODALITIES: Mapping[Modality, str] = {"ct": "CT", "mr": "MR", "pet": "PET"}
MS_FOLDER, MS_LESION = "validation/ms", "multiple sclerosis lesion"
# Numbers for what no label map shows: things that lie elsewhere, asked for to see whether they are denied.
FIRST_ABSENT = 60_000
SHOWN = tuple(column for column in COLUMNS if column.field in ("dice", "nsd", "hd95_mm"))
OF_LESIONS = tuple(column for column in LESION_COLUMNS if column.field in ("lesion_f1", "false_lesions"))
# Turning a part of the scan in 47 ways is a matter of seconds for crops only.
LARGEST_TURNED_ML = 1500.0
PROBED_STRUCTURES, WORDINGS = 6, 1


@dataclass(frozen=True)
class HeldBack:
    """One case: its scan and label map, and the kind of image."""

    name: str
    image: Path
    labels: Path
    modality: Modality


@dataclass(frozen=True)
class LabelledSet:
    """Cases that are scored together, the values of their labels by name, and what none of them shows.

    complete: by case the labels that are drawn in full; a case that is not listed has all of them.
    """

    title: str
    cases: tuple[HeldBack, ...]
    labels: Mapping[str, tuple[int, ...]]
    absent: tuple[str, ...]
    complete: Mapping[str, Sequence[str]]

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.title.lower()).strip("_")

    def prompts(self, case: str) -> list[str]:
        return [*self.complete.get(case, self.labels), *self.absent]

    @property
    def names(self) -> Names:
        """For the scorer: labels of one value, regions of several, absent things with values of their own."""
        single = {values[0]: name for name, values in self.labels.items() if len(values) == 1}
        regions = {name: values for name, values in self.labels.items() if len(values) > 1}
        absent = dict(enumerate(self.absent, start=FIRST_ABSENT))
        return Names(single | absent, regions, complete={case: self.prompts(case) for case in self.complete})


# ---- which sets ----


def labelled_sets(data: Path) -> Iterator[LabelledSet]:
    """Every set with scans and labels that the default's recipe holds back."""
    sources = json.loads((plans_folder() / "default" / gather.SOURCES_FILE).read_text(encoding="utf-8"))
    for source in sources["sources"]:
        if source["layout"] == "nnunet":
            yield from _of_dataset(data / source["folder"], source)
        elif source["layout"] == "pair" and source["split"] == "validation":
            yield _of_pair(data, source)
    yield _multiple_sclerosis(data / MS_FOLDER)


def _of_dataset(folder: Path, source: Mapping[str, Any]) -> Iterator[LabelledSet]:
    """The cases that are held back, one set for each kind of image."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / LABELS).glob("*.nii.gz"))
    splits = gather._splits(names, source)
    cases = [
        HeldBack(
            name,
            folder / IMAGES / f"{name}_0000.nii.gz",
            folder / LABELS / f"{name}.nii.gz",
            gather._modality(name, source),
        )
        for name in names
        if splits[name] == "validation"
    ]
    document = json.loads((folder / DATASET_FILE).read_text(encoding="utf-8"))
    annotated = folder / ANNOTATED_FILE
    listed = json.loads(annotated.read_text(encoding="utf-8")) if annotated.is_file() else {}
    complete = {case.name: listed[case.name]["complete"] for case in cases if case.name in listed}
    for modality in dict.fromkeys(case.modality for case in cases):
        of_kind = tuple(case for case in cases if case.modality == modality)
        several = len(of_kind) < len(cases)
        title = f"{TITLES[folder.name]}, {MODALITIES[modality]}" if several else TITLES[folder.name]
        absent = _absent(source["group"])
        yield LabelledSet(title, of_kind, _labels(document["labels"]), absent, complete)


def _of_pair(data: Path, source: Mapping[str, Any]) -> LabelledSet:
    document = json.loads((data / source["names_from"]).read_text(encoding="utf-8"))
    labels = _labels(document["labels"])
    for name, (lowest, highest) in source["ranges"].items():
        labels[name] = (*labels[name], *range(lowest, highest + 1))
    case = HeldBack(source["name"], data / source["image"], data / source["labels"], source["modality"])
    return LabelledSet(TITLES[source["name"]], (case,), labels, _absent(source["group"]), {})


def _multiple_sclerosis(folder: Path) -> LabelledSet:
    lesions = folder / "lesions.nii.gz"
    cases = tuple(
        HeldBack(f"ms_{kind}", folder / f"{kind}.nii.gz", lesions, "mr") for kind in ("flair", "t2")
    )
    title = "Multiple sclerosis, FLAIR and T2 of one patient"
    return LabelledSet(title, cases, {MS_LESION: (1,)}, _absent("brain"), {})


def _labels(labels: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: (int(value),) for name, value in labels.items() if name != "background"}


def _absent(group: str) -> tuple[str, ...]:
    return FAR_FROM_HEAD if group in HEAD_GROUPS else FAR_FROM_TORSO


def as_dataset(one: LabelledSet, folder: Path) -> Path:
    """The set as a dataset in nnU-Net's layout, whose files are links; gives the folder."""
    for inner in (IMAGES, LABELS):
        (folder / inner).mkdir(parents=True, exist_ok=True)
        for old in (folder / inner).iterdir():
            old.unlink()
    for case in one.cases:
        (folder / IMAGES / f"{case.name}_0000.nii.gz").symlink_to(case.image.resolve())
        (folder / LABELS / f"{case.name}.nii.gz").symlink_to(case.labels.resolve())
    (modality,) = {case.modality for case in one.cases}
    document = {
        "channel_names": {"0": MODALITIES[modality]},
        "labels": {"background": 0} | {name: list(values) for name, values in one.labels.items()},
        "numTraining": len(one.cases),
        "file_ending": ".nii.gz",
    }
    (folder / DATASET_FILE).write_text(json.dumps(document, indent=1), encoding="utf-8")
    annotated = {case: {"complete": list(names)} for case, names in one.complete.items()}
    if annotated:
        (folder / ANNOTATED_FILE).write_text(json.dumps(annotated, indent=1), encoding="utf-8")
    return folder


# ---- masks and scores ----


def predict(one: LabelledSet, segmenter: Segmenter, dataset: Path, masks: Path) -> None:
    """Write the masks of every case; those that this model has answered already are left as they are."""
    masks.mkdir(exist_ok=True)
    for case in one.cases:
        prompts = one.prompts(case.name)
        if not _is_answered(masks, case, prompts, segmenter):
            for old in masks.glob(f"{case.name}_0000_*"):
                old.unlink()
            _tell(f"{one.title}: {case.name}, {len(prompts)} prompts")
            scan = dataset / IMAGES / f"{case.name}_0000.nii.gz"
            segmenter(scan, prompts, modality=case.modality).save(masks)


def _is_answered(masks: Path, case: HeldBack, prompts: Sequence[str], segmenter: Segmenter) -> bool:
    for path in masks.glob(f"{case.name}_0000_*_record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        asked = [prompt["prompt"] for prompt in record["prompts"]]
        return asked == list(prompts) and record["model"]["sha256"] == segmenter.model.sha256
    return False


def scored(one: LabelledSet, dataset: Path, masks: Path, report: Path) -> list[StructureScore]:
    """What `textseg score` says of a set; its report is written beside."""
    scoring = Scoring(one.names)
    found = score_pairs(find_pairs(masks, dataset / LABELS), scoring, len(os.sched_getaffinity(0)))
    scores = [score for case in found for score in case.scores]
    write_report(report, {"textseg": scores}, Rules(), overwrite=True)
    return scores


def probed(
    one: LabelledSet, segmenter: Segmenter, dataset: Path, report: Path, most: int
) -> list[Observation]:
    """What `textseg probe` says of some cases of a set; its page is written beside."""
    data = read_dataset(dataset)
    cases = choose_cases(data, most, seed=0)
    probe = Probe(_suites_for(one), WORDINGS, PROBED_STRUCTURES, seed=0)
    identity = {"name": segmenter.model.name, "sha256": segmenter.model.sha256}
    observations = probe_cases(
        data,
        cases,
        ask_with(segmenter),
        probe,
        model=identity,
        folder=report,
        progress=lambda stage, share, left: _tell(f"{one.title}: {stage}"),
    )
    about = {"model": segmenter.model.name, "dataset": one.title, "seed": 0}
    write_robustness(report, observations, about, overwrite=True)
    return observations


def _suites_for(one: LabelledSet) -> tuple[Suite, ...]:
    header = nib.load(one.cases[0].image).header
    volume_ml = float(np.prod(header.get_data_shape()[:3]) * np.prod(header.get_zooms()[:3])) / 1000
    return tuple(suite for suite in SUITES if suite != "orientation" or volume_ml <= LARGEST_TURNED_ML)


# ---- what is told ----


def summary_of(one: LabelledSet, scores: Sequence[StructureScore]) -> dict[str, Any]:
    """The figures of a set, for JSON."""
    there = [score for score in scores if score.structure not in one.absent]
    return {
        "cases": len(one.cases),
        "structures": {name: _figures(there, name) for name in [*structures_of(there), ALL]},
        "presence": _presence(scores),
    }


def _figures(scores: Sequence[StructureScore], structure: str) -> dict[str, Any]:
    chosen = [score for score in scores if structure in (ALL, score.structure)]
    found = detection_of(chosen)
    columns = (*SHOWN, *(OF_LESIONS if any(score.lesions for score in chosen) else ()))
    estimates = {column.field: estimate_of(scores, column, structure) for column in columns}
    return {
        "found": [found.found, found.found + found.missed],
        **{field: _numbers(one) for field, one in estimates.items() if one.cases},
    }


def _presence(scores: Sequence[StructureScore]) -> dict[str, Any]:
    found = detection_of(scores)
    said, there = [score.presence for score in scores], [score.there for score in scores]
    return {
        "found": [found.found, found.found + found.missed],
        "denied": [found.denied, found.denied + found.false_alarms],
        "auroc": _rounded(auroc(said, there)),
        "expected_calibration_error": _rounded(calibration(said, there).expected_error),
    }


def _lost(observations: Sequence[Observation]) -> dict[str, Any]:
    """Of each suite, and of each of its tests."""

    def facts(lost: Lost) -> dict[str, Any]:
        numbers = (lost.canonical.mean, lost.dice.mean, lost.drop.mean, lost.worst)
        names = ("canonical_dice", "dice", "drop", "largest_drop")
        return {"answers": lost.answers, **dict(zip(names, map(_rounded, numbers), strict=True))}

    found: dict[str, Any] = {}
    for lost in losses(observations):
        if lost.test == WHOLE_SUITE:
            found[lost.suite] = {**facts(lost), "tests": {}}
        else:
            found[lost.suite]["tests"][lost.test] = facts(lost)
    return found


def _numbers(estimate: Estimate) -> list[float | None]:
    """The mean, and the ends of its interval where it has one."""
    return [_rounded(estimate.mean), _rounded(estimate.low), _rounded(estimate.high)]


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def section_of(document: Mapping[str, Any]) -> str:
    """The section for the card, Markdown."""
    sets: Mapping[str, Mapping[str, Any]] = document["sets"]
    parts = [
        HEADING,
        f"{document['date']}, textseg {document['textseg']}, by `tests/benchmarks/score_default.py`: labels "
        "asked for by their own names, masks on the scans' own grids as `textseg predict` writes them, "
        "counted by `textseg score` with NSD at 2 mm. Means over cases with 95 % bootstrap intervals. "
        + EMPTY_RULE,
    ]
    parts += [_structures_table(title, found) for title, found in sets.items()]
    parts.append(_presence_table(sets))
    if any("probe" in found for found in sets.values()):
        parts.append(_probe_table(sets))
    left = [title for title, found in sets.items() if "probe" not in found]
    if left and len(left) < len(sets):
        parts.append(f"Not probed: {'; '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def _structures_table(title: str, found: Mapping[str, Any]) -> str:
    structures: Mapping[str, Mapping[str, Any]] = found["structures"]
    lesions = [column for column in OF_LESIONS if any(column.field in each for each in structures.values())]
    columns = [*SHOWN, *lesions]
    rows = [
        (name, "/".join(map(str, each["found"])), *(_cell(each.get(c.field), c.digits) for c in columns))
        for name, each in structures.items()
        if len(structures) > 2 or name != ALL
    ]
    cases = f"{found['cases']} case{'s' if found['cases'] > 1 else ''}"
    return _markdown(
        Table(f"{title}: {cases}", ("Structure", "Found", *(c.heading for c in columns)), tuple(rows))
    )


def _presence_table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for title, found in sets.items():
        one = found["presence"]
        shares = ["/".join(map(str, one[name])) if one[name][1] else "–" for name in ("found", "denied")]
        rows.append((title, *shares, *(_cell([one[n]]) for n in ("auroc", "expected_calibration_error"))))
    headings = ("Set", "Found of what is there", "Denied of what is absent", "AUROC", "Calibration error")
    note = (
        f"Absent things that were asked for: in heads {', '.join(FAR_FROM_HEAD)}; elsewhere "
        f"{', '.join(FAR_FROM_TORSO)}."
    )
    return _markdown(Table("Presence", headings, tuple(rows), note))


def _probe_table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    asked = {title: found["probe"] for title, found in sets.items() if "probe" in found}
    rows = [(title, *(_drop(suites.get(suite)) for suite in SUITES)) for title, suites in asked.items()]
    cases = ", ".join(f"{title} {sets[title]['probed_cases']}" for title in asked)
    note = (
        "Dice that is lost against the canonical prompt on the scan as it is, mean over a suite's answers; "
        f"of absent structures the share of false alarms. Cases: {cases}. "
        + " ".join(f"{suite.capitalize()}: {EXPLANATIONS[suite]}" for suite in SUITES)
    )
    return _markdown(Table("What is lost when words or scans change", ("Set", *SUITES), tuple(rows), note))


def _drop(suite: Mapping[str, Any] | None) -> str:
    return "–" if suite is None else _cell([suite["drop"]], signed=True)


def _cell(values: Sequence[float | None] | None, digits: int = 2, *, signed: bool = False) -> str:
    """A mean, with its interval where it has one."""
    if values is None or values[0] is None:
        return "–"
    mean, *ends = (np.nan if value is None else value for value in values)
    digits = min(digits, 2)
    text = number(mean, digits, signed=signed)
    if not ends or not np.isfinite(ends).all():
        return text
    return f"{text} ({number(ends[0], digits)} to {number(ends[1], digits)})"


def _markdown(table: Table) -> str:
    """Below the section's own heading."""
    return f"#{table.as_markdown()}".strip()


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    options = _options()
    began = time.monotonic()
    segmenter = Segmenter(options.model, device=options.device, backend="auto")
    sets = [replace(one, cases=_some(one.cases, options.cases)) for one in labelled_sets(options.data)]
    sets = [one for one in sets if not options.only or any(word in one.folder for word in options.only)]
    places = {one.title: as_dataset(one, options.work / one.folder) for one in sets}
    found: dict[str, dict[str, Any]] = {}
    for one in sets:
        place = places[one.title]
        predict(one, segmenter, place, place / "masks")
        found[one.title] = summary_of(one, scored(one, place, place / "masks", place / "scores"))
    for one in sets if not options.skip_probe else ():
        if time.monotonic() - began > 60 * options.minutes:
            _tell(f"{one.title} is not probed, since it is late; the same command goes on.")
            continue
        place = places[one.title]
        observations = probed(one, segmenter, place, place / "probe", options.probe_cases)
        found[one.title] |= {
            "probed_cases": len({each.case for each in observations}),
            "probe": _lost(observations),
        }
    document = {
        "format": FORMAT,
        "textseg": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "device": str(segmenter.compute),
        "seconds": round(time.monotonic() - began, 1),
        "model": {"name": segmenter.model.name, "sha256": segmenter.model.sha256},
        "tolerance_mm": Rules().tolerance_mm,
        "sets": found,
    }
    _write(document, options.work, "scores")
    if options.save:
        _write(document, RESULTS, f"score-{segmenter.model.name}-{document['date']}")
    if options.card is not None:
        card = options.card.read_text(encoding="utf-8")
        write_bytes(options.card, with_section(card, section_of(document)).encode())
    sys.stdout.write(section_of(document))


def with_section(card: str, section: str) -> str:
    """A card that ends with this section, and with none of an earlier run."""
    return f"{card.partition(HEADING)[0].rstrip()}\n\n{section}"


def _some(cases: Sequence[HeldBack], most: int | None) -> tuple[HeldBack, ...]:
    """At most so many, spread over all of them."""
    step = 1 if most is None else -(-len(cases) // most)
    return tuple(cases[::step])


def _write(document: Mapping[str, Any], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(section_of(document), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, metavar="WORK", help="a folder for everything, new or to go on in")
    parser.add_argument("--model", default="default", help="a model by name, or its folder")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the labelled sets")
    parser.add_argument("--cases", type=int, help="of each set at most")
    parser.add_argument("--probe-cases", type=int, default=1, help="of each set at most")
    parser.add_argument("--skip-probe", action="store_true")
    parser.add_argument("--only", action="append", metavar="WORD", help="sets with it in their folder's name")
    parser.add_argument("--minutes", type=float, default=10.0, help="after these no probe begins")
    parser.add_argument("--save", action="store_true", help="write the result beside this program too")
    parser.add_argument("--card", type=Path, help="a model's card.md to end with the section")
    return parser.parse_args()


if __name__ == "__main__":
    main()
