"""A session file: there and back, whole after a crash, and never on another scan."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.session.conftest import body, tilted
from textseg.errors import OutputError, ScanError
from textseg.scan import read_scan, write_label_map
from textseg.session import Session
from textseg.volume import Volume

CLICK = (12, 10, 5)
# Opens the file, takes one more step, and dies when half of the new file is written.
DIES_WHILE_SAVING = """
import os, sys, zipfile
from textseg.interactive import session_file
saved = session_file.read_session(session_file.Path(sys.argv[1]))
wanted, written = zipfile.ZipFile.writestr, []
def writestr(self, name, *rest):
    wanted(self, name, *rest)
    written.append(name)
    if len(written) == 2:
        self.fp.flush()
        os._exit(9)
zipfile.ZipFile.writestr = writestr
session_file.write_session(session_file.Path(sys.argv[1]), saved)
"""
# Clicks until somebody ends it, and tells of each click that was answered.
CLICKS_FOR_EVER = """
import sys
from textseg.session import Session
session = Session.load(sys.argv[1], model=sys.argv[2], device="cpu", threads=1)
for step in range(1000):
    session.add_point((3 + step % 20, 12, 9), coordinates="voxel")
    print(step + 1, flush=True)
"""
CLICKS = 3


@pytest.fixture
def scan_file(tmp_path):
    geometry = tilted((30, 24, 20))
    labels = np.ones(geometry.shape, np.uint8)
    labels[3:15, 8:20, 5:10] = 200
    write_label_map(tmp_path / "scan.nii.gz", labels, {1: "a"}, geometry)
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def session(segmenter, scan_file):
    """Some steps on a scan in a file, the last of them undone."""
    session = Session(segmenter)
    session.set_scan(scan_file, "ct")
    session.say("liver")
    session.add_point(CLICK, positive=False, coordinates="voxel")
    session.add_box((20, 3, 4), (25, 9, 11), coordinates="voxel")
    session.accept()
    session.add_lasso([(9, 8, 12), (20, 8, 12), (20, 19, 12)], coordinates="voxel")
    session.add_scribble([(2, 2, 2), (12, 20, 17)], coordinates="voxel")
    session.undo()
    return session


def all_of(session):
    """Every state as (mask, text, marks, objects), from the first to the last."""
    while session.undo():
        pass
    states = []
    while True:
        objects = [(one.name, one.presence, one.mask) for one in session.objects]
        states.append((session.mask, session.text, session.marks, session.presence, objects))
        if not session.redo():
            return states


def assert_same(one, other):
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4]
        assert [o[:2] for o in mine[4]] == [o[:2] for o in theirs[4]]
        for (*_, a), (*_, b) in zip(mine[4], theirs[4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_loaded_session_goes_on_where_it_was(session, segmenter, tmp_path):
    path = session.save(tmp_path / "work.session")
    loaded = Session.load(path, model=segmenter)
    np.testing.assert_array_equal(loaded.mask, session.mask)
    assert loaded.modality == "ct"
    assert loaded.can_redo
    for one in (session, loaded):
        one.redo()
        one.add_point((22, 12, 9), coordinates="voxel")
    assert session.mask[22, 12, 9]
    assert_same(all_of(session), all_of(loaded))


def test_every_step_is_saved_once_there_is_a_path(session, segmenter, tmp_path):
    path = session.save(tmp_path / "work.session")
    for step in (
        lambda: session.add_point(CLICK, coordinates="voxel"),
        lambda: session.undo(),
        lambda: session.redo(),
        lambda: session.accept("second"),
        lambda: session.remove("liver"),
        lambda: session.reset(),
    ):
        step()
        loaded = Session.load(path, model=segmenter)
        np.testing.assert_array_equal(loaded.mask, session.mask)
        assert loaded.legend == session.legend
        assert loaded.can_redo == session.can_redo
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".part"] == []


def test_a_file_is_whole_after_a_crash_in_the_middle_of_saving(session, segmenter, tmp_path):
    path = session.save(tmp_path / "work.session")
    before = path.read_bytes()
    died = subprocess.run([sys.executable, "-c", DIES_WHILE_SAVING, str(path)], check=False)
    assert died.returncode == 9
    assert list(tmp_path.glob(".work.session.*.part"))
    assert path.read_bytes() == before
    np.testing.assert_array_equal(Session.load(path, model=segmenter).mask, session.mask)


def test_what_was_answered_is_still_there_after_a_kill(session, segmenter, tiny_folder, tmp_path):
    path = session.save(tmp_path / "work.session")
    command = [sys.executable, "-c", CLICKS_FOR_EVER, str(path), str(tiny_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = [next(process.stdout) for _ in range(CLICKS)]
        process.kill()
        process.wait()
    assert process.returncode < 0
    assert told == [f"{step}\n" for step in range(1, CLICKS + 1)]
    loaded = Session.load(path, model=segmenter)
    clicks = loaded.marks[len(session.marks) :]
    assert len(clicks) >= CLICKS
    assert all(mark.kind == "point" for mark in clicks)
    for _ in clicks:
        loaded.undo()
    np.testing.assert_array_equal(loaded.mask, session.mask)
    assert loaded.legend == session.legend


def test_a_session_file_is_a_zip_of_json_and_bits(session, tmp_path):
    with zipfile.ZipFile(session.save(tmp_path / "work.session")) as file:
        document = json.loads(file.read("session.json"))
        names = file.namelist()
    assert {Path(name).suffix for name in names} == {".json", ".bits", ".int8"}
    assert document["format"] == "textseg-session-1"
    assert len(document["marks"]) == 4


def test_another_scan_is_refused(session, segmenter, scan_file, tmp_path):
    path = session.save(tmp_path / "work.session")
    other = read_scan(scan_file)
    voxels = other.voxels.copy()
    voxels[0, 3, 4, 5] += 1
    with pytest.raises(ScanError, match="the scan given holds other voxels"):
        Session.load(path, model=segmenter, scan=Volume(voxels, other.geometry))
    moved = scan_file.rename(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(ScanError, match="no longer at"):
        Session.load(path, model=segmenter)
    assert Session.load(path, model=segmenter, scan=moved).legend == {1: "liver"}


def test_a_scan_that_moved_with_its_session_is_found(session, segmenter, scan_file, tmp_path):
    path = session.save(tmp_path / "work.session")
    (tmp_path / "new").mkdir()
    scan_file.rename(tmp_path / "new" / scan_file.name)
    path = path.rename(tmp_path / "new" / path.name)
    assert Session.load(path, model=segmenter).volume.file.paths[0].parent.name == "new"


def test_a_scan_in_memory_must_be_given_again(segmenter, scan, tmp_path):
    session = Session(segmenter)
    session.set_scan(scan)
    session.add_point(CLICK, coordinates="voxel")
    path = session.save(tmp_path / "work.session")
    with pytest.raises(ScanError, match="was in memory"):
        Session.load(path, model=segmenter)
    loaded = Session.load(path, model=segmenter, scan=body(tilted()))
    np.testing.assert_array_equal(loaded.mask, session.mask)


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_what_is_no_session_file_is_refused(segmenter, tmp_path, content):
    path = tmp_path / "work.session"
    if content is None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("session.json", '{"format": "textseg-session-9"}')
    else:
        path.write_bytes(content)
    with pytest.raises(ScanError, match=r"is not a session file|of the format textseg-session-1"):
        Session.load(path, model=segmenter)


def test_a_missing_file_and_a_missing_folder_are_said(session, segmenter, tmp_path):
    with pytest.raises(ScanError, match="there is no"):
        Session.load(tmp_path / "none.session", model=segmenter)
    with pytest.raises(OutputError, match=r"can't be written.*still there"):
        session.save(tmp_path / "none" / "work.session")
    with pytest.raises(ScanError, match="a path the first time"):
        session.save()


def test_a_session_forgets_its_file_with_a_new_scan(session, scan, tmp_path):
    path = session.save(tmp_path / "work.session")
    before = path.read_bytes()
    session.set_scan(scan)
    session.add_point(CLICK, coordinates="voxel")
    assert path.read_bytes() == before
    assert session.objects == ()
