"""Objects to files: a label map of all of them, or one DICOM object that keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from textseg.dicom_output import DicomKind, check_dicom, write_dicom_masks
from textseg.errors import OutputError, PromptError
from textseg.interactive.kept import PackedMask
from textseg.interactive.states import SessionObject
from textseg.prompts import Prompt, understand
from textseg.scan import write_label_map
from textseg.scan.formats import ending_of
from textseg.session import Session


@dataclass(frozen=True)
class SaveFormat:
    """What files are called in a dialog, how they end, and which DICOM object they are, if one."""

    name: str
    ending: str
    dicom: DicomKind | None = None

    @property
    def filter(self) -> str:
        return f"{self.name} (*{self.ending})"


FORMATS = (
    SaveFormat("NIfTI", ".nii.gz"),
    SaveFormat("NRRD", ".nrrd"),
    SaveFormat("MetaImage", ".mha"),
    SaveFormat("DICOM SEG", ".dcm", "seg"),
    SaveFormat("DICOM RTSTRUCT", ".dcm", "rtstruct"),
)


def save_objects(session: Session, path: Path, kind: SaveFormat) -> Path:
    """Write the accepted objects, or what is being worked on where none was accepted; gives the file.

    In a label map the smaller object wins where two overlap; DICOM objects keep both.

    Args:
        path: the file; the format's ending is added where it has none that is known.

    Raises:
        OutputError: there is nothing to save, the file would take the scan's place, the scan did not come as
            DICOM, or it can't be written.
        ScanError: there is no scan yet.
    """
    volume = session.volume
    if ending_of(path.name) != kind.ending:
        path = path.with_name(path.name + kind.ending)
    files = volume.file.paths if volume.file else ()
    if path.exists() and any(one.exists() and path.samefile(one) for one in files):
        raise OutputError(f"A mask can't take the place of its scan, got {path}. Choose another name.")
    if kind.dicom is not None:
        check_dicom(kind.dicom, volume)
    objects = _objects(session)
    if kind.dicom is None:
        names = {number: one.name for number, one in enumerate(objects, start=1)}
        labels = session.labels if session.objects else objects[0].mask.astype(np.uint8)
        write_label_map(path, labels, names, volume)
    else:
        masks = np.stack([one.mask for one in objects])
        model = session.segmenter.model.name
        write_dicom_masks(path, kind.dicom, masks, prompts_of(objects), volume, model=model)
    return path


def prompts_of(objects: Sequence[SessionObject]) -> list[Prompt]:
    """What each object is, under its own name, as far as its words tell."""
    return [replace(_understood(one.text or one.name), text=one.name) for one in objects]


def _understood(words: str) -> Prompt:
    try:
        return understand(words)
    except PromptError:
        return Prompt(words, words, None, None)


def _objects(session: Session) -> tuple[SessionObject, ...]:
    if session.objects:
        return session.objects
    if not session.mask.any():
        raise OutputError("There is nothing to save: accept an object, or say or mark one first.")
    packed = PackedMask.pack(session.mask)
    name = session.text or "object 1"
    return (SessionObject(name, session.text, session.marks, session.presence, packed, session.geometry),)
