"""`textseg predict`: a scan and prompts in, masks out."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from textseg.errors import OutputError, PromptError, ScanError
from textseg_cli.exits import NOTHING_FOUND, plain_errors
from textseg_cli.output import Screen, hide_library_warnings

if TYPE_CHECKING:
    from textseg.prompts import Prompt
    from textseg.volume import Modality


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ModalityChoice(StrEnum):
    AUTO = "auto"
    CT = "ct"
    MR = "mr"
    PET = "pet"


class MaskFormat(StrEnum):
    NII_GZ = "nii.gz"
    NRRD = "nrrd"
    MHA = "mha"
    DICOM_SEG = "dicom-seg"
    RTSTRUCT = "rtstruct"


class BackendName(StrEnum):
    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


WHAT, HOW, WHERE, SHOWN = "What to segment", "How", "What to write", "What to print"


@plain_errors()
def predict(
    scan: Annotated[
        str, typer.Argument(metavar="SCAN", help="A NIfTI, NRRD, MetaImage or .mgz file, or a DICOM folder.")
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help='What to find, such as "left kidney tumor".'),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="More prompts, one a line; # begins a comment.", rich_help_panel=WHAT),
    ] = None,
    channel: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further channel, in the order of the model's plan; repeatable. One on another grid is "
            "brought onto SCAN's.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            help="Which DICOM series of SCAN: UID, its beginning or end, or number.", rich_help_panel=WHAT
        ),
    ] = None,
    volume: Annotated[
        int | None,
        typer.Option(min=0, help="Which volume of a 4D SCAN, from 0.", rich_help_panel=WHAT),
    ] = None,
    modality: Annotated[
        ModalityChoice,
        typer.Option(help="What the scan is; auto asks its header, then its values.", rich_help_panel=WHAT),
    ] = ModalityChoice.AUTO,
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="A model by name, or its folder.", rich_help_panel=HOW)
    ] = "default",
    device: Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=HOW)] = Device.AUTO,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads; all by default.", rich_help_panel=HOW)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What the scan may take at its peak: 6GB, 800MB. Of the GPU where one computes; else of the "
            "whole process. What is free by default.",
            rich_help_panel=HOW,
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="The same masks bit for bit each time.", rich_help_panel=HOW),
    ] = False,
    backend: Annotated[
        BackendName,
        typer.Option(
            help="What runs the image encoder on a CPU; auto takes OpenVINO where that is faster.",
            rich_help_panel=HOW,
        ),
    ] = BackendName.AUTO,
    zoom: Annotated[
        bool,
        typer.Option(
            "--zoom",
            help="Look only where a look at half the resolution sees something: quicker for few prompts, may "
            "miss what is small.",
            rich_help_panel=HOW,
        ),
    ] = False,
    early_exit: Annotated[
        bool | None,
        typer.Option(
            "--early-exit/--no-early-exit",
            help="Give a prompt up where the network's coarse scales deny it: quicker for many prompts, may "
            "miss what is small; as the model's plan says by default.",
            rich_help_panel=HOW,
        ),
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror",
            help="Average with the mirror image, sides swapped in words, in twice the time; as the model's "
            "plan says by default.",
            rich_help_panel=HOW,
        ),
    ] = None,
    clean_up: Annotated[
        bool | None,
        typer.Option(
            "--clean-up/--no-clean-up",
            help="Keep the largest part of a mask, fill its holes; or leave masks as they are. By default "
            "small stray parts of organs that are one piece are dropped, where the model's plan says so.",
            rich_help_panel=HOW,
        ),
    ] = None,
    sides: Annotated[
        bool,
        typer.Option(
            "--check-sides",
            help="Segment the scan mirrored left to right too, sides swapped in the prompts, and compare.",
            rich_help_panel=HOW,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="The folder for masks and record, this one by default; or a file name for the one mask.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    mask_format: Annotated[
        MaskFormat | None,
        typer.Option(
            "--format",
            help="Of the masks; the scan's own by default. dicom-seg and rtstruct: one file for all prompts, "
            "of a scan that came as DICOM.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    combined: Annotated[
        bool,
        typer.Option("--combined", help="One label map for all prompts.", rich_help_panel=WHERE),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Also a picture with three planes.", rich_help_panel=WHERE),
    ] = False,
    write_empty: Annotated[
        bool,
        typer.Option("--write-empty", help="Write a mask also for what is not found.", rich_help_panel=WHERE),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what an earlier run wrote.", rich_help_panel=WHERE),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=SHOWN)] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="The record on stdout, messages on stderr.", rich_help_panel=SHOWN),
    ] = False,
) -> None:
    """Segment what prompts name in a scan.

    Writes one mask a prompt on the scan's own grid, named after both, and a
    JSON record of what was understood, found and done: all of them or none.
    """
    screen = Screen(quiet, as_json)
    if quiet:
        hide_library_warnings()
    kind = None if modality is ModalityChoice.AUTO else cast("Modality", modality.value)
    from textseg.prompts import read_prompts_file

    texts = [*(prompts or []), *(read_prompts_file(prompts_file) if prompts_file else [])]
    if not texts:
        raise PromptError('At least one prompt is needed, such as "liver"; give PROMPT or --prompts-file.')

    # What is wrong is said before the slow import of torch, and all the more before the slow work.
    from textseg.destination import Destination
    from textseg.models import find_model
    from textseg.scan import read_scan

    budget = _bytes(memory) if memory else None
    chosen = find_model(model)
    chosen.check_channels(1 + len(channel or []))
    for prompt in chosen.read_prompts(texts):
        for note in notes_on(prompt) if chosen.kind == "textseg" else []:
            screen.note(note)
    ending = mask_format.value if mask_format else None
    folder, name = _folder_and_name(out or Path.cwd(), ending)
    to = Destination(folder, name, ending, combined, preview, write_empty, overwrite)
    to.check_folder()
    with screen.progress() as progress:
        progress("reading", 0, 1)
        scans = [read_scan(_named(scan), series=series, volume=volume), *map(read_scan, channel or [])]
        for warning in (line for one in scans if one.file for line in one.file.details["warnings"]):
            screen.warning(warning)
        to.check_names(scans[0], texts)
        progress("loading the model", 0, 1)
        from textseg import early_exit as exits
        from textseg import zoom as zooms
        from textseg.inference import Segmenter

        segmenter = Segmenter(
            chosen.path,
            device=device.value,
            threads=threads,
            memory=budget,
            deterministic=deterministic,
            backend=backend.value,
            zoom_above=zooms.ABOVE if zoom else None,
            exit_below={True: exits.BELOW, False: -math.inf, None: None}[early_exit],
            mirrored=mirror,
        )
        segmentation = segmenter(scans, texts, modality=kind, clean_up=clean_up, progress=progress)
        if sides:
            from textseg.sides import check_sides

            segmentation = check_sides(segmentation, segmenter, progress)
        progress("writing", 0, 1)
        written = segmentation.write(to)
    for found in segmentation.found if chosen.kind != "textseg" else ():
        if found.asked and found.asked.lower() != " ".join(found.prompt.text.lower().split()):
            screen.note(f"{found.prompt.text!r} is asked as {found.asked!r}, which this model knows.")
    for source in segmentation.channels:
        if source.regridded:
            screen.note(
                f"{source.files[0].name} lies on another grid than {Path(scan).name} and was brought onto "
                f"that, of which it covers {source.covered:.0%}."
            )
    screen.segmentation(segmentation.found, written)
    screen.sides(segmentation.sides)
    if not any(found.is_there for found in segmentation.found):
        raise typer.Exit(NOTHING_FOUND)


def notes_on(prompt: Prompt) -> list[str]:
    """What a person should know about how a prompt was read: unknown, mistyped or unused words."""
    from textseg.prompts import default_lexicon, suggest
    from textseg.prompts.cleaning import SIDES, tokens

    if not prompt.known:
        nearest = ", ".join(suggest(prompt.text))
        hint = f"; nearest: {nearest}" if nearest else ""
        return [f"{prompt.text!r} is not in the lexicon{hint}; its words are used as they are."]
    lexicon = default_lexicon()
    correct = {*lexicon.vocabulary, *lexicon.plain_words, *SIDES, *prompt.unused}
    notes = []
    if any(word not in correct for word in tokens(prompt.words)):
        notes.append(f"{prompt.text!r} is understood as {prompt.canonical!r}.")
    if prompt.unused:
        notes.append(f"In {prompt.text!r} these words are not understood: {', '.join(prompt.unused)}.")
    return notes


def _bytes(memory: str) -> int:
    from textseg.planning import parse_memory

    return parse_memory(memory)


def _named(scan: str) -> Path:
    # An empty path would be the current folder: an unset variable in a script must not read that.
    if not scan.strip():
        raise ScanError("A scan must be a file or a folder, got an empty name. Is a variable unset?")
    return Path(scan)


def _folder_and_name(out: Path, ending: str | None) -> tuple[Path, str | None]:
    """OUT is a file where it ends like a mask, else a folder."""
    from textseg.dicom_output import DICOM_KINDS
    from textseg.scan.formats import ending_of
    from textseg.scan.write import WRITERS

    is_dicom = ending in DICOM_KINDS
    if out.is_dir() or ending_of(out.name) not in (*WRITERS, *((".dcm",) if is_dicom else ())):
        return out, None
    if ending and not out.name.lower().endswith(".dcm" if is_dicom else f".{ending}"):
        raise OutputError(f"--format and the name of the file must agree, got {ending} and {out.name}.")
    return out.parent, out.name
