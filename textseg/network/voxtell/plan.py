"""VoxTell's folder and its plans.json: what is where, and what describes the network; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from textseg.errors import ModelError, PlanError
from textseg.plan import Triple

PLANS_FILE = "plans.json"
CHECKPOINT_FILE = Path("fold_0") / "checkpoint_final.pth"
CONVERTED_FILE = "network.safetensors"
BANK_FILE = "text_embeddings.npz"

# Of the released weights and of whatever is made from them.
LICENCE = "CC BY-NC-SA"


def _triple(value: Any) -> Any:
    return (value, value, value) if isinstance(value, int) else value


Size = Annotated[Triple, BeforeValidator(_triple)]


class _Part(BaseModel):
    """A frozen section of plans.json; what we have no use for is left unread."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class NormPlan(_Part):
    """Of the instance norms."""

    eps: float = Field(default=1e-5, gt=0)
    affine: bool = False


class RectifierPlan(_Part):
    """Of the leaky rectifiers."""

    negative_slope: float = 0.01


class ArchitecturePlan(_Part):
    """Of encoder and decoder; stages are counted from the finest, the decoder's from the coarsest."""

    features_per_stage: tuple[PositiveInt, ...] = Field(min_length=2)
    kernel_sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    n_blocks_per_stage: tuple[PositiveInt, ...]
    n_conv_per_stage_decoder: tuple[PositiveInt, ...]
    conv_bias: bool
    conv_op: Literal["torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"]
    norm_op: Literal["torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"]
    norm_op_kwargs: NormPlan
    nonlin: Literal["torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"]
    nonlin_kwargs: RectifierPlan
    dropout_op: None = None

    @model_validator(mode="before")
    @classmethod
    def one_number_stands_for_all_stages(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("features_per_stage"), list):
            return values
        stages = len(values["features_per_stage"])
        filled = dict(values)
        for name in ("kernel_sizes", "strides", "n_blocks_per_stage"):
            if isinstance(filled.get(name), int):
                filled[name] = [filled[name]] * stages
        if isinstance(filled.get("n_conv_per_stage_decoder"), int):
            filled["n_conv_per_stage_decoder"] = [filled["n_conv_per_stage_decoder"]] * (stages - 1)
        for name in ("norm_op_kwargs", "nonlin_kwargs"):
            filled[name] = filled.get(name) or {}
        return filled

    @model_validator(mode="after")
    def stages_agree(self) -> ArchitecturePlan:
        stages = len(self.features_per_stage)
        if {len(self.kernel_sizes), len(self.strides), len(self.n_blocks_per_stage)} != {stages}:
            raise ValueError("kernel_sizes, strides and n_blocks_per_stage need one entry a stage")
        if len(self.n_conv_per_stage_decoder) != stages - 1:
            raise ValueError("n_conv_per_stage_decoder needs one entry for every stage but the coarsest")
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stage has stride (1, 1, 1), since masks are as large as their window")
        if any(size % 2 == 0 for kernel in self.kernel_sizes for size in kernel):
            raise ValueError("kernels have odd sizes")
        return self

    @property
    def total_stride(self) -> Triple:
        """By how much the coarsest stage is smaller than the image, per array axis."""
        return stride_to(self.strides)


class VoxTellPlan(_Part):
    """What plans.json says of the network and its windows; array axes are (z, y, x)."""

    patch_size: Triple
    normalization_schemes: tuple[Literal["ZScoreNormalization"]]
    architecture: ArchitecturePlan

    @model_validator(mode="after")
    def patch_fits_the_strides(self) -> VoxTellPlan:
        if any(n % stride for n, stride in zip(self.patch_size, self.architecture.total_stride, strict=True)):
            raise ValueError(
                f"a patch of {self.patch_size} can't be divided by {self.architecture.total_stride}"
            )
        return self


def read_voxtell_plan(folder: Path) -> VoxTellPlan:
    """The plan of a folder in VoxTell's format.

    Raises:
        PlanError: plans.json is missing, is no JSON, or asks for something that VoxTell's network has not.
    """
    path = folder / PLANS_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        configuration = document["configurations"]["3d_fullres"]
        configuration = {**configuration, "architecture": configuration["architecture"]["arch_kwargs"]}
    except OSError as error:
        raise PlanError(
            f"A VoxTell folder holds {PLANS_FILE}, but {path} can't be read: {error.strerror}."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"VoxTell's {PLANS_FILE} describes the network in configurations.3d_fullres.architecture."
            f"arch_kwargs, but {path} does not ({type(error).__name__}: {error})."
        ) from error
    try:
        return VoxTellPlan.model_validate(configuration)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "3d_fullres"
        raise PlanError(f"The plan {path} is not one of VoxTell: {where}: {first['msg']}.") from error


def is_voxtell_folder(folder: Path) -> bool:
    """Whether a folder is in VoxTell's format, as released or as `convert` writes it."""
    # nnU-Net's own folders have the same names in them, and dataset.json besides.
    released = (folder / CHECKPOINT_FILE).is_file() and not (folder / "dataset.json").is_file()
    return (folder / PLANS_FILE).is_file() and (released or (folder / CONVERTED_FILE).is_file())


def weights_file(folder: Path) -> Path:
    """The file that holds the weights of a VoxTell folder, the converted one first.

    Raises:
        ModelError: there is none.
    """
    converted, released = folder / CONVERTED_FILE, folder / CHECKPOINT_FILE
    if converted.is_file():
        return converted
    if released.is_file():
        return released
    raise ModelError(
        f"A VoxTell folder holds {CHECKPOINT_FILE}, or {CONVERTED_FILE} once converted, "
        f"but {folder} has neither."
    )


def find_bank(folder: Path) -> Path | None:
    """The bank in a VoxTell folder, or beside it where the release has it; None if there is none."""
    folder = folder.resolve()
    beside = folder.parent / "embeddings"
    inside = folder / "embeddings"
    places = [folder, inside, inside / folder.name, beside / folder.name, beside]
    return next((place / BANK_FILE for place in places if (place / BANK_FILE).is_file()), None)


def stride_to(strides: Sequence[Triple]) -> Triple:
    z, y, x = (prod(stride[axis] for stride in strides) for axis in range(3))
    return z, y, x
