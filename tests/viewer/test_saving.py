"""Objects to files and back."""

from __future__ import annotations

import importlib.util

import nibabel as nib
import numpy as np
import pytest

from textseg.errors import OutputError
from textseg.scan import read_label_map, read_scan
from textseg.session import Session
from textseg.viewer.saving import FORMATS, prompts_of, save_objects

BY_NAME = {kind.name: kind for kind in FORMATS}
LABEL_MAPS = ("NIfTI", "NRRD", "MetaImage")


@pytest.fixture
def session(segmenter, flipped_scan, tmp_path):
    nib.save(nib.Nifti1Image(flipped_scan.voxels[0], flipped_scan.geometry.affine), tmp_path / "scan.nii.gz")
    session = Session(segmenter)
    session.set_scan(read_scan(tmp_path / "scan.nii.gz"), "ct")
    return session


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_a_label_map_holds_all_objects_with_their_names(session, tmp_path, name):
    session.say("liver")
    session.accept()
    session.add_point((45, 30, 40), coordinates="voxel")
    session.accept("cyst")
    path = save_objects(session, tmp_path / "objects", BY_NAME[name])
    assert path.name == "objects" + BY_NAME[name].ending
    found = read_label_map(path)
    np.testing.assert_array_equal(found.labels, session.labels)
    assert found.names == {1: "liver", 2: "cyst"}
    assert found.geometry.is_close(session.geometry)


def test_without_objects_the_mask_in_hand_is_saved_and_nothing_else_changes(session, tmp_path):
    session.say("liver")
    session.undo()
    session.redo()
    session.add_point((45, 30, 40), coordinates="voxel")
    session.undo()
    save_objects(session, tmp_path / "now.nii.gz", BY_NAME["NIfTI"])
    np.testing.assert_array_equal(read_label_map(tmp_path / "now.nii.gz").labels, session.mask)
    assert session.objects == ()
    assert session.can_redo


def test_nothing_is_not_saved(session, tmp_path):
    with pytest.raises(OutputError, match="nothing to save"):
        save_objects(session, tmp_path / "now.nii.gz", BY_NAME["NIfTI"])
    assert not (tmp_path / "now.nii.gz").exists()


def test_a_mask_never_takes_the_place_of_its_scan(session, tmp_path):
    session.say("liver")
    before = (tmp_path / "scan.nii.gz").read_bytes()
    with pytest.raises(OutputError, match="place of its scan"):
        save_objects(session, tmp_path / "scan.nii.gz", BY_NAME["NIfTI"])
    assert (tmp_path / "scan.nii.gz").read_bytes() == before


def test_dicom_needs_a_dicom_scan(session, tmp_path):
    session.say("liver")
    with pytest.raises(OutputError, match="DICOM"):
        save_objects(session, tmp_path / "seg.dcm", BY_NAME["DICOM SEG"])


@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="Needs highdicom.")
def test_dicom_seg_keeps_objects_apart(segmenter, write_series, tmp_path):
    session = Session(segmenter)
    session.set_scan(write_series("series", number=3))
    session.say("liver")
    liver = session.mask
    session.accept()
    session.add_point((10, 18, 12), coordinates="voxel")
    session.accept("left kidney")
    path = save_objects(session, tmp_path / "objects", BY_NAME["DICOM SEG"])
    found = read_label_map(path, grid=session.geometry)
    assert set(found.names.values()) == {"liver", "left kidney"}
    number = next(number for number, name in found.names.items() if name == "left kidney")
    np.testing.assert_array_equal(found.labels == number, session.objects[1].mask)
    assert liver.any()


def test_objects_bring_the_codes_of_their_words_under_their_own_names(session):
    session.say("liver")
    session.accept("the big one")
    session.add_point((45, 30, 40), coordinates="voxel")
    session.accept()
    first, second = prompts_of(session.objects)
    assert first.text == "the big one"
    assert first.structure.name == "liver"
    assert second.text == "object 1"
    assert not second.known
