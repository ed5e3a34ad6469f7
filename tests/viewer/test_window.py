"""In a real window: words typed, marks drawn with the mouse, masks seen, undone, saved and opened again."""

from __future__ import annotations

import threading
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.session.conftest import tilted
from textseg.errors import ModelError
from textseg.interactive.engine import Outcome
from textseg.interactive.kept import PackedMask
from textseg.scan import read_label_map
from textseg.viewer.coordinates import layer_geometry, layer_matrix
from textseg.viewer.drawing import Stroke
from textseg.viewer.reading import read_layers
from textseg.viewer.saving import FORMATS
from textseg.viewer.scans import image_layer, matrix_of
from textseg.viewer.scene import camera_of
from textseg.viewer.shortcuts import SHORTCUTS
from textseg.viewer.window import open_window
from textseg.volume import Volume

SCRIBBLED, CORONAL = (Path(__file__).parent / name for name in ("window.png", "window_coronal.png"))
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


@pytest.mark.parametrize(
    "lies",
    [
        {"affine": layer_matrix(tilted(), "SPL")},
        {"scale": (3, 1.5, 1), "translate": (40, -25, 10)},
        {"affine": np.diag([-2, 1.5, -1, 1]), "translate": (5, 6, 7)},
    ],
    ids=["oblique", "scaled", "flipped"],
)
def test_what_is_clicked_is_what_is_seen_on_any_layer_of_others(viewer, panel, lies):
    from tests.viewer.mouse import canvas_of, drag, pixel_of, settle

    bright = np.zeros((44, 38, 50), np.float32)
    bright[17:20, 20:23, 33:36] = 100
    layer = viewer.add_image(bright, **lies)
    viewer.reset_view()
    settle(panel)
    assert not panel.widgets.world.isHidden()
    matrix = matrix_of(layer)
    pixel = pixel_of(viewer, (18, 21, 34), matrix)
    shot = canvas_of(viewer).screenshot().convertToFormat(canvas_of(viewer).screenshot().Format.Format_RGB32)
    assert shot.pixelColor(pixel.toPoint()).red() > 200
    panel.use_point()
    drag(viewer, [(18, 21, 34)], matrix)
    settle(panel)
    assert now(viewer)[34, 21, 18]
    (mark,) = panel.desk.session.marks
    assert np.abs(np.array(mark.points[0]) - (34, 21, 18)).max() < 0.6
    expected = layer_geometry((44, 38, 50), matrix, "SPL")
    assert panel.desk.session.geometry.is_close(expected, 1e-6)


def test_the_window_goes_on_while_the_model_thinks_and_a_step_can_be_stopped(viewer, panel, painter, scan):
    from qtpy.QtCore import QTimer

    from tests.viewer.mouse import SECONDS, settle, wait_until

    add(panel, scan)
    say(panel, "liver")
    before = now(viewer)
    thinking, go_on, ticks, decode = threading.Event(), threading.Event(), [], painter.decode

    def slow(*arguments):
        thinking.set()
        assert go_on.wait(SECONDS)
        return decode(*arguments)

    painter.decode = slow
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(thinking.is_set()))
    timer.start(5)
    panel.widgets.prompt.setText("spleen")
    panel.say()
    wait_until(lambda: ticks.count(True) > 10)
    assert panel.work.busy
    assert panel.widgets.progress.format() == "preparing"
    assert panel.widgets.message.text() == "Preparing …"
    panel.toggle_help()
    assert panel.widgets.help.isVisible()
    panel.toggle_help()
    panel.widgets.cancel.click()
    go_on.set()
    settle(panel)
    painter.decode = decode
    assert not panel.widgets.cancel.isEnabled()
    assert panel.widgets.progress.format() == ""
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


def test_everything_that_takes_time_is_done_while_the_window_goes_on(
    viewer, panel, painter, scan, tmp_path, monkeypatch
):
    from qtpy.QtCore import QTimer

    from tests.viewer.mouse import SECONDS, settle, wait_until
    from textseg.viewer import desk as working
    from textseg.viewer import files as opening

    nib.save(nib.Nifti1Image(scan.voxels[0], scan.geometry.affine), tmp_path / "one.nii.gz")
    ticks = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(1))
    timer.start(5)

    def slowly(holder, name, act):
        """Have it wait in the middle of its work until the window has ticked some times."""
        done, go_on, threads = getattr(holder, name), threading.Event(), []

        def slow(*arguments, **options):
            threads.append(threading.current_thread().name)
            assert go_on.wait(SECONDS)
            return done(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(holder, name, slow)
            act()
            wait_until(lambda: threads)
            before = len(ticks)
            wait_until(lambda: len(ticks) > before + 5)
            assert panel.work.busy
            go_on.set()
            settle(panel)
        assert {name.startswith("textseg-viewer") for name in threads} == {True}

    def say():
        panel.widgets.prompt.setText("liver")
        panel.say()

    slowly(opening, "read_layers", lambda: panel.files.open_scan(tmp_path / "one.nii.gz"))
    slowly(panel.desk, "load_model", say)
    slowly(painter, "decode", lambda: panel._mark(Stroke("point", np.array([(9.0, 16, 8)]), (1, 2))))
    slowly(panel.desk, "accept", panel.accept)
    slowly(panel.desk, "undo", panel.undo)
    slowly(working, "save_objects", lambda: panel.files.save_objects(tmp_path / "a", FORMATS[0]))
    slowly(panel.desk, "save_session", lambda: panel.files.save_session(tmp_path / "b"))
    slowly(panel.desk, "open_session", lambda: panel.files.open_session(tmp_path / "b.session"))
    assert panel.widgets.message.styleSheet() == ""
    assert now(viewer).any()


def test_scans_are_opened_by_path_chosen_among_layers_and_objects_saved_as_dicom(
    viewer, panel, scan, write_series, tmp_path, monkeypatch
):
    from qtpy.QtWidgets import QFileDialog

    from tests.viewer.mouse import settle

    pytest.importorskip("highdicom", reason="Needs highdicom.")
    first = add(panel, scan)
    say(panel, "liver")
    folder = write_series("series", number=3)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder))
    panel.widgets.open.menu().actions()[1].trigger()
    settle(panel)
    assert panel.widgets.layer.currentIndex() == 1
    assert panel.layer.data.shape == (22, 32, 26)
    assert "textseg now" not in viewer.layers
    say(panel, "spleen")
    spleen = now(viewer)
    assert spleen.any()

    panel.widgets.layer.setCurrentIndex(0)
    settle(panel)
    assert panel.layer is first
    np.testing.assert_array_equal(now(viewer), scan.voxels[0] > 0)
    panel.widgets.layer.setCurrentIndex(1)
    settle(panel)
    np.testing.assert_array_equal(now(viewer), spleen)

    kind = next(kind for kind in FORMATS if kind.name == "DICOM SEG")
    answer = (str(tmp_path / "objects.dcm"), kind.filter)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: answer)
    panel.widgets.accept.click()
    panel.widgets.save.click()
    settle(panel)
    assert panel.widgets.message.text() == f"Saved {answer[0]}."
    found = read_label_map(answer[0], grid=panel.desk.session.geometry)
    assert found.names == {1: "spleen"}
    np.testing.assert_array_equal(found.labels == 1, spleen)


def test_objects_have_their_colours_and_marks_their_signs(viewer, panel, scan):
    from qtpy.QtCore import Qt

    from tests.viewer.mouse import canvas_of, drag, pixel_of, settle
    from textseg.viewer.shown import NEGATIVE_SYMBOL, OPACITY, POSITIVE_SYMBOL, colour_of

    matrix = add(panel, scan).affine.affine_matrix
    for words in ("liver", "spleen"):
        say(panel, words)
        panel.accept()
        settle(panel)
    objects, table = viewer.layers["textseg objects"], panel.widgets.table
    assert objects.opacity == OPACITY
    for number in (1, 2):
        np.testing.assert_allclose(objects.get_color(number), colour_of(number), atol=1e-5)
        swatch = table.item(number - 1, 0).background().color().getRgbF()
        np.testing.assert_allclose(swatch, colour_of(number), atol=0.01)
    pixel = pixel_of(viewer, (9, 18, 14), matrix).toPoint()
    shot = canvas_of(viewer).screenshot().convertToFormat(canvas_of(viewer).screenshot().Format.Format_RGB32)
    seen = np.array(shot.pixelColor(pixel).getRgb()[:3]) / 255
    # Over white.
    expected = OPACITY * np.array(colour_of(objects.data[9, 18, 14])[:3]) + 1 - OPACITY
    assert np.ptp(seen) > 0.2
    assert np.abs(seen - expected).max() < 0.2

    panel.use_point()
    drag(viewer, [(20, 9, 30)], matrix)
    drag(viewer, [(22, 12, 34)], matrix, Qt.KeyboardModifier.ShiftModifier)
    settle(panel)
    points = viewer.layers["textseg points"]
    np.testing.assert_allclose(points.data, [(20, 9, 30), (22, 12, 34)], atol=0.6)
    assert [str(symbol) for symbol in points.symbol] == [POSITIVE_SYMBOL, NEGATIVE_SYMBOL]
    assert (points.face_color[0] != points.face_color[1]).any()


def test_the_list_leads_to_its_objects_and_lets_them_go(viewer, panel, scan):
    from tests.viewer.mouse import settle

    add(panel, scan)
    say(panel, "liver")
    panel.widgets.name.setText("the big one")
    panel.widgets.accept.click()
    settle(panel)
    table, inside = panel.widgets.table, scan.voxels[0] > 0
    assert table.item(0, 1).text() == "the big one"
    assert table.item(0, 2).text() == f"{inside.sum() / 1000:.2f}"
    assert panel.widgets.name.text() == ""
    viewer.dims.set_current_step(0, 40)
    table.cellDoubleClicked.emit(0, 1)
    assert inside[:, :, 43 - viewer.dims.current_step[0]].any()
    table.selectRow(0)
    panel.widgets.remove.click()
    settle(panel)
    assert table.rowCount() == 0
    assert not viewer.layers["textseg objects"].data.any()
    panel.widgets.undo.click()
    settle(panel)
    assert table.rowCount() == 1


class Everything:
    """An engine to which every mark means the whole scan."""

    name = "everything"

    def __init__(self, words):
        self.words = words

    def set_scan(self, volume, modality):
        self.shape = volume.geometry.shape

    def look(self, turn, progress):
        return Outcome(PackedMask.pack(np.ones(self.shape, bool)))


def test_model_device_and_what_draws_instead_of_it_are_chosen(viewer, panel, segmenter, scan):
    from tests.viewer.mouse import settle

    def load_model(model, device):
        asked.append((model, device))
        if device == "cuda":
            raise ModelError("There is no such model.")
        return segmenter

    def choose(combo, text):
        combo.setCurrentText(text)
        combo.activated.emit(combo.currentIndex())
        settle(panel)

    asked, widgets = [], panel.widgets
    panel.desk.load_model = load_model
    panel.desk.load_engine = lambda other, device: Everything
    add(panel, scan)
    say(panel, "liver")
    assert asked == [("default", "auto")]
    choose(widgets.device, "cpu")
    assert asked[1:] == [("default", "cpu")]
    assert widgets.message.text().startswith("Working with")
    np.testing.assert_array_equal(now(viewer), scan.voxels[0] > 0)
    choose(widgets.device, "cuda")
    assert widgets.message.text() == "There is no such model."
    assert widgets.device.currentText() == "cpu"

    panel.files.ask_weights = lambda title: ""
    choose(widgets.model, "SAM weights…")
    assert widgets.model.currentText() == "default"
    panel.files.ask_weights = lambda title: "weights/medsam_vit_b.pth"
    choose(widgets.model, "SAM weights…")
    assert widgets.model.currentText() == "SAM: medsam_vit_b.pth"
    panel._mark(Stroke("point", np.array([(9.0, 16, 8)]), (1, 2)))
    settle(panel)
    assert now(viewer).all()
    panel.files.ask_folder = lambda title: "my/model"
    choose(widgets.model, "Folder…")
    assert asked[-1] == ("my/model", "cpu")
    assert widgets.model.currentText() == "my/model"
    assert panel.desk.other is None


def test_every_key_of_the_help_does_what_it_says(viewer, panel, scan, monkeypatch):
    from qtpy.QtGui import QKeySequence
    from qtpy.QtWidgets import QLabel

    from tests.viewer.mouse import press_key

    add(panel, scan)
    told = " ".join(label.text() for label in panel.widgets.help.findChildren(QLabel))
    pressed = []
    for shortcut in SHORTCUTS:
        assert f"<b>{shortcut.shown}</b>" in told
        assert shortcut.does in told
        monkeypatch.setattr(panel, shortcut.action, lambda action=shortcut.action: pressed.append(action))
        keys = QKeySequence(shortcut.shown)[0]
        press_key(viewer, keys.key(), keys.keyboardModifiers())
    assert pressed == [shortcut.action for shortcut in SHORTCUTS]


def test_a_window_opens_with_its_scans_and_the_panel(viewer, scan, tmp_path):
    # `viewer` only so that this is skipped where no window can open.
    from qtpy.QtWidgets import QLineEdit

    from tests.viewer.mouse import settle, wait_until
    from textseg.viewer.panel import _OPEN

    before = set(_OPEN)
    nib.save(nib.Nifti1Image(scan.voxels[0], scan.geometry.affine), tmp_path / "one.nii.gz")
    opened = open_window(read_layers(tmp_path / "one.nii.gz"), "default", "cpu", show=False)
    try:
        assert [layer.name for layer in opened.layers] == ["one"]
        dock = opened.window.dock_widgets["textseg"]
        assert any("left kidney" in line.placeholderText() for line in dock.findChildren(QLineEdit))
        # In the middle, not at an end.
        assert abs(opened.dims.current_step[0] - 21) <= 1
        (panel,) = _OPEN - before
        settle(panel)
    finally:
        opened.close()
    wait_until(lambda: panel not in _OPEN)


def test_the_plugin_is_found_reads_and_has_a_sample(viewer, qt, scan, tmp_path):
    import npe2

    manager = npe2.PluginManager.instance()
    if "textseg" not in manager:
        manager.register(npe2.PluginManifest.from_file(str(files("textseg.viewer") / "napari.yaml")))
    nib.save(nib.Nifti1Image(scan.voxels[0], scan.geometry.affine), tmp_path / "one.nii.gz")
    try:
        viewer.window.plugins_menu.aboutToShow.emit()
        assert any("textseg" in action.text() for action in viewer.window.plugins_menu.actions())
        dock, root = viewer.window.add_plugin_dock_widget("textseg")
        assert root.objectName() == "textseg"
        (layer,) = viewer.open(str(tmp_path / "one.nii.gz"), plugin="textseg")
        assert layer.metadata["textseg"].geometry.is_close(scan.geometry, 1e-3)
        (sample,) = viewer.open_sample("textseg", "torso_phantom")
        assert sample.data.shape == (150, 92, 116)
        viewer.window.remove_dock_widget(dock)
    finally:
        viewer.layers.clear()


def looks_as(viewer, committed, written):
    """Whether the window has the structure of a committed picture; what it looks like now is written."""
    picture = Image.fromarray(viewer.window.screenshot(canvas_only=False, flash=False)).convert("L")
    picture.resize(SIZE).save(written)
    seen, before = (
        np.asarray(one.convert("L").resize(SMALL), float).ravel() for one in (picture, Image.open(committed))
    )
    return np.corrcoef(seen, before)[0, 1] > ALIKE


def test_the_window_looks_as_it_did(viewer, panel, flipped_scan, tmp_path):
    from qtpy.QtCore import Qt

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
    assert looks_as(viewer, SCRIBBLED, tmp_path / SCRIBBLED.name), f"Compare {tmp_path} with {SCRIBBLED}."

    panel.toggle_help()
    panel.reset()
    viewer.dims.order = (1, 0, 2)
    panel.widgets.depth.setValue(3)
    panel.use_box()
    drag(viewer, [(8, 18, 28), (20, 18, 46)], matrix)
    panel.use_point()
    drag(viewer, [(30, 18, 38)], matrix)
    drag(viewer, [(14, 18, 37)], matrix, Qt.KeyboardModifier.ShiftModifier)
    settle(panel)
    viewer.reset_view()
    settle(panel)
    assert looks_as(viewer, CORONAL, tmp_path / CORONAL.name), f"Compare {tmp_path} with {CORONAL}."
    viewer.dims.order = (0, 1, 2)
