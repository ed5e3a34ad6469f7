"""What runs the image encoder: torch as it is, torch compiled, or OpenVINO on processors.

OpenVINO is an extra. Its model is converted once for a network and window size and kept on disk, and so is
the outcome of the trial by which "auto" chooses.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from textseg.atomic import write_bytes
from textseg.device import Compute, processor_name
from textseg.embeddings.extras import import_extra
from textseg.embeddings.files import user_cache
from textseg.errors import DeviceError
from textseg.geometry import Shape
from textseg.network.build import Decoded, Features, PromptableNetwork, TextPromptedNetwork
from textseg.plan import Triple
from textseg.quick_layers import quick_layers

BackendChoice = Literal["auto", "torch", "openvino"]
CHOICES = ("auto", "torch", "openvino")
# Converting and trying takes up to a minute: "auto" does so only for a scan that has this many windows.
WORTH_A_TRIAL = 64
# How much faster OpenVINO must be to be chosen: less would be noise.
FASTER = 1.1

_log = logging.getLogger(__name__)


class Backend:
    """Gives the network that looks at windows of one size.

    Args:
        choice: "auto" takes OpenVINO where it is installed, computes on the CPU and won a trial.
        network: as loaded and folded.
        compile: whether torch compiles the encoder; needs a C++ compiler on CPUs.

    Raises:
        DeviceError: the choice is none of the three, or OpenVINO was asked for where it can't compute.
        ModelError: OpenVINO was asked for and is not installed.
    """

    def __init__(
        self, choice: BackendChoice, network: TextPromptedNetwork, compute: Compute, *, compile: bool = False
    ) -> None:
        if choice not in CHOICES:
            raise DeviceError(f"A backend is auto, torch or openvino, got {choice!r}.")
        if choice == "openvino":
            if compute.device.type != "cpu":
                raise DeviceError("OpenVINO computes on the CPU, got the device cuda. Try --device cpu.")
            import_extra("openvino", "openvino", "The backend openvino")
        self.choice, self._network, self._compute = choice, network, compute
        self._compiled = CompiledNetwork(network) if compile else None
        self._converted: dict[Shape, PromptableNetwork | None] = {}

    def network_for(self, window: Shape, channels: int, windows: int) -> PromptableNetwork | None:
        """The network for windows (x, y, z) of a scan that has so many of them; None for it as it is."""
        if self.choice == "torch" or self._compute.device.type != "cpu":
            return self._compiled
        if window not in self._converted:
            if self.choice == "openvino":
                self._converted[window] = self._openvino(window, channels)
            elif not self._is_worth_it(window, channels, windows):
                return self._compiled
            else:
                self._converted[window] = self._winner(window, channels)
        return self._converted[window] or self._compiled

    def _is_worth_it(self, window: Shape, channels: int, windows: int) -> bool:
        if importlib.util.find_spec("openvino") is None:
            return False
        return windows >= WORTH_A_TRIAL or self._trial_key(window, channels) in _trials()

    def _openvino(self, window: Shape, channels: int) -> OpenVinoNetwork:
        return OpenVinoNetwork(self._network, (channels, *window), self._compute)

    def _winner(self, window: Shape, channels: int) -> PromptableNetwork | None:
        """OpenVINO's network where it is faster here; what was found out is kept on disk."""
        key = self._trial_key(window, channels)
        if _trials().get(key, FASTER) < FASTER:
            return None
        try:
            converted = self._openvino(window, channels)
            if key not in _trials():
                _keep_trial(key, self._trial(converted, (channels, *window)))
        except Exception as error:
            # Torch does the same; a person who wants to know why asks for openvino itself.
            _log.info("OpenVINO is not used: %s", error)
            return None
        return converted if _trials()[key] >= FASTER else None

    def _trial(self, converted: PromptableNetwork, shape: tuple[int, ...]) -> float:
        """How many times faster OpenVINO encodes a window than torch."""
        image = torch.randn((1, *shape)).contiguous(memory_format=torch.channels_last_3d)
        as_it_is = self._compiled or self._network
        with torch.inference_mode(), self._compute.autocast(), quick_layers(self._compute):
            ours, theirs = (_quickest(partial(each.encode, image)) for each in (as_it_is, converted))
        return ours / theirs

    def _trial_key(self, window: Shape, channels: int) -> str:
        facts = (_fingerprint(self._network), channels, window, str(self._compute), torch.get_num_threads())
        return hashlib.sha256(repr((facts, processor_name())).encode()).hexdigest()[:32]


class CompiledNetwork:
    """The same network with its encoder compiled by torch on the first window."""

    def __init__(self, network: TextPromptedNetwork, backend: str = "inductor") -> None:
        self._network = network
        self._encode: Callable[[Tensor], Features] = torch.compile(network.encode, backend=backend)

    @property
    def total_stride(self) -> Triple:
        return self._network.total_stride

    def encode(self, image: Tensor) -> Features:
        # Layers that are replaced one by one would not be compiled together.
        with torch._C.DisableTorchFunction():
            return self._encode(image)

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        return self._network.decode(features, text, spatial)


class OpenVinoNetwork:
    """Encodes with OpenVINO, decodes with torch: the encoder is where the time goes.

    Args:
        shape: of a window (channels, x, y, z); one window at a time.
        compute: its number type decides OpenVINO's.
    """

    def __init__(self, network: TextPromptedNetwork, shape: tuple[int, ...], compute: Compute) -> None:
        openvino = import_extra("openvino", "openvino", "The backend openvino")
        self._network = network
        folder = user_cache() / "openvino"
        core = openvino.Core()
        core.set_property({"CACHE_DIR": str(folder / "compiled")})
        model = core.read_model(_converted(openvino, network, shape, folder))
        precision = "bf16" if compute.dtype == torch.bfloat16 else "f32"
        self._compiled: Any = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )

    @property
    def total_stride(self) -> Triple:
        return self._network.total_stride

    def encode(self, image: Tensor) -> Features:
        """image (batch, channels, x, y, z) of the shape that the model was made for."""
        maps = [self._encode_one(window) for window in image.float()]
        coarsest, *trunk = (torch.cat(scale) for scale in zip(*maps, strict=True))
        return Features(coarsest, tuple(trunk))

    def _encode_one(self, window: Tensor) -> list[Tensor]:
        found = self._compiled(window[None].contiguous().numpy())
        # Copies, since the next window takes their memory.
        return [torch.from_numpy(found[i].copy()) for i in range(len(found))]

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        return self._network.decode(features, text, spatial)


class _Encoder(nn.Module):
    """The encoder as one function of tensors, which is what can be converted."""

    def __init__(self, network: TextPromptedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.network.encode(image)
        return features.coarsest, *features.trunk


def _converted(openvino: Any, network: TextPromptedNetwork, shape: tuple[int, ...], folder: Path) -> Path:
    """OpenVINO's file of the encoder for windows of one shape, made if it is not there."""
    facts = (_fingerprint(network), shape, openvino.__version__)
    path = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.xml"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings():
        # Sizes are constants in what is traced, and are meant to be.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(_Encoder(network).eval(), example_input=torch.zeros((1, *shape)))
    model.reshape([1, *shape])
    unfinished = path.with_name(f".{path.stem}-{time.time_ns()}.xml")
    openvino.save_model(model, unfinished, compress_to_fp16=False)
    # The weights first: a model is there when its .xml is.
    unfinished.with_suffix(".bin").replace(path.with_suffix(".bin"))
    unfinished.replace(path)
    return path


def _fingerprint(network: nn.Module) -> str:
    """Of a network's structure and weights."""
    digest = hashlib.sha256(str(network).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _quickest(function: Callable[[], object], times: int = 3) -> float:
    """Seconds of the quickest of some runs after one that does not count."""
    function()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _trials() -> dict[str, float]:
    """How many times faster OpenVINO was, by what was tried; empty where nothing can be read."""
    try:
        found = json.loads((user_cache() / "openvino" / "trials.json").read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _keep_trial(key: str, ratio: float) -> None:
    document = _trials() | {key: round(ratio, 3)}
    write_bytes(user_cache() / "openvino" / "trials.json", (json.dumps(document, indent=1) + "\n").encode())
