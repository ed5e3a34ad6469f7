"""Window by window: a network that gives back its own image must give back the whole image."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from textseg.device import Compute, NotEnoughMemoryError
from textseg.network.build import Decoded, Features
from textseg.plan import Plan
from textseg.sliding import PROMPTS_AT_ONCE, Batches, segment_windows

CPU = Compute(torch.device("cpu"), torch.float32)
WINDOW, PATCH = (16, 24, 8), (8, 8, 8)
SIZES = [
    (17, 25, 9),
    (33, 47, 21),
    (16, 24, 8),
    (15, 40, 23),
    (40, 7, 23),
    (40, 40, 3),
    (5, 7, 30),
    (5, 30, 3),
    (11, 13, 5),
    (1, 30, 19),
    (37, 1, 1),
    (1, 1, 1),
]


@dataclass
class Echo:
    """A network whose logits are the first channel times a prompt's first number; the second is presence."""

    windows: list[Tensor] = field(default_factory=list)
    prompts_at_once: list[int] = field(default_factory=list)
    total_stride = (4, 4, 4)

    def encode(self, image: Tensor) -> Features:
        self.windows.append(image)
        return Features(image, (image,))

    def decode(self, features: Features, text: Tensor | None, spatial: Tensor | None = None) -> Decoded:
        assert text is not None
        self.prompts_at_once.append(len(text))
        logits = features.coarsest[:, :1] * text[None, :, 0, None, None, None]
        presence = text[:, 1] + features.coarsest.amax()
        return Decoded((logits, logits[..., ::2, ::2, ::2]), presence[None])


@pytest.fixture
def plan(default_plan):
    """Small windows and strides of 4."""
    network = {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}
    return default_plan.model_copy(
        update={
            "windows": default_plan.windows.model_copy(update={"size_voxels": WINDOW}),
            "training": default_plan.training.model_copy(update={"patch_voxels": PATCH}),
            "network": default_plan.network.model_copy(update=network),
        }
    )


def overlapping(plan: Plan, overlap: float) -> Plan:
    return plan.model_copy(update={"windows": plan.windows.model_copy(update={"overlap": overlap})})


def image_of(shape, channels=1):
    return torch.randn((channels, *shape), generator=torch.Generator().manual_seed(3)) * 5


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_an_echo_gives_back_the_whole_image(shape, overlap, plan):
    image, network = image_of(shape), Echo()
    text = torch.tensor([[1.0, 0.0], [-0.5, 0.0]])
    answer = segment_windows(network, image, text, overlapping(plan, overlap), CPU)
    assert answer.logits.shape == (2, *shape)
    assert answer.logits.dtype == torch.float32
    assert (answer.logits[0] - image[0]).abs().max() < 1e-5
    assert (answer.logits[1] + image[0] / 2).abs().max() < 1e-5


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_windows_fit_the_strides_and_are_no_smaller_than_what_was_trained_on(shape, plan):
    network = Echo()
    _ = segment_windows(network, image_of(shape), torch.ones(1, 2), plan, CPU).logits
    for window in network.windows:
        _, _, *sides = window.shape
        assert all(side % 4 == 0 for side in sides)
        assert all(least <= n <= most for n, least, most in zip(sides, PATCH, WINDOW, strict=True))


def test_a_small_image_lies_in_the_middle_of_air(plan):
    image, network = image_of((11, 13, 5), channels=2), Echo()
    # Channels that share no values: each has an air of its own.
    image[1] += 100
    _ = segment_windows(network, image, torch.ones(1, 2), plan, CPU).logits
    (window,) = network.windows
    assert window.shape[2:] == (12, 16, 8)
    middle = (slice(0, 11), slice(1, 14), slice(1, 6))
    assert torch.equal(window[(0, slice(None), *middle)], image)
    around = torch.ones(window.shape[2:], dtype=torch.bool)
    around[middle] = False
    for channel in range(2):
        assert (window[0, channel][around] == image[channel].min()).all()


@pytest.mark.parametrize("count", [1, PROMPTS_AT_ONCE, PROMPTS_AT_ONCE + 1, 3 * PROMPTS_AT_ONCE - 1])
def test_many_prompts_at_once_give_what_each_gives_alone(count, plan):
    image, text = image_of((17, 25, 9)), torch.randn((count, 2), generator=torch.Generator().manual_seed(1))
    network = Echo()
    together = segment_windows(network, image, text, plan, CPU)
    assert together.logits.shape == (count, 17, 25, 9)
    assert max(network.prompts_at_once) <= PROMPTS_AT_ONCE
    for index in range(count):
        alone = segment_windows(Echo(), image, text[index : index + 1], plan, CPU)
        assert torch.allclose(together.logits[index], alone.logits[0], atol=1e-5)
        assert torch.allclose(together.presence[index], alone.presence[0], atol=1e-6)


def test_each_window_is_encoded_once_whatever_the_number_of_prompts(plan):
    network = Echo()
    _ = segment_windows(network, image_of((33, 47, 21)), torch.ones(20, 2), plan, CPU).logits
    one = Echo()
    _ = segment_windows(one, image_of((33, 47, 21)), torch.ones(1, 2), plan, CPU).logits
    assert len(network.windows) == len(one.windows) > 8
    assert len(network.prompts_at_once) == 3 * len(one.prompts_at_once)


def test_presence_is_that_of_the_surest_window(plan):
    image = torch.zeros(1, 33, 47, 21)
    image[0, 30, 3, 19] = 2.5
    answer = segment_windows(Echo(), image, torch.tensor([[1.0, 0.0], [1.0, -4.0]]), plan, CPU)
    assert torch.allclose(answer.presence, torch.tensor([2.5, -1.5]).sigmoid())


def test_progress_counts_the_windows(plan):
    seen = []
    network = Echo()
    _ = segment_windows(
        network, image_of((33, 25, 8)), torch.ones(1, 2), plan, CPU, lambda done, of: seen.append((done, of))
    ).logits
    assert seen == [(n, len(network.windows)) for n in range(1, len(network.windows) + 1)]
    assert len(seen) > 4


def test_the_middle_of_a_window_counts_more_than_its_border(plan):
    class Numbered(Echo):
        def decode(self, features, text, spatial=None):
            number = torch.full_like(features.coarsest, float(len(self.windows)))
            return Decoded((number,), torch.zeros(1, len(text)))

    # Two windows that share half: the first says 1, the second 2.
    answer = segment_windows(Numbered(), torch.zeros(1, 24, 24, 8), torch.ones(1, 2), plan, CPU)
    line = answer.logits[0, :, 12, 4]
    assert torch.allclose(line[:8], torch.tensor(1.0))
    assert torch.allclose(line[16:], torch.tensor(2.0))
    assert (line.diff() >= -1e-6).all()
    assert float(line[8]) < 1.01
    assert float(line[11] + line[12]) == pytest.approx(3, abs=1e-4)
    assert float(line[15]) > 1.99


def test_in_bfloat16_the_sum_is_still_kept_in_float32(plan):
    class InBfloat16(Echo):
        def decode(self, features, text, spatial=None):
            decoded = super().decode(features, text, spatial)
            return Decoded(tuple(x.bfloat16() for x in decoded.logits), decoded.presence.bfloat16())

    image = image_of((33, 25, 21))
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    answer = segment_windows(InBfloat16(), image, torch.ones(1, 2), plan, compute)
    assert answer.logits.dtype == torch.float32
    # Eight bits of mantissa, and no more lost by adding windows up.
    assert ((answer.logits[0] - image[0]).abs() <= image[0].abs() / 250 + 1e-5).all()


def test_the_image_is_left_as_it_is(plan):
    image = image_of((33, 25, 21))
    before = image.clone()
    answer = segment_windows(Echo(), image, torch.ones(1, 2), plan, CPU)
    with torch.inference_mode():
        answer.logits.zero_()
    assert torch.equal(image, before)


# ---- slab by slab ----


@pytest.mark.parametrize(
    "batches", [Batches(), Batches(windows=3, prompts=2, a_pass=2), Batches(2, 1, 1)], ids=str
)
@pytest.mark.parametrize("shape", [(33, 47, 21), (37, 1, 1), (5, 30, 3)], ids=str)
def test_slabs_put_together_are_the_whole_whatever_is_computed_together(shape, batches, plan):
    image, text = image_of(shape), torch.tensor([[1.0, 0.0], [-0.5, 1.0], [2.0, -3.0]])
    expected = segment_windows(Echo(), image, text, plan, CPU)
    run = segment_windows(Echo(), image, text, plan, CPU, batches=batches)
    whole = torch.full((3, *shape), torch.nan)
    after = dict.fromkeys(range(3), 0)
    for slab in run.slabs():
        assert slab.logits.shape[1] <= WINDOW[0]
        for row, prompt in enumerate(slab.prompts):
            assert slab.start == after[prompt]
            whole[prompt, slab.start : slab.stop] = slab.logits[row]
            after[prompt] = slab.stop
    assert torch.equal(whole, expected.logits)
    assert torch.equal(run.presence, expected.presence)


def test_progress_counts_the_windows_of_every_pass(plan):
    seen = []
    run = segment_windows(
        Echo(),
        image_of((33, 25, 8)),
        torch.ones(3, 2),
        plan,
        CPU,
        lambda *step: seen.append(step),
        Batches(a_pass=2),
    )
    assert run.logits.shape[0] == 3
    assert seen == [(n, len(seen)) for n in range(1, len(seen) + 1)]


class Narrow(Echo):
    """An echo that runs out of memory above so many windows or prompts at once."""

    def __init__(self, windows=99, prompts=99, error=None):
        super().__init__()
        self.most = windows, prompts
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def encode(self, image):
        if len(image) > self.most[0]:
            raise self.error
        return super().encode(image)

    def decode(self, features, text, spatial=None):
        if len(text) > self.most[1] or len(features.coarsest) > self.most[0]:
            raise self.error
        return super().decode(features, text)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(("windows", "prompts"), [(1, 8), (3, 1), (1, 1)])
def test_where_memory_is_short_less_is_computed_together(windows, prompts, error, plan):
    image, text = image_of((33, 47, 21)), torch.randn((11, 2), generator=torch.Generator().manual_seed(1))
    expected = segment_windows(Echo(), image, text, plan, CPU)
    narrow = Narrow(windows, prompts, error)
    run = segment_windows(narrow, image, text, plan, CPU, batches=Batches(windows=5, prompts=11))
    assert torch.equal(run.logits, expected.logits)
    assert torch.equal(run.presence, expected.presence)
    assert run.batches.windows <= windows
    assert run.batches.prompts <= prompts
    # What was too much once is not tried again with every window.
    assert len(narrow.windows) <= 2 * len(run._boxes)


def test_where_one_window_is_too_much_there_is_one_clear_sentence(plan):
    run = segment_windows(Narrow(prompts=0), image_of((17, 25, 9)), torch.ones(3, 2), plan, CPU)
    with pytest.raises(
        NotEnoughMemoryError, match="memory of the cpu must hold at least one window and one prompt"
    ):
        _ = run.logits


def test_sums_that_do_not_fit_take_several_passes(plan, monkeypatch):
    from textseg import sliding

    class Small(sliding.SlabBlender):
        def __init__(self, prompts, *place):
            if prompts > 2:
                raise MemoryError
            super().__init__(prompts, *place)

    image, text = image_of((33, 25, 9)), torch.randn((5, 2), generator=torch.Generator().manual_seed(1))
    expected = segment_windows(Echo(), image, text, plan, CPU).logits
    monkeypatch.setattr(sliding, "SlabBlender", Small)
    run = segment_windows(Echo(), image, text, plan, CPU)
    assert torch.equal(run.logits, expected)
    assert run.batches.a_pass <= 2


def test_another_error_is_not_taken_for_missing_memory(plan):
    run = segment_windows(
        Narrow(0, 0, RuntimeError("shapes differ")), image_of((17, 25, 9)), torch.ones(1, 2), plan, CPU
    )
    with pytest.raises(RuntimeError, match="shapes differ"):
        _ = run.logits


def test_windows_of_air_are_not_looked_at_and_hold_nothing(plan):
    image = torch.full((1, 64, 24, 8), -4.0)
    image[0, 50:56, 8:12, 2:6] = 3.0
    text = torch.tensor([[1.0, 0.0]])
    plan = overlapping(plan, 0.0)
    network, all_windows = Echo(), Echo()
    run = segment_windows(network, image, text, plan, CPU, air=-3.5)
    looked = segment_windows(all_windows, image, text, plan, CPU)
    assert torch.equal(run.logits[:, 48:], looked.logits[:, 48:])
    assert torch.allclose(run.logits[:, :48], torch.tensor(-30.0))
    assert len(network.windows) == 1
    assert len(all_windows.windows) == 4
    assert torch.equal(run.presence, looked.presence)
