"""`torchrun -m textseg_cli train`: two processes make one run, and one of them speaks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from textseg.plan import PLAN_FILE, read_plan, write_plan

pytestmark = pytest.mark.slow
LONGEST_S = 900.0


@pytest.fixture
def plan_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a plan for two steps on one phantom, and for one that is held back."""
    folder = shutil.copytree(tiny_model, tmp_path / "plan", ignore=shutil.ignore_patterns("network*"))
    plan = read_plan(folder)
    numbers = {"steps": 2, "batch": 2, "prompts_per_sample": 2, "warmup_steps": 1, "validate_every": 1}
    recipe = plan.training.model_copy(update={**numbers, "mixture": {"phantom": 1}})
    coarse = {**plan.groups, "torso": plan.groups["torso"].model_copy(update={"spacing_mm": (12, 12, 12)})}
    write_plan(plan.model_copy(update={"training": recipe, "groups": coarse}), folder / PLAN_FILE)
    phantom = {"layout": "phantom", "group": "torso", "mixture": "phantom", "count": 2, "seed": 1}
    sources = {"sources": [{**phantom, "validation_count": 1}]}
    (folder / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
    return folder


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As our help says: without the two dashes torchrun takes --run for one of its own options."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return subprocess.run(
        [sys.executable, *launcher, "-m", "textseg_cli", "--", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )


def test_two_processes_make_one_model(plan_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = ("--data", tmp_path, "--run", run, "--device", "cpu", "--deterministic")
    done = torchrun(2, "train", plan_folder, *places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Step 2 of 2") == 1
    assert done.stdout.count("the best on held-back cases") == 1
    assert {"network.safetensors", "card.md"} <= {path.name for path in (run / "model").iterdir()}
    assert (run / "log.csv").read_text(encoding="utf-8").count("\n") == 3
