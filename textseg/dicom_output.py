"""Masks of prompts as one DICOM object: what the lexicon knows of each prompt becomes its codes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from textseg.atomic import written_whole
from textseg.errors import OutputError
from textseg.prompts import Prompt
from textseg.prompts.lexicon import Concept
from textseg.scan.dicom import DicomSource
from textseg.scan.dicom_derived import OUR_SCHEME, Bools, Code, Segment, not_dicom_error
from textseg.scan.dicom_seg import write_dicom_seg
from textseg.scan.rtstruct import write_rtstruct
from textseg.volume import Volume

DicomKind = Literal["seg", "rtstruct"]

# By what people ask for, as they would name an ending.
DICOM_KINDS: dict[str, DicomKind] = {"dicom-seg": "seg", "rtstruct": "rtstruct"}
NEEDS: dict[DicomKind, str] = {"seg": "highdicom", "rtstruct": "skimage"}


def write_dicom_masks(
    path: str | Path,
    kind: DicomKind,
    masks: Bools,
    prompts: Sequence[Prompt],
    scan: Volume,
    *,
    model: str = "textseg",
    written_at: datetime | None = None,
) -> None:
    """Write the masks of prompts as one DICOM SEG or RTSTRUCT, whole or not at all.

    The object belongs to the patient and study of the scan and carries their identifiers.

    Args:
        path: the file, in a folder that exists; an older one is replaced once the new one is whole.
        kind: "seg" for voxels, "rtstruct" for contours.
        masks: (prompts, x, y, z) bool, on the scan's own grid.
        prompts: what was asked for, as understood.
        scan: as read from DICOM.
        model: the name of the model that made the masks.
        written_at: the moment that the file says it was made, now by default. With a moment given, the same
            masks of the same scan make the same bytes.

    Raises:
        OutputError: a library is missing, the scan is not DICOM, or the file can't be written.
    """
    write = write_dicom_seg if kind == "seg" else write_rtstruct
    segments = [segment_of(prompt) for prompt in prompts]
    try:
        with written_whole(Path(path)) as unfinished:
            write(unfinished, masks, segments, scan, model, written_at)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error


def check_dicom(kind: DicomKind, scan: Volume) -> None:
    """Refuse what can't be written, before there are masks to write.

    Raises:
        OutputError: the scan is not DICOM, or a library is not installed.
    """
    if scan.file is None or not isinstance(scan.file.header, DicomSource):
        raise not_dicom_error(scan)
    if find_spec(NEEDS[kind]) is None:
        raise OutputError(
            f"This DICOM output needs {NEEDS[kind]}, which is not installed: "
            'pip install "textseg[dicom]"; or write NIfTI or NRRD.'
        )


def segment_of(prompt: Prompt) -> Segment:
    """What a prompt's mask shows, in codes: SNOMED CT where the lexicon has one, else the lexicon's own."""
    structure = _code(prompt.structure) if prompt.structure is not None else None
    finding = _code(prompt.finding) if prompt.finding is not None else None
    return Segment(prompt.text, structure, finding, prompt.side)


def _code(concept: Concept) -> Code:
    """Sides are told apart by a modifier, so the name is that without a side, as the code is."""
    name = concept.forms[0] if concept.side is not None and concept.forms else concept.name
    return Code(concept.snomed, name) if concept.snomed else Code(concept.id, concept.name, OUR_SCHEME)
