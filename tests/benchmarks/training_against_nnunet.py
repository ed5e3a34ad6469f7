"""A model of `textseg train` beside nnU-Net, trained for as long on the same machine and the same cases.

    textseg train DATASET --split SPLIT --run RUN -o MODEL ...
    python tests/benchmarks/training_against_nnunet.py DATASET MODEL --split SPLIT --work FOLDER [--save]

nnU-Net is its own 3d_fullres configuration of PlainConvUNet with its own planning, augmentation and
learning rate schedule, whose end is set so that training takes BUDGET processor seconds: those that the
model took. Both answer for the held-back cases on the scans' own grid, one Dice function scores both.
Processor seconds are compared, as others may use the machine. nnU-Net's work folder can be used again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

RESULTS = Path(__file__).parent / "results"
TRAINED = "trained.json"
STEPS_AN_EPOCH = 5


def processor_seconds() -> float:
    """Of this process and its children."""
    this = psutil.Process()
    seconds = sum(this.cpu_times()[:2])
    for child in this.children(recursive=True):
        try:
            seconds += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return seconds


def set_up(dataset: Path, work: Path, split: dict[str, list[str]], threads: int) -> None:
    """nnU-Net's folders, its plan, its preprocessed cases and our split as its fold 0."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(work / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": str(threads), "nnUNet_compile": "f"}
    raw = work / "nnUNet_raw" / dataset.name
    if not raw.exists():
        raw.symlink_to(dataset.resolve())
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    number, prepared = int(dataset.name[7:10]), work / "nnUNet_preprocessed" / dataset.name
    if not (prepared / "nnUNetPlans_3d_fullres").exists():
        extract_fingerprints([number], num_processes=threads, check_dataset_integrity=False)
        plan_experiments([number])
        preprocess([number], "nnUNetPlans", configurations=("3d_fullres",), num_processes=(threads,))
    (prepared / "splits_final.json").write_text(
        json.dumps([{"train": split["train"], "val": split["validation"]}])
    )


def train_nnunet(dataset: Path, work: Path, budget_s: float, threads: int) -> dict[str, Any]:
    """Train fold 0 for so many processor seconds and let nnU-Net answer for the held-back cases.

    Returns:
        iterations, seconds and the folder of the answers; those of an earlier call where it ended.
    """
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class BudgetTrainer(nnUNetTrainer):
        def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = STEPS_AN_EPOCH, 1
            self.num_epochs, self.save_every = 10**6, 10**6
            self.began, self.after_first = processor_seconds(), 0.0

        def on_epoch_end(self) -> None:
            """The second epoch, which nothing warms up, says how many the budget is worth."""
            super().on_epoch_end()
            used = processor_seconds() - self.began
            if self.current_epoch == 2:
                self.num_epochs = max(4, 2 + int((budget_s - used) / (used - self.after_first)))
                self.lr_scheduler.max_steps = self.num_epochs
            self.after_first = used

    torch.set_num_threads(threads)
    prepared = work / "nnUNet_preprocessed" / dataset.name
    plans = json.loads((prepared / "nnUNetPlans.json").read_text(encoding="utf-8")) | {
        "continue_training": False
    }
    described = json.loads((prepared / "dataset.json").read_text(encoding="utf-8"))
    trainer = BudgetTrainer(plans, "3d_fullres", 0, described, torch.device("cpu"))
    answers = Path(trainer.output_folder, "validation")
    if (work / TRAINED).is_file():
        report = dict(json.loads((work / TRAINED).read_text(encoding="utf-8")))
        if not (answers / "summary.json").is_file():
            trainer.initialize()
            trainer.load_checkpoint(str(answers.parent / "checkpoint_final.pth"))
            answer(trainer)
        return report | {"answers": str(answers.relative_to(work))}
    clock = time.monotonic()
    trainer.on_train_start()
    while trainer.current_epoch < trainer.num_epochs:  # run_training fixes the number of epochs at its start
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        steps = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(STEPS_AN_EPOCH)]
        trainer.on_train_epoch_end(steps)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
        trainer.on_epoch_end()
    report = {
        "iterations": trainer.current_epoch * STEPS_AN_EPOCH,
        "processor_s": processor_seconds() - trainer.began,
        "clock_s": time.monotonic() - clock,
        "patch_zyx": plans["configurations"]["3d_fullres"]["patch_size"],
        "batch": plans["configurations"]["3d_fullres"]["batch_size"],
    }
    trainer.on_train_end()
    (work / TRAINED).write_text(json.dumps(report, indent=1))
    answer(trainer)
    return report | {"answers": str(answers.relative_to(work))}


def answer(trainer: Any) -> None:
    """Let it answer for its held-back cases; without test-time mirroring, which the model beside has not."""
    trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation(False)


def scored(
    dataset: Path, model: Path, answers: Path, ids: list[str], kinds: str | None
) -> dict[str, dict[str, list[float]]]:
    """Dice of both on every held-back case, by label and, where the ids tell it, by kind of scan."""
    from textseg import Segmenter
    from textseg.dataset import read_dataset
    from textseg.scan import read_label_map
    from textseg.scores.overlap import dice

    known, segmenter = read_dataset(dataset), Segmenter(model)
    cases = {case.id: case for case in known.cases}
    found: dict[str, dict[str, list[float]]] = {}
    for case_id in ids:
        case = cases[case_id]
        assert case.labels is not None
        reference = np.asarray(read_label_map(case.labels).labels)
        theirs = np.asarray(read_label_map(answers / case.labels.name).labels)
        paths = [path for path in case.images if path is not None]
        modality = case.modality or known.channels[0].modality
        names = list(known.labels)
        ours = segmenter(paths[0], [known.labels[n].words[0] for n in names], modality=modality).masks
        kind = re.search(kinds, case_id) if kinds else None
        for name, mask in zip(names, ours, strict=True):
            wanted = np.isin(reference, list(case.values[name]))
            row = found.setdefault(f"{name} {kind[0]}" if kind else name, {"textseg": [], "nnunet": []})
            row["textseg"].append(float(dice(mask, wanted)))
            row["nnunet"].append(float(dice(np.isin(theirs, list(case.values[name])), wanted)))
    return found


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path, help="of textseg train, whose held-back cases are the split's")
    parser.add_argument(
        "--split", type=Path, required=True, help='JSON: {"train": [ids], "validation": [ids]}'
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True, help="processor seconds, those of the model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", help="a regular expression that finds the kind of scan in a case's id")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    split = json.loads(asked.split.read_text(encoding="utf-8"))
    set_up(asked.dataset, asked.work, split, asked.threads)
    trained = train_nnunet(asked.dataset, asked.work, asked.budget, asked.threads)
    rows = scored(
        asked.dataset, asked.model, asked.work / trained["answers"], split["validation"], asked.kinds
    )
    say(f"{'':40} {'n':>4} {'textseg':>8} {'nnU-Net':>8}")
    for name, row in rows.items():
        means = (np.mean(row["textseg"]), np.mean(row["nnunet"]))
        say(f"{name:40} {len(row['nnunet']):4} {means[0]:8.3f} {means[1]:8.3f}")
    say(f"nnU-Net: {trained['iterations']} iterations, {trained['processor_s']:.0f} processor seconds")
    if asked.save:
        _save(asked, trained, rows)


def _save(asked: argparse.Namespace, trained: dict[str, Any], rows: dict[str, Any]) -> None:
    from textseg.device import processor_name

    today = datetime.now(UTC).date().isoformat()
    report = {
        "dataset": asked.dataset.name,
        "date": today,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "nnunetv2")},
        "budget_processor_s": asked.budget,
        "nnunet": {name: value for name, value in trained.items() if name != "answers"},
        "dice": {
            name: {who: {"mean": float(np.mean(found)), "cases": found} for who, found in row.items()}
            for name, row in rows.items()
        },
    }
    path = RESULTS / f"training-against-nnunet-{asked.dataset.name.lower()}-{today}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    say(f"Written to {path}")


if __name__ == "__main__":
    main()
