"""Our sliding windows beside nnU-Net's predictor and MONAI's `sliding_window_inference`, on one network.

    python tests/benchmarks/against_predictors.py [--shape 96 96 96] [--window 64 64 64] [--save]

One residual encoder U-Net with random weights, the same windows (half overlapping, Gaussian weights) and no
mirroring for all. Each runs in a process of its own, of which the peak of memory is told; seconds are the
fewest of the repeats, by processor and by clock, as others may use the machine. "ours" computes in float32
like the others, "ours_fast" in the number type that textseg chooses here. Agreement is the share of voxels
with nnU-Net's label. The same with --device cuda.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from textseg.device import Compute, describe_device, fastest_type
from textseg.geometry import Box
from textseg.network.build import Decoded, Features
from textseg.plan import WindowPlan
from textseg.sliding import Batches, WindowRun
from textseg.windows import blend_weights, place_windows

RESULTS = Path(__file__).parent / "results"
WAYS = ("nnunet", "monai", "ours", "ours_fast")
# Above this load others compete for the processor, and the result says so.
BUSY = 1.5


class Whole:
    """A plain network of several classes as one that is asked for prompts, which are their numbers."""

    total_stride = (16, 16, 16)

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def encode(self, image: Tensor) -> Features:
        return Features(self.network(image), ())

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        assert text is not None
        logits = features.coarsest[:, text[:, 0].long()]
        return Decoded((logits,), logits.new_zeros(logits.shape[:2]))


def build(classes: int) -> nn.Module:
    """nnU-Net's residual encoder U-Net, narrow, with the same random weights each time."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        return ResidualEncoderUNet(
            input_channels=1,
            n_stages=5,
            features_per_stage=(16, 32, 64, 96, 96),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=(1, 2, 2, 2, 2),
            n_blocks_per_stage=(1, 2, 2, 2, 2),
            num_classes=classes,
            n_conv_per_stage_decoder=(1, 1, 1, 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        ).eval()


def by_nnunet(network: nn.Module, image: Tensor, asked: argparse.Namespace) -> Callable[[], Tensor]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device(asked.device)
    predictor = nnUNetPredictor(
        0.5, True, False, device.type == "cuda", device, verbose=False, allow_tqdm=False
    )
    # What `manual_initialization` takes from a trained folder, as far as windows need it.
    predictor.network = network.to(device)
    predictor.allowed_mirroring_axes = None
    predictor.configuration_manager = argparse.Namespace(patch_size=list(asked.window))
    predictor.label_manager = argparse.Namespace(num_segmentation_heads=asked.classes)
    return lambda: predictor.predict_sliding_window_return_logits(image)


def by_monai(network: nn.Module, image: Tensor, asked: argparse.Namespace) -> Callable[[], Tensor]:
    from monai.inferers import sliding_window_inference

    network = network.to(asked.device)

    def run() -> Tensor:
        with torch.inference_mode():
            found = sliding_window_inference(
                image[None],
                asked.window,
                1,
                network,
                overlap=0.5,
                mode="gaussian",
                sw_device=asked.device,
                device="cpu",
            )
        assert isinstance(found, Tensor)
        return found[0]

    return run


def by_textseg(
    network: nn.Module, image: Tensor, asked: argparse.Namespace, dtype: torch.dtype
) -> Callable[[], Tensor]:
    compute = Compute(torch.device(asked.device), dtype)
    network = network.to(compute.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x, y, z = asked.window
    tables = blend_weights((x, y, z), WindowPlan(size_voxels=(x, y, z), overlap=0.5, sigma_fraction=0.125))
    boxes = place_windows(asked.shape, (x, y, z), 0.5)
    numbers = torch.arange(asked.classes)[:, None].float()
    whole, batches = Box((0, 0, 0), asked.shape), Batches(prompts=asked.classes)

    def run() -> Tensor:
        return WindowRun(
            Whole(network), image, numbers, boxes, tables, compute, whole, lambda done, of: None, batches
        ).logits

    return run


def measure_one(way: str, asked: argparse.Namespace, labels: Path) -> dict[str, float]:
    """Seconds and peak of one way, and its label map in a file."""
    torch.set_num_threads(asked.threads)
    image = torch.randn((1, *asked.shape), generator=torch.Generator().manual_seed(2))
    network = build(asked.classes)
    fast = fastest_type(torch.device(asked.device))
    run = {
        "nnunet": lambda: by_nnunet(network, image, asked),
        "monai": lambda: by_monai(network, image, asked),
        "ours": lambda: by_textseg(network, image, asked, torch.float32),
        "ours_fast": lambda: by_textseg(network, image, asked, fast),
    }[way]()
    before, processor, clock = resident("VmRSS"), np.inf, np.inf
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(asked.repeats):
            began, began_clock = time.process_time(), time.perf_counter()
            logits = run()
            processor = min(processor, time.process_time() - began)
            clock = min(clock, time.perf_counter() - began_clock)
    np.save(labels, logits.float().argmax(dim=0).to(torch.uint8).cpu().numpy())
    grown = resident("VmHWM") - before
    gpu = torch.cuda.max_memory_allocated() if asked.device == "cuda" else 0
    return {
        "processor_seconds": processor,
        "clock_seconds": clock,
        "peak_bytes": grown,
        "gpu_peak_bytes": gpu,
    }


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Every way in a process of its own."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        maps = {}
        for way in WAYS:
            path = Path(folder) / f"{way}.npy"
            command = [sys.executable, __file__, *sys.argv[1:], "--one", way, "--labels", str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
            found[way] = json.loads(done.stdout.splitlines()[-1])
            maps[way] = np.load(path)
        for way in WAYS:
            found[way]["agreement"] = float((maps[way] == maps["nnunet"]).mean())
    for other in ("nnunet", "monai"):
        for mine in ("ours", "ours_fast"):
            seconds = "clock_seconds" if asked.device == "cuda" else "processor_seconds"
            found[f"times_faster_{mine}_than_{other}"] = found[other][seconds] / found[mine][seconds]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="textseg's windows against nnU-Net's and MONAI's.")
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--window", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.shape, asked.window = tuple(asked.shape), tuple(asked.window)
    if asked.one:
        sys.stdout.write(json.dumps(measure_one(asked.one, asked, asked.labels)) + "\n")
        return
    today = datetime.now(UTC).date().isoformat()
    result = {
        "device": describe_device(torch.device(asked.device)),
        "threads": asked.threads,
        "load": round(os.getloadavg()[0], 1),
        "machine_was_busy": os.getloadavg()[0] > BUSY,
        "date": today,
        "shape": asked.shape,
        "window": asked.window,
        "classes": asked.classes,
        "versions": {name: version(name) for name in ("textseg", "nnunetv2", "monai", "torch")},
        **measure(asked),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
        path = RESULTS / f"against-predictors-{name}-{today}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
