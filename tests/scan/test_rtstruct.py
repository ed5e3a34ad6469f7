"""RTSTRUCT: closed contours with holes, back to the very same voxels on any series, and what others wrote."""

from __future__ import annotations

import sys

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.uid import ExplicitVRLittleEndian
from scipy.ndimage import label

from textseg.errors import OutputError, ScanError
from textseg.geometry import AxisOrder, Geometry
from textseg.scan import read_label_map, read_scan
from textseg.scan.contours import inside_polygons, outlines
from textseg.scan.dicom_derived import Code, Segment
from textseg.scan.rtstruct import read_rtstruct, write_rtstruct

pytest.importorskip("skimage", reason="Needs scikit-image, of the extra dicom.")

SHAPE = (22, 31, 6)
LIVER = Segment("liver", Code("10200004", "liver"))
RING = Segment("the ring", None, Code("367643001", "cyst"), "right")
NOTHING = Segment("nothing")


@pytest.fixture
def scan(tilted, write_series):
    """A series of columns ≠ rows and of three spacings, oblique."""
    values = np.random.default_rng(3).integers(-900, 900, SHAPE).astype(np.int16)
    return read_scan(write_series(values, tilted)[0].parent)


def awkward_masks(shape=SHAPE):
    """A ring with an island in its hole and a part that meets it at a corner; noise; and nothing at all."""
    x, y = np.indices(shape[:2])
    away = np.hypot((x - 10) / 1.0, (y - 13) / 1.4)
    masks = np.zeros((3, *shape), dtype=bool)
    masks[0, ..., 1:4] = (((away <= 8) & (away > 4)) | (away < 2))[..., None]
    masks[0, 12, 13, 2] = masks[0, 0, 0, 2] = masks[0, 21, 30, 5] = True
    masks[1] = np.random.default_rng(7).random(shape) > 0.4
    return masks


def written(path, scan, masks, segments=(LIVER, RING, NOTHING)):
    write_rtstruct(path, masks, segments, scan)
    return pydicom.dcmread(path)


# ---- outlines of one slice ----


@settings(max_examples=80, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 12))))
def test_any_slice_comes_back_from_its_outlines(plane):
    assert np.array_equal(inside_polygons(list(outlines(plane)), plane.shape), plane)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.integers(3, 9), st.integers(3, 12))))
def test_every_part_is_one_outline_and_right_to_readers_that_unite_them(plane):
    from skimage.draw import polygon2mask

    parts = list(outlines(plane))
    assert len(parts) == label(plane)[1]
    united = [polygon2mask(plane.shape, part) for part in parts]
    assert np.array_equal(np.any(united, axis=0) if parts else np.zeros_like(plane), plane)


def test_straight_runs_have_no_points_between():
    plane = np.zeros((40, 30), dtype=bool)
    plane[5:35, 6:26] = True
    (outline,) = outlines(plane)
    # Each corner is cut off once.
    assert len(outline) == 8


def test_a_polygon_with_fractional_corners_holds_the_centres_within():
    triangle = np.array([[0.3, 0.2], [7.6, 1.1], [2.2, 8.7]])
    x, y = np.moveaxis(np.indices((9, 10)), 0, 0)
    expected = np.ones((9, 10), dtype=bool)
    for (x0, y0), (x1, y1) in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
        expected &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    assert np.array_equal(inside_polygons([triangle], (9, 10)), expected)
    # Running the other way round, and reaching out of the picture.
    assert np.array_equal(inside_polygons([triangle[::-1]], (5, 6)), expected[:5, :6])
    assert np.array_equal(inside_polygons([triangle - 4], (9, 10))[:5, :6], expected[4:, 4:])


# ---- there and back ----


@pytest.mark.parametrize("affine", ["tilted", "sheared", "sagittal", "downwards"])
def test_awkward_masks_come_back_voxel_for_voxel(affine, tilted, sheared, write_series, tmp_path):
    affines = {
        "tilted": tilted,
        "sheared": sheared,
        "sagittal": tilted[[2, 0, 1, 3]] * np.array([[1.0], [1], [-1], [1]]),
        "downwards": tilted @ np.diag([1.0, 1, -1, 1]),
    }
    values = np.random.default_rng(3).integers(-900, 900, SHAPE).astype(np.int16)
    scan = read_scan(write_series(values, affines[affine])[0].parent)
    masks = awkward_masks()
    written(tmp_path / "rt.dcm", scan, masks)
    back = read_rtstruct(tmp_path / "rt.dcm", scan.geometry)
    assert np.array_equal(back.masks, masks)
    assert back.names == ("liver", "the ring", "nothing")


def test_masks_of_an_enhanced_file_come_back_and_name_their_frames(tilted, write_enhanced, tmp_path):
    values = np.random.default_rng(3).integers(0, 900, SHAPE).astype(np.int16)
    scan = read_scan(write_enhanced(values, tilted, order=[4, 0, 2, 5, 1, 3], modality="MR"))
    masks = awkward_masks()
    dataset = written(tmp_path / "rt.dcm", scan, masks)
    assert np.array_equal(read_rtstruct(tmp_path / "rt.dcm", scan.geometry).masks, masks)
    first = dataset.ROIContourSequence[1].ContourSequence[0].ContourImageSequence[0]
    assert first.ReferencedFrameNumber == 2


def test_masks_of_interpolated_slices_come_back(tilted, write_series, tmp_path):
    along = np.array([0, 1, 2, 3, 5.5, 8, 10.5, 13])
    values = np.random.default_rng(5).integers(0, 99, (7, 9, 8)).astype(np.int16)
    scan = read_scan(write_series(values, tilted, slices=along)[0].parent)
    masks = np.random.default_rng(1).random((1, *scan.geometry.shape)) > 0.5
    dataset = written(tmp_path / "rt.dcm", scan, masks, (LIVER,))
    assert np.array_equal(read_rtstruct(tmp_path / "rt.dcm", scan.geometry).masks, masks)
    assert "ContourImageSequence" not in dataset.ROIContourSequence[0].ContourSequence[0]


def test_masks_come_back_onto_the_same_grid_in_another_order(scan, tmp_path):
    masks = awkward_masks()
    written(tmp_path / "rt.dcm", scan, masks)
    order = AxisOrder((2, 0, 1), (False, True, True))
    back = read_rtstruct(tmp_path / "rt.dcm", scan.geometry.reordered(order))
    assert np.array_equal(back.masks, order.apply(masks))


def test_on_a_finer_grid_a_contour_is_the_same_shape(scan, tmp_path):
    masks = awkward_masks()[:1]
    written(tmp_path / "rt.dcm", scan, masks, (LIVER,))
    finer = scan.geometry.with_shape((SHAPE[0] * 4, SHAPE[1] * 3, SHAPE[2]))
    back = read_rtstruct(tmp_path / "rt.dcm", finer).masks[0]
    repeated = masks[0].repeat(4, axis=0).repeat(3, axis=1)
    dice = 2 * (back & repeated).sum() / (back.sum() + repeated.sum())
    assert dice > 0.95


def test_contours_read_as_a_label_map_on_the_scans_grid(scan, tmp_path):
    masks = awkward_masks()
    written(tmp_path / "rt.dcm", scan, masks)
    back = read_label_map(tmp_path / "rt.dcm", grid=scan.geometry)
    assert np.array_equal(back.labels == 1, masks[0])
    assert back.names == {1: "liver", 2: "the ring", 3: "nothing"}
    with pytest.raises(ScanError, match="have no voxels of their own"):
        read_label_map(tmp_path / "rt.dcm")


# ---- what it says ----


def test_contours_are_closed_in_slices_and_refer_to_their_images(scan, tmp_path):
    dataset = written(tmp_path / "rt.dcm", scan, awkward_masks())
    slices = scan.file.header.slices
    contours = dataset.ROIContourSequence[0].ContourSequence
    assert {contour.ContourGeometricType for contour in contours} == {"CLOSED_PLANAR"}
    for contour in contours:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) * (-1, -1, 1)
        assert len(points) == contour.NumberOfContourPoints > 2
        z = scan.geometry.to_voxels(points)[:, 2]
        assert np.ptp(z) < 1e-3
        image = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        assert image == slices[round(z[0])].sop_instance_uid
    assert len(contours) == sum(label(awkward_masks()[0, ..., z])[1] for z in range(SHAPE[2]))


def test_a_ring_is_one_contour_with_a_channel_of_no_width(scan, tmp_path):
    x, y = np.indices(SHAPE[:2])
    away = np.hypot(x - 10, y - 13)
    masks = np.zeros((1, *SHAPE), dtype=bool)
    masks[0, ..., 2] = (away <= 8) & (away > 4)
    dataset = written(tmp_path / "rt.dcm", scan, masks, (RING,))
    (contour,) = dataset.ROIContourSequence[0].ContourSequence
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    assert len(points) - len(np.unique(points, axis=0)) == 2


def test_outer_and_inner_outlines_run_in_opposite_directions():
    """For readers that tell holes by the direction in which they run."""
    x, y = np.indices((25, 30))
    away = np.hypot(x - 12, y - 13)
    (outline,) = outlines((away <= 9) & (away > 5))
    after = np.roll(outline, -1, axis=0)
    area = abs((outline[:, 0] * after[:, 1] - outline[:, 1] * after[:, 0]).sum()) / 2
    assert area == pytest.approx(np.pi * (81 - 25), rel=0.05)


def test_a_contour_of_more_than_64_kib_comes_back(write_series, tmp_path):
    """Explicit value representations have no room for it: it would come back as bytes of unknown kind."""
    shape = (64, 50, 2)
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    scan = read_scan(write_series(values, np.eye(4))[0].parent)
    x, y, _ = np.indices(shape)
    masks = ((x % 2 == 0) | (y % 2 == 0))[None]
    dataset = written(tmp_path / "rt.dcm", scan, masks, (LIVER,))
    assert np.array_equal(read_rtstruct(tmp_path / "rt.dcm", scan.geometry).masks, masks)
    assert dataset.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints > 0xFFFF / 16
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with pytest.warns(UserWarning, match="64 kByte"):
        dataset.save_as(tmp_path / "explicit.dcm", implicit_vr=False, little_endian=True)
    assert np.array_equal(read_rtstruct(tmp_path / "explicit.dcm", scan.geometry).masks, masks)


def test_names_codes_and_the_patient_are_there(tilted, write_series, tmp_path):
    values = np.random.default_rng(3).integers(-900, 900, SHAPE).astype(np.int16)
    tags = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Zoë", "PatientID": "P1"}
    scan = read_scan(write_series(values, tilted, tags=tags)[0].parent)
    long = Segment("Gallengänge " * 8, None)
    dataset = written(tmp_path / "rt.dcm", scan, awkward_masks(), (LIVER, RING, long))
    assert (dataset.PatientName, dataset.PatientID, dataset.Modality) == ("Müller^Zoë", "P1", "RTSTRUCT")
    codes = [one.get("RTROIIdentificationCodeSequence") for one in dataset.RTROIObservationsSequence]
    assert codes[0][0].CodeValue == "10200004"
    assert codes[1][0].CodeValue == "367643001"
    assert codes[2] is None
    assert len(dataset.StructureSetROISequence[2].ROIName) <= 64
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == scan.file.details["series_uid"]
    assert len(series.ContourImageSequence) == SHAPE[2]
    assert dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID == frame.FrameOfReferenceUID


# ---- what others wrote ----


def test_inner_contours_are_holes_however_they_were_written(scan, tmp_path):
    masks = np.zeros((1, *SHAPE), dtype=bool)
    masks[0, 4:18, 5:25, 2] = True
    dataset = written(tmp_path / "rt.dcm", scan, masks, (LIVER,))
    hole = np.zeros((1, *SHAPE), dtype=bool)
    hole[0, 8:12, 9:14, 2] = True
    inner = written(tmp_path / "hole.dcm", scan, hole, (LIVER,)).ROIContourSequence[0].ContourSequence[0]
    dataset.ROIContourSequence[0].ContourSequence.append(inner)
    for kind in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            contour.ContourGeometricType = kind
        dataset.save_as(tmp_path / "other.dcm")
        back = read_rtstruct(tmp_path / "other.dcm", scan.geometry)
        assert np.array_equal(back.masks, masks & ~hole)


def test_points_and_open_lines_enclose_nothing(scan, tmp_path):
    dataset = written(tmp_path / "rt.dcm", scan, awkward_masks()[:1], (LIVER,))
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType = "OPEN_PLANAR"
    dataset.save_as(tmp_path / "open.dcm")
    assert not read_rtstruct(tmp_path / "open.dcm", scan.geometry).masks.any()


def test_contours_across_the_slices_are_refused(scan, tmp_path):
    masks = np.zeros((1, *SHAPE), dtype=bool)
    masks[0, 2:20, 3:28, 1:5] = True
    written(tmp_path / "rt.dcm", scan, masks, (LIVER,))
    turned = scan.geometry.affine.copy()
    turned[:3, :3] = np.diag([0.8, 1.1, 2.5])
    with pytest.raises(ScanError, match="must lie in slices of the scan"):
        read_rtstruct(tmp_path / "rt.dcm", Geometry(SHAPE, turned))


def test_damaged_files_are_refused(scan, tmp_path):
    dataset = written(tmp_path / "rt.dcm", scan, awkward_masks()[:1], (LIVER,))
    del dataset.StructureSetROISequence
    dataset.save_as(tmp_path / "empty.dcm")
    with pytest.raises(ScanError, match="have structures"):
        read_rtstruct(tmp_path / "empty.dcm", scan.geometry)


def test_without_scikit_image_it_says_what_to_install(scan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(OutputError, match=r"textseg\[dicom\]"):
        written(tmp_path / "rt.dcm", scan, awkward_masks())
    assert not (tmp_path / "rt.dcm").exists()
