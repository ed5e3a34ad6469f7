"""In a real window: words typed, marks drawn with the mouse, masks seen, undone, saved and opened again."""

from __future__ import annotations

import threading
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from textseg.scan import read_label_map
from textseg.viewer.coordinates import layer_matrix
from textseg.viewer.saving import FORMATS
from textseg.viewer.scans import image_layer
from textseg.viewer.scene import camera_of
from textseg.volume import Volume

COMMITTED = Path(__file__).parent / "window.png"
SIZE = (1280, 860)
# Fonts and graphics drivers differ; the structure of the window does not.
SMALL = (80, 54)
ALIKE = 0.9


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """One napari window for all tests here: opening it takes longest."""
    import os

    os.environ["NAPARI_CONFIG"] = str(tmp_path_factory.mktemp("napari") / "settings.yaml")
    import napari

    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(*SIZE)
    yield viewer
    viewer.close()


@pytest.fixture
def viewer(qt, request):
    # Only once `qt` has found that a window can open.
    return request.getfixturevalue("window")


@pytest.fixture
def panel(viewer, desk):
    from tests.viewer.mouse import settle
    from textseg.viewer.panel import Panel

    panel = Panel(viewer, desk)
    dock = viewer.window.add_dock_widget(panel.widgets.root, name="textseg", area="right")
    yield panel
    settle(panel)
    viewer.dims.ndisplay = 2
    panel.close()
    viewer.layers.clear()
    viewer.window.remove_dock_widget(dock)


def add(panel, *volumes):
    """Show a scan as our reader does; gives its layer."""
    from tests.viewer.mouse import settle

    data, options, _ = image_layer("scan", volumes)
    layer = panel.viewer.add_image(data, **options)
    panel.viewer.reset_view()
    settle(panel)
    return layer


def say(panel, words):
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    from tests.viewer.mouse import settle

    panel.widgets.prompt.setFocus()
    panel.widgets.prompt.clear()
    QTest.keyClicks(panel.widgets.prompt, words)
    QTest.keyClick(panel.widgets.prompt, Qt.Key.Key_Return)
    settle(panel)


def now(viewer):
    """The mask in hand as it is shown, (x, y, z)."""
    return viewer.layers["textseg now"].data.T > 0


def test_words_scribble_undo_accept_save_and_reload(viewer, panel, scan, tmp_path):
    from qtpy.QtCore import Qt

    from tests.viewer.mouse import drag, press_key, settle

    matrix = add(panel, scan).affine.affine_matrix
    say(panel, "liver")
    inside = scan.voxels[0] > 0
    np.testing.assert_array_equal(now(viewer), inside)
    assert "“liver”" in panel.widgets.message.text()

    press_key(viewer, Qt.Key.Key_T)
    press_key(viewer, Qt.Key.Key_S)
    drag(viewer, [(9, 16, 8), (9, 18, 14), (9, 22, 14)], matrix)
    settle(panel)
    taken = np.argwhere(inside & ~now(viewer))
    assert not (now(viewer) & ~inside).any()
    assert set(taken[:, 2]) == {9}
    for index in ((8, 16, 9), (14, 18, 9), (14, 22, 9)):
        assert not now(viewer)[index]
    assert taken[:, 0].min() == 8
    assert taken[:, 1].max() == 22
    assert len(viewer.layers["textseg strokes"].data) == 1

    corrected = now(viewer)
    press_key(viewer, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    settle(panel)
    np.testing.assert_array_equal(now(viewer), inside)
    assert len(viewer.layers["textseg strokes"].data) == 0
    both = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier
    press_key(viewer, Qt.Key.Key_Z, both)
    settle(panel)
    np.testing.assert_array_equal(now(viewer), corrected)

    press_key(viewer, Qt.Key.Key_A)
    settle(panel)
    table = panel.widgets.table
    assert [table.item(0, column).text() for column in (1, 2)] == ["liver", f"{corrected.sum() / 1000:.2f}"]
    np.testing.assert_array_equal(viewer.layers["textseg objects"].data.T, corrected)
    panel.files.save_objects(tmp_path / "objects.nii.gz", FORMATS[0])
    panel.files.save_session(tmp_path / "work")
    settle(panel)
    np.testing.assert_array_equal(read_label_map(tmp_path / "objects.nii.gz").labels, corrected)

    viewer.layers.clear()
    settle(panel)
    add(panel, scan)
    assert "textseg objects" not in viewer.layers
    panel.files.open_session(tmp_path / "work.session")
    settle(panel)
    np.testing.assert_array_equal(viewer.layers["textseg objects"].data.T, corrected)
    assert table.rowCount() == 1


def test_every_tool_draws_and_shift_turns_the_sign(viewer, panel, flipped_scan):
    from qtpy.QtCore import Qt

    from tests.viewer.mouse import drag, press_key, settle

    matrix = add(panel, flipped_scan).affine.affine_matrix
    press_key(viewer, Qt.Key.Key_P)
    drag(viewer, [(20, 9, 30)], matrix)
    settle(panel)
    assert now(viewer)[30, 9, 20]
    drag(viewer, [(20, 9, 30)], matrix, Qt.KeyboardModifier.ShiftModifier)
    settle(panel)
    assert not now(viewer).any()
    press_key(viewer, Qt.Key.Key_R)
    press_key(viewer, Qt.Key.Key_B)
    panel.widgets.depth.setValue(1)
    drag(viewer, [(20, 9, 30), (20, 15.2, 40.3)], matrix)
    settle(panel)
    box = np.argwhere(now(viewer))
    assert set(box[:, 2]) == {19, 20, 21}
    assert (box[:, 0].min(), box[:, 0].max()) == (30, 40)
    press_key(viewer, Qt.Key.Key_R)
    press_key(viewer, Qt.Key.Key_L)
    viewer.dims.order = (1, 0, 2)
    drag(viewer, [(10, 12, 8), (10, 12, 20), (30, 12, 20), (30, 12, 8)], matrix)
    settle(panel)
    lasso = np.argwhere(now(viewer))
    # One and a half millimetres a row, one a working voxel.
    assert {12} <= set(lasso[:, 1]) <= {11, 12, 13}
    assert now(viewer)[14, 12, 20]
    viewer.dims.order = (0, 1, 2)
    press_key(viewer, Qt.Key.Key_M)
    assert camera_of(viewer).mouse_pan


def test_what_is_clicked_is_what_is_seen_on_an_oblique_layer_of_others(viewer, panel, scan):
    from tests.viewer.mouse import canvas_of, drag, pixel_of, settle

    bright = np.zeros(scan.geometry.shape[::-1], np.float32)
    bright[17:20, 20:23, 33:36] = 100
    matrix = layer_matrix(scan.geometry, "SPL")
    viewer.add_image(bright, affine=matrix)
    viewer.reset_view()
    settle(panel)
    assert not panel.widgets.world.isHidden()
    pixel = pixel_of(viewer, (18, 21, 34), matrix)
    shot = canvas_of(viewer).screenshot().convertToFormat(canvas_of(viewer).screenshot().Format.Format_RGB32)
    assert shot.pixelColor(pixel.toPoint()).red() > 200
    panel.use_point()
    drag(viewer, [(18, 21, 34)], matrix)
    settle(panel)
    assert now(viewer)[34, 21, 18]
    (mark,) = panel.desk.session.marks
    assert np.abs(np.array(mark.points[0]) - (34, 21, 18)).max() < 0.6
    there = panel.desk.session.geometry.to_world(mark.points[0])
    assert np.abs(there - scan.geometry.to_world((34, 21, 18))).max() < 1


def test_the_window_goes_on_while_the_model_thinks_and_a_step_can_be_stopped(viewer, panel, painter, scan):
    from qtpy.QtCore import QTimer

    from tests.viewer.mouse import settle, wait_until

    add(panel, scan)
    say(panel, "liver")
    before = now(viewer)
    thinking, go_on, ticks, decode = threading.Event(), threading.Event(), [], painter.decode

    def slow(*arguments):
        thinking.set()
        assert go_on.wait(60)
        return decode(*arguments)

    painter.decode = slow
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(thinking.is_set()))
    timer.start(5)
    panel.widgets.prompt.setText("spleen")
    panel.say()
    wait_until(lambda: ticks.count(True) > 10)
    assert panel.work.busy
    panel.toggle_help()
    assert panel.widgets.help.isVisible()
    panel.toggle_help()
    panel.cancel()
    go_on.set()
    settle(panel)
    painter.decode = decode
    assert panel.widgets.message.text() == "Stopped; everything is as before."
    np.testing.assert_array_equal(now(viewer), before)
    assert panel.desk.session.text == "liver"


def test_frames_have_sessions_of_their_own(viewer, panel, scan):
    later = Volume(np.flip(scan.voxels, 1).copy(), scan.geometry, modality="ct")
    from tests.viewer.mouse import settle

    add(panel, scan, later)
    viewer.dims.set_point(0, 1)
    settle(panel)
    say(panel, "liver")
    np.testing.assert_array_equal(now(viewer), later.voxels[0] > 0)
    viewer.dims.set_point(0, 0)
    settle(panel)
    assert "textseg now" not in viewer.layers
    say(panel, "liver")
    np.testing.assert_array_equal(now(viewer), scan.voxels[0] > 0)
    viewer.dims.set_point(0, 1)
    settle(panel)
    np.testing.assert_array_equal(now(viewer), later.voxels[0] > 0)


def test_errors_are_shown_in_words_and_words_are_completed(viewer, panel, scan):
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest

    from tests.viewer.mouse import click, wait_until
    from textseg.viewer.panel import WRONG
    from textseg.viewer.tools import IN_3D

    panel.say()
    panel.accept()
    assert "There is no scan" in panel.widgets.message.text()
    add(panel, scan)
    say(panel, "left right kidney")
    assert "one side" in panel.widgets.message.text()
    assert panel.widgets.message.styleSheet() == WRONG
    say(panel, "liver")
    assert panel.widgets.message.styleSheet() == ""
    panel.widgets.prompt.clear()
    QTest.keyClicks(panel.widgets.prompt, "li")
    offered = panel.widgets.completer.model().stringList()
    assert offered[0] == "liver"
    QTest.keyClick(panel.widgets.completer.popup(), Qt.Key.Key_Escape)
    viewer.window._qt_window.activateWindow()
    panel.widgets.prompt.setFocus()
    wait_until(panel.widgets.prompt.hasFocus)
    QTest.keyClick(panel.widgets.prompt, Qt.Key.Key_Up)
    assert panel.widgets.prompt.text() == "liver"
    viewer.dims.ndisplay = 3
    panel.use_point()
    click(viewer, 200, 200)
    assert panel.widgets.message.text() == IN_3D
    panel.use_nothing()


def test_the_plugin_is_found_reads_and_has_a_sample(viewer, qt, scan, tmp_path):
    import npe2

    manager = npe2.PluginManager.instance()
    if "textseg" not in manager:
        manager.register(npe2.PluginManifest.from_file(str(files("textseg.viewer") / "napari.yaml")))
    nib.save(nib.Nifti1Image(scan.voxels[0], scan.geometry.affine), tmp_path / "one.nii.gz")
    try:
        dock, root = viewer.window.add_plugin_dock_widget("textseg")
        assert root.objectName() == "textseg"
        (layer,) = viewer.open(str(tmp_path / "one.nii.gz"), plugin="textseg")
        assert layer.metadata["textseg"].geometry.is_close(scan.geometry, 1e-3)
        (sample,) = viewer.open_sample("textseg", "torso_phantom")
        assert sample.data.shape == (150, 92, 116)
        viewer.window.remove_dock_widget(dock)
    finally:
        viewer.layers.clear()


def test_the_window_looks_as_it_did(viewer, panel, flipped_scan, tmp_path):
    from tests.viewer.mouse import drag, settle

    matrix = add(panel, flipped_scan).affine.affine_matrix
    say(panel, "liver")
    panel.accept()
    panel.use_scribble()
    drag(viewer, [(12, 8, 30), (12, 14, 36), (12, 10, 42)], matrix)
    settle(panel)
    # The layers that a first stroke brings along must not move the slider.
    (line,) = viewer.layers["textseg strokes"].data
    np.testing.assert_allclose(line, [(12, 8, 30), (12, 14, 36), (12, 10, 42)], atol=0.2)
    assert viewer.dims.point[0] == pytest.approx(16)
    panel.toggle_help()
    settle(panel)
    picture = Image.fromarray(viewer.window.screenshot(canvas_only=False, flash=False)).convert("L")
    picture.resize(SIZE).save(tmp_path / "window.png")
    seen, committed = (
        np.asarray(one.convert("L").resize(SMALL), float).ravel() for one in (picture, Image.open(COMMITTED))
    )
    assert np.corrcoef(seen, committed)[0, 1] > ALIKE, f"Compare {tmp_path / 'window.png'} with {COMMITTED}."
