"""What a model loses when a prompt is put otherwise or the scan is changed: suites of tests on one case.

Every test compares the Dice of an answer with the Dice of the answer to the canonical prompt on the scan as
it is; the difference is the drop. Where nothing is to be found, denying it counts 1 and a mask counts 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from textseg.prompts.lexicon import default_lexicon
from textseg.scores.distortions import (
    Distortion,
    at_spacings,
    cropped,
    crops,
    in_all_orders,
    mirrored,
    part_around,
    spacings_for,
    with_noise_or_contrast,
)
from textseg.scores.observations import SUITES, Observation, Question, Suite, judged, observe, volume_ml
from textseg.scores.overlap import PackedMask, around, pack
from textseg.scores.scenes import Scene, Thing
from textseg.scores.wordings import KINDS, sentences, wordings
from textseg.volume import Volume

# All that can be asked in one go beside the canonical prompts.
IN_WORDS: tuple[Suite, ...] = ("paraphrases", "absent", "sentences")

# Masks of prompts in a scan, in their order, on its grid; None for a prompt that is refused.
Ask = Callable[[Volume, Sequence[str]], Sequence[PackedMask | None]]
# Told what is being done, and how much of the case is done, 0 to 1.
CaseProgress = Callable[[str, float], None]
Answers = Mapping[str, PackedMask]

# A structure of which a crop shows less is not asked for there.
LEAST_SHOWN = 0.1


def probe_scene(
    scene: Scene,
    ask: Ask,
    suites: Collection[Suite],
    wordings_each: int,
    seed: int,
    progress: CaseProgress = lambda stage, share: None,
) -> Iterator[tuple[tuple[Suite, ...], list[Observation]]]:
    """Run suites on a case, the cheap ones first; the image is encoded once for all that are words alone.

    Args:
        scene: see `read_scene`.
        ask: the model.
        suites: which.
        wordings_each: at most so many paraphrases of a kind, and sentences, for each structure.
        seed: of paraphrases and noise.
        progress: see `CaseProgress`.

    Yields:
        Suites that are finished, and their observations.
    """
    costs = _costs(scene, suites)
    whole, spent = sum(costs.values()), 0.0
    in_words = tuple(suite for suite in SUITES if suite in suites and suite in IN_WORDS)
    progress("canonical prompts and other words", 0.0)
    canonical, observations = _ask_in_words(scene, ask, in_words, wordings_each, seed)
    yield in_words, observations
    spent += costs["words"]
    for suite in (suite for suite in SUITES if suite in suites and suite not in IN_WORDS):
        told = partial(_tell, progress, suite, spent / whole, costs[suite] / whole)
        told(0.0)
        yield (suite,), _IMAGE_SUITES[suite](scene, ask, canonical, seed, told)
        spent += costs[suite]
    progress("done", 1.0)


def _tell(progress: CaseProgress, stage: str, before: float, width: float, share: float) -> None:
    progress(stage, before + width * share)


def _costs(scene: Scene, suites: Collection[Suite]) -> dict[str, float]:
    """What each suite costs beside one pass over the scan: networks work on millimetres, not on voxels."""
    costs = {"laterality": 1.0, "spacing": float(len(spacings_for(scene.volume.geometry)))}
    costs |= {"noise": 5.0, "crops": 1.7, "orientation": 48.0 * _part_share(scene)}
    return {"words": 1.0, **{suite: costs[suite] for suite in suites if suite in costs}}


def _part_share(scene: Scene) -> float:
    grid = scene.volume.geometry
    part = part_around(grid, [n // 2 for n in grid.shape])
    return math.prod(part.shape) / math.prod(grid.shape)


# ---- in other words ----


def _ask_in_words(
    scene: Scene, ask: Ask, suites: Collection[Suite], wordings_each: int, seed: int
) -> tuple[Answers, list[Observation]]:
    """The canonical answers, and what other words gave; one call, so that the image is encoded once."""
    questions = list(_questions_in_words(scene, suites, wordings_each, seed))
    texts = [thing.words for thing in scene.things] + [question.prompt for question in questions]
    answers = ask(scene.volume, texts)
    grid, count = scene.volume.geometry, len(scene.things)
    canonical = {
        thing.name: judged(mask, scene.ignored, grid)
        for thing, mask in zip(scene.things, answers[:count], strict=True)
    }
    observations = [
        observe(scene.case, question, mask, canonical.get(question.structure), grid, scene.ignored)
        for question, mask in zip(questions, answers[count:], strict=True)
    ]
    return canonical, observations


def _questions_in_words(
    scene: Scene, suites: Collection[Suite], wordings_each: int, seed: int
) -> Iterator[Question]:
    if "paraphrases" in suites:
        for thing in scene.things:
            for kind in KINDS:
                random = scene.random(seed, kind, thing.name)
                for text in wordings(thing.label, kind, wordings_each, random):
                    yield Question("paraphrases", kind, thing.name, text, thing.reference)
    if "sentences" in suites:
        for thing in scene.things:
            random = scene.random(seed, "sentences", thing.name)
            for text in sentences(thing.label, wordings_each, random):
                yield Question("sentences", "new sentence", thing.name, text, thing.reference)
        for said in scene.said:
            what = (said.text, said.reference, said.thing.reference)
            yield Question("sentences", "the dataset's own", said.thing.name, *what)
    if "absent" in suites:
        for missing in scene.missing:
            yield Question("absent", missing.test, missing.words, missing.words, None)


# ---- left and right ----


def _laterality(
    scene: Scene, ask: Ask, canonical: Answers, seed: int, told: Callable[[float], None]
) -> list[Observation]:
    return [*_sides(scene, canonical), *_mirror(scene, ask, canonical)]


def _sides(scene: Scene, canonical: Answers) -> Iterator[Observation]:
    """What asking for a side costs: Dice of both sides' masks together, against that of the side alone.

    With left and right exchanged, or both given for either, the two masks together are right and each is not.
    """
    by_words = {thing.words: thing for thing in scene.things}
    for thing in scene.things:
        other = by_words.get(thing.meaning.mirrored(default_lexicon()) or "")
        if other is not None:
            mine, theirs = canonical[thing.name], canonical[other.name]
            both = pack(mine.whole() | theirs.whole())
            both_reference = pack(thing.reference.whole() | other.reference.whole())
            yield Observation(
                "laterality",
                "the side that is asked",
                scene.case,
                thing.name,
                thing.words,
                both.overlap(both_reference).dice,
                mine.overlap(thing.reference).dice,
                predicted_ml=volume_ml(mine, scene.volume.geometry),
            )


def _mirror(scene: Scene, ask: Ask, canonical: Answers) -> Iterator[Observation]:
    """In a mirrored scan the left kidney lies where the right one was, and is to be found there."""
    prompts = {thing.name: thing.meaning.mirrored(default_lexicon()) for thing in scene.things}
    sided = {name: words for name, words in prompts.items() if words is not None}
    things = [thing for thing in scene.things if thing.name in sided]
    yield from _distorted(scene, ask, "laterality", mirrored(scene.volume), things, canonical, sided)


# ---- changed scans ----


def _orientation(
    scene: Scene, ask: Ask, canonical: Answers, seed: int, told: Callable[[float], None]
) -> list[Observation]:
    """A part of the scan in every order of its axes, against the same part in canonical order."""
    if not scene.things:
        return []
    best = max(scene.things, key=lambda thing: canonical[thing.name].overlap(thing.reference).dice)
    box = best.reference.box
    middle = [(a + b) // 2 for a, b in zip(box.start, box.stop, strict=True)]
    part = cropped(scene.volume, part_around(scene.volume.geometry, middle), "part")
    carried = [replace(each, reference=pack(part.carry(each.reference.whole()))) for each in scene.things]
    inner = replace(
        scene,
        volume=part.volume,
        things=tuple(each for each in carried if each.reference.voxels),
        ignored=None if scene.ignored is None else part.carry(scene.ignored),
    )
    answers, _ = _ask_in_words(inner, ask, (), 0, seed)
    found: list[Observation] = []
    for done, turned in enumerate(in_all_orders(part.volume), start=1):
        found += _distorted(inner, ask, "orientation", turned, inner.things, answers)
        told(done / 47)
    return found


def _spacing(
    scene: Scene, ask: Ask, canonical: Answers, seed: int, told: Callable[[float], None]
) -> list[Observation]:
    count = len(spacings_for(scene.volume.geometry))
    return _all_distorted(scene, ask, "spacing", at_spacings(scene.volume), canonical, count, told)


def _noise(
    scene: Scene, ask: Ask, canonical: Answers, seed: int, told: Callable[[float], None]
) -> list[Observation]:
    changed = with_noise_or_contrast(scene.volume, scene.random(seed, "noise"))
    return _all_distorted(scene, ask, "noise", changed, canonical, 5, told)


def _crops(
    scene: Scene, ask: Ask, canonical: Answers, seed: int, told: Callable[[float], None]
) -> list[Observation]:
    box = around(thing.reference.box for thing in scene.things)
    if box is None:
        return []
    return _all_distorted(scene, ask, "crops", crops(scene.volume, box), canonical, 3, told)


_IMAGE_SUITES: Mapping[
    Suite, Callable[[Scene, Ask, Answers, int, Callable[[float], None]], list[Observation]]
] = {
    "laterality": _laterality,
    "orientation": _orientation,
    "spacing": _spacing,
    "noise": _noise,
    "crops": _crops,
}


def _all_distorted(
    scene: Scene,
    ask: Ask,
    suite: Suite,
    changed: Iterator[Distortion],
    canonical: Answers,
    count: int,
    told: Callable[[float], None],
) -> list[Observation]:
    found: list[Observation] = []
    for done, distortion in enumerate(changed, start=1):
        found += _distorted(scene, ask, suite, distortion, scene.things, canonical)
        told(done / count)
    return found


def _distorted(
    scene: Scene,
    ask: Ask,
    suite: Suite,
    distortion: Distortion,
    things: Sequence[Thing],
    canonical: Answers,
    prompts: Mapping[str, str] | None = None,
) -> Iterator[Observation]:
    """Ask for things in a changed scan; the canonical answer is brought there too, so that cuts are fair."""
    grid = distortion.volume.geometry
    questions, before = [], []
    for thing in things:
        reference = pack(distortion.carry(thing.reference.whole()))
        shown = volume_ml(reference, grid)
        if reference.voxels and shown >= LEAST_SHOWN * volume_ml(thing.reference, scene.volume.geometry):
            words = (prompts or {}).get(thing.name, thing.words)
            questions.append(Question(suite, distortion.test, thing.name, words, reference))
            before.append(pack(distortion.carry(canonical[thing.name].whole())))
    if not questions:
        return
    ignored = None if scene.ignored is None else distortion.carry(scene.ignored)
    answers = ask(distortion.volume, [question.prompt for question in questions])
    for question, was, mask in zip(questions, before, answers, strict=True):
        yield observe(scene.case, question, mask, was, grid, ignored)
