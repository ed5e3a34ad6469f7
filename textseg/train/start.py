"""Trained weights of others, and of our own, as the beginning of our image encoder.

nnU-Net's residual encoders (Isensee et al. 2024) have our blocks: with an instance norm theirs compute what
ours do, since the norm takes away the bias of the convolution before it. Plain encoders of nnU-Net (Isensee
et al. 2021) have no short cuts and STU-Net's (Huang et al. 2023) have no stem: what fits of them is a start,
and not the same function. Their arrays lie (z, y, x), so kernels are turned to our (x, y, z).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textseg.atomic import write_bytes
from textseg.errors import ModelError
from textseg.models import find_model
from textseg.network.nnunet_folder import find_checkpoints
from textseg.network.voxtell.plan import weights_file
from textseg.network.weights import NETWORK_FILE, file_hash
from textseg.plan import Plan
from textseg.registry.entries import all_entries
from textseg.safe_loading import check_finite, load_checkpoint, network_weights
from textseg.train.checkpoint import STATE_FILE
from textseg.train.loop import Beginning, fresh

ENCODER_FILE = "encoder.safetensors"
REPORT_FILE = "encoder_start.json"
TABLE_FILE = "encoder_start.txt"
# What nnU-Net's readers that turn scans to RAS+ have in their names.
TURNING = "Reorient"


class Kind(StrEnum):
    """What kind of encoder a checkpoint holds."""

    OURS = "textseg"
    RESIDUAL = "nnU-Net, residual encoder"
    PLAIN = "nnU-Net, plain encoder"
    STUNET = "STU-Net"


class Theirs(NamedTuple):
    """A tensor of a checkpoint: its name there, its value with our order of axes, what to know about it."""

    name: str
    value: Tensor
    remark: str = ""


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """The encoder of a checkpoint, in the terms of ours.

    tensors: by the place that they have in ours, see `_place`; others: how many tensors are none of the
    encoder's; notes: what shapes do not tell.
    """

    path: Path
    kind: Kind
    tensors: Mapping[str, Theirs]
    others: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One tensor of ours or theirs, None where the other side has none; shape of ours, else of theirs."""

    ours: str | None
    theirs: str | None
    shape: tuple[int, ...]
    taken: bool
    why: str


@dataclass(frozen=True)
class StartReport:
    """What of a checkpoint an encoder began with.

    numbers, of_numbers: how many single numbers were taken, and how many our encoder (and trunk) has.
    """

    path: str
    sha256: str
    kind: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    numbers: int
    of_numbers: int

    @property
    def summary(self) -> str:
        ours = [row for row in self.rows if row.ours]
        taken = sum(row.taken for row in ours)
        return (
            f"{taken} of {len(ours)} tensors ({self.numbers / self.of_numbers:.0%} of "
            f"{self.of_numbers / 1e6:.2f} M numbers) begin as those of {Path(self.path).name} ({self.kind})."
        )

    def table(self) -> list[str]:
        """A line a tensor under a line of titles: ours, theirs, shape, taken or not, and why."""
        rows = [("ours", "theirs", "shape", "taken", "why")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            rows.append((row.ours or "-", row.theirs or "-", shape, "yes" if row.taken else "no", row.why))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return [_line(row, widths) for row in rows]


def read_encoder_weights(source: str | Path) -> EncoderWeights:
    """The encoder in a checkpoint; nothing in the file can run.

    Args:
        source: a file (.pth, .pt, .model, .safetensors); the folder of a model of ours, of a trained nnU-Net,
            of VoxTell, or of `pretrain`; the name of a model that is shipped or was fetched.

    Raises:
        ModelError: there is no such file or model, it is damaged or unsafe, its weights are not finite, or
            its encoder is of no kind that we know.
    """
    path = _file_of(source)
    checkpoint = load_checkpoint(path)
    weights = network_weights(checkpoint)
    kind = next((kind for kind, known in _SIGNS.items() if any(map(known.fullmatch, weights))), None)
    if kind is None:
        raise ModelError(
            f"An encoder starts from nnU-Net's (residual or plain), STU-Net's or one of ours, but the "
            f"tensors of {path} are none of them (the first is {next(iter(weights))!r})."
        )
    plans = _nnunet_plans(checkpoint.facts)
    order = (2, 3, 4) if kind is Kind.OURS else _our_axes(plans.get("transpose_forward"))
    tensors: dict[str, Theirs] = {}
    for name, value in weights.items():
        found = _PLACES[kind](name, value)
        if found is not None:
            turned = value.permute(0, 1, *order) if value.ndim == 5 else value
            tensors[found[0]] = Theirs(name, turned, found[1])
    check_finite({theirs.name: theirs.value for theirs in tensors.values()}, path)
    others = sum(_is_others(name, kind) for name in weights)
    return EncoderWeights(path, kind, tensors, others, tuple(_notes(kind, plans, checkpoint.facts)))


@torch.no_grad()
def put_into(weights: EncoderWeights, network: nn.Module) -> StartReport:
    """Give a network's encoder, and its trunk where the weights are ours, all tensors that fit, in place.

    Args:
        network: has an `encoder` and maybe a `trunk`, as `TextPromptedNetwork` does.

    Raises:
        ModelError: not one convolution fits.
    """
    parts = ("encoder.", "trunk.") if weights.kind is Kind.OURS else ("encoder.",)
    state = network.state_dict()
    named = [name for name in state if name.startswith(parts) and not name.endswith("num_batches_tracked")]
    own = {_place(name, state[name]): (name, state[name]) for name in named}
    rows = []
    numbers = 0
    for place, (name, value) in own.items():
        theirs = weights.tensors.get(place)
        shape = tuple(value.shape)
        if theirs is None:
            rows.append(Row(name, None, shape, False, _why_missing(name)))
        elif theirs.value.shape != value.shape:
            why = f"theirs is {'x'.join(map(str, theirs.value.shape))}"
            rows.append(Row(name, theirs.name, shape, False, why))
        else:
            value.copy_(_value_at(place, weights.tensors))
            numbers += value.numel()
            rows.append(Row(name, theirs.name, shape, True, theirs.remark or "fits"))
    if not any(row.taken and len(row.shape) == 5 for row in rows):
        raise ModelError(_nothing_fits(weights, own))
    for place, theirs in weights.tensors.items():
        if place not in own:
            rows.append(Row(None, theirs.name, tuple(theirs.value.shape), False, _why_unused(place)))
    notes = list(weights.notes)
    if weights.others:
        notes.append(f"{weights.others} tensors of {weights.path.name} are of no encoder and not looked at.")
    of_numbers = sum(value.numel() for _, value in own.values())
    return StartReport(
        str(weights.path),
        file_hash(weights.path),
        weights.kind.value,
        tuple(rows),
        tuple(notes),
        numbers,
        of_numbers,
    )


def started_from(
    weights: EncoderWeights,
    begin: Callable[[Plan], Beginning] = fresh,
    report: Callable[[StartReport], None] = lambda report: None,
) -> Callable[[Plan], Beginning]:
    """The beginning of a run whose encoder has these weights, and for the rest what `begin` gives.

    Args:
        report: called with what was taken, each time that the run begins or goes on.
    """

    def started(plan: Plan) -> Beginning:
        beginning = begin(plan)
        report(put_into(weights, beginning.network))
        return beginning

    return started


def keep_report(report: StartReport, run: Path) -> None:
    """Write the report into a run's folder, as JSON and as a table to read.

    Raises:
        ModelError: the run was begun from other weights, or without any.
    """
    path = run / REPORT_FILE
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        if begun["sha256"] != report.sha256:
            raise ModelError(
                f"A run goes on from the encoder that it was begun with, {begun['path']}, but got "
                f"{report.path}. Give a new run folder."
            )
        return
    if (run / STATE_FILE).is_file():
        raise ModelError(
            f"A run goes on as it was begun, and {run} was begun without other weights, but got "
            f"{report.path}. Give a new run folder."
        )
    document = {**vars(report), "rows": [vars(row) for row in report.rows]}
    lines = [report.summary, *report.notes, "", *report.table()]
    write_bytes(run / TABLE_FILE, ("\n".join(lines) + "\n").encode())
    write_bytes(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


# ---- which file ----


def _file_of(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if (path / ENCODER_FILE).is_file():
        return path / ENCODER_FILE
    entry = next((one for one in all_entries() if one.name == str(source) and one.kind == "start"), None)
    if entry is not None:
        if not entry.is_here:
            raise ModelError(
                f"{source} is not on this machine. Get it with `textseg weights fetch {source}`."
            )
        return entry.place / entry.files[0].path
    model = find_model(source)
    if model.kind == "nnunet":
        return find_checkpoints(model.path)[0]
    return weights_file(model.path) if model.kind == "voxtell" else model.path / NETWORK_FILE


# ---- their names in our terms ----

_SIGNS = {
    Kind.OURS: re.compile(r"encoder\.stages\.\d+\.\d+\.first\.conv\.weight"),
    Kind.RESIDUAL: re.compile(r"(encoder\.)?stages\.\d+\.(\d+\.)?blocks\.\d+\.conv1\.conv\.weight"),
    Kind.PLAIN: re.compile(r"(encoder\.)?stages\.\d+\.\d+\.convs\.\d+\.conv\.weight"),
    Kind.STUNET: re.compile(r"conv_blocks_context\.\d+\.\d+\.conv1\.weight"),
}
_STEM = re.compile(r"(?:encoder\.)?stem\.convs\.0\.(conv|norm)\.(\w+)")
_BLOCK = re.compile(
    r"(?:encoder\.)?stages\.(\d+)\.(?:\d+\.)?blocks\.(\d+)\.(conv1|conv2|skip)\.(?:\d+\.)?(conv|norm)\.(\w+)"
)
_CONV = re.compile(r"(?:encoder\.)?stages\.(\d+)\.\d+\.convs\.(\d+)\.(conv|norm)\.(\w+)")
_STUNET = re.compile(r"conv_blocks_context\.(\d+)\.(\d+)\.(conv|norm)([123])\.(\w+)")
# A block's first convolution lies in a part of its own, the second one does not.
_PARTS = {"conv1": "first.", "conv2": "", "skip": "shortcut."}

Placed = tuple[str, str] | None


def _place(name: str, value: Tensor) -> str:
    """A name of ours without the number in a short cut, which depends on whether there is pooling in it."""
    part = "conv" if value.ndim == 5 else "norm"
    return re.sub(r"shortcut\.\d+\.", f"shortcut.{part}.", name)


def _place_of_ours(name: str, value: Tensor) -> Placed:
    in_encoder = name.startswith(("encoder.", "trunk.")) and not name.endswith("num_batches_tracked")
    return (_place(name, value), "") if in_encoder else None


def _place_of_residual(name: str, value: Tensor) -> Placed:
    if found := _STEM.fullmatch(name):
        return f"encoder.stem.{found[1]}.{found[2]}", ""
    if found := _BLOCK.fullmatch(name):
        stage, block, part, kind, leaf = found.groups()
        return f"encoder.stages.{stage}.{block}.{_PARTS[part]}{kind}.{leaf}", ""
    return None


def _place_of_plain(name: str, value: Tensor) -> Placed:
    """The first convolution of all is our stem; from there on, two of a stage make a block."""
    found = _CONV.fullmatch(name)
    if not found:
        return None
    stage, number, kind, leaf = int(found[1]), int(found[2]), found[3], found[4]
    if (stage, number) == (0, 0):
        return f"encoder.stem.{kind}.{leaf}", ""
    number -= stage == 0
    part = "" if number % 2 else "first."
    return f"encoder.stages.{stage}.{number // 2}.{part}{kind}.{leaf}", "no short cut goes round it there"


def _place_of_stunet(name: str, value: Tensor) -> Placed:
    """Their first block does without a stem, so its two convolutions are our stem and what follows it."""
    found = _STUNET.fullmatch(name)
    if not found:
        return None
    stage, block, kind, number, leaf = found.groups()
    if (stage, block) == ("0", "0"):
        place = {"1": "encoder.stem.", "2": "encoder.stages.0.0.first."}.get(
            number, "encoder.input_shortcut."
        )
        return f"{place}{kind}.{leaf}", "in a block with another short cut there"
    part = {"1": "first.", "2": "", "3": "shortcut."}[number]
    remark = "takes every second voxel there; ours averages and has a norm" if number == "3" else ""
    return f"encoder.stages.{stage}.{block}.{part}{kind}.{leaf}", remark


_PLACES: Mapping[Kind, Callable[[str, Tensor], Placed]] = {
    Kind.OURS: _place_of_ours,
    Kind.RESIDUAL: _place_of_residual,
    Kind.PLAIN: _place_of_plain,
    Kind.STUNET: _place_of_stunet,
}


def _is_others(name: str, kind: Kind) -> bool:
    """Whether a tensor is none of the encoder's, and no second name for one of them."""
    encoder = {
        Kind.OURS: ("encoder.", "trunk."),
        Kind.STUNET: ("conv_blocks_context.",),
    }.get(kind, ("encoder.", "stages.", "stem.", "decoder.encoder."))
    return not name.startswith(encoder)


# ---- values and reasons ----


def _our_axes(transposed: Sequence[int] | None) -> tuple[int, int, int]:
    """Where in a kernel (out, in, a, b, c) of theirs our x, y and z are.

    Their arrays are (z, y, x), and a plan may transpose them: axis k of the network is then axis
    transposed[k] of the array.
    """
    order = list(transposed or (0, 1, 2))
    x, y, z = (2 + order.index(2 - axis) for axis in range(3))
    return x, y, z


def _value_at(place: str, tensors: Mapping[str, Theirs]) -> Tensor:
    """A tensor; a batch norm's mean without the bias of the convolution before it, which ours has not."""
    value = tensors[place].value
    bias = tensors.get(place.removesuffix("norm.running_mean") + "conv.bias")
    return value - bias.value if place.endswith("norm.running_mean") and bias else value


def _why_missing(name: str) -> str:
    if name.endswith(("running_mean", "running_var")):
        return "their norm keeps no statistics"
    return "there is none like it"


def _why_unused(place: str) -> str:
    if place.endswith("conv.bias") and "shortcut" not in place and place.startswith("encoder."):
        return "a norm follows, which takes a bias away"
    if place.endswith(("running_mean", "running_var")):
        return "our norm keeps no statistics"
    return "ours has no place for it"


def _nothing_fits(weights: EncoderWeights, own: Mapping[str, tuple[str, Tensor]]) -> str:
    theirs = _widths({place: each.value for place, each in weights.tensors.items()})
    ours = _widths({place: value for place, (_, value) in own.items()})
    return (
        f"An encoder starts from weights of its own widths, but the stages of {weights.path} are "
        f"{theirs} wide and the plan's are {ours}. Plan with --width, or set width_ratios in plan.json."
    )


def _widths(tensors: Mapping[str, Tensor]) -> str:
    first = re.compile(r"encoder\.stages\.(\d+)\.0\.first\.conv\.weight")
    matches = [(first.fullmatch(place), value.shape[0]) for place, value in tensors.items()]
    found = {int(match[1]): width for match, width in matches if match}
    return " ".join(str(found[stage]) for stage in sorted(found)) or "of unknown size and"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*padded, row[-1]]).rstrip()


# ---- what shapes do not tell ----


def _nnunet_plans(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = facts.get("init_args")
    plans = arguments.get("plans") if isinstance(arguments, dict) else None
    return plans if isinstance(plans, dict) else {}


def _notes(kind: Kind, plans: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    if kind is Kind.PLAIN:
        yield "A plain encoder has no short cuts: these weights are a start, not the same function."
    if kind is Kind.STUNET:
        yield "STU-Net has no stem, and other short cuts: these weights are a start, not the same function."
    if not plans:
        return
    name = facts["init_args"].get("configuration")
    configurations = plans.get("configurations")
    configuration = configurations.get(name) if isinstance(configurations, dict) else None
    if isinstance(configuration, dict) and isinstance(configuration.get("spacing"), list):
        size = " x ".join(f"{mm:g}" for mm in reversed(configuration["spacing"]))
        schemes = " and ".join(map(str, configuration.get("normalization_schemes", [])))
        yield f"They were trained at {size} mm (x, y, z) with {schemes or 'an unknown normalisation'}."
    if TURNING not in str(plans.get("image_reader_writer", TURNING)):
        yield "Their scans were not turned to RAS+: left and right may be swapped in what they know."
