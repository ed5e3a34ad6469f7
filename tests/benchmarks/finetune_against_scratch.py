"""What a few labelled cases give: fine-tuning from the default weights beside training from scratch.

Scratch is tried twice: with the default's own network, and with the one that was planned for the dataset.

    python tests/benchmarks/finetune_against_scratch.py DATASET --plan PLAN --split SPLIT --work FOLDER
        [--cases 10] [--steps 300] [--every 25] [--curve curve.png] [--save]

Both see the same few cases of the split's training list and are scored on the same held-back cases, by
`textseg finetune` and `textseg train`: while they train on the part that validation takes, in the end on
all of them. PLAN is from `textseg plan`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from textseg.device import processor_name
from textseg.models import plans_folder
from textseg.plan import PLAN_FILE, read_plan, write_plan

RESULTS = Path(__file__).parent / "results"


def validated_often(plan_folder: Path, every: int, into: Path) -> Path:
    """A copy of a plan's or a model's folder whose plan is validated every so many steps."""
    shutil.copytree(plan_folder, into, dirs_exist_ok=True)
    plan = read_plan(plan_folder)
    training = plan.training.model_copy(update={"validate_every": every})
    write_plan(plan.model_copy(update={"training": training}), into / PLAN_FILE)
    return into


def few(split: dict[str, list[str]], cases: int) -> dict[str, list[str]]:
    """The split with so many training cases, spread evenly over their list."""
    places = np.linspace(0, len(split["train"]) - 1, cases).round().astype(int)
    return {"train": [split["train"][i] for i in places], "validation": split["validation"]}


def trained(command: list[str], model: Path, run: Path) -> dict[str, Any]:
    """Run a training to its end: its curve of (step, Dice), the mean Dice of all held-back cases by label."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [*command, "-o", str(model), "--run", str(run), "--overwrite"]
    subprocess.run([sys.executable, "-m", "textseg_cli", *arguments], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row["dice"])) for row in csv.DictReader(file) if row["dice"]]
    scored = json.loads((model / "scores.json").read_text(encoding="utf-8"))["rows"]
    return {
        "curve": rows,
        "dice": {
            row["prompt"]: {"mean": row["dice"], "cases": row["cases"]} for row in scored if row["cases"]
        },
        "processor_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def draw(runs: dict[str, dict[str, Any]], cases: int, path: Path) -> None:
    """The curves as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, run), colour in zip(runs.items(), ("#d55e00", "#0072b2", "#009e73"), strict=True):
        steps, dice = zip(*run["curve"], strict=True)
        axes.plot(steps, dice, marker="o", markersize=4, color=colour, label=name)
    axes.set(xlabel="steps", ylabel="Dice on held-back cases", ylim=(0, 1))
    axes.set_title(f"{cases} labelled cases", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument(
        "--split", type=Path, required=True, help='JSON: {"train": [ids], "validation": [ids]}'
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--curve", type=Path)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    split = asked.work / "split.json"
    split.write_text(json.dumps(few(json.loads(asked.split.read_text(encoding="utf-8")), asked.cases)))
    start = validated_often(plans_folder() / "default", asked.every, asked.work / "default")
    plan = validated_often(asked.plan, asked.every, asked.work / "plan")
    common = [str(asked.dataset), "--split", str(split), "--steps", str(asked.steps)]
    runs = {
        "fine-tuned from the default": trained(
            ["finetune", *common, "--from", str(start)], asked.work / "tuned", asked.work / "tuned.run"
        ),
        "from scratch, the same network": trained(
            ["train", *common, "--plan", str(start)], asked.work / "same", asked.work / "same.run"
        ),
        "from scratch, a network planned for the dataset": trained(
            ["train", *common, "--plan", str(plan)], asked.work / "fresh", asked.work / "fresh.run"
        ),
    }
    for name, run in runs.items():
        means = ", ".join(f"{label} {found['mean']:.3f}" for label, found in run["dice"].items())
        sys.stdout.write(f"{name}: {means} ({run['processor_s']:.0f} processor seconds)\n")
    if asked.curve is not None:
        draw(runs, asked.cases, asked.curve)
    if asked.save:
        today = datetime.now(UTC).date().isoformat()
        path = RESULTS / f"finetune-against-scratch-{asked.dataset.name.lower()}-{today}.json"
        facts = {"date": today, "processor": processor_name(), "cores": os.cpu_count(), "cases": asked.cases}
        path.write_text(json.dumps(facts | {"steps": asked.steps, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
