"""Strokes become marks where they were drawn, and marks are shown where they are."""

from __future__ import annotations

import numpy as np
import pytest

from textseg.errors import PromptError
from textseg.session import Session
from textseg.viewer.drawing import MOST_SLICES, Stroke, draw, outline, put_on


@pytest.fixture
def session(segmenter, scan):
    session = Session(segmenter)
    session.set_scan(scan)
    return session


def stroke(tool, *places, displayed=(1, 2), **options):
    return Stroke(tool, np.array(places, float), displayed, **options)


def test_a_click_marks_its_voxel(session):
    put_on(session, stroke("point", (7, 11, 20)))
    assert session.mask[20, 11, 7]
    assert session.mask.sum() == 125
    put_on(session, stroke("point", (7, 11, 20), positive=False))
    assert not session.mask.any()


def test_a_box_lies_on_its_slice_or_reaches_to_its_neighbours(session):
    put_on(session, stroke("box", (7, 18, 30.4), (7, 11, 22)))
    expected = np.zeros(session.geometry.shape, bool)
    expected[22:31, 11:19, 7] = True
    np.testing.assert_array_equal(session.mask, expected)
    session.undo()
    put_on(session, stroke("box", (7, 18, 30.4), (7, 11, 22), depth=2))
    expected[22:31, 11:19, 5:10] = True
    np.testing.assert_array_equal(session.mask, expected)


def test_a_box_on_a_coronal_slice_is_thin_from_front_to_back(session):
    put_on(session, stroke("box", (4, 12, 8), (16, 12, 20), displayed=(0, 2)))
    assert [int(np.ptp(axis)) for axis in np.nonzero(session.mask)] == [12, 0, 12]


def test_scribbles_and_lassos_keep_their_plane(session):
    put_on(session, stroke("scribble", (9, 4, 5), (9, 4, 12), (9, 10, 12)))
    assert {9} == set(np.nonzero(session.mask)[2])
    session.reset()
    put_on(session, stroke("lasso", (9, 3.5, 4.5), (9, 3.5, 14.5), (9, 12.5, 14.5), (9, 12.5, 4.5)))
    expected = np.zeros(session.geometry.shape, bool)
    expected[5:15, 4:13, 9] = True
    np.testing.assert_array_equal(session.mask, expected)


@pytest.mark.parametrize("tool", ["box", "lasso"])
def test_a_click_is_no_box_and_no_lasso(session, tool):
    with pytest.raises(PromptError, match=r"got a click|enclose nothing"):
        put_on(session, stroke(tool, (7, 11, 20), (7, 11.2, 20.1)))
    assert not session.can_undo


def test_what_is_being_drawn_has_an_outline():
    assert outline(stroke("scribble", (7, 1, 2)))[0] == "path"
    kind, corners = outline(stroke("box", (7, 1, 2), (7, 5, 9)))
    assert kind == "rectangle"
    np.testing.assert_array_equal(corners, [(7, 1, 2), (7, 1, 9), (7, 5, 9), (7, 5, 2)])
    assert outline(stroke("lasso", (7, 1, 2), (7, 5, 9), (7, 6, 1)))[0] == "polygon"


def test_marks_are_drawn_where_they_were_made(session):
    put_on(session, stroke("point", (7, 11, 20), positive=False))
    put_on(session, stroke("box", (7, 18, 30), (7, 11, 22)))
    put_on(session, stroke("box", (17, 18, 30), (17, 11, 22), depth=2))
    put_on(session, stroke("lasso", (9, 3, 4), (9, 3, 14), (9, 12, 14)))
    drawing = draw(session.marks, session.geometry)
    np.testing.assert_allclose(drawing.points, [(7, 11, 20)], atol=1e-9)
    assert drawing.points_positive == [False]
    assert drawing.kinds == ["rectangle"] * 6 + ["polygon"]
    assert [round(shape[0, 0]) for shape in drawing.shapes] == [7, 15, 16, 17, 18, 19, 9]
    np.testing.assert_allclose(drawing.shapes[0].min(axis=0), (7, 11, 22), atol=1e-9)
    np.testing.assert_allclose(drawing.shapes[0].max(axis=0), (7, 18, 30), atol=1e-9)


def test_a_thick_box_is_drawn_on_some_of_its_slices(session):
    session.add_box((0, 0, 0), (50, 38, 44), coordinates="voxel")
    assert 20 < len(draw(session.marks, session.geometry).shapes) <= MOST_SLICES
