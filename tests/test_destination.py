"""Where files go, and that they go there together or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from textseg.destination import Destination, file_stems
from textseg.errors import OutputError


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*")}


def test_files_arrive_together(tmp_path: Path) -> None:
    with Destination(tmp_path / "made" / "here").all_or_nothing() as unfinished:
        (unfinished / "mask.nii").write_text("mask")
        (unfinished / "record.json").write_text("record")
        assert [path.name for path in (tmp_path / "made" / "here").iterdir()] == [unfinished.name]
    assert contents(tmp_path / "made" / "here") == {"mask.nii": "mask", "record.json": "record"}


def test_nothing_arrives_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "mask.nii").write_text("older")

    def write() -> None:
        with Destination(tmp_path, overwrite=True).all_or_nothing() as unfinished:
            (unfinished / "mask.nii").write_text("newer")
            raise OutputError(f"{unfinished / 'mask.nii'} is too large.")

    with pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value) == f"{tmp_path / 'mask.nii'} is too large."
    assert contents(tmp_path) == {"mask.nii": "older"}


def test_what_has_moved_is_removed_when_the_next_one_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        if moves:
            raise OSError(errno.ENOSPC, "No space left on device")
        moves.append(target)
        os.rename(source, target)

    monkeypatch.setattr("textseg.destination.os.replace", replace)

    def write() -> None:
        with Destination(tmp_path).all_or_nothing() as unfinished:
            (unfinished / "a.nii").write_text("a")
            (unfinished / "b.nii").write_text("b")

    with pytest.raises(OutputError, match="No space left on device"):
        write()
    assert moves
    assert contents(tmp_path) == {}


def test_a_file_that_came_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with Destination(tmp_path).all_or_nothing() as unfinished:
            (unfinished / "mask.nii").write_text("ours")
            (tmp_path / "mask.nii").write_text("theirs")

    with pytest.raises(OutputError, match="already holds mask"):
        write()
    assert contents(tmp_path) == {"mask.nii": "theirs"}


@pytest.mark.parametrize("folder", ["file", "file/below", "file/below/that"])
def test_a_folder_that_cannot_be_made_is_refused_early(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="can't be written to: Not a directory"):
        Destination(tmp_path / folder).check_folder()


def test_the_early_check_leaves_nothing(tmp_path: Path) -> None:
    Destination(tmp_path / "not" / "yet").check_folder()
    assert contents(tmp_path) == {}


def test_stems_are_told_apart() -> None:
    prompts = ["Left kidney", "left  kidney!", "élargi", "?", "x" * 200]
    assert file_stems("scan", prompts) == [
        "scan_left_kidney",
        "scan_left_kidney_2",
        "scan_elargi",
        "scan_prompt",
        "scan_" + "x" * 80,
    ]
