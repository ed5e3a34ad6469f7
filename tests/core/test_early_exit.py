"""Prompts that coarse logits deny are given up; the others are decoded as ever."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_model import tiny_plan
from textseg.device import Compute
from textseg.early_exit import BELOW, CoarseScales, EarlyExit, with_early_exit
from textseg.network.build import Decoded, Features, build_network, for_inference
from textseg.sliding import segment_windows

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(6)
    with torch.inference_mode():
        yield


class Known:
    """A network whose finest logits are a prompt's number; it notes which ones it was asked for."""

    total_stride = (2, 2, 2)

    def __init__(self):
        self.asked = []

    def encode(self, image):
        return Features(image[..., ::2, ::2, ::2], (image,))

    def decode(self, features, text, spatial=None):
        self.asked.append(text[:, 0].tolist())
        shape = (len(features.coarsest), len(text), *features.trunk[0].shape[2:])
        return Decoded((text[None, :, 0, None, None, None].expand(shape),), text[:, 0].expand(shape[:2]))


def glance(highest):
    """The same highest coarse logits (prompts,) in every window."""

    def look(features, text):
        chosen = torch.tensor([highest[int(n) - 1] for n in text[:, 0]])
        logits = torch.full((len(features.coarsest), len(text), 2, 2, 2), -50.0)
        logits[..., 1, 0, 1] = chosen
        return Decoded((logits,), torch.arange(1.0, 1 + len(text)).expand(logits.shape[:2]))

    return look


@pytest.mark.parametrize(
    ("highest", "decoded"),
    [
        ((-9.0, -4.0, -6.0, 3.0), [2.0, 4.0]),
        ((-5.1, -5.2, -5.3, -45.0), None),
        ((0.0, 0.0, -4.9, 0.0), [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_only_hopeful_prompts_are_decoded(highest, decoded):
    network, text = Known(), torch.arange(1.0, 5.0)[:, None]
    exit = EarlyExit(network, glance(highest))
    found = exit.decode(exit.encode(torch.zeros(2, 1, 4, 6, 8)), text)
    assert network.asked == ([] if decoded is None else [decoded])
    assert found.logits[0].shape == (2, 4, 4, 6, 8)
    for n, (logits, coarse) in enumerate(zip(found.logits[0].unbind(dim=1), highest, strict=True), start=1):
        # What was given up is as unlikely everywhere as in its likeliest place.
        assert torch.allclose(logits, torch.tensor(float(n) if coarse > BELOW else coarse))
    given_up = sum(coarse <= BELOW for coarse in highest)
    assert (exit.given_up, exit.asked) == (2 * given_up, 8)
    assert found.presence.shape == (2, 4)


def test_a_prompt_that_one_of_the_windows_shows_is_decoded_in_all_of_them():
    def look(features, text):
        logits = torch.full((2, 2, 1, 1, 1), -30.0)
        logits[1, 0] = 1.0
        return Decoded((logits,), torch.zeros(2, 2))

    network = Known()
    exit = EarlyExit(network, look)
    exit.decode(exit.encode(torch.zeros(2, 1, 4, 4, 4)), torch.tensor([[1.0], [2.0]]))
    assert network.asked == [[1.0]]


def test_marks_are_never_given_up():
    class Marked(Known):
        def decode(self, features, text, spatial=None):
            return "decoded with marks" if spatial is not None or text is None else "given up"

    exit = EarlyExit(Marked(), glance((-90.0,)))
    features = exit.encode(torch.zeros(1, 1, 4, 4, 4))
    assert exit.decode(features, torch.ones(1, 1), torch.zeros(1)) == "decoded with marks"
    assert exit.decode(features, None) == "decoded with marks"


@pytest.mark.parametrize("scale", [0, 1, 2, 9])
def test_our_coarse_scales_are_those_of_the_whole_decoder(scale):
    network = for_inference(build_network(tiny_plan()), torch.device("cpu"))
    features = network.encode(torch.randn(2, 1, 16, 20, 12))
    text = torch.randn(3, 32)
    whole = network.decode(features, text)
    seen = CoarseScales(network, scale)(features, text)
    scale = min(scale, len(whole.logits) - 1)
    assert len(seen.logits) == len(whole.logits) - scale
    for found, expected in zip(seen.logits, whole.logits[scale:], strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(seen.presence, whole.presence, atol=1e-5)
    # The network has kept all of its own.
    assert len(network.decode(features, text).logits) == len(whole.logits)


def test_a_scan_is_the_same_where_nothing_is_given_up_and_cheaper_where_all_is():
    plan = tiny_plan()
    network = for_inference(build_network(plan), torch.device("cpu"))
    image, text = torch.randn(1, 24, 30, 20), torch.randn(3, 32)
    exact = segment_windows(network, image, text, plan, CPU)
    never, always = (with_early_exit(network, network, below) for below in (-torch.inf, torch.inf))
    kept = segment_windows(never, image, text, plan, CPU)
    assert torch.allclose(kept.logits, exact.logits, atol=1e-5)
    assert never.given_up == 0
    left = segment_windows(always, image, text, plan, CPU)
    assert (left.logits.flatten(1).amax(dim=1) < exact.logits.flatten(1).amax(dim=1)).any()
    assert torch.allclose(left.presence, exact.presence, atol=1e-6)
    assert always.given_up == always.asked > 0
