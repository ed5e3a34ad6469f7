"""The committed recipe: from training arrays to weights, in one call that can be cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from textseg.device import Compute, describe_device
from textseg.embeddings.choice import load_text_encoder
from textseg.embeddings.encoder import TextEncoder, load_own_encoder
from textseg.embeddings.tower import load_tower
from textseg.errors import DatasetError
from textseg.network.build import TextPromptedNetwork, count_parameters
from textseg.network.weights import save_network
from textseg.plan import PLAN_FILE, Plan, read_plan, write_plan
from textseg.prompts import Lexicon
from textseg.train.card import write_card
from textseg.train.cases import read_index, read_place, read_words
from textseg.train.continued import Round, rounds_in_words
from textseg.train.distributed import here
from textseg.train.evaluate import Score, evaluate
from textseg.train.lesson import number_type
from textseg.train.loop import Beginning, Step, Trained, fresh, train
from textseg.train.mirror import Mirror
from textseg.train.sampling import PatchSampler
from textseg.train.stream import SampleStream
from textseg.train.validation import HeldBack
from textseg.train.words import target_vectors

INTRODUCTION_FILE = "card_introduction.md"
PLAIN_INTRODUCTION = """# Model card: textseg {facts[name]}

{facts[summary]}

**Intended use** research and annotation. Not a medical device, not for diagnosis or treatment: look at every
mask.

**Network** {facts[parameters_millions]:.1f} M parameters, and {facts[text]}.
The plan beside this card owns every number.

**Training** {facts[steps]} steps of {facts[batch]} patches of {facts[patch]} voxels with
{facts[prompts_per_sample]} prompts each, seed {facts[seed]}, on {facts[device]}, {facts[hours]:.1f} hours.
"""


def run_recipe(
    plan: Plan,
    model: Path,
    arrays: Path,
    run: Path,
    lexicon: Lexicon,
    device: torch.device,
    *,
    begin: Callable[[Plan], Beginning] = fresh,
    minutes: float = math.inf,
    workers: int = 1,
    report: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train the plan's network on gathered arrays, or go on from where `run` stopped.

    Where the plan says so, the network is scored on held-back cases while it learns, and the best comes out.
    Processes that have joined one world (`textseg.train.distributed`) call this together and see one `run`.

    Args:
        plan: with its training section, which is the recipe.
        model: the model's folder, whose text tower gives the prompts' vectors; it stays as it is.
        arrays: from `textseg.train.gather`.
        run: folder of the run's plan, state and log.
        begin: what the run begins with: fresh weights, or trained ones to go on from.
        minutes: stop after this long.
        workers: processes that draw samples, for each that trains.
        report: called after every step, in the first process.

    Raises:
        DatasetError: the run was begun with another plan, or its arrays hold nothing that the plan trains on.
    """
    world = here(device)
    with world.first_goes_first():
        _keep_plan(plan, run)
    stream = make_stream(plan, model, arrays, lexicon)
    held_back = None
    if world.is_first and plan.training.validate_every:
        compute = Compute(device, number_type(device))
        held_back = HeldBack(arrays, stream.vectors, plan, lexicon, compute)
    return train(
        plan,
        stream,
        run,
        device,
        begin=begin,
        minutes=minutes,
        workers=workers,
        validate=held_back if held_back and held_back.regions else None,
        world=world,
        report=report,
    )


def _keep_plan(plan: Plan, run: Path) -> None:
    """A run's state means nothing under another plan: keep the plan beside it, and refuse another one."""
    path = run / PLAN_FILE
    run.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_plan(plan, path)
    elif read_plan(path) != plan.model_copy(update={"extends": None}):
        raise DatasetError(
            f"A run goes on with the plan that it was begun with, but {path} is another one. "
            "Give a new run folder."
        )


def encoder_of(model: Path, plan: Plan) -> TextEncoder:
    """The text encoder that a plan trains with; our own tower's vectors come straight from it, not from disk.

    Raises:
        ModelError: its files are missing or damaged, or its vectors have not the width of the plan.
    """
    if plan.text.encoder is None:
        return load_own_encoder(model, plan.text)
    return load_text_encoder(model, plan.text)


def make_stream(plan: Plan, model: Path, arrays: Path, lexicon: Lexicon) -> SampleStream:
    """The recipe's endless but fixed sequence of samples."""
    recipe = plan.training
    places = [read_place(facts, arrays) for facts in read_index(arrays) if facts.split == "train"]
    sampler = PatchSampler(places, plan, lexicon, read_words(arrays))
    encoder = encoder_of(model, plan)
    vectors = target_vectors(sampler.targets(), encoder, lexicon, recipe.seed, own_words=sampler.words)
    return SampleStream(sampler, vectors, recipe.seed, recipe.steps * recipe.batch)


def save_model(
    network: TextPromptedNetwork, plan: Plan, model: Path, step: int, licence: str | None = None
) -> None:
    """Put a trained network's weights into its model's folder."""
    save_network(network, model, weights_metadata(plan, step, licence))


def weights_metadata(plan: Plan, step: int, licence: str | None = None) -> dict[str, str]:
    """What a file of weights tells: its plan, how long it was trained, and its licence if that is known."""
    told = {"plan": plan.name, "steps": str(step), "seed": str(plan.training.seed)}
    return told if licence is None else {**told, "license": licence}


def write_scored_card(
    trained: Trained,
    plan: Plan,
    model: Path,
    arrays: Path,
    lexicon: Lexicon,
    compute: Compute,
    *,
    introduction: Path | None = None,
    rounds: Sequence[Round] = (),
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Score]:
    """Score a trained network on the held-back cases and write its model's card from it.

    Args:
        model: the model's folder, with its text tower.
        introduction: Markdown to stand first in the card, with the run's facts as `{facts[...]}`; a plain one
            without it.
        rounds: of training behind these weights, this one last.
        progress: called with the held-back cases scored and all of them.
    """
    encoder = encoder_of(model, plan)
    index = read_index(arrays)
    targets = [target for entry in index for target, _ in entry.targets]
    words = read_words(arrays)
    mirror = Mirror(targets, lexicon, words)
    mirrored = {target: other for target, other in mirror.names.items() if other is not None}
    vectors = target_vectors(
        [*targets, *mirrored.values()],
        encoder,
        lexicon,
        plan.training.seed,
        paraphrases=0,
        own_words={**words, **mirror.words},
    )
    held_back = sum(entry.split == "validation" for entry in index)
    scores: list[Score] = []
    seen: set[str] = set()
    for score in evaluate(trained.network, vectors, arrays, plan, compute, mirrored=mirrored):
        scores.append(score)
        seen.add(score.case)
        progress(len(seen), held_back)
    text = PLAIN_INTRODUCTION if introduction is None else introduction.read_text(encoding="utf-8")
    write_card(text, scores, plan, lexicon, _facts(trained, plan, model, compute, rounds), model)
    return scores


def _facts(
    trained: Trained, plan: Plan, model: Path, compute: Compute, rounds: Sequence[Round]
) -> dict[str, Any]:
    recipe = plan.training
    return {
        "rounds": rounds_in_words(rounds),
        "name": plan.name,
        "summary": plan.summary,
        "steps": trained.steps,
        "best_step": None if trained.best is None else trained.best.step,
        "validation_dice": None if trained.best is None else trained.best.dice,
        "hours": trained.seconds / 3600,
        "device": describe_device(compute.device),
        "parameters_millions": count_parameters(trained.network) / 1e6,
        "text": _text_in_words(model, plan),
        "text_parameters_millions": _tower_millions(model, plan),
        "batch": recipe.batch,
        "patch": " × ".join(map(str, recipe.patch_voxels)),
        "prompts_per_sample": recipe.prompts_per_sample,
        "sharing_prompts": recipe.sharing_prompts,
        "seed": recipe.seed,
    }


def _text_in_words(model: Path, plan: Plan) -> str:
    if plan.text.encoder is not None:
        return f"the text encoder {plan.text.encoder.source}"
    return f"a text tower of {_tower_millions(model, plan):.1f} M"


def _tower_millions(model: Path, plan: Plan) -> float:
    """Of our own tower; 0 where another project's encoder is in its place."""
    return 0.0 if plan.text.encoder else count_parameters(load_tower(model, plan.text)) / 1e6
