"""Windows are looked at mirrored too, and left stays left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_model import tiny_plan, write_tiny_model
from tests.voxtell.tiny_folder import Tiny, write_folder
from textseg.device import Compute
from textseg.errors import ModelError
from textseg.geometry import Geometry
from textseg.inference import Segmenter
from textseg.memory import footprint
from textseg.mirrored import Mirrored, in_a_mirror, with_mirror_images
from textseg.network.build import Decoded, Features, build_network, for_inference
from textseg.plan import PLAN_FILE, Plan
from textseg.prompts import understand
from textseg.sides import check_sides
from textseg.sliding import segment_windows
from textseg.volume import Volume

CPU = Compute(torch.device("cpu"), torch.float32)
LEFT_RIGHT = 1


class Halves:
    """A network that finds what is bright in one half of a window: for words -1 the first, for 1 the rest."""

    total_stride = (1, 1, 1)

    def encode(self, image):
        return Features(image, (image,))

    def decode(self, features, text, spatial=None):
        image = features.coarsest[:, :1]
        place = torch.linspace(-1, 1, image.shape[2]).reshape(1, 1, -1, 1, 1)
        wanted = text[:, 0].reshape(1, -1, 1, 1, 1)
        logits = torch.where((image > 0) & (place * wanted > 0), 8.0, -8.0)
        return Decoded((logits,), logits.amax(dim=(2, 3, 4)))


@pytest.fixture
def noise():
    return torch.randn(1, 32, 40, 24, generator=torch.Generator().manual_seed(4))


def test_a_mirror_image_is_asked_for_the_other_side(noise):
    """Asked so, both opinions are of one half; asked for the same side, each is of another half."""
    left, right = torch.full((1, 1), -1.0), torch.full((1, 1), 1.0)
    plan, bright = tiny_plan(), noise > 0
    looked = segment_windows(Mirrored(Halves()), noise, with_mirror_images(left, right), plan, CPU).logits[0]
    assert torch.equal(looked[:16] > 0, bright[0, :16])
    assert not (looked[16:] > 0).any()
    mixed = segment_windows(Mirrored(Halves()), noise, with_mirror_images(left, left), plan, CPU).logits[0]
    assert not (mixed > 0).any()


def test_a_mirrored_scan_swaps_the_sides_of_any_network_exactly(noise):
    torch.manual_seed(2)
    plan = tiny_plan()
    network = for_inference(build_network(plan), torch.device("cpu"))
    torch.nn.init.normal_(network.decoder.scales[-1].kernel.by_words.bias)
    left, right = torch.randn(2, 3, plan.network.text_width)

    def logits(image, text, looking):
        return segment_windows(looking, image, text, plan, CPU).logits

    here = logits(noise, with_mirror_images(left, right), Mirrored(network))
    there = logits(noise.flip(LEFT_RIGHT), with_mirror_images(right, left), Mirrored(network)).flip(
        LEFT_RIGHT
    )
    assert here.std() > 0.01
    assert torch.allclose(here, there, atol=1e-4)
    alone = logits(noise, left, network)
    assert not torch.allclose(
        alone, logits(noise.flip(LEFT_RIGHT), right, network).flip(LEFT_RIGHT), atol=1e-3
    )
    opinions = logits(noise.flip(LEFT_RIGHT), right, network).flip(LEFT_RIGHT)
    assert torch.allclose(here, (alone + opinions) / 2, atol=1e-4)


def test_marks_and_silence_are_refused():
    looking = Mirrored(Halves())
    features = looking.encode(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="words alone"):
        looking.decode(features, None)
    with pytest.raises(ValueError, match="words alone"):
        looking.decode(features, torch.zeros(1, 2), torch.zeros(1, 1, 7, 8, 8, 8))


def test_words_have_the_other_side_behind_them_where_there_is_one():
    asked = [understand(text) for text in ("left kidney", "liver", "left ventricle of heart", "LK tumor")]
    assert in_a_mirror(asked) == [
        "right kidney",
        "liver",
        asked[2].canonical,
        understand("right kidney tumor").canonical,
    ]
    first, other = torch.zeros(4, 3), torch.ones(4, 3)
    assert torch.equal(with_mirror_images(first, other).mean(dim=0), torch.tensor([0.0] * 3 + [1.0] * 3))


# ---- in a model ----


def with_mirrored(folder: Path, group: str) -> Path:
    """A tiny model that looks at a group mirrored too."""
    write_tiny_model(folder)
    plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    for name, each in plan["groups"].items():
        each["mirrored"] = name == group
    (folder / PLAN_FILE).write_text(json.dumps(plan))
    return folder


@pytest.fixture
def volume():
    values = np.random.default_rng(3).normal(40, 100, (1, 33, 30, 26)).astype(np.int16)
    return Volume(values, Geometry(values.shape[1:], np.diag([4.0, 4.0, 4.0, 1.0])), modality="ct")


def test_the_plan_says_which_groups_are_looked_at_mirrored(tmp_path, volume):
    model = with_mirrored(tmp_path / "model", "torso")
    found = Segmenter(model, device="cpu")(volume, ["liver", "left thalamus"])
    assert found.averaged == (True, False)
    assert [each["mirror_averaged"] for each in found.record()["prompts"]] == [True, False]
    plain = Segmenter(model, device="cpu", mirrored=False)(volume, ["liver", "left thalamus"])
    assert plain.averaged == (False, False)
    assert not np.array_equal(plain.masks[0], found.masks[0])
    assert np.array_equal(plain.masks[1], found.masks[1])
    asked = Segmenter(model, device="cpu", mirrored=True)(volume, ["liver", "left thalamus"])
    assert asked.averaged == (True, True)


def test_sides_hold_exactly_where_windows_are_looked_at_mirrored(tmp_path, volume):
    segmenter = Segmenter(with_mirrored(tmp_path / "model", "torso"), device="cpu")
    found = check_sides(segmenter(volume, ["left kidney"]), segmenter)
    (check,) = found.sides
    assert found.masks[0].any()
    assert check.dice > 0.99


def test_another_projects_model_is_not_mirrored(tmp_path):
    write_folder(tmp_path, Tiny())
    with pytest.raises(ModelError, match="mirroring"):
        Segmenter(tmp_path, device="cpu", mirrored=True)


def test_twice_as_many_features_are_counted(plan_of_windows: Plan):
    once, twice = (footprint(plan_of_windows, (16, 16, 32), CPU, mirrored) for mirrored in (False, True))
    assert twice.features >= 2 * once.features
    assert once.encoding < twice.encoding < 3 * once.encoding
    assert once.a_prompt < twice.a_prompt < 3 * once.a_prompt


@pytest.fixture
def plan_of_windows(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    return tiny_plan()
