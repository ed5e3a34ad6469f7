"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from textseg.atomic import write_bytes, written_whole


def test_a_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "plan.json"
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_until_it_is_whole_the_old_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    with written_whole(path) as unfinished:
        unfinished.write_bytes(b"half")
        assert unfinished.parent == tmp_path
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"half"


def test_after_an_error_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")

    def write() -> None:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_who_write_the_same_file_do_not_share_an_unfinished_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with written_whole(path) as first, written_whole(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask that means this")
def test_who_may_read_it_is_the_umasks_to_say(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "plan.json", b"{}")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o640
