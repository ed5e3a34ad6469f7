"""`textseg models`: which models there are and what each of them knows."""

from __future__ import annotations

from pathlib import Path
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
    """List the models that ship with textseg and what each knows; `textseg models show NAME` says more."""
    if context.invoked_subcommand is not None:
        return
    from textseg.models import shipped_models

    screen = Screen()
    shipped = shipped_models()
    if not shipped:
        screen.lines(["No model has its weights here. Give predict the folder of one with --model PATH."])
        return
    rows = [
        (model.name, ", ".join(model.plan.groups), f"{_size_mb(model):.1f}", model.plan.summary)
        for model in shipped
    ]
    screen.table("Models", ("Name", "Groups", "MB", "What it is for"), rows)


@models.command()
@plain_errors()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model by name, or its folder.")],
    structures: Annotated[
        bool, typer.Option("--structures", help="List the structures and findings of its groups.")
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


def _facts(model: ModelFolder) -> dict[str, str]:
    plan = model.plan
    return {
        "summary": plan.summary,
        "folder": str(model.path),
        "size": f"{_size_mb(model):.1f} MB",
        "channels": ", ".join(plan.channels),
        "modalities": ", ".join(modality.upper() for modality in plan.intensity),
        "reports": f"what it is at least {plan.masks.presence:.0%} sure of",
    }


def _size_mb(model: ModelFolder) -> float:
    from textseg.models import WEIGHTS_FILES

    return sum(Path(model.path / name).stat().st_size for name in WEIGHTS_FILES) / 1e6
