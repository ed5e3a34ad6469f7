"""Words and marks, step by step, on a scan whose answers are known."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from tests.session.conftest import at_millimetres, body, tilted
from textseg.errors import ModelError, PromptError, ScanError
from textseg.geometry import AxisOrder
from textseg.network.spatial_prompts import PREVIOUS
from textseg.prepare import restore_mask
from textseg.session import Session
from textseg.volume import Volume

CLICK = (20, 21, 9)
ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]


@pytest.fixture
def session(segmenter, scan):
    session = Session(segmenter)
    session.set_scan(scan)
    return session


def cube(shape, centre, radius=2):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(max(0, c - radius), c + radius + 1) for c in centre)] = True
    return mask


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
def test_a_click_lands_on_its_voxel_in_any_orientation(segmenter, order):
    scan = body(tilted())
    copy = Volume(order.apply(scan.voxels), scan.geometry.reordered(order), modality="ct")
    world = scan.geometry.to_world(CLICK)
    there = np.rint(copy.geometry.to_voxels(world)).astype(int)
    expected = order.apply(cube(scan.geometry.shape, CLICK))
    session = Session(segmenter)
    session.set_scan(copy)
    session.add_point(world)
    np.testing.assert_array_equal(session.mask, expected)
    session.undo()
    session.add_point(there, coordinates="voxel")
    np.testing.assert_array_equal(session.mask, expected)


def test_words_look_everywhere_and_equal_the_segmenter(session, scan, segmenter):
    answer = session.say("liver")
    assert len(segmenter.network.encoded) == len(segmenter.network.texts) > 8
    assert all(maps is None for maps in segmenter.network.maps)
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)
    np.testing.assert_array_equal(session.mask, segmenter(scan, "liver").masks[0])
    assert answer.voxels == session.mask.sum()
    assert answer.volume_ml == pytest.approx(answer.voxels / 1000)
    assert answer.presence == session.presence > 0.99
    assert session.text == "liver"


def test_the_image_is_encoded_once_for_all_steps(session, segmenter):
    session.say("liver")
    encoded = len(segmenter.network.encoded)
    session.add_point(CLICK, coordinates="voxel")
    session.say("spleen")
    session.add_point((40, 30, 40), coordinates="voxel")
    assert len(segmenter.network.encoded) == encoded


def test_words_that_are_not_there_mark_nothing_until_a_click_says_so(session, segmenter):
    segmenter.network.sure = 0.0
    assert session.say("liver").presence < 0.01
    assert not session.mask.any()
    session.add_point(CLICK, coordinates="voxel")
    assert session.mask[CLICK]


def test_a_click_looks_at_one_window_where_what_it_marks_is_small(session, segmenter):
    session.add_point((12, 10, 5), coordinates="voxel")
    assert segmenter.network.texts == [None]


def test_marks_take_away_and_add_to_what_words_found(session, segmenter, scan):
    session.say("liver")
    before = session.mask
    everywhere = len(segmenter.network.texts)
    answer = session.add_point(CLICK, positive=False, coordinates="voxel")
    assert len(segmenter.network.texts) - everywhere <= 2
    assert segmenter.network.texts[-1] is not None
    np.testing.assert_array_equal(session.mask, before & ~cube(before.shape, CLICK))
    outside = np.ones(before.shape, bool)
    outside[answer.changed.slices] = False
    assert outside.any()
    np.testing.assert_array_equal(session.mask[outside], before[outside])
    session.add_point((40, 30, 40), coordinates="voxel")
    assert session.mask[40, 30, 40]
    assert not session.mask[CLICK]


@pytest.mark.parametrize("click", [(10, 8, 4), (0, 0, 0), (20, 14, 10)])
def test_a_scan_smaller_than_a_window_lies_in_its_middle(click, segmenter):
    scan = body(tilted((21, 15, 11)), (slice(3, 12), slice(5, 11), slice(4, 7)))
    session = Session(segmenter)
    session.set_scan(scan)
    session.add_point(click, coordinates="voxel")
    np.testing.assert_array_equal(session.mask, cube((21, 15, 11), click))
    (seen,) = segmenter.network.encoded
    assert seen.shape[2:] == (24, 16, 16)
    middle = (slice(1, 22), slice(0, 15), slice(2, 13))
    assert torch.equal(seen[0, 0][middle] > 0, torch.from_numpy(scan.voxels[0] > 0))
    # What was there before is shown in its place too.
    session.add_point((5, 12, 8), positive=False, coordinates="voxel")
    before = torch.zeros(24, 16, 16)
    before[middle] = torch.from_numpy(cube((21, 15, 11), click)).float()
    assert torch.equal(segmenter.network.maps[-1][0, 0, PREVIOUS], before)
    session.reset()
    session.say("liver")
    np.testing.assert_array_equal(session.mask, segmenter(scan, "liver").masks[0])


def test_a_mask_that_leaves_its_window_is_followed(session, segmenter, scan):
    segmenter.network.floods = True
    session.add_point(CLICK, coordinates="voxel")
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)
    assert segmenter.network.maps[-1][0, 0, 0].any()


def test_something_much_larger_than_a_window_is_looked_at_from_afar(segmenter):
    geometry = tilted((104, 30, 30))
    scan = body(geometry, (slice(3, 101), slice(8, 22), slice(9, 20)))
    segmenter.network.floods = True
    session = Session(segmenter)
    stages = []
    session.progress = lambda stage, done, of: stages.append(stage)
    session.set_scan(scan)
    session.add_point((50, 14, 14), coordinates="voxel")
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)
    assert any(stage == "looking at 2 mm" for stage in stages)
    assert any(stage == "looking at 4 mm" for stage in stages)


def test_a_box_larger_than_a_window_is_looked_at_whole(segmenter):
    scan = body(tilted((104, 30, 30)), (slice(3, 101), slice(8, 22), slice(9, 20)))
    session = Session(segmenter)
    session.set_scan(scan)
    session.add_box((3, 8, 9), (101, 22, 20), coordinates="voxel")
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)
    assert len(segmenter.network.texts) > 3


def test_a_box_is_the_voxels_in_it(session, scan):
    session.add_box((10, 6, 7), (17, 15, 8), coordinates="voxel")
    expected = np.zeros(scan.geometry.shape, bool)
    expected[10:17, 6:15, 7:8] = True
    np.testing.assert_array_equal(session.mask, expected)
    session.undo()
    session.add_box(scan.geometry.to_world((16.5, 14.5, 7)), scan.geometry.to_world((9.5, 5.5, 7)))
    np.testing.assert_array_equal(session.mask, expected)


def test_a_scribble_has_no_gaps_where_the_grid_is_finer(segmenter):
    at_millimetres(segmenter, torso=0.5)
    segmenter.network.radius = 0
    session = Session(segmenter)
    session.set_scan(body(tilted((30, 24, 20))))
    session.add_scribble([(3, 4, 5), (20, 15, 11)], coordinates="voxel")
    maps = next(maps for maps in segmenter.network.maps if maps is not None)
    drawn = np.argwhere(maps[0, 0, 5].numpy() > 0)
    steps = np.abs(np.diff(drawn[np.lexsort(drawn.T[::-1])], axis=0)).max(axis=1)
    assert (steps == 1).all()
    assert len(drawn) > 15


def test_a_lasso_holds_what_it_encloses_on_its_slice(session, scan):
    line = [(9.5, 8.5, 12), (20.5, 8.5, 12), (20.5, 19.5, 12), (9.5, 19.5, 12)]
    session.add_lasso(line, coordinates="voxel")
    expected = np.zeros(scan.geometry.shape, bool)
    expected[10:21, 9:20, 12] = True
    np.testing.assert_array_equal(session.mask, expected)
    session.add_lasso(scan.geometry.to_world(line), positive=False)
    assert not session.mask.any()


def test_undo_and_redo_give_the_very_masks_back(session):
    assert not session.can_undo
    masks = [session.mask]
    steps = [
        lambda: session.say("liver"),
        lambda: session.add_point(CLICK, positive=False, coordinates="voxel"),
        lambda: session.add_box((30, 3, 20), (36, 9, 30), coordinates="voxel"),
        lambda: session.accept(),
        lambda: session.add_point((44, 30, 35), coordinates="voxel"),
        lambda: session.reset(),
    ]
    for step in steps:
        step()
        masks.append(session.mask)
    for mask in reversed(masks[:-1]):
        assert session.undo()
        np.testing.assert_array_equal(session.mask, mask)
    assert not session.undo()
    for mask in masks[1:]:
        assert session.redo()
        np.testing.assert_array_equal(session.mask, mask)
    assert not session.redo()
    assert [one.name for one in session.objects] == ["liver"]
    session.undo()
    session.add_point((5, 5, 5), coordinates="voxel")
    assert not session.can_redo


def test_objects_have_names_volumes_and_a_label_map(session):
    session.add_point(CLICK, coordinates="voxel")
    assert session.accept().name == "object 1"
    session.add_point((40, 30, 40), coordinates="voxel")
    second = session.accept("cyst")
    assert second.volume_ml == pytest.approx(0.125)
    assert second.facts.voxels == 125
    session.add_point((30, 30, 30), coordinates="voxel")
    assert session.accept().name == "object 2"
    assert session.legend == {1: "object 1", 2: "cyst", 3: "object 2"}
    assert session.labels[CLICK] == 1
    assert session.labels[40, 30, 40] == 2
    session.remove("cyst")
    assert session.legend == {1: "object 1", 2: "object 2"}
    session.undo()
    assert session.legend[2] == "cyst"
    with pytest.raises(PromptError, match="no object 'bone'; accepted are: object 1, cyst, object 2"):
        session.remove("bone")


def test_words_accepted_twice_get_a_number(session):
    for name in ("liver", "liver 2", "liver 3"):
        session.say("liver")
        assert session.accept().name == name
    session.say("liver")
    with pytest.raises(PromptError, match="no other one has, got 'liver 2'"):
        session.accept("liver 2")


def test_a_step_that_is_cancelled_changes_nothing(session):
    session.add_point(CLICK, coordinates="voxel")
    before = session.mask

    def cancel(stage, done, of):
        if done == 3:
            raise KeyboardInterrupt

    session.progress = cancel
    with pytest.raises(KeyboardInterrupt):
        session.say("liver")
    np.testing.assert_array_equal(session.mask, before)
    assert session.text is None
    session.undo()
    assert not session.can_undo


@pytest.mark.parametrize(
    ("sides", "stop", "spacing_mm"),
    [
        ((70, 38, 44), (40, 10, 10), 2),
        ((70, 38, 44), (22, 14, 14), 1),
        ((70, 38, 44), (6, 9, 9), 0.5),
        ((50, 38, 44), None, 1),
    ],
)
def test_marks_alone_are_looked_at_as_finely_as_scan_and_box_need(segmenter, sides, stop, spacing_mm):
    at_millimetres(segmenter, torso=2.0, limbs=2.0, sarcoma=2.0, head_neck=2.0, brain=1.0, hippocampus=0.5)
    session = Session(segmenter)
    stages = []
    session.set_scan(body(tilted(sides)))
    session.progress = lambda stage, done, of: stages.append(stage)
    if stop is None:
        session.add_point(CLICK, coordinates="voxel")
    else:
        session.add_box((2, 2, 2), stop, coordinates="voxel")
    assert stages[1] == f"looking at {spacing_mm} mm"


def test_errors_say_what_to_do(segmenter, scan):
    session = Session(segmenter)
    for step in (
        lambda: session.say("liver"),
        lambda: session.add_point((0, 0, 0)),
        lambda: session.mask,
        lambda: session.accept(),
        lambda: session.save("x"),
    ):
        with pytest.raises(ScanError, match="Call set_scan first"):
            step()
    session.set_scan(scan)
    voxel = {"coordinates": "voxel"}
    for step, sentence in (
        (lambda: session.accept(), "no object to accept"),
        (lambda: session.say("  "), "prompt"),
        (
            lambda: session.add_point((60, 1, 1), **voxel),
            "lies within the scan of 50 × 38 × 44 voxels, got voxel",
        ),
        (lambda: session.add_point((60, 1), **voxel), "three numbers"),
        (lambda: session.add_point((np.nan, 1, 1), **voxel), "not finite"),
        (lambda: session.add_point((1, 1, 1), coordinates="mm"), "world or voxel, got 'mm'"),
        (lambda: session.add_box((5, 5, 5), (5, 9, 9), **voxel), "up to a larger stop"),
        (lambda: session.add_box((50, 5, 5), (55, 9, 9), **voxel), "A box lies within"),
        (lambda: session.add_scribble([], **voxel), "at least one place"),
        (lambda: session.add_lasso([], **voxel), "at least three places"),
        (lambda: session.add_lasso([(1, 1, 1), (5, 5, 5), (9, 9, 9)], **voxel), "enclose nothing"),
        (lambda: session.add_lasso([(1, 1, 1), (9, 1, 1), (9, 9, 9), (1, 9, 1)], **voxel), "one plane"),
    ):
        with pytest.raises(PromptError, match=sentence):
            step()
    assert not session.can_undo


def test_another_projects_model_is_refused(segmenter):
    copy = segmenter.__class__.__new__(segmenter.__class__)
    folder = type(segmenter.model)("other", segmenter.model.path, "voxtell")
    vars(copy).update(vars(segmenter), model=folder)
    with pytest.raises(ModelError, match="got 'other' of voxtell, which takes no marks"):
        Session(copy)


def test_only_the_box_that_changed_is_restored_and_it_is_restored_exactly(segmenter):
    at_millimetres(segmenter, torso=2.0)
    scan = body(tilted((60, 44, 52), spacing_mm=0.9))
    session = Session(segmenter)
    session.set_scan(scan)
    session.say("liver")
    before = session.mask
    answer = session.add_point((40, 33, 41), coordinates="voxel")
    inside = np.zeros(before.shape, bool)
    inside[answer.changed.slices] = True
    assert 0 < inside.sum() < inside.size / 2
    np.testing.assert_array_equal(session.mask[~inside], before[~inside])
    engine, field = session.engine, session._draft.outcome.field
    grid = engine._grid((2.0, 2.0, 2.0))
    logits = torch.from_numpy(field.whole()).float() / 16
    whole = restore_mask(logits, grid.prepared, lambda values: values > 0)
    assert (whole[inside] != before[inside]).any()
    np.testing.assert_array_equal(session.mask[inside], whole[inside])


def test_a_click_on_a_sheared_scan_lands_on_its_place(segmenter):
    geometry = tilted()
    affine = geometry.affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    scan = body(type(geometry)(geometry.shape, affine))
    session = Session(segmenter)
    session.set_scan(scan)
    world = scan.geometry.to_world(CLICK)
    session.add_point(world)
    assert session.mask[CLICK]
    middle = scan.geometry.to_world(np.argwhere(session.mask)).mean(axis=0)
    assert np.abs(middle - world).max() < 0.6


def test_what_lies_in_the_air_around_the_body_is_refused(segmenter):
    geometry = tilted()
    voxels = np.full(geometry.shape, -1000.0, np.float32)
    voxels[:25] = 0
    session = Session(segmenter)
    session.set_scan(Volume(voxels, geometry, modality="ct"))
    with pytest.raises(PromptError, match="point lies on the body or within 6 mm of it"):
        session.add_point((45, 20, 20), coordinates="voxel")
    assert not session.can_undo
