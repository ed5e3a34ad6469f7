"""`textseg models`: which models there are and what each of them knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen

if TYPE_CHECKING:
    from textseg.models import ModelFolder

models = typer.Typer(help="List models and what each knows.")


@models.callback(invoke_without_command=True)
@plain_errors()
def list_models(context: typer.Context) -> None:
    """List the models on this machine and what each knows; `textseg models show NAME` says more."""
    if context.invoked_subcommand is not None:
        return
    from textseg.models import fetched_models, shipped_models

    screen = Screen()
    here = [*shipped_models(), *fetched_models()]
    if not here:
        screen.lines(["No model has its weights here. Give predict the folder of one with --model PATH."])
        return
    rows = [
        (
            model.name,
            _groups(model),
            f"{_size_mb(model):.1f}",
            model.summary,
        )
        for model in here
    ]
    screen.table("Models", ("Name", "Groups", "MB", "What it is for"), rows)


@models.command()
@plain_errors()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model by name, or its folder.")],
    structures: Annotated[
        bool, typer.Option("--structures", help="List the structures and findings that it knows by name.")
    ] = False,
) -> None:
    """Show a model's card and what it knows.

    A model takes any prompt. Listed are the groups that it has a working
    spacing for, and how many names the lexicon has for things in each.
    """
    from textseg.models import find_model
    from textseg.prompts import default_lexicon

    screen = Screen()
    model = find_model(name)
    if model.kind == "voxtell":
        _show_voxtell(screen, model, structures)
        return
    if model.kind == "nnunet":
        _show_nnunet(screen, model)
        return
    lexicon = default_lexicon()
    rows = [
        (group, " × ".join(f"{mm:g}" for mm in part.spacing_mm), str(len(lexicon.concepts_in(group))))
        for group, part in model.plan.groups.items()
    ]
    screen.facts(model.name, _facts(model))
    screen.table("What it knows", ("Group", "Working spacing (mm)", "Structures and findings"), rows)
    if structures:
        for group in model.plan.groups:
            screen.lines(["", f"{group}:", *(f"  {concept.name}" for concept in lexicon.concepts_in(group))])
    else:
        screen.markdown(model.card)


def _show_nnunet(screen: Screen, model: ModelFolder) -> None:
    from textseg.network.nnunet_folder import read_nnunet_folder

    folder = read_nnunet_folder(model.path)
    facts = {
        "summary": model.summary,
        "folder": str(model.path),
        "size": f"{_size_mb(model):.1f} MB",
        "licence": model.licence or "not told",
        "channels": ", ".join(folder.channels),
        "folds": ", ".join(path.parent.name for path in folder.checkpoints),
        "labels": ", ".join(folder.labels),
    }
    screen.facts(model.name, facts)


def _show_voxtell(screen: Screen, model: ModelFolder, bank_too: bool) -> None:
    from textseg.network.voxtell.plan import find_bank, read_voxtell_plan
    from textseg.network.voxtell.text import bank_labels

    bank = find_bank(model.path)
    labels = bank_labels(bank) if bank else []
    window = " × ".join(str(n) for n in read_voxtell_plan(model.path).patch_size)
    facts = {
        "summary": model.summary,
        "folder": str(model.path),
        "size": f"{_size_mb(model):.1f} MB",
        "licence": model.licence or "not told",
        "window": f"{window} voxels (z, y, x), at the scan's own spacing",
        "prompts": f"{len(labels):,} with ready text vectors; any others with the language model it was "
        "trained with",
    }
    screen.facts(model.name, facts)
    if bank_too:
        screen.lines(["", "Ready text vectors:", *(f"  {label}" for label in labels)])


def _facts(model: ModelFolder) -> dict[str, str]:
    plan = model.plan
    return {
        "summary": plan.summary,
        "folder": str(model.path),
        "size": f"{_size_mb(model):.1f} MB",
        "licence": model.licence or "see the card",
        "channels": ", ".join(plan.channels),
        "modalities": ", ".join(modality.upper() for modality in plan.intensity),
        "reports": f"what it is at least {plan.masks.presence:.0%} sure of",
    }


def _groups(model: ModelFolder) -> str:
    if model.kind == "textseg":
        return ", ".join(model.plan.groups)
    return "any words" if model.kind == "voxtell" else "its labels"


def _size_mb(model: ModelFolder) -> float:
    return model.size_bytes / 1e6
