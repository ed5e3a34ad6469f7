"""Our sliding windows beside nnU-Net's predictor and MONAI's `sliding_window_inference`, on one network.

    python tests/benchmarks/against_predictors.py [--shape 96 96 96] [--window 64 64 64] [--save]

One residual encoder U-Net with random weights, the same windows (half overlapping, Gaussian weights) and no
mirroring for all. The ways take turns, each in a process of its own, of which the peak of memory is told and
by how much it grew. "ours" computes in float32 like the others, "ours_fast" in the number type that textseg
chooses here where that is another, "ours_openvino" in float32 with OpenVINO where that is installed.
Agreement is the share of voxels with nnU-Net's label. The same with --device cuda.

The floor is what the operations of the convolutions take at the rate that one large convolution reaches here:
of the network as nnU-Net runs it, and with upsampling folded as textseg runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import best, facts, serve, take_turns, tell, times_faster

from textseg.backend import OpenVinoNetwork
from textseg.device import Compute, fastest_type
from textseg.geometry import Box
from textseg.network.build import Decoded, Features
from textseg.plan import WindowPlan
from textseg.quick_unet import quicken
from textseg.sliding import Batches, WindowRun
from textseg.windows import blend_weights, place_windows

WAYS = ("nnunet", "monai", "ours", "ours_fast", "ours_openvino")


class Whole(nn.Module):
    """A plain network of several classes as one that is asked for prompts, which are their numbers."""

    total_stride = (16, 16, 16)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
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
    network: nn.Module, image: Tensor, asked: argparse.Namespace, dtype: torch.dtype, openvino: bool = False
) -> Callable[[], Tensor]:
    compute = Compute(torch.device(asked.device), dtype)
    if openvino:
        whole_network = OpenVinoNetwork(Whole(network), (1, *asked.window), compute)
    else:
        network = network.to(compute.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        whole_network = Whole(quicken(network) if compute.device.type == "cpu" else network)
    x, y, z = asked.window
    tables = blend_weights((x, y, z), WindowPlan(size_voxels=(x, y, z), overlap=0.5, sigma_fraction=0.125))
    boxes = place_windows(asked.shape, (x, y, z), 0.5)
    numbers = torch.arange(asked.classes)[:, None].float()
    whole, batches = Box((0, 0, 0), asked.shape), Batches(prompts=asked.classes)

    def run() -> Tensor:
        return WindowRun(
            whole_network, image, numbers, boxes, tables, compute, whole, lambda done, of: None, batches
        ).logits

    return run


def prepared(way: str, asked: argparse.Namespace, labels: Path) -> Callable[[], None]:
    """One way, which leaves its label map in a file."""
    torch.set_num_threads(asked.threads)
    image = torch.randn((1, *asked.shape), generator=torch.Generator().manual_seed(2))
    network = build(asked.classes)
    fast = fastest_type(torch.device(asked.device))
    run = {
        "nnunet": lambda: by_nnunet(network, image, asked),
        "monai": lambda: by_monai(network, image, asked),
        "ours": lambda: by_textseg(network, image, asked, torch.float32),
        "ours_fast": lambda: by_textseg(network, image, asked, fast),
        "ours_openvino": lambda: by_textseg(network, image, asked, torch.float32, openvino=True),
    }[way]()
    return lambda: np.save(labels, run().float().argmax(dim=0).to(torch.uint8).cpu().numpy())


def ways(asked: argparse.Namespace) -> list[str]:
    """Those that can be had here and differ."""
    left_out = set()
    if fastest_type(torch.device(asked.device)) == torch.float32:
        left_out.add("ours_fast")
    if asked.device != "cpu" or find_spec("openvino") is None:
        left_out.add("ours_openvino")
    return [way for way in WAYS if way not in left_out]


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Every way in a process of its own, one after the other in each round."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {way: Path(folder) / f"{way}.npy" for way in ways(asked)}
        commands = {
            way: [sys.executable, __file__, *sys.argv[1:], "--one", way, "--labels", str(path)]
            for way, path in paths.items()
        }
        answers = take_turns(commands, asked.repeats)
        maps = {way: np.load(path) for way, path in paths.items()}
    found: dict[str, Any] = {}
    for way in answers:
        found[way] = best(answers[way]) | {"agreement": float((maps[way] == maps["nnunet"]).mean())}
    for other in ("nnunet", "monai"):
        for mine in (way for way in answers if way.startswith("ours")):
            ratio = times_faster(answers[other], answers[mine], asked.device)
            found[f"times_faster_{mine}_than_{other}"] = ratio
    return found


def floor(asked: argparse.Namespace) -> dict[str, float]:
    """What the convolutions alone take, by their operations and the rate of one that is large."""
    torch.set_num_threads(asked.threads)
    x, y, z = asked.window
    network = build(asked.classes)
    windows = len(place_windows(asked.shape, (x, y, z), 0.5))
    image = torch.zeros((1, 1, *asked.window))
    plain, folded = (operations(each, image) * windows for each in (network, quicken(network)))
    layer = nn.Conv3d(32, 32, 3, padding=1).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    maps = torch.randn(1, 32, 48, 48, 48).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        times = []
        for _ in range(5):
            began = time.process_time()
            layer(maps)
            times.append(time.process_time() - began)
    rate = operations(layer, maps) / min(times)
    return {
        "gflops_of_a_convolution": rate / 1e9,
        "floor_processor_seconds": plain / rate,
        "floor_processor_seconds_folded": folded / rate,
    }


def operations(network: nn.Module, image: Tensor) -> int:
    """Multiplications and additions of a network's convolutions."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description="textseg's windows against nnU-Net's and MONAI's.")
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--window", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.shape, asked.window = tuple(asked.shape), tuple(asked.window)
    if asked.one:
        serve(lambda: prepared(asked.one, asked, asked.labels))
        return
    result = {
        **facts(asked.device, asked.threads, ("textseg", "nnunetv2", "monai", "torch")),
        "shape": asked.shape,
        "window": asked.window,
        "classes": asked.classes,
        **measure(asked),
        **(floor(asked) if asked.device == "cpu" else {}),
    }
    tell(result, "against-predictors", save=asked.save)


if __name__ == "__main__":
    main()
