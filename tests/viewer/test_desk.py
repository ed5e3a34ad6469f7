"""A desk keeps a session for each scan, and tells of each step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from textseg.errors import ModelError, PromptError, ScanError
from textseg.interactive.engine import Outcome
from textseg.interactive.kept import PackedMask
from textseg.session import Session
from textseg.viewer.desk import OtherEngine, ScanKey, carried_over, model_names
from textseg.viewer.drawing import Stroke

POINT = Stroke("point", np.array([(7.0, 11.0, 20.0)]), (1, 2))


def key_of(scan, frame=0, layer="one"):
    return ScanKey(layer, frame, scan.geometry, None)


@pytest.fixture
def begun(desk, scan):
    desk.begin(key_of(scan), lambda: scan)
    return desk


def test_steps_before_a_scan_are_refused(desk):
    with pytest.raises(ScanError, match="Nothing was done on this scan yet"):
        desk.undo()


def test_words_marks_and_objects_are_told(begun, scan):
    said = begun.say("Liver")
    inside = scan.voxels[0] > 0
    np.testing.assert_array_equal(said.mask, inside)
    assert said.sentence == f"“Liver”: {inside.sum() / 1000:.1f} ml (presence 1.00)."
    assert (said.text, said.number, said.rows) == ("Liver", 1, ())
    accepted = begun.accept(None)
    assert accepted.sentence == f"Accepted Liver, {inside.sum() / 1000:.1f} ml."
    (row,) = accepted.rows
    assert (row.number, row.name) == (1, "Liver")
    z, y, x = (int(index) for index in row.centre)
    assert inside[x, y, z]
    assert not accepted.mask.any()
    np.testing.assert_array_equal(accepted.labels, inside)
    marked = begun.mark(POINT)
    assert marked.sentence == "Point: 0.125 ml."
    assert set(np.unique(marked.mask)) == {0, 2}
    assert marked.number == 2
    assert len(marked.marks) == 1
    assert begun.accept("cyst").rows[1].name == "cyst"
    assert [row.name for row in begun.remove("Liver").rows] == ["cyst"]
    assert begun.undo().rows[0].name == "Liver"
    assert begun.redo().can_undo


def test_what_was_understood_and_what_is_not_there_is_told(begun, painter):
    assert begun.say("Lt kidney").sentence.startswith("“Lt kidney”, understood as left kidney: ")
    painter.sure = 0.0
    assert begun.say("spleen").sentence == "Not found: “spleen” (presence 0.00)."
    painter.sure = 1.0


def test_refused_steps_leave_everything_as_it_was(begun):
    begun.say("liver")
    with pytest.raises(PromptError):
        begun.say("left right kidney")
    assert begun.picture("").text == "liver"


def test_every_frame_and_layer_has_its_own_session(begun, scan, flipped_scan):
    begun.say("liver")
    assert begun.go_to(key_of(scan, frame=1)) is None
    with pytest.raises(ScanError):
        begun.accept(None)
    begun.begin(key_of(flipped_scan, layer="two"), lambda: flipped_scan)
    begun.say("spleen")
    assert begun.go_to(key_of(scan)).text == "liver"
    begun.forget("one")
    assert begun.go_to(key_of(scan)) is None
    assert begun.go_to(key_of(flipped_scan, layer="two")).text == "spleen"


def test_label_maps_follow_the_scan_that_is_looked_at(begun, scan, flipped_scan):
    begun.begin(key_of(flipped_scan, layer="two"), lambda: flipped_scan)
    assert begun.say("liver").labels.shape == flipped_scan.geometry.shape
    begun.accept(None)
    assert begun.go_to(key_of(scan)).rows == ()


def test_another_model_keeps_what_was_done(begun, segmenter):
    begun.say("liver")
    before = begun.mark(POINT).mask
    begun.load_model = lambda model, device: segmenter
    assert "what was done stays" in begun.use_model("other", "cpu")
    np.testing.assert_array_equal(begun.picture("").mask, before)
    assert begun.undo().marks == ()
    assert begun.session.path is None


def test_a_model_that_is_not_there_leaves_the_one_before(begun):
    begun.say("liver")

    def refuse(model, device):
        raise ModelError("No such model.")

    begun.load_model = refuse
    with pytest.raises(ModelError):
        begun.use_model("none", "cpu")
    assert begun.chosen == ("default", "auto")
    assert begun.say("spleen").text == "spleen"


def test_a_session_file_goes_with_its_session_to_another_model(segmenter, scan, tmp_path):
    session = Session(segmenter)
    session.set_scan(scan)
    session.say("liver")
    session.save(tmp_path / "work.session")
    carried = carried_over(session, segmenter, session.progress)
    assert carried.path == session.path == tmp_path / "work.session"
    carried.say("spleen")
    assert Session.load(tmp_path / "work.session", scan=scan, model=segmenter).text == "spleen"


class Everything:
    """An engine to which every mark means the whole of the one scan that it knows."""

    name = "everything"

    def __init__(self, words):
        self.words = words

    def set_scan(self, volume, modality):
        self.shape = volume.geometry.shape

    def look(self, turn, progress):
        if turn.newest is None:
            return self.words.look(turn, progress)
        return Outcome(PackedMask.pack(np.ones(self.shape, bool)))


def test_another_engine_draws_masks_on_every_scan_until_a_model_is_chosen(begun, scan, flipped_scan):
    sam = OtherEngine("SAM", Path("weights/medsam_vit_b.pth"))
    begun.load_engine = lambda other, device: Everything
    told = begun.use_engine(sam, "auto")
    assert told == "SAM: medsam_vit_b.pth draws masks, default reads words; what was done stays."
    assert not begun.say("liver").mask.all()
    assert begun.mark(POINT).mask.all()
    begun.begin(key_of(flipped_scan, layer="two"), lambda: flipped_scan)
    assert begun.mark(POINT).mask.all()
    assert begun.go_to(key_of(scan)).mask.all()
    assert begun.undo().text == "liver"
    begun.use_model("default", "auto")
    assert begun.other is None
    assert not begun.mark(POINT).mask.all()


def test_an_engine_that_is_not_there_leaves_the_one_before(begun, tmp_path):
    with pytest.raises(ModelError):
        begun.use_engine(OtherEngine("SAM", tmp_path / "none.pth"), "auto")
    with pytest.raises(ModelError):
        begun.use_engine(OtherEngine("nnInteractive", tmp_path / "none"), "auto")
    assert begun.other is None
    assert begun.mark(POINT).mask.sum() == 125


def test_sessions_are_saved_and_opened_again(begun, desk, scan, tmp_path):
    mask = begun.say("liver").mask
    begun.save_session(tmp_path / "work.session")
    begun.reset()
    opened = begun.open_session(tmp_path / "work.session", key_of(scan, layer="new"), lambda: scan)
    assert opened.sentence.startswith("Going on with work.session")
    assert not opened.mask.any()
    np.testing.assert_array_equal(begun.undo().mask, mask)


def test_shipped_models_are_offered():
    assert model_names()[0] == "default"
