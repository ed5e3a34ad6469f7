"""How often a model finds what is not there and misses what is, over thresholds, and which one balances.

    python tests/benchmarks/presence.py ARRAYS [--model default] [--cases 4] [--prompts 40] [--save]

ARRAYS are a folder of training arrays; their held-back cases are asked. Each is seen whole and, where it is
long, as its half towards the head and the one towards the feet, so that a chest is asked for a bladder. What
the labels name is there or not; what belongs to a distant part of the body (a kidney in a head, a brainstem
in an abdomen) is not, and is looked for at the voxel size of that part, as a user's prompt would be. A prompt
counts as found when its presence reaches the threshold and its mask has the fewest voxels that are reported.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.device import Compute, choose_compute
from textseg.masks import FEWEST_WORKING_VOXELS, above_threshold
from textseg.models import find_model
from textseg.network.build import PromptableNetwork, for_inference
from textseg.network.weights import load_network
from textseg.plan import Millimetres, Plan
from textseg.prompts import Lexicon, default_lexicon
from textseg.scores.presence import auroc, balanced_threshold, calibration, calibrator, rates
from textseg.sliding import segment_windows
from textseg.train.cases import (
    FEWEST_VOXELS,
    Case,
    CaseFacts,
    Target,
    read_case,
    read_index,
    read_words,
)
from textseg.train.evaluate import case_image, modalities_of
from textseg.train.recipe import encoder_of
from textseg.train.sampling import FAR_GROUPS
from textseg.train.words import target_vectors

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FEWEST = (0, FEWEST_WORKING_VOXELS, FEWEST_VOXELS)
# Halves of shorter cases show too little to be scans.
LONG_MM = 300.0

Vectors = Mapping[Target, Tensor]


@dataclass(frozen=True)
class Asked:
    """One prompt on one image: whether it is there, and what the network says."""

    case: str
    kind: str
    target: str
    there: bool
    presence: float
    voxels: int


class Asker:
    """A network that answers what is asked of images (channels, x, y, z) on a working grid."""

    def __init__(self, network: PromptableNetwork, vectors: Vectors, plan: Plan, compute: Compute) -> None:
        self.network, self.vectors, self.plan, self.compute = network, vectors, plan, compute

    def __call__(
        self, image: Tensor, asked: Sequence[tuple[Target, bool]], case: str, kind: str
    ) -> Iterator[Asked]:
        """Ask for targets, of which is known whether they are there."""
        if not asked:
            return
        text = torch.stack([self.vectors[target][0] for target, _ in asked])
        answer = segment_windows(self.network, image, text, self.plan, self.compute)
        for (target, there), logits, presence in zip(
            asked, answer.logits, answer.presence.tolist(), strict=True
        ):
            voxels = int(above_threshold(logits, self.plan.masks.threshold).sum())
            yield Asked(case, kind, target.key, there, presence, voxels)


def ask_case(
    ask: Asker, facts: CaseFacts, arrays: Path, distant: Sequence[Target], lexicon: Lexicon, most: int
) -> Iterator[Asked]:
    """All images of one case: whole, its halves, and at the voxel sizes of distant parts of the body."""
    random = np.random.default_rng(zlib.crc32(facts.name.encode()))
    case = read_case(facts, arrays)
    labels = np.asarray(case.labels)
    case = Case(facts, labels, tuple(np.asarray(image) for image in case.images))
    if facts.mixture != "brain" and (Target("brain"), True) in named(case, labels, ask.vectors):
        # A whole body, which shows more than its labels name.
        distant = ()
    for modalities in modalities_of(facts, ask.plan):
        image = case_image(case, modalities, ask.plan)
        seen_as = f"{facts.mixture} {modalities[0]}" + ("" if case.images else " (synthesised)")
        for part, z in parts_of(labels.shape[2], facts.spacing_mm[2]).items():
            known = named(case, labels[:, :, z], ask.vectors)
            asked = [known[i] for i in random.permutation(len(known))[:most]]
            yield from ask(image[..., z], asked, facts.name, f"{seen_as}, {part}")
        drawn = [distant[i] for i in random.permutation(len(distant))[:most]]
        for spacing_mm, targets in by_spacing(drawn, ask.plan, lexicon).items():
            zoomed = at_spacing(image, facts.spacing_mm, spacing_mm)
            asked = [(target, False) for target in targets]
            yield from ask(zoomed, asked, facts.name, f"{seen_as}, asked for other parts of the body")


def parts_of(planes: int, spacing_mm: float) -> dict[str, slice]:
    """A case along z, and its halves where it is long."""
    parts = {"whole": slice(None)}
    if planes * spacing_mm >= LONG_MM:
        parts |= {"foot half": slice(0, planes // 2), "head half": slice(planes // 2, planes)}
    return parts


def named(case: Case, labels: np.ndarray, vectors: Vectors) -> list[tuple[Target, bool]]:
    """What a case's labels name, and whether these voxels show it; left out is what only just reaches in.

    Where voxels are not labelled, nothing is known to be absent.
    """
    counts = np.bincount(labels.ravel(), minlength=1)
    complete = bool(case.known.all())
    known = []
    for target, values in case.facts.targets:
        voxels = sum(int(counts[value]) for value in values if value < len(counts))
        if target in vectors and (voxels >= FEWEST_VOXELS or (voxels == 0 and complete)):
            known.append((target, voxels > 0))
    return known


def by_spacing(targets: Sequence[Target], plan: Plan, lexicon: Lexicon) -> dict[Millimetres, list[Target]]:
    """Targets by the voxel size that they are looked for at."""
    found: dict[Millimetres, list[Target]] = {}
    for target in targets:
        concept = lexicon.concepts[target.structure or target.finding or ""]
        found.setdefault(plan.spacing_for(concept.group), []).append(target)
    return found


def at_spacing(image: Tensor, spacing_mm: Millimetres, wanted_mm: Millimetres) -> Tensor:
    """An image (channels, x, y, z) at another voxel size."""
    sizes = [
        max(1, round(n * old / new))
        for n, old, new in zip(image.shape[1:], spacing_mm, wanted_mm, strict=True)
    ]
    return F.interpolate(image[None], size=sizes, mode="trilinear", align_corners=False)[0]


def distant_targets(
    index: Sequence[CaseFacts], lexicon: Lexicon, vectors: Vectors
) -> dict[str, list[Target]]:
    """For each mixture the structures, named by any case, of the parts of the body that it can't show."""
    every = {target for facts in index for target, _ in facts.targets if target in vectors and not target.own}
    far: dict[str, list[Target]] = {}
    for mixture in {facts.mixture for facts in index}:
        groups = FAR_GROUPS.get(mixture, frozenset())
        far[mixture] = sorted(
            (target for target in every if _group(target, lexicon) in groups), key=lambda target: target.key
        )
    return far


def _group(target: Target, lexicon: Lexicon) -> str:
    concept = lexicon.concepts[target.structure or target.finding or ""]
    # The neck's spine counts to the head, which may show it.
    return "head_neck" if "cervical_spine" in (concept.id, *concept.parents) else concept.group


def summary(rows: Sequence[Asked], plan: Plan) -> dict[str, object]:
    """Rates over thresholds and smallest masks, the balanced threshold, and the calibrators."""
    scores, there = [row.presence for row in rows], [row.there for row in rows]
    marked = {fewest: [row.voxels >= max(1, fewest) for row in rows] for fewest in FEWEST}
    facts: dict[str, object] = {
        "prompts": len(rows),
        "present": sum(there),
        "absent": len(there) - sum(there),
        "auroc": auroc(scores, there),
        "expected calibration error": calibration(scores, there).expected_error,
        "rates": {
            f"smallest mask {fewest} voxels": [
                asdict(rates(scores, there, t, marked[fewest])) for t in THRESHOLDS
            ]
            for fewest in FEWEST
        },
        "plan's threshold": asdict(rates(scores, there, plan.masks.presence, marked[FEWEST_WORKING_VOXELS])),
    }
    if any(there) and not all(there):
        platt, temperature = calibrator(scores, there), calibrator(scores, there, with_offset=False)
        facts |= {
            "balanced": {
                f"smallest mask {fewest} voxels": asdict(balanced_threshold(scores, there, marked[fewest]))
                for fewest in FEWEST
            },
            "Platt": {
                "slope": platt.slope,
                "offset": platt.offset,
                "error": calibration(platt(scores), there).expected_error,
            },
            "temperature": {
                "temperature": temperature.temperature,
                "error": calibration(temperature(scores), there).expected_error,
            },
        }
    return facts


def table(rows: Sequence[Asked], plan: Plan, threshold: float) -> Iterator[str]:
    """Kind by kind, at the plan's threshold and at the balanced one."""
    yield f"{'kind':58} {'absent':>7} {'found':>7} {'found':>7} {'present':>8} {'missed':>7} {'missed':>7}"
    yield f"{'presence of at least':58} {'':7} {plan.masks.presence:7.2f} {threshold:7.2f} {'':8} " + (
        f"{plan.masks.presence:7.2f} {threshold:7.2f}"
    )
    for kind in [*dict.fromkeys(row.kind for row in rows), "all"]:
        of_kind = [row for row in rows if kind in (row.kind, "all")]
        scores, there = [row.presence for row in of_kind], [row.there for row in of_kind]
        marked = [row.voxels >= FEWEST_WORKING_VOXELS for row in of_kind]
        one, other = (rates(scores, there, t, marked) for t in (plan.masks.presence, threshold))
        yield (
            f"{kind:58} {len(there) - sum(there):7} {one.false_positives:7.1%} {other.false_positives:7.1%} "
            f"{sum(there):8} {one.missed:7.1%} {other.missed:7.1%}"
        )


def worst(rows: Sequence[Asked], threshold: float, most: int = 12) -> Iterator[str]:
    """What is most often found though it is absent, and missed though it is there."""
    for title, there in (("found but absent", False), ("missed but present", True)):
        counts: dict[str, list[int]] = {}
        for row in rows:
            if row.there == there:
                found = row.presence >= threshold and row.voxels >= FEWEST_WORKING_VOXELS
                seen = counts.setdefault(row.target, [0, 0])
                seen[0] += found != there
                seen[1] += 1
        ranked = sorted(counts.items(), key=lambda each: (-each[1][0], each[0]))[:most]
        listed = ", ".join(
            f"{target.rstrip('+')} {wrong}/{asked}" for target, (wrong, asked) in ranked if wrong
        )
        yield f"{title}: {listed or 'none'}"


def ask_all(model: str, arrays: Path, cases: int, most: int, threads: int | None) -> tuple[list[Asked], Plan]:
    """The answers to all that is asked of at most so many held-back cases of each mixture."""
    folder, lexicon = find_model(model), default_lexicon()
    plan, compute = folder.plan, choose_compute("auto", threads)
    index = read_index(arrays)
    targets = [target for facts in index for target, _ in facts.targets]
    vectors = target_vectors(
        targets, encoder_of(folder.path, plan), lexicon, 0, paraphrases=0, own_words=read_words(arrays)
    )
    network = for_inference(load_network(folder.path, plan), compute.device)
    far = distant_targets(index, lexicon, vectors)
    ask, rows = Asker(network, vectors, plan, compute), []
    taken: dict[str, int] = {}
    for facts in index:
        if facts.split != "validation" or taken.get(facts.mixture, 0) == cases:
            continue
        taken[facts.mixture] = taken.get(facts.mixture, 0) + 1
        rows += list(ask_case(ask, facts, arrays, far[facts.mixture], lexicon, most))
        sys.stderr.write(f"{facts.name}: {len(rows)} prompts so far\n")
    return rows, plan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--cases", type=int, default=4, help="held-back cases of each mixture at most")
    parser.add_argument("--prompts", type=int, default=40, help="prompts of each image at most")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/presence.json")
    options = parser.parse_args()
    rows, plan = ask_all(options.model, options.arrays, options.cases, options.prompts, options.threads)
    facts = summary(rows, plan)
    threshold = plan.masks.presence
    if "balanced" in facts:
        balanced = facts["balanced"]
        assert isinstance(balanced, dict)
        threshold = balanced[f"smallest mask {FEWEST_WORKING_VOXELS} voxels"]["threshold"]
    for line in (*table(rows, plan, threshold), *worst(rows, threshold)):
        sys.stdout.write(line + "\n")
    shown = {name: value for name, value in facts.items() if name != "rates"}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    if options.save:
        document = {"date": datetime.now(UTC).date().isoformat(), "model": options.model, **facts}
        document["asked"] = [asdict(row) for row in rows]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "presence.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
