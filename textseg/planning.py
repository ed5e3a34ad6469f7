"""From a dataset's fingerprint and a memory budget to a plan: nnU-Net's rules, our network.

Spacing, patch, strides and kernels follow nnU-Net's residual encoder planner (Isensee et al. 2021 and 2024)
through nnunetv2's own topology function and dynamic-network-architectures' count of feature maps. Width and
batch are then the largest, up to nnU-Net's own, for which a training step of our network fits into the
budget; a width that was asked for is taken as it is. What does not follow from the data (the recipe, the
text tower, thresholds) is the base plan's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from textseg.atomic import write_bytes
from textseg.errors import OutputError, PlanError
from textseg.fingerprint import Fingerprint, Intensities
from textseg.geometry import Spacing
from textseg.plan import (
    PLAN_FILE,
    GroupPlan,
    IntensityPlan,
    Plan,
    TrainingPlan,
    as_json,
    write_plan,
)
from textseg.topology import (
    BLOCKS_PER_STAGE,
    FIRST_WIDTH,
    SHORTEST_EDGE,
    WIDEST,
    Topology,
    choose_patch,
    median_shape,
    shortened,
    times,
    working_spacing,
)
from textseg.train.augment import USUAL_FRACTIONS
from textseg.train.memory import TrainingMemory, estimate_training_memory
from textseg.volume import Modality

REASONS_FILE = "planning.json"

# nnU-Net's numbers again: the part of a dataset in one batch, and the fewest samples.
LARGEST_PART_OF_DATASET = 0.05
SMALLEST_BATCH = 2

WIDTHS = (32, 24, 16, 8)
# What of the budget a step may fill by our estimate; it is true to 12 %, and the process needs some too.
USABLE = 0.9


@dataclass(frozen=True)
class Reason:
    """One choice of the plan, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Planned:
    """A plan with its reasons, and the bytes a step may take, is estimated to take and took when measured."""

    plan: Plan
    reasons: tuple[Reason, ...]
    budget_bytes: int
    estimated: TrainingMemory
    bytes_per_value: int
    measured_bytes: int | None = None


def make_plan(
    fingerprint: Fingerprint,
    memory_bytes: int,
    base: Plan,
    bytes_per_value: int,
    width: int | None = None,
    spacing_mm: Spacing | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> Planned:
    """The plan for a dataset whose training steps fit into so much memory.

    Args:
        base: where everything comes from that the data do not decide, such as the recipe.
        bytes_per_value: of a feature map on the device that will train: 2 for bfloat16, 4 for float32.
        width: of the first stage; by default the widest that fits, which on a CPU may be slow to train.
        spacing_mm: the working spacing (x, y, z); by default nnU-Net's, the median of the cases.
        progress: called with the stage while sizes are tried.

    Raises:
        PlanError: nnunetv2 is not installed, there is no such width, channels of several modalities are not
            the same ones in every case, or the budget is too small for any step.
    """
    widths = widths_to_try(width)
    spacing, why_spacing = working_spacing(fingerprint.cases)
    if spacing_mm is not None:
        why_spacing = f"It was asked for; by nnU-Net's rule it would be {times(spacing, '.4g')} mm."
        spacing = spacing_mm
    shape = median_shape(fingerprint.cases, spacing)
    progress("patch", 0, 1)
    channels, labels = max(1, len(fingerprint.channels)), len(fingerprint.labels)
    topology, why_patch = choose_patch(spacing, shape, memory_bytes / 1e9, channels, labels)
    skeleton = _skeleton(fingerprint, base, spacing)
    progress("width and batch", 0, 1)
    sized, why_size = _sized(
        skeleton, topology, spacing, shape, memory_bytes, bytes_per_value, fingerprint, widths
    )
    reasons = (
        Reason("spacing", f"{times(spacing, '.4g')} mm", why_spacing),
        *_reasons_of_patch(sized.topology, topology, why_patch, memory_bytes),
        *why_size,
        *_reasons_of_intensity(sized.plan, fingerprint),
        Reason(
            "groups",
            ", ".join(sized.plan.groups),
            "The lexicon's groups of the labels; all have the working spacing of this dataset.",
        ),
        Reason(
            "everything else",
            f"as in the plan {base.name!r}",
            "Recipe, text tower, queries and thresholds do not follow from the data.",
        ),
    )
    return Planned(
        plan=sized.plan,
        reasons=reasons,
        budget_bytes=memory_bytes,
        estimated=sized.memory,
        bytes_per_value=bytes_per_value,
    )


def parse_memory(text: str) -> int:
    """Bytes of a size such as "8GB" (8 × 10⁹), "24 GiB" (24 × 2³⁰) or "800MB".

    Raises:
        PlanError: it is no size.
    """
    units = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b?)\s*", text.lower())
    unit = match[2].rstrip("b") + "b" if match else ""
    if not match or unit not in units or not float(match[1]):
        raise PlanError(f"A size of memory is a number and a unit, such as 8GB or 800MB, got {text!r}.")
    return round(float(match[1]) * units[unit])


def widths_to_try(asked: int | None) -> tuple[int, ...]:
    """The first stage's widths that planning chooses from, widest first: all, or the one that was asked for.

    Raises:
        PlanError: it is none of them.
    """
    if asked is not None and asked not in WIDTHS:
        choices = ", ".join(map(str, sorted(WIDTHS)))
        raise PlanError(f"The first stage's width is one of {choices}, got {asked}. Take one of them.")
    return WIDTHS if asked is None else (asked,)


def parse_spacing(text: str) -> Spacing:
    """The spacing in mm (x, y, z) of a text such as "3" or "1,1,5".

    Raises:
        PlanError: it is not one or three positive numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(0 < number < math.inf for number in numbers):
        raise PlanError(
            f"A spacing is one or three positive numbers in mm, such as 3 or 1,1,5, got {text!r}."
        )
    x, y, z = numbers
    return x, y, z


# ---- width and batch, by our own network's memory ----


@dataclass(frozen=True)
class _Sized:
    plan: Plan
    topology: Topology
    memory: TrainingMemory


def _sized(
    skeleton: Plan,
    topology: Topology,
    spacing: Spacing,
    shape: Sequence[float],
    memory_bytes: int,
    bytes_per_value: int,
    fingerprint: Fingerprint,
    widths: Sequence[int],
) -> tuple[_Sized, tuple[Reason, ...]]:
    """The widest network that fits with two samples, a smaller patch if none does; then the largest batch."""
    budget = round(USABLE * memory_bytes)

    def tried(topology: Topology, width: int, batch: int) -> _Sized:
        plan = _filled(skeleton, topology, width, batch)
        return _Sized(plan, topology, estimate_training_memory(plan, bytes_per_value))

    while tried(topology, widths[-1], SMALLEST_BATCH).memory.total > budget:
        topology = shortened(topology, spacing, shape)
    candidates = (tried(topology, width, SMALLEST_BATCH) for width in widths)
    chosen = next(candidate for candidate in candidates if candidate.memory.total <= budget)
    width = chosen.plan.network.width
    # Memory grows by the same amount with every sample.
    one_more = tried(topology, width, SMALLEST_BATCH + 1).memory.total - chosen.memory.total
    fitting = SMALLEST_BATCH + (budget - chosen.memory.total) // one_more
    seen = LARGEST_PART_OF_DATASET * math.prod(shape) * len(fingerprint.cases) / math.prod(topology.patch)
    batch = max(SMALLEST_BATCH, min(fitting, round(seen)))
    if batch > SMALLEST_BATCH:
        chosen = tried(topology, width, batch)
    limit = f"{LARGEST_PART_OF_DATASET:.0%} of all voxels" if batch < fitting else "the budget"
    why_batch = f"{fitting} samples would fit; limited by {limit}."
    if batch == SMALLEST_BATCH:
        why_batch = (
            f"nnU-Net's smallest; {fitting} would fit, {LARGEST_PART_OF_DATASET:.0%} of all voxels are "
        )
        why_batch += f"{seen:.1f} patches."
    kept = chosen.memory.kept_by_network + chosen.memory.kept_by_loss
    reasons = (
        Reason(
            "widths",
            " ".join(map(str, chosen.plan.network.widths)),
            f"{_why_width(width, widths)} Doubled at every stage as in nnU-Net, up to "
            f"{WIDEST // FIRST_WIDTH} times it.",
        ),
        Reason(
            "blocks", " ".join(map(str, chosen.plan.network.blocks_per_stage)), "nnU-Net's residual encoder."
        ),
        Reason("batch", str(batch), why_batch),
        Reason(
            "memory",
            f"{_gb(chosen.memory.total)} of {_gb(memory_bytes)}",
            f"Estimated for one training step: {_gb(kept)} kept for the backward pass (counted layer by "
            f"layer, {bytes_per_value} bytes a value), "
            f"{_gb(chosen.memory.weights)} weights with gradients, moments and average, "
            f"{_gb(chosen.memory.working + chosen.memory.libraries)} working space.",
        ),
    )
    return chosen, reasons


def _why_width(width: int, tried: Sequence[int]) -> str:
    if len(tried) == 1:
        return f"{width} was asked for."
    if width == FIRST_WIDTH:
        return "nnU-Net's own first width."
    return f"The widest of {', '.join(map(str, tried))} whose step with {SMALLEST_BATCH} samples fits."


def _filled(skeleton: Plan, topology: Topology, width: int, batch: int) -> Plan:
    """The plan with a topology, a width and a batch; what goes by stage is cut or filled to their number."""
    stages = len(topology.strides)
    if stages < 2:
        raise PlanError(
            f"A network needs a patch to be halved, with an edge of at least {3 * SHORTEST_EDGE} voxels, "
            f"got {times(topology.patch)}. Are the images so small, or is the --memory?"
        )
    old = skeleton.network
    network = old.model_copy(
        update={
            "width": width,
            "width_ratios": tuple(float(min(2**stage, WIDEST // FIRST_WIDTH)) for stage in range(stages)),
            "strides": topology.strides,
            "kernels": topology.kernels,
            "blocks_per_stage": BLOCKS_PER_STAGE[:stages],
            "prompt_channels": (old.prompt_channels + old.prompt_channels[-1:] * stages)[:stages],
            "trunk_blocks": (),  # nnU-Net's decoders have one convolution a scale
        }
    )
    recipe = skeleton.training
    training = recipe.model_copy(
        update={
            "patch_voxels": topology.patch,
            "batch": batch,
            "deep_supervision": recipe.deep_supervision[:stages],
            "sharing_scales": recipe.sharing_scales[:stages],
            "full_scale_fraction": 1.0,
        }
    )
    windows = skeleton.windows.model_copy(update={"size_voxels": topology.patch})
    changed = skeleton.model_copy(update={"network": network, "training": training, "windows": windows})
    return Plan.model_validate(changed.model_dump())


# ---- what does not depend on memory ----


def _skeleton(fingerprint: Fingerprint, base: Plan, spacing: Spacing) -> Plan:
    """The base plan with the dataset's names, spacing and intensities."""
    groups = Counter(label.group for label in fingerprint.labels.values() if label.group is not None)
    # The most frequent first; a dataset whose labels nobody knows is a group of its own.
    names = [name for name, _ in groups.most_common()] or [_slug(fingerprint.dataset)]
    intensity = intensity_rules(fingerprint, base)
    labels = len(fingerprint.labels)
    described = f"{labels} structure{'s' if labels != 1 else ''}, {_in_words(tuple(intensity))}"
    return base.for_other_weights().model_copy(
        update={
            "name": _slug(fingerprint.dataset),
            "summary": f"Planned for {fingerprint.dataset}: {len(fingerprint.cases)} cases, {described}.",
            "channels": fingerprint.channels or base.channels,
            "channel_modalities": channel_modalities(fingerprint, base),
            "groups": {name: GroupPlan(spacing_mm=spacing) for name in names},
            "default_group": names[0],
            "intensity": intensity,
            "training": _recipe(fingerprint, base.training),
            "extends": None,
        }
    )


def _recipe(fingerprint: Fingerprint, base: TrainingPlan) -> TrainingPlan:
    """The base's recipe with the usual augmentation, and without prompts that a dataset with few labels has
    no use for: each costs time."""
    labels = max(1, len(fingerprint.labels))
    return base.model_copy(
        update={
            "mixture": {_slug(fingerprint.dataset): 1.0},
            "core": (),
            **USUAL_FRACTIONS,
            "mirror_groups": (),
            "prompts_per_sample": min(base.prompts_per_sample, max(2, labels)),
            "sharing_prompts": min(base.sharing_prompts, labels),
        }
    )


def channel_modalities(fingerprint: Fingerprint, base: Plan) -> tuple[Modality, ...] | None:
    """Of each channel, if a scan has channels of several modalities; as in `base` if there are no images.

    Raises:
        PlanError: a scan has channels of several modalities, and another one's are not the same.
    """
    if fingerprint.layout == "labelmaps":
        return base.channel_modalities
    mixed = [case for case in fingerprint.cases if len(set(case.modalities)) > 1]
    if not mixed:
        return None
    first = mixed[0]
    other = next((case for case in fingerprint.cases if case.modalities != first.modalities), None)
    if other is not None:
        raise PlanError(
            "Where channels are of several modalities, each has the same one in every case, but "
            f"{first.id} has {_in_words(first.modalities)} and {other.id} {_in_words(other.modalities)}. "
            "Name them in channel_names of dataset.json, or plan for one kind of case at a time."
        )
    return first.modalities


def intensity_rules(fingerprint: Fingerprint, base: Plan) -> dict[Modality, IntensityPlan]:
    """How the modalities of a dataset are normalised.

    One rule for every modality that occurs, whether in channels of its own or in cases of its own. nnU-Net's
    rule for CT: clip to the foreground's percentiles, then its mean and sd. Others as in `base`.
    """
    if fingerprint.layout == "labelmaps":
        return dict(base.intensity)
    known = {modality for case in fingerprint.cases for modality in case.modalities}
    kinds: tuple[Modality, ...] = ("ct", "mr", "pet")
    rules = {kind: base.intensity[kind] for kind in kinds if kind in known and kind in base.intensity}
    ct = [entry for entry in fingerprint.intensities if entry.modality == "ct"]
    if "ct" in rules and ct:
        rules["ct"] = _hounsfield_window(ct, rules["ct"])
    return rules


def _hounsfield_window(entries: Sequence[Intensities], base: IntensityPlan) -> IntensityPlan:
    mean = float(np.mean([entry.mean for entry in entries]))
    variance = float(np.mean([entry.sd**2 + (entry.mean - mean) ** 2 for entry in entries]))
    limits = (min(entry.low for entry in entries), max(entry.high for entry in entries))
    if not limits[0] < limits[1] or variance <= 0:
        return base
    update = {"limits": limits, "limits_are": "values", "mean": round(mean, 3), "sd": round(variance**0.5, 3)}
    return IntensityPlan.model_validate({**base.model_dump(), **update})


# ---- reasons ----


def _reasons_of_patch(final: Topology, wanted: Topology, why: str, memory_bytes: int) -> tuple[Reason, ...]:
    if final.patch != wanted.patch:
        why += f" From {times(wanted.patch)} further, until our network fits into {_gb(memory_bytes)} too."
    why_kernels = "nnU-Net's: no axis is twice as coarse as another."
    if any(kernel != (3, 3, 3) for kernel in final.kernels):
        why_kernels = (
            "nnU-Net's: an axis at least twice as coarse as the finest is not mixed along until the strides "
            "have made up for it. The decoder's convolutions at a scale have the kernel of its stage."
        )
    strides = "nnU-Net's topology: halve the axes that are within twice the finest spacing, down to 4 voxels."
    return (
        Reason("patch", f"{times(final.patch)} voxels", why),
        Reason("strides", ", ".join(times(stride) for stride in final.strides), strides),
        Reason("kernels", ", ".join(times(kernel) for kernel in final.kernels), why_kernels),
    )


def _reasons_of_intensity(plan: Plan, fingerprint: Fingerprint) -> Iterator[Reason]:
    if plan.channel_modalities is not None:
        told = zip(plan.channels, plan.channel_modalities, strict=True)
        value = ", ".join(f"{channel}: {modality.upper()}" for channel, modality in told)
        yield Reason("channels", value, "Each channel is normalised by the rule of its own modality.")
    for modality, rule in plan.intensity.items():
        low, high = rule.limits
        if fingerprint.layout == "labelmaps":
            why = "The base plan's: images are synthesised."
        elif modality == "ct":
            why = "nnU-Net's rule for CT: percentiles, mean and sd of the voxels inside labels."
        elif modality == "mr":
            why = "nnU-Net's z-score of each image, over the body, with its outermost values clipped."
        else:
            why = "The base plan's: SUV has a unit, so every image is treated alike."
        unit = " %" if rule.limits_are == "percentiles" else ""
        scale = "each image's mean and sd" if rule.mean is None else f"mean {rule.mean:g}, sd {rule.sd:g}"
        yield Reason(f"intensity {modality.upper()}", f"{low:g} to {high:g}{unit}, {scale}", why)


# ---- writing and reading ----


class _ReasonsDocument(BaseModel):
    """planning.json: why the plan beside it is as it is, and what memory was estimated and measured."""

    # Read for its reasons only, so an older one may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str
    dataset: str
    budget_bytes: int
    estimated_bytes: int
    estimated_parts: dict[str, int]
    bytes_per_value: int
    measured_bytes: int | None
    reasons: tuple[Reason, ...]


def with_measured(planned: Planned, measured_bytes: int) -> Planned:
    """The same with what a step really took, beside the estimate."""
    apart = measured_bytes / planned.estimated.total - 1
    held = "within" if measured_bytes <= planned.budget_bytes else "over"
    measured = Reason(
        "memory, measured",
        f"{_gb(measured_bytes)} of {_gb(planned.budget_bytes)}",
        f"The peak of two real training steps: {apart:+.0%} of the estimate, {held} the budget.",
    )
    return replace(planned, measured_bytes=measured_bytes, reasons=(*planned.reasons, measured))


def write_planned(planned: Planned, folder: Path, dataset: str) -> None:
    """Write plan.json and planning.json, each whole or not at all.

    Raises:
        OutputError: the folder can't be written to.
    """
    document = _ReasonsDocument(
        format="textseg-planning-1",
        dataset=dataset,
        budget_bytes=planned.budget_bytes,
        estimated_bytes=planned.estimated.total,
        estimated_parts={name: int(size) for name, size in vars(planned.estimated).items()},
        bytes_per_value=planned.bytes_per_value,
        measured_bytes=planned.measured_bytes,
        reasons=planned.reasons,
    )
    try:
        write_bytes(folder / REASONS_FILE, as_json(document.model_dump(mode="json")).encode())
        write_plan(planned.plan, folder / PLAN_FILE)
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written to: {error.strerror}. Choose another folder."
        ) from error


def read_reasons(folder: Path) -> tuple[Reason, ...]:
    """Why the plan in a folder is as it is; empty where it was not planned but written by hand.

    Raises:
        PlanError: planning.json is there and can't be read.
    """
    path = folder / REASONS_FILE
    if not path.is_file():
        return ()
    try:
        return _ReasonsDocument.model_validate_json(path.read_text(encoding="utf-8")).reasons
    except (OSError, ValueError) as error:
        raise PlanError(
            f"{path} must hold the reasons of a plan, but it can't be read. Plan again."
        ) from error


# ---- words ----


def _in_words(modalities: Sequence[Modality]) -> str:
    return " and ".join(modality.upper() for modality in modalities)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "dataset"
