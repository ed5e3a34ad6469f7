"""The simulated person draws what was meant, and the benchmark of quality counts what it came to."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from textseg.interactive.marks import enclosed_voxels, line_voxels
from textseg.session import Session
from textseg.train.interactions import drawn_on

PROGRAMS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def user(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("simulated_user")


@pytest.fixture
def quality(user):
    return importlib.import_module("session_quality")


@pytest.fixture
def session(segmenter, scan):
    session = Session(segmenter)
    session.set_scan(scan)
    return session


def on_slice(flat, across, index):
    return np.insert(np.argwhere(flat), across, index, axis=1)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_the_pen_goes_through_the_largest_piece_and_never_leaves_it(user, across):
    flat = np.zeros((12, 9), bool)
    flat[2:8, 4], flat[range(8, 11), range(5, 8)], flat[8:10, 3] = True, True, True
    piece = on_slice(flat, across, 6)
    flat[0:2, 0] = True
    line = user.stroke(on_slice(flat, across, 6))
    assert np.abs(np.diff(line, axis=0)).max() == 1
    assert {tuple(voxel) for voxel in line_voxels(line)} == {tuple(voxel) for voxel in piece}


@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_closed_line_encloses_pieces_and_leaves_holes_out(user, across):
    flat = np.zeros((14, 11), bool)
    flat[2:9, 3:9], flat[4:6, 5:7], flat[9, 9], flat[11:13, 1:3] = True, False, True, True
    voxels = on_slice(flat, across, 5)
    found = enclosed_voxels(user.outline(voxels))
    assert {tuple(voxel) for voxel in found} == {tuple(voxel) for voxel in voxels}


def test_a_rectangle_has_four_corners(user):
    line = user.outline(on_slice(np.ones((4, 6), bool), 2, 3))
    assert len({tuple(corner) for corner in line}) == 4
    np.testing.assert_array_equal([line.min(axis=0), line.max(axis=0)], [(-0.5, -0.5, 3), (3.5, 5.5, 3)])


@pytest.mark.parametrize("kind", ["point", "box", "slice_box", "scribble", "lasso"])
def test_every_kind_of_mark_is_drawn_on_what_it_means(user, session, scan, kind):
    wanted = scan.voxels[0] > 0
    user.draw(session, drawn_on(wanted, kind, np.random.default_rng(4)))
    (mark,) = session.marks
    assert mark.kind == kind.removeprefix("slice_")
    assert (session.mask & wanted).sum() > 0.5 * session.mask.sum() > 0


@pytest.fixture
def case(quality):
    return quality.HeldBack("set", "case", "ct", Path("image"), Path("labels"), {})


def test_corrections_are_counted_from_the_words_on(quality, session, scan, case):
    wanted = scan.voxels[0] > 0
    wanted[3:12, 12:30, 5:12] = False
    found = quality.measure(session, wanted, case, "liver")
    assert len(found.words) == quality.CORRECTIONS + 1
    assert found.drawn == quality.CORRECTIONS
    assert found.words[0] == pytest.approx(2 * wanted.sum() / (wanted.sum() + (scan.voxels[0] > 0).sum()))
    # This network does as it is told, voxel by voxel.
    assert all(np.diff(found.words) > 0)
    assert 0 < found.click < 0.1
    assert found.words_and_click == found.words[0]
    assert not session.mask.any()


def test_a_user_who_sees_no_error_stops(quality, session, scan, case):
    found = quality.measure(session, scan.voxels[0] > 0, case, "liver")
    assert found.words == [1.0] * (quality.CORRECTIONS + 1)
    assert found.drawn == 0


def test_means_are_of_cases_and_not_of_structures(quality):
    row = quality.Measured("torso", "ct", "one", "liver", [0.2] * 11, 0.1, 0.3, 10, 1.0, 0.5)
    rows = [
        row,
        replace(row, structure="spleen", words=[0.4] * 11),
        replace(row, case="two", words=[0.9] * 11),
    ]
    (means,) = quality.means_of(rows)
    assert means.words == [0.6] * 11
    assert (means.cases, means.structures) == (2, 2)
    assert quality.table([means]).endswith(
        "| torso, CT, 2 structures | 2 | 0.60 | 0.60 | 0.60 | 0.60 | 0.60 | 0.10 | 0.30 | 0.50 |"
    )


def test_cases_are_spread_over_their_list(quality, case):
    cases = [replace(case, name=str(number)) for number in range(9)]
    pet = replace(case, modality="pet")
    assert [one.name for one in quality.spread([*cases, pet], 3)] == ["0", "4", "8", "case"]


def test_only_cases_that_no_training_saw_are_asked_for(quality, shared_data):
    found = quality.held_back(shared_data)
    patients = {case.name[:7] for case in found if case.dataset == "sarcoma"}
    assert len(patients) == 8
    assert sum(case.dataset == "hippocampus" for case in found) == 41
    torsos = {case.name: case.structures for case in found if case.dataset == "torso"}
    assert set(torsos) == {"abdomen_portal", "chest"}
    assert "liver" not in torsos["abdomen_portal"]
    assert "liver" in torsos["chest"]
    assert all(case.image.is_file() and case.labels.is_file() for case in found)
