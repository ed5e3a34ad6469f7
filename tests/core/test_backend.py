"""What runs the encoder is chosen, cached, and gives the same features."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.tiny_model import tiny_plan, write_tiny_model
from textseg import backend as backends
from textseg.backend import Backend, CompiledNetwork, OpenVinoNetwork
from textseg.device import Compute
from textseg.embeddings.files import user_cache
from textseg.errors import DeviceError, ModelError
from textseg.geometry import Geometry
from textseg.inference import Segmenter
from textseg.network.build import build_network, for_inference
from textseg.quick_layers import quick_layers
from textseg.volume import Volume

CPU = Compute(torch.device("cpu"), torch.float32)
WINDOW = (16, 20, 12)
ENOUGH = backends.WORTH_A_TRIAL


@pytest.fixture
def network():
    torch.manual_seed(3)
    return for_inference(build_network(tiny_plan()), torch.device("cpu"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def no_openvino(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)


class Trial:
    """In place of a conversion and a trial."""

    def __init__(self, ratio):
        self.ratio, self.converted, self.tried = ratio, 0, 0

    def install(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setattr(Backend, "_openvino", self._convert)
        monkeypatch.setattr(Backend, "_trial", self._try)
        return self

    def _convert(self, window, channels):
        self.converted += 1
        return self

    def _try(self, converted, shape):
        self.tried += 1
        return self.ratio


@pytest.mark.parametrize(("ratio", "wins"), [(3.0, True), (1.02, False), (0.5, False)])
def test_auto_takes_what_a_trial_says_and_tries_once(ratio, wins, network, cache, monkeypatch):
    trial = Trial(ratio).install(monkeypatch)
    for _ in range(2):
        chosen = Backend("auto", network, CPU)
        # A scan of few windows is done before a trial would be; later the outcome is known.
        if not (cache / "trials.json").exists():
            assert chosen.network_for(WINDOW, 1, ENOUGH - 1) is None
            assert trial.converted == 0
        found = chosen.network_for(WINDOW, 1, ENOUGH)
        assert found is (trial if wins else None)
        assert chosen.network_for(WINDOW, 1, 1) is found
    assert trial.tried == 1
    assert list(json.loads((cache / "trials.json").read_text(encoding="utf-8")).values()) == [ratio]


def test_another_network_or_window_is_tried_anew(network, cache, monkeypatch):
    trial = Trial(2.0).install(monkeypatch)
    Backend("auto", network, CPU).network_for(WINDOW, 1, ENOUGH)
    Backend("auto", network, CPU).network_for((16, 16, 16), 1, ENOUGH)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    Backend("auto", network, CPU).network_for(WINDOW, 1, ENOUGH)
    assert trial.tried == 3


def test_auto_does_without_openvino(network, no_openvino):
    assert Backend("auto", network, CPU).network_for(WINDOW, 1, 10**6) is None


def test_auto_does_without_an_openvino_that_fails(network, cache, monkeypatch):
    Trial(9.0).install(monkeypatch)

    def fail(self, window, channels):
        raise RuntimeError("an operation is not known")

    monkeypatch.setattr(Backend, "_openvino", fail)
    assert Backend("auto", network, CPU).network_for(WINDOW, 1, ENOUGH) is None


def test_what_can_not_be_had_is_refused(network, no_openvino):
    with pytest.raises(ModelError, match=r"The backend openvino needs openvino, .*\"textseg\[openvino\]\""):
        Backend("openvino", network, CPU)
    with pytest.raises(DeviceError, match="got the device cuda"):
        Backend("openvino", network, Compute(torch.device("cuda"), torch.float32))
    with pytest.raises(DeviceError, match="auto, torch or openvino, got 'onnx'"):
        Backend("onnx", network, CPU)


def test_a_compiled_network_says_the_same(network):
    # Traced, but not compiled: that would take a C++ compiler and a minute.
    compiled = CompiledNetwork(network, backend="eager")
    # Text vectors have length one.
    image, text = torch.randn(1, 1, *WINDOW), torch.nn.functional.normalize(torch.randn(2, 32), dim=1)
    # As the windows do it.
    with torch.inference_mode(), quick_layers(CPU):
        ours, theirs = (each.decode(each.encode(image), text) for each in (network, compiled))
    assert torch.allclose(ours.logits[0], theirs.logits[0], atol=1e-5)
    assert compiled.total_stride == network.total_stride


@pytest.mark.slow
def test_openvino_agrees_and_its_model_is_kept_on_disk(network, cache, tmp_path):
    pytest.importorskip("openvino", reason="Needs the extra openvino.")
    image, text = torch.randn(2, 1, *WINDOW), torch.randn(2, 32)
    converted = OpenVinoNetwork(network, (1, *WINDOW), CPU)
    with torch.inference_mode():
        ours, theirs = (each.decode(each.encode(image), text) for each in (network, converted))
    assert (ours.logits[0] - theirs.logits[0]).abs().max() < 1e-3
    assert torch.allclose(ours.presence, theirs.presence, atol=1e-3)
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*.xml")}
    assert len(files) == 1
    OpenVinoNetwork(network, (1, *WINDOW), CPU)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.xml")} == files


@pytest.mark.slow
def test_a_scan_through_openvino_gets_the_masks_of_torch(cache, tmp_path):
    pytest.importorskip("openvino", reason="Needs the extra openvino.")
    model = write_tiny_model(tmp_path / "tiny")
    voxels = np.random.default_rng(5).integers(-80, 80, (24, 30, 20)).astype(np.int16)
    volume = Volume(voxels, Geometry((24, 30, 20), np.diag([3.0, 3.0, 4.0, 1.0])), modality="ct")
    masks = []
    for name in ("torch", "openvino"):
        segmenter = Segmenter(model, device="cpu", backend=name)
        segmenter.compute = CPU
        segmenter._backend._compute = CPU
        masks.append(segmenter(volume, ["liver", "spleen"]).masks)
    assert user_cache() == cache.parent
    assert np.mean(np.asarray(masks[0]) != np.asarray(masks[1])) < 1e-3
    assert np.any(masks[0])
