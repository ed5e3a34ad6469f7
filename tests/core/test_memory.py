"""What a scan takes at its peak is said beforehand, and a budget is kept by doing less at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.tiny_model import tiny_plan
from textseg import memory
from textseg.device import Compute, NotEnoughMemoryError
from textseg.memory import Footprint, Task, choose_batches, demand, footprint
from textseg.sliding import Batches

CPU = Compute(torch.device("cpu"), torch.float32)
NETWORK = Footprint(features=10**6, encoding=9 * 10**6, decoding=10**6, a_prompt=2 * 10**6)
# 100 prompts on 512 × 512 × 400, prepared at 3 mm.
LARGE = Task((1, 150, 170, 400), (80, 64, 48), (512, 512, 400), 100)


@pytest.fixture(autouse=True)
def _same_process(monkeypatch):
    monkeypatch.setattr(memory, "_resident_bytes", lambda: 600_000_000)
    monkeypatch.setattr(memory, "_free_bytes", lambda: 16 * 10**9)


def test_a_network_holds_more_for_larger_windows_and_more_prompts():
    plan = tiny_plan()
    small, large = (footprint(plan, (16, 16, z), CPU) for z in (16, 32))
    assert large.encoding == pytest.approx(2 * small.encoding, rel=0.1)
    # A window's trunk alone is one map of 8 channels at full size.
    assert small.features > 8 * 16**3 * 4
    assert small.encoding > small.features
    assert small.a_prompt > 2 * 16**3 * 4
    assert small.peak(1, 8) >= small.peak(1, 1)
    half = footprint(plan, (16, 16, 16), Compute(torch.device("cpu"), torch.bfloat16))
    assert half.features == small.features // 2


def test_what_was_found_out_about_a_network_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    plan = tiny_plan()
    found = footprint(plan, (16, 16, 16), CPU)
    (path,) = (tmp_path / "footprints").glob("*.json")
    with monkeypatch.context() as known:
        known.setattr(memory, "_footprint", lambda *rest: pytest.fail("It was known."))
        assert footprint(plan, (16, 16, 16), CPU) == found
    path.write_text("{}")
    assert footprint(plan, (16, 16, 16), CPU) == found


def test_a_hundred_prompts_on_a_large_scan_fit_8_gb():
    batches, facts = choose_batches(LARGE, NETWORK, CPU, 8 * 10**9)
    assert facts.predicted_peak_bytes <= 8 * 10**9
    assert facts.budget_bytes == 8 * 10**9
    assert batches.prompts >= 1
    # Packed masks alone.
    assert facts.predicted_peak_bytes > 100 * 512 * 512 * 400 / 8


def test_less_memory_means_less_at_once_and_more_passes_last():
    peaks, chosen = [], []
    for budget in (6_000_000_000, 4_000_000_000, 3_000_000_000):
        batches, facts = choose_batches(LARGE, NETWORK, CPU, budget)
        assert facts.predicted_peak_bytes <= budget
        assert facts.predicted_peak_bytes == demand(LARGE, NETWORK, batches, CPU).host
        peaks.append(facts.predicted_peak_bytes)
        chosen.append(facts.prompts_a_pass)
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[-1] < 100


def test_a_budget_that_nothing_fits_is_refused_with_what_it_would_take():
    with pytest.raises(NotEnoughMemoryError, match=r"takes 2\.\d\d GB, so 1\.00 GB of memory do not suffice"):
        choose_batches(LARGE, NETWORK, CPU, 10**9)


def test_without_a_budget_a_full_machine_is_still_tried(monkeypatch):
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1)
    batches, facts = choose_batches(LARGE, NETWORK, CPU, None)
    assert (batches.prompts, batches.a_pass) == (1, 1)
    assert facts.budget_bytes is None


def test_each_thing_that_grows_is_part_of_the_demand():
    base = demand(LARGE, NETWORK, Batches(), CPU).host
    assert demand(replace(LARGE, prompts=50), NETWORK, Batches(), CPU).host < 0.7 * base
    assert (
        demand(replace(LARGE, scan=(512, 512, 800)), NETWORK, Batches(), CPU).host
        >= base + 100 * 512 * 512 * 50
    )
    assert demand(replace(LARGE, image=(1, 150, 170, 800)), NETWORK, Batches(), CPU).host > 1.2 * base
    # The axis that slabs go along costs nothing.
    assert demand(replace(LARGE, image=(1, 900, 170, 400)), NETWORK, Batches(), CPU).host == base
    assert demand(LARGE, NETWORK, Batches(a_pass=10), CPU).host < base


PEAK = """
import sys
from pathlib import Path
import numpy as np
import torch
from tests.tiny_model import write_tiny_model
from textseg.device import Compute
from textseg.geometry import Geometry
from textseg.inference import Segmenter
from textseg.prompts import default_lexicon
from textseg.volume import Volume

torch.set_num_threads(1)
shape = (44, 180, 160)
voxels = np.random.default_rng(0).integers(-100, 100, shape).astype(np.int16)
segmenter = Segmenter(write_tiny_model(Path(sys.argv[1])), device="cpu")
segmenter.compute = Compute(torch.device("cpu"), torch.float32)
names = [name for name in ("liver", "spleen", "stomach", "pancreas", "heart", "aorta", "colon", "sacrum")]
scan = Volume(voxels, Geometry(shape, np.diag([3.0, 3.0, 3.0, 1.0])), modality="ct")
predicted = segmenter(scan, names).memory.predicted_peak_bytes
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
sys.stdout.write(f"{predicted} {1024 * int(peak.split()[1])}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Needs /proc to tell a process's peak.")
def test_the_prediction_is_within_a_fifth_of_what_a_process_took(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    predicted, peak = map(int, done.stdout.split())
    assert predicted == pytest.approx(peak, rel=0.2)
