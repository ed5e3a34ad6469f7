"""DICOM SEG: voxel for voxel back onto the scan's grid, codes from the lexicon, references to the source."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from textseg.errors import OutputError, ScanError
from textseg.geometry import AxisOrder, Geometry
from textseg.scan import read_label_map, read_scan
from textseg.scan.dicom_derived import Code, Segment
from textseg.scan.dicom_seg import read_dicom_seg, write_dicom_seg

LIVER = Segment("liver", Code("10200004", "liver"))
TUMOUR = Segment("left kidney tumor", Code("64033007", "left kidney"), Code("108369006", "tumor"), "left")


@pytest.fixture(autouse=True)
def highdicom():
    return pytest.importorskip("highdicom", reason="Needs highdicom, of the extra dicom.")


def two_masks(shape):
    """Two that overlap, off the centre, with empty slices below, between and above."""
    masks = np.zeros((2, *shape), dtype=bool)
    masks[0, 1:4, 2:7, 1] = masks[0, 2, 5, 3] = True
    masks[1, 3:5, 4:8, 1] = True
    return masks


def written(path, scan, masks=None, segments=(LIVER, TUMOUR)):
    masks = two_masks(scan.geometry.shape) if masks is None else masks
    write_dicom_seg(path, masks, segments, scan)
    return masks


# ---- there and back ----


@pytest.mark.parametrize("affine", ["tilted", "sheared", "sagittal", "downwards"])
def test_masks_come_back_voxel_for_voxel(affine, voxels, tilted, sheared, write_series, tmp_path):
    """Oblique, with a tilted gantry, as sagittal slices, and with slices that run against their normal."""
    affines = {
        "tilted": tilted,
        "sheared": sheared,
        "sagittal": tilted[[2, 0, 1, 3]] * np.array([[1.0], [1], [-1], [1]]),
        "downwards": tilted @ np.diag([1.0, 1, -1, 1]),
    }
    scan = read_scan(write_series(voxels, affines[affine])[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    back = read_dicom_seg(tmp_path / "seg.dcm", scan.geometry)
    assert back.masks.any()
    assert np.array_equal(back.masks, masks)
    assert back.names == ("liver", "left kidney tumor")


def test_without_its_scan_a_seg_has_the_slices_it_holds(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    back = read_dicom_seg(tmp_path / "seg.dcm")
    assert back.geometry.shape == (7, 9, 3)
    assert np.allclose(back.geometry.to_world((0, 0, 0)), scan.geometry.to_world((0, 0, 1)), atol=1e-4)
    assert np.allclose(back.geometry.affine[:3, :3], scan.geometry.affine[:3, :3], atol=1e-4)
    assert np.array_equal(back.masks, masks[..., 1:4])


@pytest.mark.parametrize("order", [[4, 0, 2, 1, 3], [0, 1, 2, 3, 4]])
def test_masks_of_an_enhanced_file_come_back(order, voxels, tilted, write_enhanced, tmp_path):
    scan = read_scan(write_enhanced(voxels, tilted, order=order, modality="MR"))
    masks = written(tmp_path / "seg.dcm", scan)
    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan.geometry).masks, masks)


def test_frames_of_one_volume_of_several_are_referred_to(voxels, tilted, write_enhanced, tmp_path):
    both = np.concatenate([voxels, voxels + 1], axis=2)
    path = write_enhanced(both, tilted, order=[*range(5), *range(5)], times=[1] * 5 + [2] * 5, modality="MR")
    scan = read_scan(path, volume=1)
    written(tmp_path / "seg.dcm", scan)
    items = pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    frames = [item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for item in items]
    assert sorted(frames) == [7, 7, 9]


def test_masks_of_interpolated_slices_come_back(tilted, write_series, tmp_path):
    along = np.array([0, 1, 2, 3, 5.5, 8, 10.5, 13])
    values = np.random.default_rng(5).integers(0, 99, (7, 9, 8)).astype(np.int16)
    scan = read_scan(write_series(values, tilted, slices=along)[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan.geometry).masks, masks)
    # Also for a scan that goes by another name.
    written(
        tmp_path / "seg.dcm", replace(scan, file=replace(scan.file, paths=(tmp_path / "no such folder",)))
    )
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 8


def test_masks_come_back_onto_the_same_grid_in_another_order(voxels, tilted, write_series, tmp_path):
    """As where the scan was converted to NIfTI before it was compared."""
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    order = AxisOrder((2, 0, 1), (False, True, True))
    back = read_dicom_seg(tmp_path / "seg.dcm", scan.geometry.reordered(order))
    assert np.array_equal(back.masks, order.apply(masks))


def test_an_empty_and_a_full_mask_come_back(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    masks = np.zeros((2, *voxels.shape), dtype=bool)
    write_dicom_seg(tmp_path / "empty.dcm", masks, (LIVER, TUMOUR), scan)
    assert not read_dicom_seg(tmp_path / "empty.dcm", scan.geometry).masks.any()
    masks[1] = True
    write_dicom_seg(tmp_path / "full.dcm", masks, (LIVER, TUMOUR), scan)
    assert np.array_equal(read_dicom_seg(tmp_path / "full.dcm", scan.geometry).masks, masks)


def test_a_seg_reads_as_a_label_map_in_which_the_smaller_wins(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    back = read_label_map(tmp_path / "seg.dcm", grid=scan.geometry)
    assert np.array_equal(back.labels == 2, masks[1])
    assert np.array_equal(back.labels == 1, masks[0] & ~masks[1])
    assert back.labels.dtype == np.uint8
    assert back.names == {1: "liver", 2: "left kidney tumor"}


def test_highdicom_finds_each_mask_by_its_source_image(highdicom, voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    pixels = highdicom.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        [one.sop_instance_uid for one in scan.file.header.slices], assert_missing_frames_are_empty=True
    )
    assert np.array_equal(pixels.T, masks)


def test_fractional_segments_begin_at_a_half(highdicom, voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    written(tmp_path / "seg.dcm", scan, two_masks(scan.geometry.shape)[:1], (LIVER,))
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    values = np.random.default_rng(2).integers(0, 256, (2, 9, 7)).astype(np.uint8)
    seg.SegmentationType, seg.MaximumFractionalValue = "FRACTIONAL", 255
    seg.BitsAllocated = seg.BitsStored = 8
    seg.HighBit = 7
    seg.PixelData = values.tobytes()
    seg.save_as(tmp_path / "fractional.dcm", enforce_file_format=True)
    back = read_dicom_seg(tmp_path / "fractional.dcm", scan.geometry).masks[0]
    # highdicom puts frames in the order against their normal.
    assert np.array_equal(back[..., 3], values[0].T >= 128)
    assert np.array_equal(back[..., 1], values[1].T >= 128)


# ---- what it says ----


def test_it_refers_to_its_source_images(voxels, tilted, write_series, tmp_path):
    paths = write_series(voxels, tilted, tags={"PatientID": "P1", "StudyInstanceUID": generate_uid()})
    scan = read_scan(paths[0].parent)
    written(tmp_path / "seg.dcm", scan)
    source, seg = pydicom.dcmread(paths[0]), pydicom.dcmread(tmp_path / "seg.dcm")
    assert (seg.PatientID, seg.StudyInstanceUID) == ("P1", source.StudyInstanceUID)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    listed = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    uids = {one.ReferencedSOPInstanceUID for one in listed}
    assert uids == {pydicom.dcmread(path).SOPInstanceUID for path in paths}


def code(sequence):
    item = sequence[0]
    return item.get("CodeValue") or item.LongCodeValue, item.CodingSchemeDesignator, item.CodeMeaning


def test_codes_say_structure_finding_and_side(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    left_lung = Segment("left lung", Code("39607008", "left lung"), side="left")
    words = Segment("the odd thing there", None)
    masks = np.repeat(two_masks(scan.geometry.shape), 2, axis=0)
    written(tmp_path / "seg.dcm", scan, masks, (LIVER, TUMOUR, left_lung, words))
    liver, tumour, lung, unknown = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert code(liver.SegmentedPropertyCategoryCodeSequence) == ("91723000", "SCT", "Anatomical Structure")
    assert code(liver.SegmentedPropertyTypeCodeSequence) == ("10200004", "SCT", "liver")
    assert code(tumour.SegmentedPropertyTypeCodeSequence) == ("108369006", "SCT", "tumor")
    assert code(tumour.AnatomicRegionSequence) == ("64033007", "SCT", "left kidney")
    side = tumour.AnatomicRegionSequence[0].AnatomicRegionModifierSequence
    assert code(side) == ("7771000", "SCT", "Left")
    kind = lung.SegmentedPropertyTypeCodeSequence
    assert code(kind[0].SegmentedPropertyTypeModifierCodeSequence) == ("7771000", "SCT", "Left")
    assert code(unknown.SegmentedPropertyTypeCodeSequence) == ("prompt", "99TEXTSEG", "the odd thing there")


@pytest.mark.parametrize(
    "name", ["Leber mit Gallengängen", "左腎", r"a \ b", "word " * 30 + "end", "two\nlines"]
)
def test_any_prompt_can_be_a_name(name, voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted, tags={"SpecificCharacterSet": "ISO_IR 100"})[0].parent)
    written(tmp_path / "seg.dcm", scan, two_masks(scan.geometry.shape)[:1], (Segment(name),))
    expected = name.replace("\\", "/").replace("\n", " ")
    assert read_dicom_seg(tmp_path / "seg.dcm").names == (expected,)


def test_a_name_in_the_sources_own_letters_survives(voxels, tilted, write_series, tmp_path):
    tags = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Zoë"}
    scan = read_scan(write_series(voxels, tilted, tags=tags)[0].parent)
    written(tmp_path / "seg.dcm", scan)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientName == "Müller^Zoë"


def test_the_same_masks_are_the_same_object_and_others_are_not(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    masks = written(tmp_path / "one.dcm", scan)
    written(tmp_path / "again.dcm", scan)
    masks[0, 0, 0, 0] = True
    written(tmp_path / "other.dcm", scan, masks)
    uids = [pydicom.dcmread(tmp_path / f"{name}.dcm").SOPInstanceUID for name in ("one", "again", "other")]
    assert uids[0] == uids[1] != uids[2]


def test_directions_that_differ_by_rounding_are_one(voxels, tilted, write_series, tmp_path, change_tags):
    paths = write_series(voxels, tilted)
    rounded = [f"{float(x):.6f}" for x in pydicom.dcmread(paths[2]).ImageOrientationPatient]
    change_tags(paths[2], ImageOrientationPatient=rounded)
    scan = read_scan(paths[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan.geometry).masks, masks)


def test_an_anonymised_series_still_has_images_to_refer_to(voxels, tilted, write_series, tmp_path):
    """As shared archives give them out: the only names left are in the file's own header."""
    blank = dict.fromkeys(("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID"), "")
    paths = write_series(voxels, tilted)
    for path in paths:
        change_blank(path, blank)
    scan = read_scan(paths[0].parent)
    masks = written(tmp_path / "seg.dcm", scan)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert np.array_equal(read_dicom_seg(tmp_path / "seg.dcm", scan.geometry).masks, masks)
    listed = [one.ReferencedSOPInstanceUID for one in seg.SourceImageSequence]
    assert listed == [pydicom.dcmread(path).file_meta.MediaStorageSOPInstanceUID for path in paths]
    assert seg.StudyInstanceUID.is_valid
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID.is_valid


def change_blank(path, tags):
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    pydicom.dcmwrite(path, dataset)


# ---- refusals ----


def test_a_scan_that_is_not_dicom_is_refused(voxels, tilted, tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti1Image(voxels, tilted), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(OutputError, match=r"came as nii\.gz\. Write NIfTI"):
        written(tmp_path / "seg.dcm", scan)


def test_masks_on_another_grid_are_refused(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    with pytest.raises(OutputError, match="for 1 segments"):
        write_dicom_seg(tmp_path / "seg.dcm", two_masks(scan.geometry.shape), (LIVER,), scan)
    written(tmp_path / "seg.dcm", scan)
    moved = scan.geometry.affine.copy()
    moved[:3, 3] += 0.4
    with pytest.raises(ScanError, match="Was it made on another scan"):
        read_dicom_seg(tmp_path / "seg.dcm", Geometry(scan.geometry.shape, moved))
    with pytest.raises(ScanError, match="Was it made on another scan"):
        read_dicom_seg(tmp_path / "seg.dcm", Geometry((7, 9, 3), scan.geometry.affine))


def test_without_highdicom_it_says_what_to_install(voxels, tilted, write_series, tmp_path, monkeypatch):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(OutputError, match=r"textseg\[dicom\]"):
        written(tmp_path / "seg.dcm", scan)


def test_damaged_files_are_refused(voxels, tilted, write_series, tmp_path):
    scan = read_scan(write_series(voxels, tilted)[0].parent)
    written(tmp_path / "seg.dcm", scan)
    content = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(content[:-20])
    with pytest.raises(ScanError, match="can't be read"):
        read_dicom_seg(tmp_path / "short.dcm", scan.geometry)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    seg.PerFrameFunctionalGroupsSequence = [Dataset() for _ in seg.PerFrameFunctionalGroupsSequence]
    seg.save_as(tmp_path / "nowhere.dcm")
    with pytest.raises(ScanError, match="nowhere"):
        read_dicom_seg(tmp_path / "nowhere.dcm", scan.geometry)


def test_a_source_file_that_is_gone_is_named(voxels, tilted, write_series, tmp_path):
    paths = write_series(voxels, tilted)
    scan = read_scan(paths[0].parent)
    paths[2].unlink()
    with pytest.raises(OutputError, match=paths[2].name):
        written(tmp_path / "seg.dcm", scan)
    assert not (tmp_path / "seg.dcm").exists()
