"""Self-supervised pretraining on scans without labels: the loop around the masked autoencoder.

What is kept is encoder and trunk, from which training starts (see `textseg.train.start`).
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from textseg.atomic import write_bytes, written_whole
from textseg.device import Compute, fastest_type
from textseg.errors import DatasetError, TextsegError
from textseg.plan import PLAN_FILE, Plan, Triple, write_plan
from textseg.safe_saving import save_tensors
from textseg.train.blocks import BlockedArray, read_blocks
from textseg.train.checkpoint import STATE_FILE
from textseg.train.loop import groups_of, learning_rate
from textseg.train.masked import MaskedAutoencoder, at_size, block_size, hidden_loss, visible_blocks
from textseg.train.start import ENCODER_FILE

HOLD_BACK_EVERY_NTH = 10
# Patches of held-back scans, always the same ones with the same blocks hidden.
HELD_BACK_PATCHES = 8
# Lines of the log that a whole run has at least.
LOG_LINES = 20
LOG_FILE = "log.csv"
SAVE_EVERY_S = 300.0
PICTURE_FILE = "reconstructions.png"
# Of the picture, in pixels.
TILE, GAP, TITLE = 192, 8, 22
TITLES = ("original", "visible", "painted", "both")

Patch = tuple[Tensor, Tensor]
Floats = NDArray[Any]


@dataclass(frozen=True)
class PretrainingStep:
    """One step's report: its number, the smoothed loss, the learning rate, seconds left at this pace."""

    number: int
    of: int
    loss: float
    learning_rate: float
    left_s: float


def pretraining_plan(plan: Plan, steps: int) -> Plan:
    """The plan with so many steps, and a warm-up that is at most a tenth of them."""
    changes = {"steps": steps, "warmup_steps": min(plan.training.warmup_steps, steps // 10)}
    return plan.model_copy(update={"training": plan.training.model_copy(update=changes)})


class MaskedPatches(Dataset[Patch]):
    """Patch i of the stream, and which of its blocks are visible: always the same, whoever draws it.

    Each is an image (channels, x, y, z) float32 and a mask (blocks along x, y, z) bool.
    """

    def __init__(self, scans: Sequence[Path], plan: Plan, seed: Sequence[int], length: int) -> None:
        self._scans = [_Scan.read(path) for path in scans]
        self._patch = plan.training.patch_voxels
        block = block_size(plan)
        self._blocks = tuple(n // edge for n, edge in zip(self._patch, block, strict=True))
        self._seed = list(seed)
        self._length = length
        self.first = 0

    def __len__(self) -> int:
        return self._length - self.first

    def __getitem__(self, index: int) -> Patch:
        random = np.random.default_rng([*self._seed, self.first + index])
        scan = self._scans[int(random.integers(len(self._scans)))]
        image = torch.from_numpy(scan.cut(self._patch, random))
        return image, torch.from_numpy(visible_blocks(self._blocks, random))


@dataclass(frozen=True, eq=False)
class _Scan:
    channels: tuple[BlockedArray, ...]
    air: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> _Scan:
        volumes, _, facts = read_blocks(path)
        return cls(tuple(volumes[f"image_{i}"] for i in range(len(volumes))), tuple(facts["air"]))

    def cut(self, patch: Triple, random: np.random.Generator) -> Floats:
        """A patch (channels, x, y, z) from anywhere in the scan; where it is smaller, air around it."""
        room = [n - size for n, size in zip(self.channels[0].shape, patch, strict=True)]
        starts = [int(random.integers(more + 1)) if more > 0 else more // 2 for more in room]
        inside = zip(starts, patch, self.channels[0].shape, strict=True)
        x, y, z = (slice(max(0, start), min(start + size, n)) for start, size, n in inside)
        cut = np.empty((len(self.channels), *patch), np.float32)
        spans = zip((x, y, z), starts, strict=True)
        to_x, to_y, to_z = (slice(part.start - start, part.stop - start) for part, start in spans)
        for channel, (volume, air) in enumerate(zip(self.channels, self.air, strict=True)):
            cut[channel] = air
            cut[channel, to_x, to_y, to_z] = volume[x, y, z]
        return cut


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained network, and what it took.

    held_back: the loss on patches of scans that were never trained on; NaN where there is only one scan.
    shown: some patches as (original, visible voxels, painted), each (x, y, z), of the first channel.
    """

    network: MaskedAutoencoder
    steps: int
    seconds: float
    loss: float
    held_back: float
    shown: tuple[tuple[Floats, Floats, Floats], ...]


def pretrain(
    plan: Plan,
    scans: Sequence[Path],
    run: Path,
    device: torch.device,
    *,
    begin: Callable[[MaskedAutoencoder], object] = lambda network: None,
    minutes: float = math.inf,
    workers: int = 1,
    report: Callable[[PretrainingStep], None] = lambda step: None,
) -> Pretrained:
    """Pretrain the plan's encoder and trunk, or go on from the state in `run`.

    Args:
        plan: with the patch, batch, steps and learning rate of its training section.
        scans: from `prepare_scans`; one in ten is held back.
        run: folder of the state and the log.
        begin: called with the fresh network, to give it weights to begin with.
        minutes: stop after this long and keep the state, to go on in another piece.
        workers: processes that draw patches.
        report: called after every step.

    Raises:
        DatasetError: the run was begun with another plan or other scans.
        PlanError: its patches can't be hidden in part.
        TextsegError: the loss is no longer a number.
    """
    recipe = plan.training
    trained_on, held_back = split_scans(scans)
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = MaskedAutoencoder(plan)
    begin(network)
    network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    groups = [group for group in groups_of(network.parameters(), plan) if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    identity = plan.model_dump_json() + "".join(path.name for path in scans)
    start, spent, smooth = _resume(run, network, optimiser, identity, device)
    stream = MaskedPatches(trained_on, plan, [recipe.seed, 0], recipe.steps * recipe.batch)
    stream.first = start * recipe.batch
    kept_apart = list(_first_patches(held_back or trained_on, plan))
    log = _Log(run / LOG_FILE, start)
    batches = iter(_loader(stream, recipe.batch, workers, device))
    began = saved = time.monotonic()
    done = start
    for number in range(start, recipe.steps):
        rate = learning_rate(number, recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = _step(network, optimiser, next(batches), recipe.gradient_norm, device)
        if not math.isfinite(loss):
            raise TextsegError(
                f"Pretraining needs a finite loss, got {loss} at step {number}. Try a lower learning rate."
            )
        smooth = loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
        done = number + 1
        now = time.monotonic()
        left = (now - began) / (done - start) * (recipe.steps - done)
        report(PretrainingStep(done, recipe.steps, smooth, rate, left))
        out_of_time = now - began > minutes * 60
        ends = out_of_time or done == recipe.steps
        if ends or done % max(1, recipe.steps // LOG_LINES) == 0:
            apart = _loss_on(network, kept_apart, device) if held_back else math.nan
            log.add(done, smooth, apart, rate)
        if ends or now - saved > SAVE_EVERY_S:
            _save(run, done, spent + now - began, smooth, network, optimiser, identity)
            saved = now
        if out_of_time:
            break
    network.eval()
    apart = _loss_on(network, kept_apart, device) if held_back else math.nan
    shown = tuple(_shown(network, patch, device) for patch in kept_apart[:4])
    return Pretrained(network, done, spent + time.monotonic() - began, smooth, apart, shown)


def split_scans(scans: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Scans to train on, and every tenth that is held back; the last of fewer; a single one is trained on."""
    every = min(HOLD_BACK_EVERY_NTH, len(scans))
    held_back = list(scans[every - 1 :: every]) if len(scans) > 1 else []
    return [scan for scan in scans if scan not in held_back], held_back


def save_pretrained(pretrained: Pretrained, plan: Plan, out: Path) -> None:
    """Write encoder and trunk, from which `read_encoder_weights` starts, the plan and a picture.

    Raises:
        OSError: the folder can't be made or written to.
    """
    parts = ("encoder.", "trunk.")
    state = pretrained.network.state_dict()
    weights = {name: value.cpu().contiguous() for name, value in state.items() if name.startswith(parts)}
    facts = {"plan": plan.name, "steps": str(pretrained.steps), "seed": str(plan.training.seed)}
    save_tensors(weights, facts, out / ENCODER_FILE)
    write_plan(plan, out / PLAN_FILE)
    write_bytes(out / PICTURE_FILE, picture(pretrained.shown))


# ---- picture ----


def picture(shown: Sequence[tuple[Floats, Floats, Floats]]) -> bytes:
    """A PNG, a row a patch: its middle axial slice as it is, what is visible of it, and what is painted.

    The last column has the painted blocks in between the visible ones, as people read such figures. Anterior
    is up and the patient's right is on the left.

    Args:
        shown: original, visible voxels and painted, each (x, y, z).
    """
    width = GAP + len(TITLES) * (TILE + GAP)
    page = Image.new("RGB", (width, TITLE + len(shown) * (TILE + GAP)), "black")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, title in enumerate(TITLES):
        draw.text((GAP + column * (TILE + GAP), 2), title, fill="white", font=font)
    for row, (original, visible, painted) in enumerate(shown):
        middle = original.shape[2] // 2
        image, seen, new = (part[..., middle] for part in (original, visible.astype(bool), painted))
        low, high = np.percentile(original, (0.5, 99.5))
        hidden = np.full_like(image, low + 0.25 * (high - low))
        slices = (image, np.where(seen, image, hidden), new, np.where(seen, image, new))
        for column, plane in enumerate(slices):
            grey = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1) * 255
            # Rows run from anterior to posterior and columns from the patient's right to the left.
            tile = Image.fromarray(grey[::-1, ::-1].T.astype(np.uint8))
            scale = TILE / max(tile.size)
            size = (round(tile.width * scale), round(tile.height * scale))
            place = (GAP + column * (TILE + GAP), TITLE + row * (TILE + GAP))
            page.paste(tile.resize(size, Image.Resampling.NEAREST), place)
    content = io.BytesIO()
    page.save(content, format="PNG")
    return content.getvalue()


# ---- steps ----


def _step(
    network: MaskedAutoencoder,
    optimiser: torch.optim.Optimizer,
    patch: Patch,
    gradient_norm: float,
    device: torch.device,
) -> float:
    network.train()
    loss = _loss(network, patch, device)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), gradient_norm)
    optimiser.step()
    return float(loss.detach())


def _loss(network: MaskedAutoencoder, patch: Patch, device: torch.device) -> Tensor:
    image, visible = (part.to(device, non_blocking=True) for part in patch)
    return hidden_loss(_painted(network, image, visible), image, visible)


def _painted(network: MaskedAutoencoder, image: Tensor, visible: Tensor) -> Tensor:
    with Compute(image.device, fastest_type(image.device)).autocast():
        out: Tensor = network(image.to(memory_format=torch.channels_last_3d), visible)
    return out.float()


@torch.no_grad()
def _loss_on(network: MaskedAutoencoder, patches: Sequence[Patch], device: torch.device) -> float:
    network.eval()
    return float(np.mean([float(_loss(network, patch, device)) for patch in patches]))


@torch.no_grad()
def _shown(network: MaskedAutoencoder, patch: Patch, device: torch.device) -> tuple[Floats, Floats, Floats]:
    image, visible = (part.to(device) for part in patch)
    painted = _painted(network, image, visible)
    seen = at_size(visible, image.shape[2:])
    return tuple(part[0, 0].cpu().numpy() for part in (image, seen, painted))  # type: ignore[return-value]


def _first_patches(scans: Sequence[Path], plan: Plan) -> Iterator[Patch]:
    """Batches of one patch, the same ones in every run of a plan."""
    patches = MaskedPatches(scans, plan, [plan.training.seed, 1], HELD_BACK_PATCHES)
    for index in range(HELD_BACK_PATCHES):
        image, visible = patches[index]
        yield image[None], visible[None]


def _loader(stream: MaskedPatches, batch: int, workers: int, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        stream,
        batch_size=batch,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_one_thread,
        drop_last=True,
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


# ---- state and log ----


def _save(
    run: Path,
    step: int,
    seconds: float,
    loss: float,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    identity: str,
) -> None:
    state = {
        "identity": identity,
        "step": step,
        "seconds": seconds,
        "loss": loss,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    with written_whole(run / STATE_FILE) as unfinished:
        torch.save(state, unfinished)


def _resume(
    run: Path, network: nn.Module, optimiser: torch.optim.Optimizer, identity: str, device: torch.device
) -> tuple[int, float, float]:
    """The step to go on from, the seconds spent so far and the smoothed loss."""
    if not (run / STATE_FILE).is_file():
        return 0, 0.0, math.nan
    state = torch.load(run / STATE_FILE, map_location=device, weights_only=True)
    if state.get("identity") != identity:
        raise DatasetError(
            f"A run goes on with the plan and the scans that it was begun with, but {run} was begun with "
            "others. Give a new run folder."
        )
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"]), float(state["loss"])


class _Log:
    """A CSV of losses; lines past the step that a run goes on from are dropped, since they come again."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]
        self._rows = [["step", "loss", "held_back", "learning_rate"], *kept]

    def add(self, step: int, loss: float, held_back: float, rate: float) -> None:
        self._rows.append([str(step), f"{loss:.5f}", f"{held_back:.5f}", f"{rate:.6g}"])
        text = io.StringIO()
        csv.writer(text).writerows(self._rows)
        write_bytes(self._path, text.getvalue().encode())
