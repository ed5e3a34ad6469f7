"""From datasets on disk to training arrays: on the working grid, normalised, named in the lexicon's terms.

Layouts: nnU-Net's raw folders (imagesTr, labelsTr, dataset.json), folders of label maps without images
(names.json), single pairs of image and label map, and phantoms of our own. `sources.json` beside a plan says
which folders, how they are split, and by which group's spacing they are prepared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from textseg.dataset import BACKGROUND, IGNORE
from textseg.errors import DatasetError
from textseg.geometry import Geometry, bounding_box
from textseg.normalise import normalise
from textseg.plan import Plan
from textseg.prepare import content_box, working_grid
from textseg.prompts import Lexicon, understand
from textseg.resample import resample
from textseg.scan import LabelMap, read_label_map, read_scan
from textseg.train.cases import Case, CaseFacts, Split, Target, Words, is_made, write_case, write_index
from textseg.train.phantom import LEGEND, torso_phantom
from textseg.volume import Modality, Volume

SOURCES_FILE = "sources.json"
# Raised whenever cases come out differently, so that old ones are made again.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class CaseJob:
    """A case that can be made: what is known of it already, the files it comes from, and how."""

    facts: CaseFacts
    files: tuple[Path, ...]
    make: Callable[[], Case]

    def made_from(self, plan: Plan) -> str:
        """A digest of all that the case depends on; the same one means that it need not be made again."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        intensity = {name: entry.model_dump() for name, entry in plan.intensity.items()}
        depends: tuple[Any, ...] = (RECIPE_VERSION, asdict(self.facts), files, intensity, plan.margin_mm)
        if self.facts.ignore is None:
            del depends[1]["ignore"]  # as before there was such a thing: cases made then are still good
        if plan.channel_modalities is not None:
            depends += (plan.channel_modalities,)
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def gather(
    data: Path,
    arrays: Path,
    plan: Plan,
    sources: Path,
    lexicon: Lexicon,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[CaseFacts]:
    """Write every case of the sources as arrays; returns their facts.

    Cases that are there already, made from the same files by the same plan, are left as they are: a gathering
    that was stopped goes on.

    Args:
        data: the folder that the sources' folders are in.
        arrays: where the arrays go; made where it is missing.
        sources: the JSON file that names the folders.
        workers: processes that make cases at the same time.
        progress: called with the cases done and all of them.

    Raises:
        DatasetError: a folder is missing or empty, two cases have one name, or a label's name is not in the
            lexicon.
    """
    listed = json.loads(sources.read_text(encoding="utf-8"))["sources"]
    jobs = [job for source in listed for job in _jobs(data, source, plan, lexicon)]
    return make_cases(jobs, arrays, plan, workers=workers, progress=progress)


def make_cases(
    jobs: Iterable[CaseJob],
    arrays: Path,
    plan: Plan,
    *,
    words: Words | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[CaseFacts]:
    """Make the cases that are not there yet, and write the index of all; returns their facts.

    Args:
        words: of targets that have some of their own.
        workers, progress: as for `gather`.

    Raises:
        DatasetError: two cases have one name.
    """
    arrays.mkdir(parents=True, exist_ok=True)
    by_name: dict[str, CaseJob] = {}
    for job in jobs:
        name = job.facts.name
        if name in by_name:
            raise DatasetError(f"A case needs a name of its own, got {name!r} twice. Rename one of them.")
        by_name[name] = job
    missing = [job for job in by_name.values() if not is_made(job.facts, arrays, job.made_from(plan))]
    there = len(by_name) - len(missing)
    progress(there, len(by_name))
    for made, _ in enumerate(_made(missing, arrays, plan, workers), start=1):
        progress(there + made, len(by_name))
    facts = [job.facts for job in by_name.values()]
    write_index(facts, arrays, words)
    return facts


def _made(jobs: Sequence[CaseJob], arrays: Path, plan: Plan, workers: int) -> Iterator[None]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            _make(job, arrays, job.made_from(plan))
            yield
        return
    # Not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        begun = [pool.submit(_make, job, arrays, job.made_from(plan)) for job in jobs]
        for ended in as_completed(begun):
            ended.result()
            yield


def _one_thread() -> None:
    torch.set_num_threads(1)


def _make(job: CaseJob, arrays: Path, made_from: str) -> None:
    write_case(job.make(), arrays, made_from)


def named_targets(
    names: Mapping[str, int | Sequence[int]], lexicon: Lexicon, known: frozenset[str] | None = None
) -> list[tuple[Target, tuple[int, ...]]]:
    """What can be asked for of a label map: its names, and the unions whose every part it names.

    Args:
        names: the label map's own names and values; a region, the union of others, has several.
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
        values.setdefault(target, set()).update([value] if isinstance(value, int) else value)
    return with_unions(values, lexicon)


def with_unions(values: Mapping[Target, set[int]], lexicon: Lexicon) -> list[tuple[Target, tuple[int, ...]]]:
    """Targets with their label values, and the unions whose every part is among them ("kidneys")."""
    structures = {
        target.structure: found for target, found in values.items() if target == Target(target.structure)
    }
    unions = {Target(concept): _shown(concept, structures, lexicon) for concept in lexicon.concepts}
    shown = dict(values) | {target: found for target, found in unions.items() if found is not None}
    return [(target, tuple(sorted(found))) for target, found in shown.items()]


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


def _jobs(data: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Iterator[CaseJob]:
    layout = source["layout"]
    if layout == "phantom":
        numbers = {key: source[key] for key in ("count", "validation_count", "seed")}
        yield from phantom_jobs(plan, lexicon, **numbers)
    elif layout == "pair":
        yield _pair_job(data, source, plan, lexicon)
    else:
        folder = data / source["folder"]
        if not folder.is_dir():
            raise DatasetError(
                f"The source folder {folder} is missing. Which folder holds the training data?"
            )
        read = _nnunet_jobs if layout == "nnunet" else _label_map_jobs
        yield from read(folder, source, plan, lexicon)


def _nnunet_jobs(folder: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> Iterator[CaseJob]:
    names, ignore = _labels(json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"])
    complete = folder / "annotated.json"
    annotated = json.loads(complete.read_text(encoding="utf-8")) if complete.is_file() else {}
    paths = _label_files(folder / "labelsTr")
    splits = _splits([path.name[:-7] for path in paths], source)
    for path in paths:
        name = path.name[:-7]
        known = frozenset(annotated[name]["complete"]) if name in annotated else None
        images = tuple(folder / "imagesTr" / f"{name}_{i:04d}.nii.gz" for i in range(len(plan.channels)))
        facts = CaseFacts(
            name=name,
            group=source["group"],
            mixture=source["mixture"],
            split=splits[name],
            spacing_mm=plan.spacing_for(source["group"]),
            modality=_modality(name, source),
            targets=named_targets(names, lexicon, known),
            ignore=ignore,
        )
        yield CaseJob(facts, (*images, path), partial(_read_image_case, facts, images, path, plan))


def _label_map_jobs(
    folder: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon
) -> Iterator[CaseJob]:
    document = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    paths = _label_files(folder)
    splits = _splits([path.name[:-7] for path in paths], source)
    for path in paths:
        name = path.name[:-7]
        names, ignore = _labels((document if "labels" in document else document[path.name])["labels"])
        targets = named_targets({n: v for n, v in names.items() if asked_for(n)}, lexicon)
        facts = CaseFacts(
            name=name,
            group=source["group"],
            mixture=source["mixture"],
            split=splits[name],
            spacing_mm=plan.spacing_for(source["group"]),
            modality=None,
            targets=targets,
            tissues=tissues_of(names) | AROUND,
            ignore=ignore,
        )
        yield CaseJob(facts, (path,), partial(_read_label_map_case, facts, path))


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


def tissues_of(names: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """The name of every label value; a region is no tissue of its own."""
    alone = {values[0]: name for name, values in names.items() if len(values) == 1}
    return {value: BODY if name.startswith(BODY) else name for value, name in alone.items()}


def _read_image_case(facts: CaseFacts, images: Sequence[Path], labels: Path, plan: Plan) -> Case:
    return image_case(facts, [read_scan(image) for image in images], read_label_map(labels), plan)


def _read_label_map_case(facts: CaseFacts, labels: Path) -> Case:
    return label_map_case(facts, read_label_map(labels))


def image_case(facts: CaseFacts, images: Sequence[Volume], labels: LabelMap, plan: Plan) -> Case:
    """A case from its scans, one a channel of the plan; the first one's grid and body are the case's."""
    assert facts.modality is not None
    rules = [plan.intensity[modality] for modality in plan.modalities(facts.modality)]
    grid = working_grid(images[0].geometry, facts.spacing_mm)
    on_grid = [_image_on_grid(image, grid) for image in images]
    box = content_box(on_grid[0], rules[0], grid, plan.margin_mm)
    normalised = [normalise(image[box.slices], rule) for image, rule in zip(on_grid, rules, strict=True)]
    return Case(facts, _on_grid(labels, grid)[box.slices], tuple(map(_stepped, normalised)))


def _image_on_grid(image: Volume, grid: Geometry) -> Tensor:
    voxels = torch.from_numpy(np.ascontiguousarray(image.voxels[0]).astype(np.float32))
    return resample(voxels, image.geometry, grid, fill=float(voxels.min()))


def _stepped(normalised: Tensor) -> NDArray[np.float16]:
    # Steps of a 64th of the spread are far below any scanner's noise, and pack to half of the size.
    return np.asarray((np.round(normalised.numpy() * 64) / 64).astype(np.float16))


def label_map_case(facts: CaseFacts, labels: LabelMap) -> Case:
    on_grid = _on_grid(labels, working_grid(labels.geometry, facts.spacing_mm))
    if BODY not in facts.tissues.values() and facts.group in ("head_neck", "torso"):
        on_grid = _with_tissue_around(on_grid, facts)
    box = bounding_box(on_grid > 0)
    assert box is not None
    return Case(facts, on_grid[box.slices])


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


def _pair_job(data: Path, source: Mapping[str, Any], plan: Plan, lexicon: Lexicon) -> CaseJob:
    """One image, or a list of channels, with one label map.

    `ranges` of values, such as a cortex's parcels, count as one name. Names that are `left_out` are asked
    for neither as present nor as absent: these labels mean something else by them.
    """
    document = json.loads((data / source["names_from"]).read_text(encoding="utf-8"))
    names, ignore = _labels(document["labels"])
    left_out = source.get("left_out", ())
    unknown = [name for name in left_out if name not in names]
    if unknown:
        raise DatasetError(
            f"What a source leaves out is among its names, but {source['names_from']} has no "
            f"{' and no '.join(map(repr, unknown))}. Is it written otherwise there?"
        )
    facts = CaseFacts(
        name=source["name"],
        group=source["group"],
        mixture=source["mixture"],
        split=source["split"],
        spacing_mm=plan.spacing_for(source["group"]),
        modality=source["modality"],
        targets=named_targets({n: v for n, v in names.items() if n not in left_out}, lexicon),
        ignore=ignore,
    )
    listed = source["image"] if isinstance(source["image"], list) else [source["image"]]
    images, labels = tuple(data / image for image in listed), data / source["labels"]
    ranges = {names[name][0]: (lowest, highest) for name, (lowest, highest) in source["ranges"].items()}
    make = partial(_read_paired_case, facts, images, labels, ranges, plan)
    return CaseJob(facts, (*images, labels), make)


def _read_paired_case(
    facts: CaseFacts,
    images: Sequence[Path],
    labels: Path,
    ranges: Mapping[int, tuple[int, int]],
    plan: Plan,
) -> Case:
    label_map = read_label_map(labels)
    merged = label_map.labels.astype(np.int32)
    for value, (lowest, highest) in ranges.items():
        merged[(merged >= lowest) & (merged <= highest)] = value
    scans = [read_scan(image) for image in images]
    return image_case(facts, scans, replace(label_map, labels=merged), plan)


def phantom_jobs(
    plan: Plan, lexicon: Lexicon, *, count: int = 16, validation_count: int = 0, seed: int = 0
) -> list[CaseJob]:
    """Torsos of our own, drawn from a seed; the first `validation_count` of them are held back."""
    targets = named_targets({name: v for v, name in LEGEND.items() if asked_for(name)}, lexicon)
    jobs = []
    for number in range(count):
        facts = CaseFacts(
            name=f"phantom_{number:02d}",
            group="torso",
            mixture="phantom",
            split="validation" if number < validation_count else "train",
            spacing_mm=plan.spacing_for("torso"),
            modality=None,
            targets=targets,
            tissues=LEGEND,
        )
        jobs.append(CaseJob(facts, (), partial(_phantom_case, facts, seed, number)))
    return jobs


def _phantom_case(facts: CaseFacts, seed: int, number: int) -> Case:
    random = np.random.default_rng([seed, number])
    extent_mm = np.array([348.0, 276.0, random.uniform(300, 570)])
    x, y, z = (round(mm / voxel) for mm, voxel in zip(extent_mm, facts.spacing_mm, strict=True))
    grid = Geometry((x, y, z), np.diag([*facts.spacing_mm, 1.0]))
    return Case(facts, torso_phantom(random, grid))


def _on_grid(labels: LabelMap, grid: Geometry) -> np.ndarray:
    voxels = torch.from_numpy(np.ascontiguousarray(labels.labels).astype(np.int16))
    on_grid = resample(voxels, labels.geometry, grid, "nearest").numpy()
    return on_grid.astype(np.uint8) if on_grid.max() < 256 else on_grid


def _labels(labels: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Names and their values, of which a region has several, and the value of what nobody labelled."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    values = {name: tuple(map(int, value)) for name, value in listed.items() if name != BACKGROUND}
    ignored = values.pop(IGNORE, None)
    return values, ignored[0] if ignored else None


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
