"""Scans without labels: found in folders, in any format that can be read, and prepared in blocks on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.atomic import write_bytes
from textseg.errors import DatasetError, ScanError, TextsegError
from textseg.plan import Millimetres, Plan
from textseg.prepare import prepare
from textseg.scan import list_series, read_scan
from textseg.scan.formats import ending_of, first_bytes, is_dicom
from textseg.train.blocks import read_blocks, write_blocks
from textseg.volume import Modality, guess_modality

INDEX_FILE = "scans.json"
# Raised whenever scans come out differently, so that old ones are made again.
RECIPE_VERSION = 1
# A scan with fewer voxels than this along an axis, once on the working grid, shows nothing to learn from.
SHORTEST_EDGE = 8
# In a scan neighbours differ by noise; in a label map nearly all of them are equal.
MOST_EQUAL_NEIGHBOURS = 0.8
# Thin structures have few equal neighbours; a mask of them is told by its few values.
FEWEST_VALUES = 16
# A process takes seconds to start and a scan about one to prepare.
FEWEST_FOR_PROCESSES = 8
# As nnU-Net numbers the channels of a case.
CHANNEL = re.compile(r"(.+)_(\d{4})(\.\w+(?:\.gz)?)")


@dataclass(frozen=True)
class FoundScan:
    """A scan on disk.

    name: like no other's in the folder, and fit for a file; files: one a channel, or a DICOM folder.
    """

    name: str
    files: tuple[Path, ...]
    series: str | None = None

    def made_from(self, plan: Plan, spacing_mm: Millimetres, modality: Modality | None) -> str:
        """A digest of all that the prepared scan depends on."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        rules = {name: entry.model_dump() for name, entry in plan.intensity.items()}
        kinds = (modality, plan.channel_modalities)
        depends = (RECIPE_VERSION, files, self.series, rules, plan.margin_mm, spacing_mm, kinds)
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PreparedScans:
    """The files of prepared scans, and of those that could not be prepared where they lie and why not."""

    paths: tuple[Path, ...]
    skipped: tuple[tuple[str, str], ...]


def find_scans(folder: Path, channels: int = 1) -> list[FoundScan]:
    """All scans in a folder and its folders: image files, and a scan for each DICOM series.

    Args:
        channels: where there are several, files with nnU-Net's endings _0000, _0001 … belong together.

    Raises:
        DatasetError: there is no such folder, or nothing in it looks like a scan.
    """
    if not folder.is_dir():
        raise DatasetError(f"Unlabelled scans lie in a folder, but {folder} is none.")
    found = list(_image_files(folder, channels)) + (_dicom_series(folder) if channels == 1 else [])
    if not found:
        of_channels = f" with {channels} channels named _0000, _0001 …" if channels > 1 else ""
        raise DatasetError(f"Pretraining needs scans{of_channels}, but there is none in {folder}.")
    return sorted(found, key=lambda scan: scan.name)


def prepare_scans(
    folder: Path,
    into: Path,
    plan: Plan,
    *,
    group: str | None = None,
    modality: Modality | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> PreparedScans:
    """Write every scan of a folder as the plan's network sees it: working spacing, cropped, normalised.

    Those that are there already, made from the same files by the same plan, are left as they are. What can't
    be read, and label maps, are skipped.

    Args:
        into: where the prepared scans go, a file of blocks each; made where it is missing.
        group: whose voxel size is taken; the plan's default group unless given.
        modality: of all scans; else the file's own, or guessed from its values.
        workers: processes that prepare scans at the same time.
        progress: called with the scans done and all of them.

    Raises:
        DatasetError: there is no scan, or none that can be used, with the first reason.
    """
    into.mkdir(parents=True, exist_ok=True)
    spacing_mm = plan.spacing_for(group)
    scans = find_scans(folder, len(plan.channels))
    digests = {scan.name: scan.made_from(plan, spacing_mm, modality) for scan in scans}
    why_not = _known_failures(into, digests)
    missing = [
        scan for scan in scans if scan.name not in why_not and not _is_made(scan, into, digests[scan.name])
    ]
    progress(len(scans) - len(missing), len(scans))
    make = partial(_prepared, into=into, plan=plan, spacing_mm=spacing_mm, modality=modality)
    for done, (name, reason) in enumerate(_each(make, missing, digests, workers), start=1):
        if reason:
            why_not[name] = reason
        progress(len(scans) - len(missing) + done, len(scans))
    index = [{"name": s.name, "made_from": digests[s.name], "skipped": why_not.get(s.name)} for s in scans]
    write_bytes(into / INDEX_FILE, json.dumps(index, indent=1, ensure_ascii=False).encode())
    usable = tuple(_path(scan, into) for scan in scans if scan.name not in why_not)
    if not usable:
        first = next(iter(why_not.values()))
        raise DatasetError(f"Pretraining needs a scan that can be used, but of {len(scans)} none is: {first}")
    where = {scan.name: str(scan.files[0]) for scan in scans}
    return PreparedScans(usable, tuple((where[name], reason) for name, reason in why_not.items()))


# ---- finding ----


def _image_files(folder: Path, channels: int) -> Iterator[FoundScan]:
    files = [path for path in _files(folder) if ending_of(path.name) not in (None, ".dcm")]
    if channels == 1:
        yield from (FoundScan(_name(folder, path), (path,)) for path in files)
        return
    cases: dict[Path, dict[int, Path]] = defaultdict(dict)
    for path in files:
        if parts := CHANNEL.fullmatch(path.name):
            cases[path.with_name(parts[1] + parts[3])][int(parts[2])] = path
    for case, of_channel in cases.items():
        if sorted(of_channel) == list(range(channels)):
            yield FoundScan(_name(folder, case), tuple(of_channel[number] for number in range(channels)))


def _dicom_series(folder: Path) -> list[FoundScan]:
    """A scan for each series; the innermost folder that holds one is where it is read."""
    folders = {path.parent for path in _files(folder) if _may_be_dicom(path)}
    found: dict[str, FoundScan] = {}
    for place in sorted(folders, key=lambda place: (-len(place.parts), place)):
        try:
            listed = list_series(place)
        except ScanError:
            continue  # reports, plans, segmentations: DICOM without images
        for series in listed:
            if series.uid not in found:
                name = f"{_name(folder, place)}_{zlib.crc32(series.uid.encode()):08x}"
                found[series.uid] = FoundScan(name, (place,), series.uid)
    return list(found.values())


def _may_be_dicom(path: Path) -> bool:
    if ending_of(path.name) not in (None, ".dcm"):
        return False
    try:
        return is_dicom(first_bytes(path, 132))
    except ScanError:
        return False


def _files(folder: Path) -> Iterator[Path]:
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _name(folder: Path, path: Path) -> str:
    """The path in letters that every file system takes, and a digest of it, since letters are lost."""
    inside = path.relative_to(folder).as_posix()
    plain = re.sub(r"[^A-Za-z0-9]+", "_", inside)[-60:].strip("_") or "scan"
    return f"{plain}_{zlib.crc32(inside.encode()):08x}"


# ---- preparing ----


def _each(
    make: Callable[[FoundScan, str], str | None],
    scans: Sequence[FoundScan],
    digests: dict[str, str],
    workers: int,
) -> Iterator[tuple[str, str | None]]:
    """Each scan's name as it is made, and why it could not be."""
    if workers <= 1 or len(scans) < FEWEST_FOR_PROCESSES:
        yield from ((scan.name, make(scan, digests[scan.name])) for scan in scans)
        return
    # Not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        begun = {pool.submit(make, scan, digests[scan.name]): scan.name for scan in scans}
        for ended in as_completed(begun):
            yield begun[ended], ended.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _prepared(
    scan: FoundScan,
    digest: str,
    *,
    into: Path,
    plan: Plan,
    spacing_mm: Millimetres,
    modality: Modality | None,
) -> str | None:
    """Prepare one scan; gives why not where it can't be."""
    try:
        volume = read_scan(scan.files, series=scan.series)
        if looks_like_labels(volume.voxels[0]):
            return f"{scan.files[0].name} looks like a label map."
        kind = modality or volume.modality or guess_modality(volume.voxels)
        image = prepare(volume, plan, kind, spacing_mm).image.numpy()
    except TextsegError as error:
        return str(error)
    if min(image.shape[1:]) < SHORTEST_EDGE:
        size = " × ".join(map(str, image.shape[1:]))
        return f"{scan.files[0].name} has only {size} voxels at the plan's voxel size."
    # Steps of a 64th of the spread are far below any scanner's noise, and pack to half of the size.
    stepped = (np.round(image * 64) / 64).astype(np.float16)
    volumes = {f"image_{number}": channel for number, channel in enumerate(stepped)}
    air = [float(channel.min()) for channel in stepped]
    write_blocks(_path(scan, into), volumes, {}, {"made_from": digest, "air": air})
    return None


def looks_like_labels(voxels: NDArray[Any]) -> bool:
    """Whether voxels (x, y, z) are a mask or a label map rather than an image."""
    if len(np.unique(voxels[::2, ::2, ::2])) < FEWEST_VALUES:
        return True
    one, other = voxels[:-1], voxels[1:]
    shown = (one != voxels.min()) | (other != voxels.min())
    return bool((one[shown] == other[shown]).mean() > MOST_EQUAL_NEIGHBOURS)


def _path(scan: FoundScan, into: Path) -> Path:
    return into / f"{scan.name}.zip"


def _is_made(scan: FoundScan, into: Path, digest: str) -> bool:
    try:
        return bool(read_blocks(_path(scan, into))[2]["made_from"] == digest)
    except DatasetError:
        return False


def _known_failures(into: Path, digests: dict[str, str]) -> dict[str, str]:
    """Why scans were skipped before, as long as neither they nor the plan have changed."""
    try:
        index = json.loads((into / INDEX_FILE).read_text(encoding="utf-8"))
        return {
            str(entry["name"]): str(entry["skipped"])
            for entry in index
            if entry["skipped"] and digests.get(entry["name"]) == entry["made_from"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
