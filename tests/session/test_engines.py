"""Other engines behind the same session: SAM slice by slice, and nnInteractive through its own package."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch

from tests.embeddings.tiny_language import let_torchvision_be_imported
from tests.nnunet.tiny_nnunet import write_nnunet
from tests.session.conftest import body, tilted
from textseg.errors import ModelError, PromptError
from textseg.interactive.marks import point_mark, scribble_mark
from textseg.interactive.nninteractive import NnInteractiveEngine, load_nninteractive
from textseg.interactive.sam import KIND_OF_WIDTH, SamEngine, as_grey, load_sam, slice_axis
from textseg.session import Session
from textseg.volume import Volume

BRIGHT = (slice(6, 15), slice(8, 17), slice(5, 12))
CLICK = (10, 12, 8)


class BrightPixels:
    """A predictor with SAM's interface: what is bright in the box, and nothing for a point in the dark."""

    def __init__(self):
        self.shown = []
        self.asked = []

    def set_image(self, image):
        self.features = image[:, :, 0] > 160
        self.original_size = image.shape[:2]
        self.shown.append(image)

    def predict(self, point_coords, point_labels, box, multimask_output):
        assert not multimask_output
        self.asked.append((point_coords, point_labels, box))
        inside = np.zeros(self.original_size, bool)
        if box is not None:
            left, top, right, bottom = box.astype(int)
            inside[top:bottom, left:right] = True
        else:
            inside[:] = True
        mask = self.features & inside
        if point_coords is not None:
            for (column, row), positive in zip(point_coords.astype(int), point_labels, strict=True):
                if not positive:
                    mask[row] = False
                elif not self.features[row, column]:
                    mask[:] = False
        return mask[None], np.ones(1), None


@pytest.fixture
def scan():
    return body(tilted((30, 24, 20)), BRIGHT)


@pytest.fixture
def session(segmenter, scan):
    session = Session(segmenter, engine=SamEngine(BrightPixels()))
    session.set_scan(scan)
    return session


def test_a_point_on_a_slice_becomes_a_mask_in_space(session, scan):
    session.add_point(CLICK, coordinates="voxel")
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)


def test_a_slice_is_encoded_once(session):
    session.add_point(CLICK, coordinates="voxel")
    shown = len(session.engine.predictor.shown)
    assert shown == 9
    session.add_point((7, 9, 8), coordinates="voxel")
    assert len(session.engine.predictor.shown) == shown


def test_a_box_on_a_slice_is_given_in_sams_pixels(session, scan):
    session.add_box((8, 10, 9), (13, 12, 10), coordinates="voxel")
    np.testing.assert_array_equal(session.engine.predictor.asked[0][2], [10, 8, 12, 13])
    expected = np.zeros(scan.geometry.shape, bool)
    expected[8:13, 10:12, 5:12] = True
    np.testing.assert_array_equal(session.mask, expected)


def test_a_box_in_space_ends_where_it_ends(session, scan):
    session.add_box((6, 8, 7), (15, 17, 10), coordinates="voxel")
    expected = (scan.voxels[0] > 0).copy()
    expected[:, :, :7], expected[:, :, 10:] = False, False
    np.testing.assert_array_equal(session.mask, expected)


def test_not_this_counts_on_its_own_slice(session, scan):
    session.add_point(CLICK, coordinates="voxel")
    session.add_point((11, 12, 6), positive=False, coordinates="voxel")
    expected = (scan.voxels[0] > 0).copy()
    expected[11, :, 6] = False
    np.testing.assert_array_equal(session.mask[:, :, 6:], expected[:, :, 6:])


def test_words_become_boxes_through_another_engine(segmenter, scan):
    own = Session(segmenter)
    session = Session(segmenter, engine=SamEngine(BrightPixels(), text=own.engine))
    session.set_scan(scan)
    answer = session.say("liver")
    assert answer.presence > 0.99
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)


def test_what_is_encoded_stays_when_another_engine_comes_and_goes(segmenter, scan):
    session = Session(segmenter)
    session.set_scan(scan)
    session.say("liver")
    encoded = len(segmenter.network.encoded)
    session.engine = SamEngine(BrightPixels(), text=session.own_engine)
    session.say("spleen")
    session.engine = None
    assert session.engine is session.own_engine
    session.say("liver")
    assert len(segmenter.network.encoded) == encoded


def test_sam_alone_takes_no_words(session):
    with pytest.raises(PromptError, match="SAM takes no words"):
        session.say("liver")


def test_engines_can_be_changed_between_steps(session, segmenter):
    session.add_point(CLICK, coordinates="voxel")
    before = session.mask
    session.engine = None
    assert session.engine.name == "textseg"
    session.add_point((24, 20, 16), coordinates="voxel")
    assert session.mask[24, 20, 16]
    np.testing.assert_array_equal(session.mask[:20], before[:20])


def test_slices_are_cut_where_marks_lie_or_slices_are_thick():
    geometry = tilted((30, 24, 20))
    point = point_mark(CLICK, True, geometry, "voxel")
    flat = scribble_mark([(3, 9, 4), (8, 9, 9), (12, 9, 14)], True, geometry, "voxel")
    assert slice_axis([point], geometry) == 2
    assert slice_axis([point, flat], geometry) == 1
    affine = geometry.affine.copy()
    affine[:3, 0] *= 3
    assert slice_axis([point], type(geometry)((30, 24, 20), affine)) == 0


def test_ct_is_shown_in_its_window():
    grey = as_grey(np.array([-1000.0, -160, 40, 240, 3000]).reshape(5, 1, 1), "ct")
    assert grey.ravel().tolist() == [0, 0, 127, 255, 255]


def tiny_sam():
    """A SAM of two thousand weights, of segment-anything's own parts."""
    let_torchvision_be_imported()
    pytest.importorskip("segment_anything", reason="Needs the extra sam.")
    from segment_anything import modeling

    return modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=16
        ),
        modeling.PromptEncoder(
            embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        modeling.MaskDecoder(
            transformer_dim=16,
            transformer=modeling.TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16),
        ),
    )


def test_a_tiny_sam_from_its_file_answers_on_a_slice(segmenter, scan, tmp_path, monkeypatch):
    torch.manual_seed(3)
    sam = tiny_sam()
    import segment_anything

    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_sam)
    monkeypatch.setitem(KIND_OF_WIDTH, 16, "vit_b")
    session = Session(segmenter, engine=SamEngine(load_sam(tmp_path / "sam.pth")))
    session.set_scan(scan)
    session.add_box((8, 8, 9), (16, 15, 10), coordinates="voxel")
    grey = as_grey(scan.voxels[0], "ct")[:, :, 9]
    alone = segment_anything.SamPredictor(sam.eval())
    alone.set_image(np.repeat(grey[:, :, None], 3, axis=2))
    wanted, _, _ = alone.predict(box=np.array([8, 8, 15, 16], np.float32), multimask_output=False)
    assert wanted[0].any()
    np.testing.assert_array_equal(session.mask[:, :, 9], wanted[0])


def test_missing_weights_and_packages_are_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ModelError, match=r"SAM needs .*segment_anything"):
        load_sam(tmp_path / "sam.pth")
    stand_in = types.SimpleNamespace(sam_model_registry={"vit_b": lambda: torch.nn.Linear(2, 2)})
    monkeypatch.setitem(sys.modules, "segment_anything", stand_in)
    with pytest.raises(ModelError, match="there is no"):
        load_sam(tmp_path / "sam.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "sam.pth")
    for kind in (None, "vit_b"):
        with pytest.raises(ModelError, match="does not hold the weights of SAM"):
            load_sam(tmp_path / "sam.pth", kind)
    with pytest.raises(ModelError, match="vit_b, vit_l or vit_h, got 'vit_x'"):
        load_sam(tmp_path / "sam.pth", "vit_x")


class StandIn:
    """nnInteractive's documented session: positive marks go into the buffer, negative ones out of it."""

    def __init__(
        self, device=None, use_torch_compile=False, verbose=False, torch_n_threads=8, do_autozoom=True
    ):
        self.calls = []
        self.device = device

    def initialize_from_trained_model_folder(self, folder):
        self.folder = folder

    def set_image(self, image):
        assert image.ndim == 4
        self.shape = image.shape[1:]

    def set_target_buffer(self, buffer):
        assert tuple(buffer.shape) == self.shape
        assert buffer.dtype == torch.uint8
        self.buffer = buffer

    def reset_interactions(self):
        self.calls.append("reset")
        self.buffer.zero_()

    def _paint(self, name, place, include):
        self.calls.append(name)
        self.buffer[place] = int(include)

    def add_point_interaction(self, coordinates, include_interaction, run_prediction=True):
        assert all(isinstance(value, int) for value in coordinates)
        self._paint("point", coordinates, include_interaction)

    def add_bbox_interaction(self, bbox_coords, include_interaction, run_prediction=True):
        assert sum(b - a == 1 for a, b in bbox_coords) >= 1
        self._paint("bbox", tuple(slice(a, b) for a, b in bbox_coords), include_interaction)

    def add_scribble_interaction(self, scribble_image, include_interaction, run_prediction=True):
        assert scribble_image.shape == self.shape
        self._paint("scribble", torch.from_numpy(scribble_image) > 0, include_interaction)

    def add_lasso_interaction(self, lasso_image, include_interaction, run_prediction=True):
        self._paint("lasso", torch.from_numpy(lasso_image) > 0, include_interaction)

    def add_initial_seg_interaction(self, initial_seg, run_prediction=False):
        assert initial_seg.shape == self.shape
        self.calls.append("initial")


def test_nninteractive_is_told_each_mark_once_and_all_after_an_undo(segmenter, scan):
    engine = NnInteractiveEngine(StandIn())
    session = Session(segmenter, engine=engine)
    session.set_scan(scan)
    session.add_point(CLICK, coordinates="voxel")
    session.add_box((3, 4, 5), (6, 7, 6), coordinates="voxel")
    session.add_scribble([(20, 3, 3), (25, 3, 3)], coordinates="voxel")
    session.add_lasso([(19, 9, 12), (25, 9, 12), (25, 15, 12), (19, 15, 12)], coordinates="voxel")
    assert engine.session.calls == ["reset", "point", "bbox", "scribble", "lasso"]
    assert session.mask[CLICK]
    assert session.mask[3:6, 4:7, 5].all()
    assert session.mask[20:26, 3, 3].all()
    assert session.mask[22, 12, 12]
    session.add_point(CLICK, positive=False, coordinates="voxel")
    assert not session.mask[CLICK]
    session.undo()
    engine.session.calls.clear()
    session.add_point((1, 1, 1), coordinates="voxel")
    assert engine.session.calls == ["reset", "point", "bbox", "scribble", "lasso", "point"]
    assert session.mask[CLICK]


def test_nninteractive_refines_what_words_found(segmenter, scan):
    own = Session(segmenter)
    engine = NnInteractiveEngine(StandIn(), text=own.engine)
    session = Session(segmenter, engine=engine)
    session.set_scan(scan)
    session.say("liver")
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)
    session.add_point(CLICK, positive=False, coordinates="voxel")
    assert engine.session.calls == ["reset", "initial", "point"]
    assert session.mask.sum() == (scan.voxels[0] > 0).sum() - 1


def test_nninteractive_says_what_it_does_not_take(segmenter, scan):
    session = Session(segmenter, engine=NnInteractiveEngine(StandIn()))
    session.set_scan(scan)
    with pytest.raises(PromptError, match="boxes on one slice"):
        session.add_box((3, 4, 5), (6, 7, 9), coordinates="voxel")
    with pytest.raises(PromptError, match="takes no words"):
        session.say("liver")
    assert not session.can_undo


def test_nninteractive_is_loaded_from_its_package_and_its_licence_is_said(tmp_path, monkeypatch):
    name = "nnInteractive.inference.inference_session"
    if importlib.util.find_spec("nnInteractive") is None:
        with pytest.raises(ModelError, match="nnInteractive needs nnInteractive, which is not installed"):
            load_nninteractive(tmp_path)
    for part in ("nnInteractive", "nnInteractive.inference"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    module = types.ModuleType(name)
    module.nnInteractiveInferenceSession = StandIn
    monkeypatch.setitem(sys.modules, name, module)
    session = load_nninteractive(tmp_path, "cpu")
    assert session.folder == str(tmp_path)
    assert session.device == torch.device("cpu")
    with pytest.raises(ModelError, match=r"CC BY-NC-SA 4\.0, not for commercial use"):
        load_nninteractive(tmp_path / "none")


@pytest.fixture
def tiny_nninteractive(tmp_path, monkeypatch):
    """A trained folder as nnInteractive reads it, with a random network."""
    package = pytest.importorskip(
        "nnInteractive.inference.inference_session", reason="Needs the extra nninteractive."
    )
    # Masks of a random network reach every border, and looking from farther off takes minutes.
    monkeypatch.setattr(package.nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1)
    # A previous mask and two channels for each of box and lasso, points, scribbles come with the image.
    folder = write_nnunet(tmp_path, labels={"background": 0, "thing": 1}, folds=1, channels=8)
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    (folder / "dataset.json").write_text(json.dumps(described | {"channel_names": {"0": "CT"}}))
    (folder / "inference_session_class.json").write_text(json.dumps({"point_radius": 2}))
    return folder


def test_nninteractives_own_package_is_asked_as_it_wants_to_be(segmenter, tiny_nninteractive):
    threads, scan = torch.get_num_threads(), body(tilted((16, 14, 12)))
    session = Session(segmenter)
    session.engine = NnInteractiveEngine(load_nninteractive(tiny_nninteractive, "cpu"), session.own_engine)
    session.set_scan(scan)
    session.add_point((10, 9, 8), coordinates="voxel")
    clicked = session.mask
    session.add_box((8, 8, 9), (14, 13, 10), coordinates="voxel")
    boxed = session.mask
    session.add_scribble([(7, 9, 8), (13, 9, 8)], positive=False, coordinates="voxel")
    session.add_lasso([(8, 8, 6), (14, 8, 6), (14, 12, 6), (8, 12, 6)], coordinates="voxel")

    alone = load_nninteractive(tiny_nninteractive, "cpu")
    alone.set_image(np.ascontiguousarray(scan.voxels, np.float32))
    alone.set_target_buffer(target := np.zeros(scan.geometry.shape, np.uint8))
    alone.add_point_interaction((10, 9, 8), True)
    np.testing.assert_array_equal(clicked, target > 0)
    alone.add_bbox_interaction([[8, 14], [8, 13], [9, 10]], True)
    np.testing.assert_array_equal(boxed, target > 0)
    assert (boxed != clicked).any()

    session.reset()
    session.say("liver")
    np.testing.assert_array_equal(session.mask, scan.voxels[0] > 0)
    assert torch.get_num_threads() == threads


def test_volumes_of_other_kinds_are_shown_between_percentiles(segmenter):
    values = np.linspace(0, 1000, 30 * 24 * 20).reshape(30, 24, 20)
    volume = Volume(values, tilted((30, 24, 20)), modality="mr")
    grey = as_grey(volume.voxels[0], "mr")
    assert grey.min() == 0
    assert grey.max() == 255
