"""From a run to a model's folder, which predicts on machines that have neither the run nor its dataset.

A model's folder holds the weights, the plan, the text tower with its vocabulary, `taught.json` with what
the model was taught to find and in whose words, `rounds.json` with how long it was trained, and the card. A
run's folder keeps all of these too, beside its state, so that a model can be made from it at any time.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from textseg.atomic import write_bytes
from textseg.device import Compute, describe_device
from textseg.embeddings.tower import WEIGHTS_FILE as TOWER_FILE
from textseg.embeddings.vocabulary import VOCABULARY_FILE
from textseg.errors import DatasetError, ModelError, OutputError, PlanError
from textseg.models import CARD_FILE, TAUGHT_FILE
from textseg.network.build import TextPromptedNetwork, build_network
from textseg.network.weights import NETWORK_FILE, file_hash
from textseg.plan import PLAN_FILE, Plan, read_plan, write_plan
from textseg.prompts import Lexicon
from textseg.safe_loading import load_safetensors
from textseg.safe_saving import save_tensors
from textseg.train.card import SCORES_FILE
from textseg.train.cases import CaseFacts, Target, Words, read_index, read_words
from textseg.train.checkpoint import BEST_FILE, STATE_FILE, find_best
from textseg.train.continued import Round, rounds_of, write_rounds
from textseg.train.finetune import add_low_rank, merge_low_rank
from textseg.train.loop import Trained
from textseg.train.recipe import save_model, weights_metadata, write_scored_card

TAUGHT_FORMAT = "textseg-taught-1"
# In a run's folder: the licence that its weights are to be under; missing where nobody said.
LICENCE_FILE = "licence.txt"
# The run's note of the model that it wrote, to know it again.
WRITTEN_FILE = "written.json"
UNSCORED_CARD = """# Model card: textseg {name}

{summary}

**Intended use** research and annotation. Not a medical device, not for diagnosis or treatment: look at every
mask.

**Training** {steps} of {of} steps; the weights are the average at step {step}. The plan beside this card owns
every number.

This model was taken out of a run and has not been scored on held-back cases.
"""


@dataclass(frozen=True)
class RunPlaces:
    """The folders of a run: of the model that it makes, of its state, of its cases, of the text tower.

    licence: what the model's weights are to be under, such as "CC BY 4.0"; None where nobody said.
    """

    model: Path
    run: Path
    arrays: Path
    text: Path
    licence: str | None = None


def check_model_place(places: RunPlaces, *, overwrite: bool, own_plan: Path | None = None) -> None:
    """Refuse to replace a model that is there, unless this run wrote it.

    Args:
        own_plan: the folder of the plan that is trained; in it the plan is no part of another model.

    Raises:
        OutputError: there is one.
    """
    if overwrite or _is_written_by(places.run, places.model):
        return
    plan_is_own = own_plan is not None and own_plan.resolve() == places.model.resolve()
    _refuse_existing(places.model, (NETWORK_FILE,) if plan_is_own else (NETWORK_FILE, PLAN_FILE))


def _refuse_existing(model: Path, names: Sequence[str]) -> None:
    there = [name for name in names if (model / name).exists()]
    if there:
        raise OutputError(
            f"A model is never replaced unasked, but {model} already holds {' and '.join(there)}. "
            "Use --overwrite or another folder."
        )


def text_files(plan: Plan) -> tuple[str, ...]:
    """What a model keeps of its text side: with another project's encoder, neither tower nor vocabulary."""
    return () if plan.text.encoder else (TOWER_FILE, VOCABULARY_FILE)


def keep_beside(places: RunPlaces, plan: Plan) -> None:
    """Put text tower, licence, and what the cases teach into the run's folder, so that it can be exported."""
    for name in text_files(plan):
        _write_unless_same(places.run / name, (places.text / name).read_bytes())
    _write_unless_same(places.run / TAUGHT_FILE, taught_document(places.arrays))
    if places.licence:
        _write_unless_same(places.run / LICENCE_FILE, f"{places.licence}\n".encode())


def write_trained(
    trained: Trained,
    plan: Plan,
    places: RunPlaces,
    lexicon: Lexicon,
    compute: Compute,
    *,
    introduction: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> None:
    """Write a run's model; where all of its steps are done, score the held-back cases and write the card.

    Args:
        introduction: as for `write_scored_card`.
        progress: called while cases are scored.
    """
    network = merge_low_rank(trained.network)
    if not _is_written_by(places.run, places.model):
        # What was measured on another model's weights says nothing of these.
        for name in (CARD_FILE, SCORES_FILE):
            (places.model / name).unlink(missing_ok=True)
    _write_beside(places.model, plan, places.run)
    save_model(network, plan, places.model, trained.steps, _licence(places.run))
    here = describe_device(compute.device)
    last = Round(trained.steps, round(trained.seconds / 3600, 2), here, date.today().isoformat())
    rounds = rounds_of(places.run, last)
    write_rounds(rounds, places.model)
    written = {"sha256": file_hash(places.model / NETWORK_FILE)}
    write_bytes(places.run / WRITTEN_FILE, json.dumps(written).encode())
    if trained.steps < plan.training.steps:
        return
    write_scored_card(
        replace(trained, network=network),
        plan,
        places.model,
        places.arrays,
        lexicon,
        compute,
        introduction=introduction,
        rounds=rounds,
        progress=lambda done, of: progress("scoring held-back cases", done, of),
    )
    for name in (CARD_FILE, SCORES_FILE):
        write_bytes(places.run / name, (places.model / name).read_bytes())


def export_run(
    run: Path, model: Path, *, last: bool = False, float32: bool = False, overwrite: bool = False
) -> int:
    """Make a model's folder from a run that has ended or was stopped; gives the steps that it has done.

    The weights are the run's best average where it was validated, else its last one. The card is the run's
    where all steps are done and these weights were scored; else it says that nothing was measured.

    Args:
        last: the last average even where another did better.
        float32: keep the weights as they were trained; else they are rounded to float16, half as large.
        overwrite: replace a model that is there.

    Raises:
        DatasetError: the folder is no run, or lacks something that a model needs.
        ModelError: the state's weights do not fit the run's plan.
        OutputError: the model's folder holds a model, or can't be written to.
    """
    if not overwrite:
        _refuse_existing(model, (NETWORK_FILE, PLAN_FILE))
    kept = _kept(run, last=last)
    network = merge_low_rank(_network(kept.plan, kept.weights, run))
    try:
        _write_beside(model, kept.plan, run)
        if float32:
            metadata = weights_metadata(kept.plan, kept.steps, _licence(run))
            save_tensors(_as_float32(network.state_dict()), metadata, model / NETWORK_FILE)
        else:
            save_model(network, kept.plan, model, kept.steps, _licence(run))
        _write_card(run, model, kept)
    except OSError as error:
        raise OutputError(f"{model} can't be written to: {error.strerror or error}.") from error
    return kept.steps


def _licence(run: Path) -> str | None:
    path = run / LICENCE_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def taught(arrays: Path) -> dict[Target, tuple[str, ...]]:
    """What a folder of arrays teaches, and a dataset's own words for it, the plainest first; often none.

    Sentences of single cases are left out: they are about patients, not about a label.
    """
    index, words = read_index(arrays), read_words(arrays)
    every = {target for facts in index for target, _ in facts.targets if not _is_sentence(target, facts)}
    return {target: words.get(target, ()) for target in sorted(every, key=lambda target: target.key)}


def taught_document(arrays: Path) -> bytes:
    """`taught.json` for a folder of arrays: one line a thing that can be asked for."""
    return _as_document(taught(arrays))


def read_taught(folder: Path) -> dict[Target, tuple[str, ...]]:
    """What a model was taught to find, with its own words; nothing for a model that does not say.

    Raises:
        ModelError: the file is there and can't be read.
    """
    path = folder / TAUGHT_FILE
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["taught"]
        return {
            Target(entry["structure"], entry["finding"], entry["own"]): tuple(entry["words"])
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} lists what the model was taught, but it can't be read ({error}). Export it again."
        ) from error


def _as_document(words: Words) -> bytes:
    lines = [
        json.dumps({**asdict(target), "words": list(texts)}, ensure_ascii=False)
        for target, texts in words.items()
    ]
    body = ",\n  ".join(lines)
    return f'{{\n "format": "{TAUGHT_FORMAT}",\n "taught": [\n  {body}\n ]\n}}\n'.encode()


def _is_sentence(target: Target, facts: CaseFacts) -> bool:
    return target.own is not None and target.own.startswith(f"{facts.name}: ")


def _write_beside(model: Path, plan: Plan, run: Path) -> None:
    """What weights need beside them, from the run's folder; files that are the same already stay."""
    plan = plan.model_copy(update={"extends": None})
    model.mkdir(parents=True, exist_ok=True)
    if not _is_plan(model, plan):
        write_plan(plan, model / PLAN_FILE)
    for name in (*text_files(plan), TAUGHT_FILE):
        if not (run / name).is_file():
            raise DatasetError(
                f"A run keeps {name} for its model, but {run} has none. Run its training again."
            )
        _write_unless_same(model / name, (run / name).read_bytes())


def _is_plan(folder: Path, plan: Plan) -> bool:
    try:
        return read_plan(folder).model_copy(update={"extends": None}) == plan
    except PlanError:
        return False


def _write_unless_same(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)


def _is_written_by(run: Path, model: Path) -> bool:
    """Whether the weights in the model's folder are the last that this run wrote."""
    try:
        written = json.loads((run / WRITTEN_FILE).read_text(encoding="utf-8"))
        return bool(written["sha256"] == file_hash(model / NETWORK_FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True, eq=False)
class _Kept:
    """What a run keeps: plan, averaged weights, their step, the steps done, whether its card is of them."""

    plan: Plan
    weights: Mapping[str, Tensor]
    step: int
    steps: int
    scored: bool


def _kept(run: Path, *, last: bool) -> _Kept:
    for name in (PLAN_FILE, STATE_FILE):
        if not (run / name).is_file():
            hint = f" Did you mean {run}.run?" if Path(f"{run}.run").is_dir() else ""
            raise DatasetError(
                f"A run's folder holds {PLAN_FILE} and {STATE_FILE}, but {run} has no {name}.{hint}"
            )
    try:
        state = torch.load(run / STATE_FILE, map_location="cpu", weights_only=True)
        plan, weights, steps = read_plan(run), state["averaged"], int(state["step"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise DatasetError(
            f"{run / STATE_FILE} holds a run's state, but it can't be read: {reason}."
        ) from error
    best = find_best(run)
    ended = steps == plan.training.steps and (run / CARD_FILE).is_file()
    if best is None or last:
        return _Kept(plan, weights, steps, steps, ended and best is None)
    return _Kept(plan, load_safetensors(run / BEST_FILE), best.step, steps, ended)


def _network(plan: Plan, weights: Mapping[str, Tensor], run: Path) -> TextPromptedNetwork:
    """The plan's network with these weights, and with the low-rank additions that they speak of."""
    network = build_network(plan)
    ranks = [
        len(tensor) for name, tensor in weights.items() if name.endswith("parametrizations.weight.0.into")
    ]
    if ranks:
        add_low_rank(network, max(ranks))
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ModelError(f"A run's weights fit its plan, but those in {run} do not: {error}.") from error
    return network.eval()


def _as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous()
        for name, tensor in weights.items()
    }


def _write_card(run: Path, model: Path, kept: _Kept) -> None:
    if kept.scored:
        for name in (CARD_FILE, SCORES_FILE):
            write_bytes(model / name, (run / name).read_bytes())
        return
    (model / SCORES_FILE).unlink(missing_ok=True)
    plan = kept.plan
    text = UNSCORED_CARD.format(
        name=plan.name, summary=plan.summary, step=kept.step, steps=kept.steps, of=plan.training.steps
    )
    write_bytes(model / CARD_FILE, text.encode())
