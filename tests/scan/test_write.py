"""A mask is written whole or not at all, in every format, and errors say why."""

from __future__ import annotations

import errno
import os
import resource
import stat

import nibabel as nib
import numpy as np
import pytest

from textseg.errors import OutputError
from textseg.geometry import Geometry
from textseg.scan import mask_ending, read_label_map, read_scan, write_label_map, write_mask
from textseg.scan import write as writing
from textseg.volume import ScanFile, Volume

ENDINGS = [".nii.gz", ".nii", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd"]


@pytest.fixture
def geometry(voxels, sheared):
    return Geometry(voxels.shape, sheared)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("values", ["bool", "uint8", "transposed"])
def test_a_mask_round_trips_on_a_sheared_grid(ending, values, voxels, geometry, tmp_path):
    mask = voxels > 300
    given = {"bool": mask, "uint8": mask.astype(np.uint8), "transposed": mask.T.copy().T}[values]
    write_mask(tmp_path / f"mask{ending}", given, geometry)
    back = read_label_map(tmp_path / f"mask{ending}")
    assert back.labels.dtype == np.uint8
    assert np.array_equal(back.labels, mask)
    # .mgz keeps 32-bit numbers.
    assert back.geometry.is_close(geometry, 1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_and_a_full_mask_can_be_written_and_read(ending, geometry, tmp_path):
    for value in (False, True):
        write_mask(tmp_path / f"mask{ending}", np.full(geometry.shape, value), geometry)
        assert (read_label_map(tmp_path / f"mask{ending}").labels == value).all()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("highest", "kind"), [(255, np.uint8), (256, np.uint16), (70_000, np.uint32)])
def test_labels_of_any_size_round_trip(ending, highest, kind, geometry, tmp_path):
    labels = np.zeros(geometry.shape, dtype=np.int64)
    labels[1, 5, 2:] = highest
    write_label_map(tmp_path / f"labels{ending}", labels, {highest: "liver"}, geometry)
    back = read_label_map(tmp_path / f"labels{ending}")
    assert np.array_equal(back.labels, labels)
    assert back.labels.dtype == kind
    assert back.names == ({} if ending == ".mgz" else {highest: "liver"})


def test_names_may_hold_any_characters(voxels, geometry, tmp_path):
    names = {1: 'Läsion <links> & "rechts"'}
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_label_map(tmp_path / f"labels{ending}", voxels > 0, names, geometry)
        assert read_label_map(tmp_path / f"labels{ending}").names == names


def test_a_mask_of_a_reordered_scan_does_not_take_the_files_header(voxels, tilted, tmp_path):
    """A canonical copy of a scan still carries its file; that header would put the mask elsewhere."""
    turned = tilted @ np.diag([-1.0, -1, 1, 1])
    nib.save(nib.Nifti1Image(voxels, turned), tmp_path / "turned.nii.gz")
    scan = read_scan(tmp_path / "turned.nii.gz").canonical()
    write_mask(tmp_path / "mask.nii.gz", scan.voxels[0] > 0, scan)
    assert read_label_map(tmp_path / "mask.nii.gz").geometry.is_close(scan.geometry, 1e-4)


def test_the_ending_for_a_mask_is_that_of_the_scan(tmp_path):
    endings = {
        form: mask_ending(ScanFile((tmp_path,), form)) for form in ("nii", "mgz", "nrrd", "mhd", "dicom")
    }
    assert endings == {"nii": ".nii", "mgz": ".mgz", "nrrd": ".nrrd", "mhd": ".mhd", "dicom": ".nii.gz"}
    assert mask_ending(None) == ".nii.gz"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(ending, tmp_path):
    """The system itself refuses to write on, in the middle of a file."""
    geometry = Geometry((40, 50, 60), np.diag([1.0, 2, 3, 1]))
    noise = np.random.default_rng(0).random(geometry.shape) > 0.5
    path = tmp_path / f"mask{ending}"
    path.write_text("older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError, match=f"mask{ending} can't be written"):
            write_mask(path, noise, geometry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text(encoding="utf-8") == "older"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "may not be written"),
        (errno.EROFS, "may not be written"),
    ],
)
def test_an_error_says_in_one_sentence_what_is_wrong(code, words, voxels, geometry, tmp_path, monkeypatch):
    def no_folder(*_args, **_named):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writing.tempfile, "TemporaryDirectory", no_folder)
    with pytest.raises(OutputError, match=words) as caught:
        write_mask(tmp_path / "mask.nii.gz", voxels > 0, geometry)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_interruption_leaves_nothing(voxels, geometry, tmp_path, monkeypatch):
    def interrupted(path, *_args):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(writing.WRITERS, ".nii.gz", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mask(tmp_path / "mask.nii.gz", voxels > 0, geometry)
    assert os.listdir(tmp_path) == []


def test_a_written_file_has_the_rights_that_the_user_gives_new_files(voxels, geometry, tmp_path):
    old = os.umask(0o027)
    try:
        write_mask(tmp_path / "mask.nii.gz", voxels > 0, geometry)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "mask.nii.gz").stat().st_mode) == 0o640


def test_what_can_not_be_a_mask_is_refused(voxels, geometry, tmp_path):
    cases = {
        "no folder": (tmp_path / "none" / "mask.nii.gz", voxels > 0),
        "must end in one of": (tmp_path / "mask.jpg", voxels > 0),
        "lie on the grid": (tmp_path / "mask.nii.gz", voxels[1:] > 0),
        "True and False": (tmp_path / "mask.nii.gz", voxels),
        "got float": (tmp_path / "mask.nii.gz", (voxels > 0).astype(float)),
    }
    for words, (path, mask) in cases.items():
        with pytest.raises(OutputError, match=words):
            write_mask(path, mask, geometry)
    with pytest.raises(OutputError, match="from 0"):
        write_label_map(tmp_path / "labels.nii.gz", voxels, {}, geometry)
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(OutputError, match="can't be written"):
        write_mask(tmp_path / "folder.nii.gz", voxels > 0, geometry)
    assert os.listdir(tmp_path) == ["folder.nii.gz"]


def test_a_volume_without_a_file_can_lend_its_grid(voxels, geometry, tmp_path):
    write_mask(str(tmp_path / "mask.nii.gz"), voxels > 0, Volume(voxels, geometry))
    assert read_label_map(str(tmp_path / "mask.nii.gz")).geometry.is_close(geometry, 1e-4)
