"""Where a segmentation's files go: their names, known before the work begins, and all of them or none."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textseg.atomic import written_whole
from textseg.dicom_output import DICOM_KINDS, DicomKind, check_dicom
from textseg.errors import OutputError
from textseg.scan import mask_ending
from textseg.scan.formats import ending_of
from textseg.volume import Volume

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class FileNames:
    """Of the mask of every prompt (all the same for a label map), of the preview if any, of the record."""

    masks: tuple[str, ...]
    preview: str | None
    record: str

    @property
    def all(self) -> list[str]:
        return [name for name in (*dict.fromkeys(self.masks), self.preview, self.record) if name]


@dataclass(frozen=True)
class Destination:
    """What to write where.

    Args:
        folder: made where it is missing.
        name: of the one mask, or of the label map, with its ending; None to name files after scan and prompt.
        ending: "nii.gz", "nrrd", "mha" …, or "dicom-seg" or "rtstruct" for one file of all prompts; None for
            the scan's own format.
        combined: one label map with a legend instead of one mask a prompt.
        preview: a PNG with three planes through the masks' centre.
        write_empty: write masks also for prompts that were not found.
        overwrite: replace files that are already there.
    """

    folder: Path
    name: str | None = None
    ending: str | None = None
    combined: bool = False
    preview: bool = False
    write_empty: bool = False
    overwrite: bool = False

    @property
    def dicom_kind(self) -> DicomKind | None:
        return DICOM_KINDS.get(self.ending or "")

    def names(self, volume: Volume, prompts: Sequence[str]) -> FileNames:
        """The names of all files that may be written for these prompts.

        The record and the preview are named after the prompts too, so that several runs on one scan live side
        by side.

        Raises:
            OutputError: one name is given for several masks.
        """
        if self.name and len(prompts) > 1 and not (self.combined or self.dicom_kind):
            raise OutputError(
                f"A file holds one mask, got {self.name} for {len(prompts)} prompts. "
                "Give a folder, or --combined for a label map."
            )
        stem = _stem(volume)
        ending = (self.ending or mask_ending(volume.file)).lstrip(".")
        if self.name:
            run = self.name[: len(self.name) - len(ending_of(self.name) or "")]
            masks = [self.name] * len(prompts)
        elif self.dicom_kind:
            run = file_stems(stem, [" ".join(prompts)])[0]
            masks = [f"{run}_{self.dicom_kind}.dcm"] * len(prompts)
        elif self.combined:
            run = f"{stem}_labels"
            masks = [f"{run}.{ending}"] * len(prompts)
        else:
            run = file_stems(stem, [" ".join(prompts)])[0]
            masks = [f"{name}.{ending}" for name in file_stems(stem, prompts)]
        return FileNames(tuple(masks), f"{run}_preview.png" if self.preview else None, f"{run}_record.json")

    def check_folder(self) -> None:
        """Refuse a folder that can't be made or written to.

        Raises:
            OutputError: it is so.
        """
        parents = self.folder.absolute().parents
        nearest = next(place for place in (self.folder, *parents) if os.path.lexists(place))
        try:
            # By trying: permissions do not tell of a read-only disk, and the superuser has all of them.
            with tempfile.TemporaryDirectory(prefix=".textseg-", dir=nearest):
                pass
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def check_names(self, volume: Volume, prompts: Sequence[str]) -> None:
        """Refuse to write over files that are there, over the scan in any case, and DICOM of what is none.

        Raises:
            OutputError: it would happen.
        """
        if self.dicom_kind:
            check_dicom(self.dicom_kind, volume)
        paths = [self.folder / name for name in self.names(volume, prompts).all]
        scan = [path for path in (volume.file.paths if volume.file else ()) if path.exists()]
        for path in paths:
            if path.exists() and any(path.samefile(one) for one in scan):
                raise OutputError(
                    f"A mask can't take the place of its scan, got {path}. Choose another name."
                )
        if not self.overwrite:
            _refuse_existing(paths)

    @contextmanager
    def all_or_nothing(self) -> Iterator[Path]:
        """A hidden folder whose files move to the destination together, once all of them are whole.

        Raises:
            OutputError: the destination can't be written to, or holds a file that may not be replaced.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            hidden = tempfile.TemporaryDirectory(prefix=".textseg-", dir=self.folder)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        with hidden as name:
            try:
                yield Path(name)
            except OutputError as error:
                # Whoever reads it asked for the folder and knows nothing of the hidden one.
                raise OutputError(str(error).replace(str(Path(name)), str(self.folder))) from error
            self._receive(Path(name))

    def _receive(self, hidden: Path) -> None:
        made = sorted(hidden.iterdir(), key=lambda path: path.suffix == ".json")
        if not self.overwrite:
            _refuse_existing([self.folder / path.name for path in made])
        moved: list[Path] = []
        try:
            for path in made:
                os.replace(path, self.folder / path.name)
                moved.append(self.folder / path.name)
        except BaseException as error:
            for path in moved:
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _unwritable(self.folder, error) from error
            raise


def file_stems(scan: str, prompts: Sequence[str]) -> list[str]:
    """A file name without ending for each prompt: scan and prompt, numbered where two would be the same."""
    stems: list[str] = []
    for prompt in prompts:
        # Letters lose their accents rather than leave gaps.
        plain = unicodedata.normalize("NFKD", prompt.lower()).encode("ascii", "ignore").decode()
        words = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:80] or "prompt"
        stem, copy = f"{scan}_{words}", 2
        while stem in stems:
            stem, copy = f"{scan}_{words}_{copy}", copy + 1
        stems.append(stem)
    return stems


def _stem(volume: Volume) -> str:
    if volume.file is None:
        return "scan"
    # The folder "." has a name only as an absolute path.
    return volume.file.stem or volume.file.paths[0].resolve().name or "scan"


def _refuse_existing(paths: Sequence[Path]) -> None:
    there = [path.name for path in paths if os.path.lexists(path)]
    if there:
        listed = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise OutputError(
            f"Files are never replaced unasked, but {paths[0].parent} already holds {listed}. "
            "Use --overwrite or another folder."
        )


def _unwritable(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"The output folder {folder} can't be written to: {reason}. Choose another one.")


def save_png(page: Image.Image, path: Path, what: str) -> None:
    """Write a picture, so that no reader meets half a file.

    Args:
        what: the picture's name in an error, such as "preview".

    Raises:
        OutputError: it can't be written.
    """
    try:
        with written_whole(path) as unfinished:
            page.save(unfinished, format="PNG")
    except OSError as error:
        raise OutputError(f"The {what} can't be written to {path}: {error.strerror or error}.") from error
