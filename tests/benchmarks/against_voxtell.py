"""Our way through a scan beside VoxTell's own predictor: the same weights, windows and prompts.

    pip install --no-deps --target FOLDER voxtell==0.1.2 positional-encodings
    python tests/benchmarks/against_voxtell.py --package FOLDER [--prompts 1 5 20] [--save]

The package comes without its dependencies, which textseg's extras `train` and `llm` and einops hold; nothing
of it is part of textseg. Weights are random and in VoxTell's format, and the network has its stages, blocks,
heads and attention layers at half of its width, in windows of half its size; `--widths 32 64 128 256 320 320
--window 192 192 192` is the released size, for machines that can. Both take the voxels in memory and give one
mask a prompt there: their predictor runs a whole decoder a prompt and keeps the logits of all prompts in
float16. For each number of prompts the two take turns, each in a process of its own, of which the peak of
memory is told and by how much it grew. Agreement is the share of voxels that are the same, of the prompt with
the fewest; logits summed in float16 differ near the threshold. The same with --device cuda.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pydoc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from turns import best, facts, serve, take_turns, tell, times_faster

from textseg.device import Compute, fastest_type
from textseg.geometry import Geometry
from textseg.network.voxtell.flow import segment_like_voxtell
from textseg.network.voxtell.folder import load_voxtell
from textseg.quick_voxtell import QuickVoxTell
from textseg.volume import Volume

TESTS = Path(__file__).resolve().parents[1]
WAYS = ("voxtell", "ours", "ours_fast")
# Where VoxTell's prompts look at the image, counted from the finest stage.
MEMORY_STAGE = 4


def folders() -> ModuleType:
    """The tests' writer of folders in VoxTell's format."""
    path = TESTS / "voxtell" / "tiny_folder.py"
    specification = importlib.util.spec_from_file_location("tiny_folder", path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def sizes(asked: argparse.Namespace) -> Any:
    """VoxTell's, but for what is asked."""
    stages = len(asked.widths)
    return folders().Tiny(
        patch=tuple(asked.window),
        widths=tuple(asked.widths),
        kernels=((3, 3, 3),) * stages,
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)),
        blocks=(1, 3, 4, 6, 6, 6),
        decoder_convolutions=(1,) * (stages - 1),
        heads=32,
        memory_stage=MEMORY_STAGE,
        query=asked.query,
        text=2560,
        text_hidden=2048,
        channel_hidden=asked.query,
        hidden=2048,
        layers=6,
        slope=0.01,
        eps=1e-5,
    )


def voxels(asked: argparse.Namespace) -> Any:
    """(x, y, z) int16 without a zero, so that nothing is cropped."""
    return np.random.default_rng(2).integers(1, 1000, asked.shape).astype(np.int16)


def vectors(asked: argparse.Namespace) -> Tensor:
    """(prompts, text width), made up."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn((max(asked.prompts), 2560), generator=generator)[: asked.count]


def by_voxtell(asked: argparse.Namespace) -> Callable[[], Any]:
    """Masks (prompts, z, y, x) by the package's own predictor."""
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
    from voxtell.inference.predictor import VoxTellPredictor

    predictor = object.__new__(VoxTellPredictor)
    # What its constructor sets, which takes no other sizes than the released ones.
    predictor.device = torch.device(asked.device)
    predictor.normalization = ZScoreNormalization(intensityproperties={})
    predictor.tile_step_size = 0.5
    predictor.perform_everything_on_device = True
    predictor.patch_size = list(asked.window)
    predictor.network = original_network(asked)
    image, text = voxels(asked).transpose(2, 1, 0), vectors(asked)[None].to(asked.device)
    return lambda: predictor.predict_single_image(image, text_embeddings=text)


def original_network(asked: argparse.Namespace) -> nn.Module:
    """The package's own network with the folder's weights."""
    from voxtell.model.voxtell_model import VoxTellModel

    tiny = sizes(asked)
    arguments = folders().plans(tiny)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for name in ("conv_op", "norm_op", "nonlin"):
        arguments[name] = pydoc.locate(arguments[name])
    shapes = [
        tuple(n // s for n, s in zip(tiny.patch, tiny.stride_to(stage), strict=True))
        for stage in range(len(tiny.widths))
    ]
    VoxTellModel.DECODER_CONFIGS = {
        stage: {"channels": width, "shape": shape}
        for stage, (width, shape) in enumerate(zip(tiny.widths, shapes, strict=True))
    }
    network: nn.Module = VoxTellModel(
        input_channels=1,
        **arguments,
        decoder_layer=MEMORY_STAGE,
        text_embedding_dim=tiny.text,
        num_maskformer_stages=len(tiny.widths) - 1,
        num_heads=tiny.heads,
        query_dim=tiny.query,
        project_to_decoder_hidden_dim=tiny.channel_hidden,
        deep_supervision=False,
    )
    checkpoint = torch.load(asked.work / "fold_0" / "checkpoint_final.pth", weights_only=False)
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


def by_textseg(asked: argparse.Namespace, dtype: torch.dtype) -> Callable[[], Any]:
    """Masks (prompts, x, y, z) by our flow."""
    compute = Compute(torch.device(asked.device), dtype)
    network = load_voxtell(asked.work).to(compute.device)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if compute.device.type == "cpu" and dtype == torch.float32:
        network = QuickVoxTell(network)
    volume = Volume(voxels(asked), Geometry(tuple(asked.shape), np.eye(4)))
    text = vectors(asked)
    return lambda: segment_like_voxtell(volume, network, text, compute)[0]


def prepared(asked: argparse.Namespace) -> Callable[[], None]:
    """One way, which leaves its masks in a file."""
    torch.set_num_threads(asked.threads)
    if asked.one == "voxtell":
        run = by_voxtell(asked)
    else:
        fast = fastest_type(torch.device(asked.device))
        run = by_textseg(asked, fast if asked.one == "ours_fast" else torch.float32)
    found: list[Any] = []

    def once() -> None:
        # What came of the last run is no longer needed.
        found.clear()
        found.append(run())
        if not asked.masks.exists():
            masks = [np.asarray(mask) > 0 for mask in found[0]]
            turned = masks if asked.one == "voxtell" else [mask.transpose(2, 1, 0) for mask in masks]
            np.save(asked.masks, np.stack([np.packbits(mask) for mask in turned]))

    return once


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Both ways for each number of prompts."""
    fast = fastest_type(torch.device(asked.device))
    ways = [way for way in WAYS if way != "ours_fast" or fast != torch.float32]
    by_count: dict[str, Any] = {}
    for count in asked.prompts:
        masks = {way: work / f"{way}-{count}.npy" for way in ways}
        program = [sys.executable, __file__, *sys.argv[1:], "--count", str(count), "--work", str(work)]
        commands = {way: [*program, "--one", way, "--masks", str(path)] for way, path in masks.items()}
        answers = take_turns(commands, asked.repeats)
        found: dict[str, Any] = {way: best(each) for way, each in answers.items()}
        theirs = np.load(masks["voxtell"])
        for way in ways[1:]:
            different = np.unpackbits(theirs ^ np.load(masks[way]), axis=1).mean(axis=1).max()
            share = found[way]["grown_bytes"] / found["voxtell"]["grown_bytes"]
            found[way] |= {
                "times_faster": times_faster(answers["voxtell"], answers[way], asked.device),
                "share_of_their_grown_peak": share,
                "agreement": 1 - float(different),
            }
        by_count[f"{count} prompts"] = found
    return by_count


def operations(asked: argparse.Namespace, work: Path) -> dict[str, float]:
    """GFlop of one window: of our encoder with what all prompts share, and of one prompt."""
    network = load_voxtell(work)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        features = network.encode(torch.zeros((1, 1, *asked.window)))
        encoding = counter.get_total_flops()
        network.decode(features, torch.zeros((1, network.text_width)))
        both = counter.get_total_flops()
    return {"gflop_encoding": encoding / 1e9, "gflop_a_prompt": (both - encoding) / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description="textseg against VoxTell's own predictor.")
    parser.add_argument("--package", type=Path, help="the folder that voxtell is installed in")
    parser.add_argument("--prompts", type=int, nargs="+", default=(1, 5, 20))
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 144))
    parser.add_argument("--window", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--widths", type=int, nargs=6, default=(16, 32, 64, 128, 160, 160))
    parser.add_argument("--query", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--masks", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.package:
        # Behind all else: what it needs is textseg's.
        sys.path.append(str(asked.package.resolve()))
    if asked.one:
        serve(lambda: prepared(asked))
        return
    if importlib.util.find_spec("voxtell") is None:
        raise SystemExit(
            "The package voxtell is not installed. Try pip install --no-deps --target FOLDER voxtell==0.1.2 "
            "positional-encodings, and give --package FOLDER."
        )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        folders().write_folder(work, sizes(asked))
        result = {
            **facts(asked.device, asked.threads, ("textseg", "torch")),
            "shape": list(asked.shape),
            "window": list(asked.window),
            "widths": list(asked.widths),
            **operations(asked, work),
            **measure(asked, work),
        }
    tell(result, "against-voxtell", save=asked.save)


if __name__ == "__main__":
    main()
