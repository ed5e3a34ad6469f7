"""Suites on the cases of a dataset: which, how far it is, and a record that a stopped run goes on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from textseg.atomic import write_bytes
from textseg.dataset import Dataset, DatasetCase
from textseg.errors import DatasetError, OutputError, PromptError
from textseg.inference import Segmenter
from textseg.scores.observations import SUITES, Observation, Suite
from textseg.scores.overlap import PackedMask, pack
from textseg.scores.robustness import Ask, probe_scene
from textseg.scores.scenes import check_probe_cases, read_scene
from textseg.version import __version__
from textseg.volume import Volume

CASE_FORMAT = "textseg-probe-case-1"
CASES = "cases"
# Masks of one call, (prompts, x, y, z) bytes; the network's own memory comes on top.
MOST_MASK_BYTES = 2**30

# What is being done, how much of everything is done (0 to 1), and seconds left; None where nobody can tell.
Progress = Callable[[str, float, float | None], None]


@dataclass(frozen=True)
class Probe:
    """What is asked of each case.

    Args:
        suites: which, in any order.
        wordings: paraphrases of each kind, and sentences, for each structure.
        structures: structures of a case at most, drawn by the seed; left and right come together.
        seed: of every choice.
    """

    suites: tuple[Suite, ...] = SUITES
    wordings: int = 2
    structures: int = 12
    seed: int = 0


def ask_with(segmenter: Segmenter, most_bytes: int = MOST_MASK_BYTES) -> Ask:
    """A model as the suites ask it: many prompts a call, as memory allows, and refusals told one by one."""
    refused: set[str] = set()

    def ask(volume: Volume, prompts: Sequence[str]) -> list[PackedMask | None]:
        readings = {text: _reading(segmenter, text) for text in prompts}
        asked = {reading: text for text, reading in reversed(readings.items()) if reading is not None}
        waiting = [text for text in asked.values() if text not in refused]
        together = max(1, most_bytes // math.prod(volume.geometry.shape))
        masks: dict[str, PackedMask] = {}
        for start in range(0, len(waiting), together):
            masks |= _answers(segmenter, volume, waiting[start : start + together], refused)
        return [
            None if (reading := readings[text]) is None else masks.get(asked[reading]) for text in prompts
        ]

    return ask


def choose_cases(dataset: Dataset, most: int, seed: int, patterns: Sequence[str] = ()) -> list[DatasetCase]:
    """Cases with all their files, at most so many, drawn by the seed; in the order of their ids.

    Args:
        patterns: take only cases whose id is like one of these ("STS_00?_CT"); all where there are none.

    Raises:
        DatasetError: there are no such cases, or no images.
    """
    whole = [case for case in dataset.cases if case.whole]
    check_probe_cases(dataset, whole)
    for pattern in patterns:
        if not any(fnmatchcase(case.id, pattern) for case in whole):
            raise DatasetError(
                f"No case of {dataset.name} with all its files is called {pattern!r}; there are "
                f"{len(whole)}, such as {whole[0].id}."
            )
    liked = [case for case in whole if not patterns or any(fnmatchcase(case.id, each) for each in patterns)]
    drawn = np.random.default_rng(seed).permutation(len(liked))[:most]
    return [liked[i] for i in sorted(drawn.tolist())]


def probe_cases(
    dataset: Dataset,
    cases: Sequence[DatasetCase],
    ask: Ask,
    probe: Probe,
    *,
    model: dict[str, Any] | None = None,
    folder: Path | None = None,
    progress: Progress = lambda stage, share, seconds_left: None,
) -> list[Observation]:
    """Run suites on cases, one after the other.

    Args:
        dataset, cases: see `choose_cases`.
        ask: see `ask_with`.
        probe: what is asked.
        model: what identifies it, for the record.
        folder: where each suite of each case is kept once it is done, under `cases`; another run with the
            same model, files and numbers goes on from there. Without a folder nothing is kept.
        progress: see `Progress`.

    Raises:
        ScanError, GeometryError, DatasetError: a case can't be read; see `read_scene`.
        OutputError: the folder can't be written to.
    """
    found: list[Observation] = []
    began, skipped = time.monotonic(), 0.0
    for index, case in enumerate(cases):
        record = _Record.of(case, probe, model, folder)
        left = tuple(suite for suite in probe.suites if suite not in record.suites)
        if left:
            stage = f"case {index + 1} of {len(cases)} ({case.id})"
            told = partial(_tell, progress, stage, index, len(cases), began, skipped)
            told("reading", 0.0)
            scene = read_scene(dataset, case, most_things=probe.structures, seed=probe.seed)
            done = probe_scene(scene, ask, left, probe.wordings, probe.seed, told)
            for suites, observations in done:
                record.add(suites, observations)
        else:
            skipped += 1
        found += [each for suite in SUITES if suite in probe.suites for each in record.suites[suite]]
    return found


def _reading(segmenter: Segmenter, text: str) -> str | None:
    """What a model is asked in the end, so that texts that it reads alike are asked once; None if refused.

    Our own networks see the canonical words alone (see `Segmenter`), those of others every text as it is.
    """
    try:
        (prompt,) = segmenter.model.read_prompts([text])
    except PromptError:
        return None
    return prompt.canonical if segmenter.model.kind == "textseg" else text


def _answers(
    segmenter: Segmenter, volume: Volume, prompts: Sequence[str], refused: set[str]
) -> dict[str, PackedMask]:
    """Masks by prompt.

    A model refuses a call for one prompt in it before it looks at the scan, so those that it does not take
    are found by halving, once for each text.
    """
    masks: dict[str, PackedMask] = {}
    waiting = [prompts]
    while waiting:
        part = waiting.pop()
        try:
            answer = segmenter(volume, part)
        except PromptError:
            if len(part) == 1:
                refused.add(part[0])
            else:
                waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
        else:
            masks |= {text: pack(mask) for text, mask in zip(part, answer.masks, strict=True)}
    return masks


def _tell(
    progress: Progress,
    case: str,
    index: int,
    of: int,
    began: float,
    skipped: float,
    stage: str,
    share: float,
) -> None:
    """Seconds left by what this run has done itself: cases of an earlier one took it no time."""
    done = index + share - skipped
    elapsed = time.monotonic() - began
    left = elapsed / done * (of - index - share) if done > 0.01 else None
    progress(f"{case}: {stage}", (index + share) / of, left)


# ---- what is kept of a case ----


@dataclass
class _Record:
    """The suites of a case that are done, on disk as soon as they are."""

    path: Path | None
    settings: dict[str, Any]
    suites: dict[Suite, list[Observation]]

    @classmethod
    def of(
        cls, case: DatasetCase, probe: Probe, model: dict[str, Any] | None, folder: Path | None
    ) -> _Record:
        """What an earlier run has kept, if it asked the same of the same."""
        settings = {
            "textseg": __version__,
            "model": model,
            "case": case.id,
            "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in case.files],
            **{name: value for name, value in asdict(probe).items() if name != "suites"},
        }
        path = folder / CASES / f"{case.id.replace('/', '_')}.json" if folder is not None else None
        return cls(path, settings, _kept(path, settings))

    def add(self, suites: Sequence[Suite], observations: Sequence[Observation]) -> None:
        for suite in suites:
            self.suites[suite] = [each for each in observations if each.suite == suite]
        if self.path is None:
            return
        document = {
            "format": CASE_FORMAT,
            "settings": self.settings,
            "suites": {suite: [_plain(each) for each in found] for suite, found in self.suites.items()},
        }
        try:
            write_bytes(self.path, (json.dumps(document, indent=1) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror or error}.") from error


def _kept(path: Path | None, settings: dict[str, Any]) -> dict[Suite, list[Observation]]:
    if path is None or not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        # Through JSON, as tuples come back as lists.
        if document["format"] != CASE_FORMAT or document["settings"] != json.loads(json.dumps(settings)):
            return {}
        return {suite: [_observation(each) for each in found] for suite, found in document["suites"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        # Not one of ours, or of another version: it is asked again.
        return {}


def _plain(observation: Observation) -> dict[str, Any]:
    values = asdict(observation)
    return {name: None if value != value else value for name, value in values.items()}


def _observation(values: dict[str, Any]) -> Observation:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
    return Observation(**known)
