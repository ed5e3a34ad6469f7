"""What a run tells of itself while it goes on: a table of its steps, curves, examples, and TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textseg.atomic import write_bytes
from textseg.train.pictures import Curve, draw_curves, draw_examples
from textseg.train.validation import Verdict

if TYPE_CHECKING:
    from textseg.train.loop import Step

LOG_FILE = "log.csv"
CURVE_FILE = "curve.png"
TENSORBOARD_FOLDER = "tensorboard"
COLUMNS = ("step", "loss", "prompts", "sharing", "smoothed", "learning_rate", "seconds", "dice")


class Monitor:
    """Writes the log of a run, a row a step, and its pictures.

    log.csv has the step's loss, its two parts (of the decoded prompts, and of those that share out the
    voxels), the smoothed loss, the learning rate, the seconds that the step took, and the validation Dice of
    the steps that were validated. Where tensorboard is installed it gets the same numbers.

    Args:
        run: the run's folder.
        start: the step that the run goes on from. Rows after it are of a piece that was killed; their steps
            are taken again, so these are dropped.
    """

    def __init__(self, run: Path, start: int) -> None:
        self.run = run
        self.log_path = run / LOG_FILE
        rows = [row for row in read_log(self.log_path) if int(row["step"]) <= start]
        write_bytes(self.log_path, _as_csv(rows, header=True).encode())
        self.board = _board(run / TENSORBOARD_FOLDER, start)

    def log(self, step: Step, verdict: Verdict | None) -> None:
        """Add a step's row, and the examples of one that was validated."""
        row = {
            "step": str(step.number),
            "loss": f"{step.loss:.6g}",
            "prompts": f"{step.parts[0]:.6g}",
            "sharing": f"{step.parts[1]:.6g}",
            "smoothed": f"{step.smoothed:.6g}",
            "learning_rate": f"{step.learning_rate:.6g}",
            "seconds": f"{step.seconds:.4g}",
            "dice": "" if verdict is None else f"{verdict.dice:.6g}",
        }
        with self.log_path.open("a", newline="", encoding="utf-8") as file:
            file.write(_as_csv([row]))
        if self.board is not None:
            for name in COLUMNS[1:]:
                if row[name]:
                    self.board.add_scalar(name, float(row[name]), step.number)
        if verdict is not None and verdict.examples:
            title = f"Step {step.number} of {step.of}, validation Dice {verdict.dice:.3f}"
            draw_examples(self.run / f"examples_{step.number}.png", title, verdict.examples)

    def draw(self, name: str) -> None:
        """Draw the curves of all steps so far."""
        rows = read_log(self.log_path)
        loss, dice = _curve("smoothed loss", "smoothed", rows), _curve("validation Dice", "dice", rows)
        draw_curves(self.run / CURVE_FILE, f"Training of {name}", loss, dice)
        if self.board is not None:
            self.board.flush()


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a run's log, each column as text; a last row that was cut short is left out.

    Logs of older versions lack some columns, which are then empty.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        # Only a whole row ends its line.
        lines = [line for line in file if line.endswith("\n")]
    rows = csv.DictReader(lines)
    return [{name: row.get(name) or "" for name in COLUMNS} for row in rows if row.get("step")]


def _as_csv(rows: list[dict[str, str]], *, header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _curve(name: str, column: str, rows: list[dict[str, str]]) -> Curve:
    points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
    return Curve(name, [step for step, _ in points], [value for _, value in points])


def _board(folder: Path, start: int) -> Any:
    """TensorBoard's writer, which hides steps that are taken again; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)
