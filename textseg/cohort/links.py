"""Folders of links to the files of a scan, under names that tell nothing of whose it is."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PREFIX, FOLDER = "textseg-", "series"
LINKED = re.compile(rf"[^\s'\"]*/{PREFIX}[^/\s]+/{FOLDER}(?:/(\d{{6}})\.dcm)?")


@contextmanager
def as_folder(files: Sequence[Path]) -> Iterator[Path]:
    """A folder for a while with links to just these files, numbered in their order from 0.

    So a series in a folder of ten thousand files is read without the others, and no message of a reader can
    hold a patient's name from a path.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as parent:
        folder = Path(parent) / FOLDER
        folder.mkdir()
        for number, path in enumerate(files):
            _link(path.absolute(), folder / f"{number:06d}.dcm")
        yield folder


def without_links(text: str, name_of: Callable[[int | None], str]) -> str:
    """A text with another name for each link in it.

    Args:
        name_of: of the file with a number, or for None of the folder.
    """
    return LINKED.sub(lambda found: name_of(int(found[1]) if found[1] else None), text)


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:
        # Some systems let only administrators make links.
        shutil.copyfile(path, link)
