"""What zoom, early exit and mirroring cost or save in time and in Dice, on training arrays' held-back cases.

    python tests/benchmarks/approximations.py ARRAYS [--model default] [--mixtures torso brain] [--cases 2]
        [--prompts 20] [--save]

Each case is asked for its own structures, at most so many, and for as many that its labels do not show; and
once more for the largest structure alone, since zoom is for few prompts and early exit for many. Seconds are
of the processor. The change in Dice is the mean, over the structures that are there, of the shortcut's Dice
less the exact way's, both against the labels; `worst` is the largest loss, and `agreement` the mean Dice of
the shortcut's masks with the exact ones, where one of the two is not empty. Mirroring is told for each
mixture by itself, since only some parts of the body look the same in a mirror.
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from turns import facts, tell

from textseg.device import Compute, choose_compute
from textseg.early_exit import BELOW, EarlyExit, with_early_exit
from textseg.masks import above_threshold
from textseg.mirrored import Mirrored, with_mirror_images
from textseg.models import find_model
from textseg.network.build import TextPromptedNetwork, for_inference
from textseg.network.weights import load_network
from textseg.plan import Plan
from textseg.prompts import default_lexicon
from textseg.scores.overlap import dice
from textseg.sliding import segment_windows
from textseg.train.cases import FEWEST_VOXELS, Case, read_case, read_index, read_words
from textseg.train.evaluate import case_image, modalities_of
from textseg.train.mirror import Mirror
from textseg.train.recipe import encoder_of
from textseg.train.words import target_vectors
from textseg.zoom import ABOVE, worth_a_look

EXACT, MIRROR = "exact", "mirror"
WAYS = ("zoom", "early exit", "both")
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """One way through one case: seconds of the processor, the share of windows and of pairs of a window and a
    prompt that were looked at, and masks (prompts, x, y, z)."""

    seconds: float
    windows: float
    prompts: float
    masks: Masks


@dataclass(frozen=True)
class Asked:
    """An image (channels, x, y, z), prompts (prompts, text width), what each is in a mirror image, and each
    one's mask, None if not known."""

    mixture: str
    image: Tensor
    text: Tensor
    mirrored: Tensor
    references: Sequence[Masks | None]


class Shortcuts:
    """A model that goes through a case in each of the ways."""

    def __init__(self, network: TextPromptedNetwork, plan: Plan, compute: Compute) -> None:
        self.network, self.plan, self.compute = network, plan, compute

    def __call__(self, asked: Asked, way: str) -> Outcome:
        began = time.process_time()
        wanted = None
        if way in ("zoom", "both"):
            wanted = worth_a_look(self.network, asked.image, asked.text, self.plan, self.compute)
        network: EarlyExit | Mirrored | TextPromptedNetwork = self.network
        text = asked.text
        if way in ("early exit", "both"):
            network = with_early_exit(self.network, self.network)
        if way == MIRROR:
            network, text = Mirrored(self.network), with_mirror_images(asked.text, asked.mirrored)
        run = segment_windows(network, asked.image, text, self.plan, self.compute, wanted=wanted)
        masks = above_threshold(run.logits, self.plan.masks.threshold).numpy()
        # What is not reported is no mask.
        masks &= (run.presence.numpy() >= self.plan.masks.presence)[:, None, None, None]
        seconds = time.process_time() - began
        windows = 1.0 if wanted is None else float(wanted.any(axis=1).mean())
        prompts = 1.0 if wanted is None else float(wanted.mean())
        if isinstance(network, EarlyExit) and network.asked:
            prompts *= 1 - network.given_up / network.asked
        return Outcome(seconds, windows, prompts, masks)


def cases(
    arrays: Path,
    plan: Plan,
    vectors: dict[Any, Tensor],
    mirror: Mirror,
    most: int,
    prompts: int,
    mixtures: Sequence[str],
) -> Iterator[Asked]:
    """Held-back cases with images or drawn ones, each with many prompts and with one."""
    taken: dict[str, int] = {}
    for facts_of in read_index(arrays):
        if mixtures and facts_of.mixture not in mixtures:
            continue
        if facts_of.split != "validation" or taken.get(facts_of.mixture, 0) == most:
            continue
        taken[facts_of.mixture] = taken.get(facts_of.mixture, 0) + 1
        case = read_case(facts_of, arrays)
        labels = np.asarray(case.labels)
        image = case_image(_in_memory(case, labels), modalities_of(facts_of, plan)[0], plan)
        found = {target: np.isin(labels, values) for target, values in facts_of.targets if target in vectors}
        there = sorted(
            (target for target, mask in found.items() if mask.sum() >= FEWEST_VOXELS),
            key=lambda target: -int(found[target].sum()),
        )
        absent = sorted((target for target in vectors if target not in found), key=lambda each: each.key)
        random = np.random.default_rng(zlib.crc32(facts_of.name.encode()))
        drawn = [absent[i] for i in random.permutation(len(absent))[: min(prompts, len(there))]]
        for chosen in (there[:prompts] + drawn, there[:1]):
            if chosen:
                text = torch.stack([vectors[target][0] for target in chosen])
                others = torch.stack([vectors[mirror.names[target] or target][0] for target in chosen])
                references = [found[target] if target in there else None for target in chosen]
                yield Asked(facts_of.mixture, image, text, others, references)


def _in_memory(case: Case, labels: Any) -> Case:
    return Case(case.facts, labels, tuple(np.asarray(image) for image in case.images))


def compare(go: Shortcuts, asked: Sequence[Asked], ways: Sequence[str] = WAYS) -> dict[str, Any]:
    """Savings and changes of each way over all that is asked."""
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for one in asked:
        exact, outcomes = go(one, EXACT), {way: go(one, way) for way in ways}
        for way, outcome in outcomes.items():
            changes = [
                dice(mask, reference) - dice(before, reference)
                for mask, before, reference in zip(outcome.masks, exact.masks, one.references, strict=True)
                if reference is not None
            ]
            same = [
                dice(mask, before)
                for mask, before in zip(outcome.masks, exact.masks, strict=True)
                if mask.any() or before.any()
            ]
            rows[way].append(
                {
                    "outcome": outcome,
                    "saved": exact.seconds / outcome.seconds,
                    "changes": changes,
                    "same": same,
                }
            )
    return {way: _summary(rows[way]) for way in ways}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    changes = [change for row in rows for change in row["changes"]]
    same = [each for row in rows for each in row["same"]]
    return {
        "times_faster": float(np.median([row["saved"] for row in rows])),
        "windows_looked_at": mean(row["outcome"].windows for row in rows),
        "prompts_decoded": mean(row["outcome"].prompts for row in rows),
        "structures": len(changes),
        "change_in_dice": mean(changes) if changes else 0.0,
        "worst_change": min(changes, default=0.0),
        "agreement": mean(same) if same else 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What zoom, early exit and mirroring save and cost.")
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--mixtures", nargs="+", default=(), help="of the training arrays; all by default")
    parser.add_argument("--cases", type=int, default=2, help="held-back cases of each mixture at most")
    parser.add_argument("--prompts", type=int, default=20, help="structures of each case at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write the result beside this program")
    asked = parser.parse_args()
    folder = find_model(asked.model)
    compute = choose_compute(asked.device, asked.threads)
    targets = [target for one in read_index(asked.arrays) for target, _ in one.targets]
    words = read_words(asked.arrays)
    mirror = Mirror(targets, default_lexicon(), words)
    vectors = target_vectors(
        [*targets, *filter(None, mirror.names.values())],
        encoder_of(folder.path, folder.plan),
        default_lexicon(),
        0,
        paraphrases=0,
        own_words={**words, **mirror.words},
    )
    network = for_inference(load_network(folder.path, folder.plan), compute.device)
    go = Shortcuts(network, folder.plan, compute)
    all_asked = list(
        cases(asked.arrays, folder.plan, dict(vectors), mirror, asked.cases, asked.prompts, asked.mixtures)
    )
    many = [one for one in all_asked if len(one.text) > 1]
    single = [one for one in all_asked if len(one.text) == 1]
    result = {
        **facts(asked.device, asked.threads, ("textseg", "torch")),
        "model": asked.model,
        "mixtures": list(asked.mixtures) or "all",
        "zoom_above": ABOVE,
        "exit_below": BELOW,
        "cases": len(single),
        "many prompts": compare(go, many),
        "one prompt": compare(go, single),
        MIRROR: {
            mixture: compare(go, [one for one in many if one.mixture == mixture], (MIRROR,))[MIRROR]
            for mixture in sorted({one.mixture for one in many})
        },
    }
    tell(result, "approximations", save=asked.save)


if __name__ == "__main__":
    main()
