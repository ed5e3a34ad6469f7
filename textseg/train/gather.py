"""From datasets on disk to training arrays: on the working grid, normalised, named in the lexicon's terms.

Layouts: nnU-Net's raw folders (imagesTr, labelsTr, dataset.json), folders of label maps without images
(names.json), single pairs of image and label map, and phantoms of our own. `sources.json` beside a plan says
which folders, how they are split, and by which group's spacing they are prepared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from textseg.errors import DatasetError
from textseg.geometry import Geometry, bounding_box
from textseg.normalise import normalise
from textseg.plan import Plan
from textseg.prepare import content_box, working_grid
from textseg.prompts import Lexicon, understand
from textseg.resample import resample
from textseg.scan import LabelMap, read_label_map, read_scan
from textseg.train.cases import Case, CaseFacts, Split, Target, write_case, write_index
from textseg.train.phantom import LEGEND, torso_phantom
from textseg.volume import Modality, Volume

SOURCES_FILE = "sources.json"


def gather(data: Path, arrays: Path, plan: Plan, sources: Path, lexicon: Lexicon) -> list[CaseFacts]:
    """Write every case of the sources as arrays; returns their facts.

    Args:
        data: the folder that the sources' folders are in.
        arrays: where the arrays go; made where it is missing.
        sources: the JSON file that names the folders.

    Raises:
        DatasetError: a folder is missing or empty, two cases have one name, or a label's name is not in the
            lexicon.
    """
    arrays.mkdir(parents=True, exist_ok=True)
    facts: dict[str, CaseFacts] = {}
    for source in json.loads(sources.read_text(encoding="utf-8"))["sources"]:
        for case in _cases(data, source, plan, lexicon):
            name = case.facts.name
            if name in facts:
                raise DatasetError(f"A case needs a name of its own, got {name!r} twice. Rename one of them.")
            write_case(case, arrays)
            facts[name] = case.facts
    write_index(list(facts.values()), arrays)
    return list(facts.values())


def named_targets(
    names: Mapping[str, int], lexicon: Lexicon, known: frozenset[str] | None = None
) -> list[tuple[Target, tuple[int, ...]]]:
    """What can be asked for of a label map: its names, and the unions whose every part it names.

    Args:
        names: the label map's own names and values.
        known: the names to trust; others are drawn only in part and can't be asked for. None for all.

    Raises:
        DatasetError: a trusted name is not in the lexicon.
    """
    values: dict[Target, set[int]] = {}
    for name, value in names.items():
        if known is not None and name not in known:
            continue
        prompt = understand(name, lexicon)
        if not prompt.known:
            raise DatasetError(
                f"A label needs a name that the lexicon knows, got {name!r}. Add it as a synonym."
            )
        target = Target(
            prompt.structure.id if prompt.structure else None, prompt.finding.id if prompt.finding else None
        )
        values.setdefault(target, set()).add(value)
    structures = {target.structure: found for target, found in values.items() if target.finding is None}
    for concept in lexicon.concepts:
        shown = _shown(concept, structures, lexicon)
        if shown is not None:
            values[Target(concept)] = shown
    return [(target, tuple(sorted(found))) for target, found in values.items()]


def _shown(concept: str, structures: Mapping[str | None, set[int]], lexicon: Lexicon) -> set[int] | None:
    """The label values of a structure, or of all its parts together; None unless every part is named."""
    if concept in structures:
        return structures[concept]
    parts = [_shown(part, structures, lexicon) for part in lexicon.concepts[concept].parts]
    named = [part for part in parts if part is not None]
    return set().union(*named) if parts and len(named) == len(parts) else None


def asked_for(name: str) -> bool:
    """Whether a label map's name is something to ask for, rather than what fills a body between organs."""
    return name not in NOT_ASKED_FOR and not name.startswith(BODY)


def _cases(data: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Iterator[Case]:
    layout = source["layout"]
    if layout == "phantom":
        yield from _phantom_cases(source, plan, lexicon)
    elif layout == "pair":
        yield _paired_case(data, source, plan, lexicon)
    else:
        folder = data / source["folder"]
        if not folder.is_dir():
            raise DatasetError(
                f"The source folder {folder} is missing. Which folder holds the training data?"
            )
        read = _nnunet_cases if layout == "nnunet" else _label_map_cases
        yield from read(folder, source, plan, lexicon)


def _nnunet_cases(folder: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Iterator[Case]:
    names = _labels(json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"])
    complete = folder / "annotated.json"
    annotated = json.loads(complete.read_text(encoding="utf-8")) if complete.is_file() else {}
    paths = _label_files(folder / "labelsTr")
    splits = _splits([path.name[:-7] for path in paths], source)
    for path in paths:
        name = path.name[:-7]
        known = frozenset(annotated[name]["complete"]) if name in annotated else None
        image = read_scan(folder / "imagesTr" / f"{name}_0000.nii.gz")
        facts = CaseFacts(
            name=name,
            group=source["group"],
            mixture=source["mixture"],
            split=splits[name],
            spacing_mm=plan.spacing_for(source["group"]),
            modality=_modality(name, source),
            targets=named_targets(names, lexicon, known),
        )
        yield _image_case(facts, image, read_label_map(path), plan)


def _label_map_cases(folder: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Iterator[Case]:
    document = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    paths = _label_files(folder)
    splits = _splits([path.name[:-7] for path in paths], source)
    for path in paths:
        name = path.name[:-7]
        names = _labels((document if "labels" in document else document[path.name])["labels"])
        targets = named_targets({n: v for n, v in names.items() if asked_for(n)}, lexicon)
        facts = CaseFacts(
            name=name,
            group=source["group"],
            mixture=source["mixture"],
            split=splits[name],
            spacing_mm=plan.spacing_for(source["group"]),
            modality=None,
            targets=targets,
            tissues={v: BODY if n.startswith(BODY) else n for n, v in names.items()} | AROUND,
        )
        yield _label_map_case(facts, read_label_map(path))


def _label_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise DatasetError(
            f"Label maps are .nii.gz files, and {folder} holds none. Have they another ending?"
        )
    return paths


# A body's outline; one atlas adds in brackets what else it holds.
BODY = "body"
# Labels that help to synthesise a body but that nobody asks for.
NOT_ASKED_FOR = frozenset(
    {
        "body",
        "subcutaneous fat",
        "skin",
        "muscle",
        "mesentery",
        "other vein",
        "other artery",
        "soft tissue of head",
    }
)
# Values for what is drawn around organs that come without a body; no label map uses them.
AROUND = {250: "soft tissue", 251: "skull bone"}


def _image_case(facts: CaseFacts, image: Volume, labels: LabelMap, plan: Plan) -> Case:
    assert facts.modality is not None
    intensity = plan.intensity[facts.modality]
    grid = working_grid(image.geometry, facts.spacing_mm)
    voxels = torch.from_numpy(np.ascontiguousarray(image.voxels[0]).astype(np.float32))
    on_grid = resample(voxels, image.geometry, grid, fill=float(voxels.min()))
    box = content_box(on_grid, intensity, grid, plan.margin_mm)
    normalised = normalise(on_grid[box.slices], intensity).numpy()
    # Steps of a 64th of the spread are far below any scanner's noise, and pack to half of the size.
    stepped = (np.round(normalised * 64) / 64).astype(np.float16)
    return Case(facts, _on_grid(labels, grid)[box.slices], stepped)


def _label_map_case(facts: CaseFacts, labels: LabelMap) -> Case:
    on_grid = _on_grid(labels, working_grid(labels.geometry, facts.spacing_mm))
    if BODY not in facts.tissues.values() and facts.group in ("head_neck", "torso"):
        on_grid = _with_tissue_around(on_grid, facts)
    box = bounding_box(on_grid > 0)
    assert box is not None
    return Case(facts, on_grid[box.slices], None)


def _with_tissue_around(labels: np.ndarray, facts: CaseFacts) -> np.ndarray:
    """Organs alone make no body: soft tissue within 18 mm of any of them, and bone around a brain.

    Some maps show organs only and call everything between them background, like the air outside.
    """
    brain = [value for value, name in facts.tissues.items() if name == "brain"]
    soft, bone = AROUND
    around = labels.astype(np.uint8)
    around[(labels == 0) & (distance_transform_edt(labels == 0, facts.spacing_mm) < 18)] = soft
    if brain:
        to_brain = distance_transform_edt(~np.isin(labels, brain), facts.spacing_mm)
        around[(labels == 0) & (to_brain < 8)] = bone
    return around


def _paired_case(data: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Case:
    """One image with one label map; `ranges` of values, such as a cortex's parcels, count as one name."""
    labels = read_label_map(data / source["labels"])
    document = json.loads((data / source["names_from"]).read_text(encoding="utf-8"))
    names = _labels(document["labels"])
    merged = labels.labels.astype(np.int32)
    for name, (lowest, highest) in source["ranges"].items():
        merged[(merged >= lowest) & (merged <= highest)] = names[name]
    facts = CaseFacts(
        name=source["name"],
        group=source["group"],
        mixture=source["mixture"],
        split=source["split"],
        spacing_mm=plan.spacing_for(source["group"]),
        modality=source["modality"],
        targets=named_targets(names, lexicon),
    )
    return _image_case(facts, read_scan(data / source["image"]), replace(labels, labels=merged), plan)


def _phantom_cases(source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Iterator[Case]:
    """Torsos of our own, drawn from the seed that the source names."""
    spacing = plan.spacing_for(source["group"])
    targets = named_targets({name: v for v, name in LEGEND.items() if asked_for(name)}, lexicon)
    for number in range(source["count"]):
        random = np.random.default_rng([source["seed"], number])
        height = int(random.integers(100, 190))
        grid = Geometry((116, 92, height), np.diag([*spacing, 1.0]))
        facts = CaseFacts(
            name=f"phantom_{number:02d}",
            group=source["group"],
            mixture=source["mixture"],
            split="validation" if number < source["validation_count"] else "train",
            spacing_mm=spacing,
            modality=None,
            targets=targets,
            tissues=LEGEND,
        )
        yield Case(facts, torso_phantom(random, grid), None)


def _on_grid(labels: LabelMap, grid: Geometry) -> np.ndarray:
    voxels = torch.from_numpy(np.ascontiguousarray(labels.labels).astype(np.int16))
    on_grid = resample(voxels, labels.geometry, grid, "nearest").numpy()
    return on_grid.astype(np.uint8) if on_grid.max() < 256 else on_grid


def _labels(labels: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(value) for name, value in labels.items() if name != "background"}


def _modality(name: str, source: Mapping[str, Any]) -> Modality:
    for part, modality in source.get("modality_from_name", {}).items():
        if part in name:
            found: Modality = modality
            return found
    always: Modality = source["modality"]
    return always


def _splits(names: list[str], source: Mapping[str, Any]) -> dict[str, Split]:
    """Which cases are held back: those listed, or every n-th patient, so that no patient is on both sides."""
    if "validation" in source:
        return {name: "validation" if name in source["validation"] else "train" for name in names}
    pattern = source.get("patient_pattern", ".+")
    patients = sorted({_patient(name, pattern) for name in names})
    held_back = set(patients[source["every_nth_is_validation"] - 1 :: source["every_nth_is_validation"]])
    return {name: "validation" if _patient(name, pattern) in held_back else "train" for name in names}


def _patient(name: str, pattern: str) -> str:
    match = re.search(pattern, name)
    return match.group() if match else name
