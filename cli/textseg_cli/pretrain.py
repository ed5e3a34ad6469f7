"""`textseg pretrain`: from scans without labels to an encoder that training starts from."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from textseg_cli.encoder import Encoder, encoder_told
from textseg_cli.exits import plain_errors
from textseg_cli.output import Screen
from textseg_cli.predict import Device, ModalityChoice

if TYPE_CHECKING:
    from textseg.plan import Plan
    from textseg.train.masked import MaskedAutoencoder
    from textseg.train.pretrain import PretrainingStep
    from textseg.volume import Modality


# A folder of label maps beside the scans would fill the screen.
MOST_WARNINGS = 5


@plain_errors()
def pretrain(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Scans of any format, in folders as they are; no labels."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The encoder and its picture.")],
    plan: Annotated[
        str, typer.Option("--plan", help="A plan's folder or file, or the name of a shipped one.")
    ] = "default",
    group: Annotated[
        str | None, typer.Option(help="Whose voxel size is taken; the plan's default group if not given.")
    ] = None,
    modality: Annotated[
        ModalityChoice, typer.Option(help="Of all scans; told by each scan where it is auto.")
    ] = ModalityChoice.AUTO,
    encoder: Encoder = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 5000,
    run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Prepared scans, state and log; OUT.run by default."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so long; the same command goes on.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
) -> None:
    """Teach an encoder what scans look like, without any label.

    Blocks of each patch are hidden and painted from the rest. For people with
    many scans and few labels: `textseg train --encoder OUT` starts from the
    result. One scan in ten is held back; OUT has a picture of some of them.
    """
    from textseg.destination import Destination
    from textseg.device import choose_compute
    from textseg.train.pretrain import pretrain as pretrain_on
    from textseg.train.pretrain import pretraining_plan, save_pretrained
    from textseg.train.start import put_into, read_encoder_weights
    from textseg.train.unlabelled import INDEX_FILE, prepare_scans

    screen = Screen()
    kind = None if modality is ModalityChoice.AUTO else cast("Modality", modality.value)
    run = run or out.with_name(f"{out.name}.run")
    chosen = pretraining_plan(_read(plan, group), steps)
    compute = choose_compute(device.value)
    for place in (out, run):
        Destination(place).check_folder()
    weights = read_encoder_weights(encoder) if encoder else None
    with screen.progress() as progress:
        scans = prepare_scans(
            folder,
            run / "scans",
            chosen,
            group=group,
            modality=kind,
            workers=os.cpu_count() or 1,
            progress=lambda done, of: progress("preparing scans", done, of),
        )
        for path, reason in scans.skipped[:MOST_WARNINGS]:
            screen.warning(f"{path} is left out: {reason}")
        if more := len(scans.skipped[MOST_WARNINGS:]):
            screen.warning(f"{more} more are left out; {run / 'scans' / INDEX_FILE} says why.")

        def report(step: PretrainingStep) -> None:
            progress(f"loss {step.loss:.3f}, {_words(step.left_s)} left", step.number, step.of)

        def begin(network: MaskedAutoencoder) -> None:
            if weights is not None:
                encoder_told(screen, run)(put_into(weights, network))

        pretrained = pretrain_on(
            chosen,
            scans.paths,
            run,
            compute.device,
            begin=begin,
            minutes=math.inf if minutes is None else minutes,
            report=report,
        )
        save_pretrained(pretrained, chosen, out)
    apart = "" if math.isnan(pretrained.held_back) else f", {pretrained.held_back:.3f} on held-back scans"
    screen.lines(
        [
            f"Step {pretrained.steps} of {steps} on {len(scans.paths)} scans; "
            f"loss {pretrained.loss:.3f}{apart}",
            f"Start from it with: textseg train ... --encoder {out}",
        ]
    )


def _read(plan: str, group: str | None) -> Plan:
    from textseg.errors import PlanError
    from textseg.models import plans_folder
    from textseg.plan import read_plan

    shipped = plans_folder() / plan
    found = read_plan(shipped if plan.isidentifier() and shipped.is_dir() else plan)
    if group is not None and group not in found.groups:
        raise PlanError(f"The plan {found.name!r} has the groups {', '.join(found.groups)}, got {group!r}.")
    return found


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
