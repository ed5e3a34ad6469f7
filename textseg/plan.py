"""The plan: one frozen JSON document that owns every number a model is built, trained and run with.

A plan may name another one in `extends` and then hold only what differs: the larger sizes of the default
network differ in the one dial `network.width` and in nothing else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from textseg.atomic import write_bytes
from textseg.embeddings.text_plan import TextPlan
from textseg.errors import PlanError
from textseg.volume import Modality

PLAN_FILE = "plan.json"
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]
# Three voxels, or one along an axis that is coarse.
KernelEdge = Literal[1, 3]
Kernel = tuple[KernelEdge, KernelEdge, KernelEdge]
Millimetres = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class Part(BaseModel):
    """A frozen section of the plan; unknown keys are refused, so that a misspelt number is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkPlan(Part):
    """Numbers of the network; every width is `width`, the one dial, times a ratio.

    `strides[i]` is the step from stage i - 1 to stage i, so the first is always (1, 1, 1). `kernels[i]` is
    that of the convolutions of stage i, of the encoder and the decoder; null is 3 × 3 × 3 everywhere. With
    `marks_in_query` what lies under points, boxes and scribbles becomes part of a prompt's query.

    The first, finest stage may have 0 `blocks_per_stage`, its stem alone, and 0 `prompt_channels`, no
    convolutions of a prompt's own: most voxels lie there, and so most of the time went.
    """

    width: int = Field(gt=0, multiple_of=8)
    width_ratios: tuple[PositiveFloat, ...]
    strides: tuple[Triple, ...]
    kernels: tuple[Kernel, ...] | None = None
    blocks_per_stage: tuple[NonNegativeInt, ...]
    norm: Literal["batch", "instance"]
    text_width: int = Field(gt=0)
    query_ratio: float = Field(gt=0)
    query_layers: int = Field(gt=0)
    query_heads: int = Field(gt=0)
    dynamic_maps: int = Field(gt=0)
    prompt_channels: tuple[NonNegativeInt, ...]
    spatial_channels: int = Field(gt=0)
    marks_in_query: bool = False
    trunk_blocks: tuple[NonNegativeInt, ...] = ()
    """Residual blocks of the decoder's trunk at each scale but the coarsest, finest first; empty is none."""

    @model_validator(mode="after")
    def stages_agree(self) -> NetworkPlan:
        per_stage = (self.width_ratios, self.strides, self.blocks_per_stage, self.prompt_channels)
        if len({len(entries) for entries in per_stage}) != 1:
            raise ValueError(
                "width_ratios, strides, blocks_per_stage and prompt_channels need one entry a stage"
            )
        if self.strides[:1] != ((1, 1, 1),):
            raise ValueError("the first stage has stride (1, 1, 1)")
        for name in ("blocks_per_stage", "prompt_channels"):
            if 0 in getattr(self, name)[1:] or (len(self.strides) == 1 and 0 in getattr(self, name)):
                raise ValueError(f"{name} may be 0 at the finest of several stages and nowhere else")
        if self.trunk_blocks and len(self.trunk_blocks) != len(self.strides) - 1:
            raise ValueError("trunk_blocks need one entry a stage but the coarsest, or are empty for none")
        if self.kernels is not None and len(self.kernels) != len(self.strides):
            raise ValueError("kernels need one entry a stage, or are null for 3 × 3 × 3 everywhere")
        if self.query_width % self.query_heads:
            raise ValueError("width x query_ratio must be a multiple of query_heads")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, finest first."""
        return tuple(round(self.width * ratio) for ratio in self.width_ratios)

    @property
    def stage_kernels(self) -> tuple[Kernel, ...]:
        """The kernel of each stage's convolutions, axes (x, y, z), finest stage first."""
        return self.kernels or ((3, 3, 3),) * len(self.strides)

    @property
    def query_width(self) -> int:
        return round(self.width * self.query_ratio)

    @property
    def total_stride(self) -> Triple:
        """By how much the coarsest stage is smaller than the image, per axis."""
        x = y = z = 1
        for stride in self.strides:
            x, y, z = x * stride[0], y * stride[1], z * stride[2]
        return x, y, z


class IntensityPlan(Part):
    """How one modality's values become the network's input: clipped, then (value - mean) / sd.

    Limits are values (HU, SUV) or, where `limits_are` says so, percentiles of the voxels inside the body;
    where mean and sd are null they are taken from the clipped voxels inside the body.
    """

    limits: tuple[float, float]
    limits_are: Literal["values", "percentiles"]
    mean: float | None
    sd: PositiveFloat | None
    body_above: float
    """Voxels above this belong to the body: a value or, for percentiles, a fraction of the way from the 1st
    to the 99.5th percentile of the whole image."""

    @model_validator(mode="after")
    def limits_are_in_order(self) -> IntensityPlan:
        low, high = self.limits
        if not low < high:
            raise ValueError("limits are a lower and a higher value")
        if self.limits_are == "percentiles" and not 0 <= low < high <= 100:
            raise ValueError("limits that are percentiles lie between 0 and 100")
        return self


class GroupPlan(Part):
    """At which voxel size the structures of one group of the lexicon are segmented."""

    spacing_mm: Millimetres
    mirrored: bool = False
    """Whether windows are also looked at mirrored left to right, see `textseg.mirrored`, in twice the time;
    a session never does."""


class WindowPlan(Part):
    """Sliding windows: their size, how much neighbours share, the width of the Gaussian that blends them."""

    size_voxels: Triple
    overlap: float = Field(ge=0, lt=1)
    sigma_fraction: float = Field(gt=0)
    skip_air: bool = False
    """Whether windows without a voxel of the body are not looked at; they count as holding nothing."""
    exit_below: float | None = None
    """A prompt is given up in windows whose coarse logits are nowhere above this, see `textseg.early_exit`;
    None for never. Only for weights that lose nothing by it on held-back cases."""


class MaskPlan(Part):
    """From logits to masks.

    threshold: on the probability. presence: the score below which nothing is reported. smallest_part: of a
    structure that is one piece, parts of less than this share of the largest one are dropped; 0 for none.
    """

    threshold: float = Field(gt=0, lt=1)
    presence: float = Field(ge=0, le=1)
    smallest_part: float = Field(default=0.0, ge=0, le=1)


class TrainingPlan(Part):
    """The recipe: how the weights of this plan are trained."""

    patch_voxels: Triple
    batch: int = Field(gt=0)
    prompts_per_sample: int = Field(gt=1)
    absent_fraction: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    steps: int = Field(gt=0)
    optimiser: Literal["adamw", "muon"] = "adamw"
    """What moves the weights: AdamW, or Muon for those between features and AdamW for the rest."""
    schedule: Literal["cosine", "poly"] = "cosine"
    """How the learning rate falls after the warm-up: half a cosine, or nnU-Net's polynomial."""
    validate_every: int = Field(default=0, ge=0)
    """Every so many steps, and at the last one, the averaged network is scored on held-back cases and the
    best is kept; 0 is never."""
    frozen_norm_fraction: float = Field(ge=0, le=1)
    ema: float = Field(ge=0, lt=1)
    gradient_norm: float = Field(gt=0)
    deep_supervision: tuple[float, ...]
    presence_weight: float = Field(ge=0)
    seed: int
    mixture: dict[str, float]
    core: tuple[str, ...]
    """Lexicon ids, of structures and of findings alone, that are asked for `core_weight` times as often:
    large and common ones first, when time is short."""
    core_weight: float = Field(ge=1)
    sharing_prompts: int = Field(gt=0)
    """How many structures that exclude each other share out a patch's voxels, beside the decoded prompts."""
    sharing_scales: tuple[float, ...]
    """The weight of that loss at each scale, finest first."""
    stranger_fraction: float = Field(ge=0, lt=1)
    """How often a patch is seen at the voxel size of another part of the body and asked for that part."""
    neighbour_fraction: float = Field(default=0, ge=0, le=1)
    """How often neighbours, and findings of what a patch shows, are denied before other absent things."""
    mirror_fraction: float = Field(default=0, ge=0, le=1)
    """How often a patch is mirrored, left and right swapped in its labels and in their words."""
    mirror_groups: tuple[str, ...] = ()
    """Groups whose cases are mirrored, every group where none is named: a mirrored torso is a rare thing."""
    stripped_fraction: float = Field(default=0, ge=0, le=1)
    """How often a head drawn from a label map is shown without what lies around its brain."""
    couch_fraction: float = Field(default=0, ge=0, le=1)
    """How often a torso's label map that is drawn as CT lies on a couch, with or without arms beside it."""
    slab_fraction: float = Field(default=0, ge=0, le=1)
    """How often a patch shows the end of a scan, one side or both, as a slab of a few centimetres does."""
    low_resolution_fraction: float = Field(default=0, ge=0, le=1)
    """How often a channel is changed so, here and below; see `textseg.train.augment`."""
    blur_fraction: float = Field(default=0, ge=0, le=1)
    noise_fraction: float = Field(default=0, ge=0, le=1)
    contrast_fraction: float = Field(default=0, ge=0, le=1)
    gamma_fraction: float = Field(default=0, ge=0, le=1)
    artefact_fraction: float = Field(default=0, ge=0, le=1)
    marks_fraction: float = Field(default=0, ge=0, le=1)
    """How often what a patch shows is asked for with points, boxes, scribbles or lassos drawn on it."""
    wordless_fraction: float = Field(default=0, ge=0, le=1)
    """How often there are no words then, the marks alone."""
    correction_fraction: float = Field(default=0, ge=0, le=1)
    """How often a step's prompts are decoded again, with their masks and a mark on each largest error."""
    full_scale_fraction: float = Field(default=1, gt=0, le=1)
    """How many of the steps run the finest scale; the others learn at the coarser ones alone. It has most of
    the voxels, so without it a step of the default plan takes half as long on a processor."""


class Plan(Part):
    """Everything that defines a model except for its weights."""

    format: Literal["textseg-plan-1"]
    name: str
    summary: str
    channels: tuple[str, ...] = Field(min_length=1)
    channel_modalities: tuple[Modality, ...] | None = None
    """Of each channel, by which it is normalised; null where all channels are of the scan's own modality."""
    groups: dict[str, GroupPlan]
    default_group: str
    margin_mm: float = Field(ge=0)
    intensity: dict[Modality, IntensityPlan]
    network: NetworkPlan
    text: TextPlan
    windows: WindowPlan
    masks: MaskPlan
    training: TrainingPlan
    extends: str | None = None

    @model_validator(mode="after")
    def parts_agree(self) -> Plan:
        if self.default_group not in self.groups:
            raise ValueError(f"default_group {self.default_group!r} is not one of the groups")
        if self.channel_modalities is not None:
            if len(self.channel_modalities) != len(self.channels):
                raise ValueError("channel_modalities need one entry a channel, or are null")
            if not self.intensity.keys() >= set(self.channel_modalities):
                raise ValueError("intensity needs a rule for each of the channel_modalities")
        if self.network.text_width != self.text.vector_width:
            raise ValueError("network.text_width must equal text.vector_width")
        for patch in (self.windows.size_voxels, self.training.patch_voxels):
            if any(size % stride for size, stride in zip(patch, self.network.total_stride, strict=True)):
                raise ValueError(
                    f"a window of {patch} can't be divided by the strides {self.network.total_stride}"
                )
        recipe = self.training
        for group in recipe.mirror_groups:
            if group not in self.groups:
                raise ValueError(f"{group!r} of training.mirror_groups is not one of the groups")
        scales = min(len(recipe.deep_supervision), len(recipe.sharing_scales))
        if recipe.full_scale_fraction < 1 and scales < 2:
            raise ValueError("full_scale_fraction below 1 needs two scales to learn at, or it is 1")
        return self

    def modalities(self, scan: Modality) -> tuple[Modality, ...]:
        """Of each channel, for a scan of this modality."""
        return self.channel_modalities or (scan,) * len(self.channels)

    def check_channels(self, count: int) -> None:
        """Refuse a scan of another number of channels.

        Raises:
            PlanError: it is another one.
        """
        if count != len(self.channels):
            several = ", in this order and the further ones by --channel" if len(self.channels) > 1 else ""
            raise PlanError(
                f"The model {self.name!r} takes {len(self.channels)} channel(s) "
                f"({', '.join(self.channels)}), got {count}. Give one file a channel{several}."
            )

    def for_other_weights(self) -> Plan:
        """The plan without what held-back cases showed for its own weights alone: giving prompts up early,
        and dropping stray parts."""
        windows = self.windows.model_copy(update={"exit_below": None})
        masks = self.masks.model_copy(update={"smallest_part": 0.0})
        return self.model_copy(update={"windows": windows, "masks": masks})

    def spacing_for(self, group: str | None) -> Millimetres:
        """Working spacing in mm (x, y, z of the canonical axes) for a group of the lexicon."""
        return self.group_for(group).spacing_mm

    def group_for(self, group: str | None) -> GroupPlan:
        """How a group of the lexicon is looked at: as the default group where the plan does not name it."""
        return self.groups.get(group or self.default_group, self.groups[self.default_group])


def read_plan(path: str | Path) -> Plan:
    """The plan in a JSON file, or in the `plan.json` of a model's folder.

    Raises:
        PlanError: the file is missing, is no JSON, or a value in it is missing, unknown or out of range.
    """
    path = Path(path)
    document = _document(path / PLAN_FILE if path.is_dir() else path)
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "plan"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise PlanError(f"The plan {path} is not valid: {where}: {first['msg']}{more}.") from error


def write_plan(plan: Plan, path: Path) -> None:
    """Write the whole plan, with whatever it extended filled in, whole or not at all.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    document = plan.model_copy(update={"extends": None}).model_dump(mode="json", exclude_none=False)
    write_bytes(path, as_json(document).encode())


def as_json(document: dict[str, Any]) -> str:
    """JSON that people read: a line a value, but a list of plain values, such as a size, on one line."""
    # No string of JSON holds a line break: lists are told by theirs.
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n([^\[\]{}]*)\n *\]", lambda found: f"[{_on_one_line(found[1])}]", text) + "\n"


def _on_one_line(text: str) -> str:
    return re.sub(r"\n *", " ", text).strip()


def _document(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise PlanError(f"A plan can't extend itself, but {path} does, by way of {seen[-1].name}.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(
            f"A plan is a JSON file that can be read, but {path} can't: {error.strerror}."
        ) from error
    except ValueError as error:
        raise PlanError(f"A plan is a JSON file, but {path} is not one: {error}.") from error
    if not isinstance(document, dict):
        raise PlanError(f"A plan is a JSON object, but {path} holds a {type(document).__name__}.")
    base = document.get("extends")
    if base is None:
        return document
    if not isinstance(base, str):
        raise PlanError(f"What a plan extends is the path of another one, but in {path} it is {base!r}.")
    return _merged(_document(path.parent / base, (*seen, path)), document)


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`; sections are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
