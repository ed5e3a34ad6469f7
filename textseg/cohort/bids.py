"""BIDS datasets (Brain Imaging Data Structure 1.10): which of their files are scans of a person."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from textseg.volume import Modality

DESCRIPTION_FILE, PARTICIPANTS_FILE = "dataset_description.json", "participants.tsv"
# Data types that hold one 3D image a file; time series (func, dwi, perf) need a choice of volume first.
MODALITY_OF: dict[str, Modality] = {"anat": "mr", "pet": "pet", "ct": "ct"}
DERIVED = ("mask", "dseg", "probseg", "defacemask")
ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9]+)")
NAMES = {"sub": "subject", "ses": "session", "acq": "acquisition", "ce": "contrast", "rec": "reconstruction"}


@dataclass(frozen=True)
class BidsScan:
    """One image: its path, its name without ending, and what its name and the list of participants say."""

    path: Path
    name: str
    modality: Modality
    extra: dict[str, str | int | float | bool | None]


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS dataset: described as one, with subjects."""
    return (folder / DESCRIPTION_FILE).is_file() and any(folder.glob("sub-*"))


def find_bids_scans(folder: Path, passed_over: Counter[str]) -> Iterator[BidsScan]:
    """The images of all subjects and sessions, without derivatives and label maps, by their paths.

    Args:
        passed_over: counts the files that are none, by their kind.
    """
    participants = _participants(folder)
    for path in sorted(folder.glob("sub-*/**/*.nii*")):
        inner = path.relative_to(folder)
        modality = MODALITY_OF.get(path.parent.name)
        name = path.name.partition(".")[0]
        suffix = name.rpartition("_")[2]
        if modality is None or suffix in DERIVED:
            passed_over[f"image in a {path.parent.name} folder" if modality is None else suffix] += 1
            continue
        entities = {NAMES[key]: value for key, value in ENTITY.findall(name) if key in NAMES}
        extra = {**entities, "suffix": suffix, **participants.get(inner.parts[0], {})}
        yield BidsScan(path, name, modality, dict(extra))


def _participants(folder: Path) -> dict[str, dict[str, str]]:
    try:
        lines = (folder / PARTICIPANTS_FILE).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        # The list is optional, and nothing else depends on it.
        return {}
    rows = csv.DictReader(lines, delimiter="\t")
    return {
        str(row["participant_id"]): {
            key: value for key, value in row.items() if key and value and key != "participant_id"
        }
        for row in rows
        if row.get("participant_id")
    }
