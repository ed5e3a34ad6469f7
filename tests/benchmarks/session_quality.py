"""How good a session gets: words alone, then ten corrections by a simulated user, on held-back cases.

    python tests/benchmarks/session_quality.py [--model default] [--data FOLDER] [--cases 3] [--save]

For every structure of every case there are three ways, each from the beginning:
  words, then up to ten corrections, each on the largest error that is left;
  one click into the middle of the thing, without words;
  words and the same click.
The cases are those that `plans/default/sources.json` holds back, `--cases` of each dataset and modality,
spread evenly over their list; of torso scans those structures that were drawn completely. The user draws on
the scan's own grid through `textseg.Session` and sees only the mask, as a person does, and stops where no
error of three voxels is left. Everything comes from a fixed seed, for each structure its own, so that other
cases change nothing for it. `--save` keeps the figures in tests/benchmarks/results and the curve as
docs/session_quality.png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from simulated_user import draw

from textseg.device import processor_name
from textseg.errors import PromptError
from textseg.models import plans_folder
from textseg.network.spatial_prompts import Interaction
from textseg.plan import read_plan
from textseg.prompts import default_lexicon
from textseg.scan import read_label_map
from textseg.scores.overlap import dice
from textseg.session import Session
from textseg.train.gather import SOURCES_FILE, _labels, _nnunet_jobs
from textseg.train.interactions import corrected, drawn_on

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
RESULTS = Path(__file__).parent / "results"
CURVE = REPOSITORY / "docs" / "session_quality.png"
SEED = 7
CORRECTIONS = 10
TOLD = (0, 1, 3, 5, 10)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class HeldBack:
    """A case that no training saw: its files, and the label values of what can be asked for by name."""

    dataset: str
    name: str
    modality: str
    image: Path
    labels: Path
    structures: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Measured:
    """Of one structure the Dice of each way; `words` after 0, 1, … `CORRECTIONS` corrections.

    drawn: corrections until nothing was left to correct; words_s, correction_s: seconds by the clock, of
    corrections the median.
    """

    dataset: str
    modality: str
    case: str
    structure: str
    words: list[float]
    click: float
    words_and_click: float
    drawn: int
    words_s: float
    correction_s: float


def held_back(data: Path) -> list[HeldBack]:
    """All cases that are held back, split as for the default weights.

    Raises:
        DatasetError: a folder is missing.
    """
    default = plans_folder() / "default"
    sources = json.loads((default / SOURCES_FILE).read_text(encoding="utf-8"))["sources"]
    plan, lexicon = read_plan(default), default_lexicon()
    found = []
    for source in sources:
        if source["layout"] != "nnunet":
            continue
        folder = data / source["folder"]
        jobs = [job for job in _nnunet_jobs(folder, source, plan, lexicon) if job.facts.split == "validation"]
        names, _ = _labels(json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"])
        drawn = folder / "annotated.json"
        annotated = json.loads(drawn.read_text(encoding="utf-8")) if drawn.is_file() else {}
        for job in jobs:
            name, modality = job.facts.name, str(job.facts.modality)
            complete = annotated[name]["complete"] if name in annotated else names
            structures = {label: names[label] for label in complete}
            image, *_, labels = job.files
            found.append(HeldBack(source["mixture"], name, modality, image, labels, structures))
    return found


def spread(cases: Sequence[HeldBack], count: int) -> list[HeldBack]:
    """So many cases of each dataset and modality, evenly over their list."""
    kinds: dict[tuple[str, str], list[HeldBack]] = {}
    for case in cases:
        kinds.setdefault((case.dataset, case.modality), []).append(case)
    places = {kind: np.linspace(0, len(of) - 1, min(count, len(of))).round() for kind, of in kinds.items()}
    return [of[int(place)] for kind, of in kinds.items() for place in places[kind]]


def measure_case(session: Session, case: HeldBack) -> Iterator[Measured]:
    """Every structure that the case shows."""
    session.set_scan(case.image, case.modality)  # type: ignore[arg-type]
    labels = read_label_map(case.labels).labels
    if labels.shape != session.geometry.shape:
        raise SystemExit(f"{case.labels} and {case.image} are of different shapes.")
    for structure, values in case.structures.items():
        wanted = np.isin(labels, values)
        if wanted.any():
            yield measure(session, wanted, case, structure)


def measure(session: Session, wanted: Mask, case: HeldBack, structure: str) -> Measured:
    """One structure (x, y, z) in each way; the session is then begun anew."""
    random = np.random.default_rng([SEED, zlib.crc32(f"{case.name}/{structure}".encode())])
    click = drawn_on(wanted, "point", random)
    session.reset()
    words_s = seconds(lambda: session.say(structure))
    found, times = [dice(session.mask, wanted)], []
    for _ in range(CORRECTIONS):
        mark = corrected(wanted, session.mask, random)
        if mark is None:
            break
        times.append(seconds(lambda mark=mark: draw_if_taken(session, mark)))  # type: ignore[misc]
        found.append(dice(session.mask, wanted))
    # Back to the words alone, exactly.
    while session.marks:
        session.undo()
    assert dice(session.mask, wanted) == found[0]
    draw_if_taken(session, click)
    both = dice(session.mask, wanted)
    session.reset()
    draw_if_taken(session, click)
    alone = dice(session.mask, wanted)
    session.reset()
    return Measured(
        dataset=case.dataset,
        modality=case.modality,
        case=case.name,
        structure=structure,
        words=[*found, *found[-1:] * (CORRECTIONS + 1 - len(found))],
        click=alone,
        words_and_click=both,
        drawn=len(times),
        words_s=round(words_s, 3),
        correction_s=round(float(np.median(times)), 3) if times else 0.0,
    )


def draw_if_taken(session: Session, mark: Interaction) -> None:
    """A mark that is refused, in the air around the body, is one that brought nothing."""
    try:
        draw(session, mark)
    except PromptError as error:
        sys.stderr.write(f"refused: {error}\n")


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


# ---- means, as a table and a picture ----


@dataclass(frozen=True)
class Means:
    """Of one dataset and modality, each the mean over cases of the mean over a case's structures."""

    dataset: str
    modality: str
    cases: int
    structures: int
    words: list[float]
    click: float
    words_and_click: float
    correction_s: float


def means_of(rows: Sequence[Measured]) -> list[Means]:
    kinds = dict.fromkeys((row.dataset, row.modality) for row in rows)
    return [_means([row for row in rows if (row.dataset, row.modality) == kind]) for kind in kinds]


def _means(rows: Sequence[Measured]) -> Means:
    cases = [[row for row in rows if row.case == name] for name in dict.fromkeys(row.case for row in rows)]

    def mean(figure: Callable[[Measured], Any]) -> Any:
        return (
            np.mean([np.mean([figure(row) for row in of], axis=0) for of in cases], axis=0).round(4).tolist()
        )

    return Means(
        dataset=rows[0].dataset,
        modality=rows[0].modality,
        cases=len(cases),
        structures=len({row.structure for row in rows}),
        words=mean(lambda row: row.words),
        click=mean(lambda row: row.click),
        words_and_click=mean(lambda row: row.words_and_click),
        correction_s=float(np.median([row.correction_s for row in rows if row.drawn] or [0.0])),
    )


def table(means: Sequence[Means]) -> str:
    """Markdown."""
    corrections = " | ".join(f"+ {count}" for count in TOLD[1:])
    head = f"| held-back cases | cases | words | {corrections} | click | words + click | s a correction |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for one in means:
        words = " | ".join(f"{one.words[count]:.2f}" for count in TOLD)
        several = f", {one.structures} structures" if one.structures > 1 else ""
        name = f"{one.dataset}, {one.modality.upper()}{several}"
        lines.append(
            f"| {name} | {one.cases} | {words} | {one.click:.2f} | {one.words_and_click:.2f} "
            f"| {one.correction_s:.2f} |"
        )
    return "\n".join(lines)


def picture(means: Sequence[Means], path: Path) -> None:
    """Dice over corrections, and at one correction what a click gives without words."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    for number, one in enumerate(means):
        colour, name = colours[number % len(colours)], f"{one.dataset}, {one.modality.upper()}"
        axes.plot(one.words, marker="o", markersize=3.5, color=colour, label=name)
        axes.plot(1, one.click, marker="x", markersize=7, color=colour, linestyle="none")
    axes.plot([], [], marker="x", color="#555555", linestyle="none", label="one click, no words")
    axes.set(xlabel="corrections after the words", ylabel="mean Dice on held-back cases", ylim=(0, 1))
    axes.set_xticks(range(CORRECTIONS + 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds the datasets")
    parser.add_argument("--cases", type=int, default=3, help="of each dataset and modality")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the figures and the curve")
    asked = parser.parse_args()
    session = Session(asked.model, device=asked.device, threads=asked.threads)
    rows: list[Measured] = []
    for case in spread(held_back(asked.data), asked.cases):
        for row in measure_case(session, case):
            rows.append(row)
            told = ", ".join(f"{row.words[count]:.2f}" for count in TOLD)
            sys.stderr.write(
                f"{row.case}, {row.structure}: {told}; click {row.click:.2f}, "
                f"words and click {row.words_and_click:.2f}\n"
            )
    means = means_of(rows)
    sys.stdout.write(table(means) + "\n")
    if asked.save:
        today = datetime.now(UTC).date().isoformat()
        segmenter = session.segmenter
        facts = {
            "date": today,
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "compute": str(segmenter.compute),
            "torch": torch.__version__,
            "model": segmenter.model.name,
            "sha256": segmenter.model.sha256,
            "seed": SEED,
            "means": [asdict(one) for one in means],
            "rows": [asdict(row) for row in rows],
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"session-quality-{segmenter.model.name}-{today}.json"
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        picture(means, CURVE)


if __name__ == "__main__":
    main()
