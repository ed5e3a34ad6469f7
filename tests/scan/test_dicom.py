"""DICOM series: sorted by place, every irregularity told or refused, values as other readers have them."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from textseg.errors import ScanError, SeriesChoiceError
from textseg.geometry import Geometry
from textseg.scan import list_series, read_label_map, read_scan, write_mask
from textseg.scan.dicom_frames import read_header
from textseg.scan.suv import suv_factor


def warnings_of(scan):
    return scan.file.details["warnings"]


def read_by_gdcm(folder):
    """Voxels (x, y, z) and the places of all corners, RAS, as SimpleITK's own series reader has them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    corners = [
        [(n - 1) * c for n, c in zip(image.GetSize(), corner, strict=True)] for corner in np.ndindex(2, 2, 2)
    ]
    places = [np.array(image.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1) for corner in corners]
    return sitk.GetArrayFromImage(image).T, np.array(places), corners


# ---- classic series ----


def test_shuffled_files_give_the_scan_that_simpleitk_gives(voxels, tilted, write_series):
    paths = write_series(voxels, tilted, rescale=lambda z: (2, -1024))
    scan = read_scan(paths[0].parent)
    theirs, places, corners = read_by_gdcm(paths[0].parent)
    assert np.array_equal(scan.voxels[0], voxels * 2 - 1024)
    assert np.array_equal(scan.voxels[0], theirs)
    assert np.allclose(scan.geometry.to_world(corners), places, atol=1e-5)
    assert np.allclose(scan.geometry.affine, tilted, atol=1e-5)
    assert scan.voxels.dtype == np.int16
    assert scan.modality == "ct"
    assert warnings_of(scan) == []


def test_slices_that_run_against_the_normal_are_turned_with_their_voxels(
    voxels, tilted, write_series, world_values
):
    downwards = tilted @ np.diag([1.0, 1, -1, 1])
    paths = write_series(voxels, downwards)
    scan = read_scan(paths[0].parent)
    expected = world_values(voxels, Geometry(voxels.shape, downwards))
    assert np.allclose(world_values(scan.voxels[0], scan.geometry), expected, atol=1e-4)
    assert np.linalg.det(scan.geometry.affine) > 0


def test_slices_know_their_files(voxels, tilted, write_series):
    paths = write_series(voxels, tilted)
    source = read_scan(paths[0].parent).file.header
    assert [one.path for one in source.slices] == paths
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    assert [one.sop_instance_uid for one in source.slices] == uids


def test_slope_and_intercept_of_each_slice_are_its_own(voxels, tilted, write_series):
    paths = write_series(voxels, tilted, modality="MR", rescale=lambda z: (0.5 + 0.25 * z, z))
    scan = read_scan(paths[0].parent)
    z = np.arange(5)
    assert scan.voxels.dtype == np.float32
    assert np.array_equal(scan.voxels[0], (voxels * (0.5 + 0.25 * z) + z).astype(np.float32))
    assert scan.modality == "mr"


def test_a_tilted_gantry_shears_the_grid_exactly(voxels, sheared, write_series):
    paths = write_series(voxels, sheared)
    scan = read_scan(paths[0].parent)
    assert np.allclose(scan.geometry.affine, sheared, atol=1e-5)
    assert np.array_equal(scan.voxels[0], voxels)
    expected = np.degrees(np.arctan2(0.3 * 1.1, 2.5))
    assert warnings_of(scan) == [
        f"The gantry was tilted by {expected:.1f}°; the slices are sheared against each other accordingly."
    ]


def test_missing_slices_are_refused_and_named(voxels, tilted, write_series):
    paths = write_series(voxels, tilted)
    paths[1].unlink()
    normal = np.cross(tilted[:3, 0] / 0.8, tilted[:3, 1] / 1.1)
    with pytest.raises(ScanError, match=r"\(1 missing\)") as caught:
        read_scan(paths[0].parent)
    assert f"{normal @ (tilted[:3, 3] + tilted[:3, 2]):.2f} mm" in str(caught.value)


def test_varying_spacing_is_interpolated_and_told(tilted, write_series):
    # A ramp along z stays the same ramp whatever the slices; noise would not tell where it was cut.
    along = np.array([0, 1, 2, 3, 5.5, 8, 10.5, 13, 15.5, 16])
    ramp = np.broadcast_to(100 * along, (6, 7, 10)) + np.arange(6)[:, None, None]
    paths = write_series(np.round(ramp).astype(np.int16), tilted, slices=along)
    scan = read_scan(paths[0].parent)
    assert scan.voxels.dtype == np.float32
    count = scan.geometry.shape[2]
    z = np.arange(count) * 16 / (count - 1)
    assert np.allclose(scan.voxels[0, 2, 3], 100 * z + 2, atol=1e-3)
    ends = scan.geometry.to_world([[0, 0, 0], [0, 0, count - 1]])
    assert np.allclose(ends, [tilted[:3, 3], tilted[:3, 3] + 16 * tilted[:3, 2]], atol=1e-4)
    assert "interpolated" in warnings_of(scan)[0]
    assert scan.file.header.slices == ()


def test_positions_rounded_by_the_scanner_are_even_enough(voxels, tilted, write_series):
    jitter = np.arange(5) + np.array([0, 0.01, -0.01, 0.012, 0])
    scan = read_scan(write_series(voxels, tilted, slices=jitter)[0].parent)
    assert np.array_equal(scan.voxels[0], voxels)
    assert warnings_of(scan) == []


def test_slices_off_the_line_are_refused(voxels, tilted, write_series, change_tags):
    paths = write_series(voxels, tilted)
    moved = np.array(pydicom.dcmread(paths[2]).ImagePositionPatient, dtype=float)
    lps = np.diag([-1, -1, 1]) @ tilted[:3, 0]
    change_tags(paths[2], ImagePositionPatient=[f"{x:.6f}" for x in moved + 2 * lps])
    with pytest.raises(ScanError, match=r"straight line.*1\.60 mm off"):
        read_scan(paths[0].parent)


def test_identical_copies_are_left_out_with_a_warning(voxels, tilted, write_series):
    uid = generate_uid()
    paths = write_series(voxels, tilted, uid=uid)
    write_series(voxels[..., :2], tilted, uid=uid, first_file=20)
    scan = read_scan(paths[0].parent)
    assert np.array_equal(scan.voxels[0], voxels)
    assert "2 slices" in warnings_of(scan)[0]


def test_different_images_at_one_position_are_refused(voxels, tilted, write_series):
    uid = generate_uid()
    paths = write_series(voxels, tilted, uid=uid)
    write_series(voxels[..., :1] + np.int16(1), tilted, uid=uid, first_file=20)
    with pytest.raises(ScanError, match="one image a position"):
        read_scan(paths[0].parent)


def test_a_single_slice_is_refused(voxels, tilted, write_series):
    paths = write_series(voxels, tilted)
    with pytest.raises(ScanError, match="one slice only"):
        read_scan(paths[0])


def test_bits_above_the_stored_ones_are_no_values(tilted, write_series):
    """Old scanners kept an overlay in the four bits above twelve."""
    for signed in (False, True):
        values = (
            np.arange(-1000 if signed else 0, 2000 if signed else 3000, 100).reshape(2, 3, 5).astype(np.int16)
        )
        stored = (values.astype(np.uint16) & 0x0FFF) | 0x5000
        name = f"signed{signed}"
        tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
        paths = write_series(stored, tilted, name=name, tags=tags)
        assert np.array_equal(read_scan(paths[0].parent).voxels[0], values)


def test_files_without_preamble_are_found(voxels, tilted, write_series):
    paths = write_series(voxels, tilted)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.preamble = None
        bare = Dataset()
        bare.update({tag: dataset[tag] for tag in dataset.keys()})  # noqa: SIM118
        bare.save_as(path, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:4] != bytes(4)
    assert np.array_equal(read_scan(paths[0].parent).voxels[0], voxels)


def test_a_mask_of_a_series_is_written_as_nifti_nrrd_and_metaimage(voxels, sheared, write_series, tmp_path):
    scan = read_scan(write_series(voxels, sheared)[0].parent)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_mask(tmp_path / f"mask{ending}", voxels > 0, scan)
        back = read_label_map(tmp_path / f"mask{ending}")
        assert np.array_equal(back.labels, voxels > 0)
        assert back.geometry.is_close(scan.geometry, 1e-4)


# ---- several series, several volumes ----


def test_several_series_must_be_chosen_from(voxels, tilted, write_series, tmp_path):
    uids = ["1.2.3.10", "1.2.3.20", "1.2.4.30"]
    for number, uid in enumerate(uids):
        tags = {"SeriesNumber": number + 5, "SeriesDate": "20240131"}
        write_series(voxels + number, tilted, name=f"arm {number}", uid=uid, tags=tags)
    with pytest.raises(SeriesChoiceError, match="--series UID") as caught:
        read_scan(tmp_path)
    for number, uid in enumerate(uids):
        assert f"{uid} (arm {number}, CT, 5 slices)" in str(caught.value)
    for chosen, number in {"1.2.3.20": 1, "30": 2, "1.2.4": 2, "6": 1, "5": 0}.items():
        assert np.array_equal(read_scan(tmp_path, series=chosen).voxels[0], voxels + number)
    for chosen, words in {"1.2.3": "2 series that 1.2.3 could mean", "99": "got 99", "": "got"}.items():
        with pytest.raises(SeriesChoiceError, match=words):
            read_scan(tmp_path, series=chosen)
    listed = list_series(tmp_path)
    assert [(one.uid, one.number, one.description) for one in listed] == [
        (uid, number + 5, f"arm {number}") for number, uid in enumerate(uids)
    ]
    first = listed[0]
    assert (first.modality, first.images, first.shape, first.date) == ("CT", 5, (7, 9, 5), "2024-01-31")
    assert np.allclose(first.spacing_mm, (0.8, 1.1, 2.5), atol=1e-3)


def test_a_localiser_within_a_series_is_left_out(voxels, tilted, write_series):
    uid = generate_uid()
    paths = write_series(voxels, tilted, uid=uid)
    across = tilted[:, [2, 0, 1, 3]]
    tags = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(voxels[..., :2], across, uid=uid, tags=tags, first_file=20)
    scan = read_scan(paths[0].parent)
    assert np.array_equal(scan.voxels[0], voxels)
    assert warnings_of(scan) == ["2 localiser images of the series were left out."]
    assert [one.uid for one in list_series(paths[0].parent)] == [f"{uid}/1", f"{uid}/2"]


def test_stacks_of_several_directions_in_one_series_must_be_chosen_from(voxels, tilted, write_series):
    uid = generate_uid()
    paths = write_series(voxels, tilted, uid=uid)
    across = tilted[:, [2, 0, 1, 3]]
    write_series(voxels[..., :4] + np.int16(7), across, uid=uid, first_file=20)
    with pytest.raises(SeriesChoiceError, match=f"{uid}/1 .*5 slices.*{uid}/2 .*4 slices"):
        read_scan(paths[0].parent)
    assert np.array_equal(read_scan(paths[0].parent, series=f"{uid}/2").voxels[0], voxels[..., :4] + 7)


def test_a_series_without_uid_is_still_one_series(voxels, tilted, write_series):
    paths = write_series(voxels, tilted, tags={"SeriesInstanceUID": ""})
    assert np.array_equal(read_scan(paths[0].parent).voxels[0], voxels)
    assert list_series(paths[0].parent)[0].uid == "unnamed-1"


@pytest.mark.parametrize(
    "mark", ["TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "InstanceNumber"]
)
def test_several_volumes_of_a_classic_series_must_be_chosen_from(mark, voxels, tilted, write_series):
    uid = generate_uid()
    # Written from the last to the first, so that the order can only come from the mark; 10 comes after 9.
    for number, time in enumerate((10, 9, 2)):
        paths = write_series(
            voxels + np.int16(time),
            tilted,
            uid=uid,
            tags_of_slice=lambda z, time=time: (
                {"InstanceNumber": 1, mark: time} if mark != "InstanceNumber" else {mark: 100 * time + z}
            ),
            first_file=20 * number,
        )
    with pytest.raises(ScanError, match=r"holds 3 volumes; choose one with --volume N \(0 to 2\)"):
        read_scan(paths[0].parent)
    for volume, time in enumerate((2, 9, 10)):
        scan = read_scan(paths[0].parent, volume=volume)
        assert np.array_equal(scan.voxels[0], voxels + time)
        assert scan.file.details["volume"] == volume
    assert list_series(paths[0].parent)[0].images == 15
    assert list_series(paths[0].parent)[0].shape == (7, 9, 5)


def test_volumes_told_apart_by_two_marks_together(voxels, tilted, write_series):
    uid = generate_uid()
    for number, (echo, time) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):
        tags = {"EchoNumbers": echo, "TemporalPositionIdentifier": time}
        paths = write_series(voxels + number, tilted, uid=uid, tags=tags, first_file=20 * number)
    # Time is the more telling of the two and so the outer one.
    for volume, added in enumerate((0, 2, 1, 3)):
        assert np.array_equal(read_scan(paths[0].parent, volume=volume).voxels[0], voxels + added)


# ---- what is no scan ----


def test_other_objects_are_passed_over(voxels, tilted, write_series, change_tags, tmp_path):
    paths = write_series(voxels, tilted)
    for number, modality in enumerate(["SEG", "RTSTRUCT", "SR", "PR"]):
        other = write_series(voxels[..., :1], tilted, name=f"other{number}")[0]
        change_tags(other, Modality=modality)
    screenshot = write_series(voxels[..., :1], tilted, name="screenshot")[0]
    dataset = pydicom.dcmread(screenshot)
    del dataset.ImagePositionPatient
    dataset.save_as(screenshot)
    (tmp_path / "notes.txt").write_text("not DICOM at all")
    (tmp_path / "empty").touch()
    assert np.array_equal(read_scan(tmp_path).voxels[0], voxels)
    with pytest.raises(ScanError, match=r"only \(SEG\)"):
        read_scan(tmp_path / "other0")
    for path in paths:
        path.unlink()


def test_folders_without_dicom_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ScanError, match="there is none in"):
        read_scan(tmp_path)
    with pytest.raises(ScanError, match="there is none in"):
        list_series(tmp_path)


def test_colours_are_refused(voxels, tilted, write_series):
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    with pytest.raises(ScanError, match="RGB"):
        read_scan(write_series(voxels, tilted, tags=tags)[0].parent)


def test_a_slice_cut_short_is_named(voxels, tilted, write_series):
    paths = write_series(voxels, tilted)
    paths[2].write_bytes(paths[2].read_bytes()[:-30])
    with pytest.raises(ScanError, match=paths[2].name):
        read_scan(paths[0].parent)


@pytest.mark.parametrize(
    ("tag", "value"), [("PixelSpacing", ["0", "1"]), ("ImageOrientationPatient", ["0"] * 6)]
)
def test_a_header_that_is_no_grid_is_refused(tag, value, voxels, tilted, write_series):
    with pytest.raises(ScanError, match=r"positive numbers|unit vectors"):
        read_scan(write_series(voxels, tilted, tags={tag: value})[0].parent)


# ---- compressed ----


def compressed_frame(image_2d, compressor):
    """One image (rows, columns) encoded by the GDCM within SimpleITK: its bytes and transfer syntax."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.dcm"
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(path))
        writer.Execute(sitk.GetImageFromArray(image_2d))
        dataset = pydicom.dcmread(path)
        return next(
            generate_frames(dataset.PixelData, number_of_frames=1)
        ), dataset.file_meta.TransferSyntaxUID


@pytest.mark.parametrize(
    ("compressor", "syntax"),
    [
        ("JPEG", "1.2.840.10008.1.2.4.70"),
        ("JPEG2000", "1.2.840.10008.1.2.4.90"),
        ("RLE", RLELossless),
    ],
)
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
@pytest.mark.parametrize("enhanced", [False, True])
def test_compressed_files_give_the_very_voxels(
    compressor, syntax, kind, enhanced, voxels, tilted, write_series, write_enhanced
):
    # Tiles, because codecs want images of some size.
    stored = np.tile(voxels + (1000 if kind == np.uint16 else 0), (6, 5, 1)).astype(kind)
    if enhanced:
        paths = [write_enhanced(stored, tilted, rescale=(3, -500))]
    else:
        paths = write_series(stored, tilted, rescale=lambda z: (3, -500))
    for first, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        if compressor == "RLE":
            dataset.compress(RLELossless)
        else:
            slices = range(5) if enhanced else [first]
            frames = [compressed_frame(np.ascontiguousarray(stored[..., z].T), compressor) for z in slices]
            assert frames[0][1] == syntax
            dataset.PixelData = encapsulate([frame for frame, _ in frames])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    scan = read_scan(paths[0] if enhanced else paths[0].parent)
    assert np.array_equal(scan.voxels[0], stored.astype(int) * 3 - 500)
    assert np.allclose(scan.geometry.affine, tilted, atol=1e-5)


# Columns x and rows y of 1000 + 37·x·y mod 911, with a bright column at x = 3, as JPEG-LS by CharLS.
JPEG_LS = (
    "/9j/9wALDAAKAAwBAREA/9oACAEBAAAAAAAAAACfAgAAAAAB+eHooAQAgBAEAQBAEBElKF1JSUdFQ5JkeRYCUVG2lFRJJBHFRJFS"
    "AlFRspQvNxtNgAAAD+lJUCQkmukFATwAECkgBayoNECMkGqjA2qOQRatyOtSIIiOaaSiNk2DXAAADEeAXUEJGNEAAAAViANY+gAA"
    "BYMkgYEbggIpnoSvNMYskZJxZgAAAC2AlFQADQDQDkC4AmAzgwC3gwL/2Q=="
)


def test_jpeg_ls_gives_the_very_voxels(tilted, write_series):
    x, y = np.meshgrid(np.arange(12), np.arange(10), indexing="ij")
    stored = (1000 + 37 * x * y % 911 + (x == 3) * 2000).astype(np.uint16)
    paths = write_series(np.stack([stored, stored], axis=2), tilted, rescale=lambda z: (1, -1024))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = encapsulate([base64.b64decode(JPEG_LS)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.save_as(path)
    scan = read_scan(paths[0].parent)
    assert np.array_equal(scan.voxels[0], np.stack([stored, stored], axis=2).astype(int) - 1024)


# ---- enhanced ----


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_file_is_sorted_by_place(modality, voxels, sheared, write_enhanced):
    path = write_enhanced(voxels, sheared, modality=modality, order=[3, 0, 4, 1, 2], rescale=(2, 5))
    for given in (path, path.parent):
        scan = read_scan(given)
        assert np.array_equal(scan.voxels[0], voxels * 2 + 5)
        assert np.allclose(scan.geometry.affine, sheared, atol=1e-5)
        assert scan.modality == modality.lower()
        assert [one.frame for one in scan.file.header.slices] == [1, 3, 4, 0, 2]


def test_an_enhanced_file_of_several_volumes_must_be_chosen_from(voxels, tilted, write_enhanced):
    both = np.concatenate([voxels, voxels + 9], axis=2)
    path = write_enhanced(both, tilted, modality="MR", order=[*range(5)] * 2, times=[2] * 5 + [1] * 5)
    with pytest.raises(ScanError, match="2 volumes"):
        read_scan(path)
    assert np.array_equal(read_scan(path, volume=0).voxels[0], voxels + 9)
    assert np.array_equal(read_scan(path, volume=1).voxels[0], voxels)


# ---- PET ----


def pet_tags(**changes):
    tracer = Dataset()
    tracer.RadiopharmaceuticalStartTime = "090000.00"
    tracer.RadionuclideTotalDose = 350e6
    tracer.RadionuclideHalfLife = 6586.2
    return {
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["ATTN", "DECAY"],
        "PatientWeight": 70,
        "SeriesDate": "20240131",
        "SeriesTime": "100000.5",
        "AcquisitionDate": "20240131",
        "AcquisitionTime": "100010",
        "RadiopharmaceuticalInformationSequence": [tracer],
    } | changes


def test_pet_becomes_suv(voxels, tilted, write_series):
    stored = np.abs(voxels)
    paths = write_series(stored, tilted, modality="PT", tags=pet_tags(), rescale=lambda z: (3 + z, 0))
    scan = read_scan(paths[0].parent)
    # Injected an hour before: 350 MBq have become 350 · 2^(-3600 / 6586.2).
    factor = 70_000 / (350e6 * 2 ** (-3600 / 6586.2))
    assert np.allclose(scan.voxels[0], stored * (3 + np.arange(5)) * factor, rtol=1e-6)
    assert scan.modality == "pet"
    assert warnings_of(scan) == []


def test_pet_that_lacks_what_suv_needs_stays_as_it_is_with_a_warning(voxels, tilted, write_series):
    stored = np.abs(voxels)
    for number, changes in enumerate(
        [
            {"PatientWeight": None},
            {"Units": "CNTS"},
            {"RadiopharmaceuticalInformationSequence": []},
            {"DecayCorrection": "NONE"},
            {"SeriesTime": "110000"},
            {"CorrectedImage": ["ATTN"]},
        ]
    ):
        tags = pet_tags(**changes)
        scan = read_scan(
            write_series(stored, tilted, modality="PT", tags=tags, name=f"pet{number}")[0].parent
        )
        assert np.array_equal(scan.voxels[0], stored)
        assert len(warnings_of(scan)) == 1


def test_suv_by_administration_across_midnight_and_in_grams(voxels, tilted, write_series):
    def factor(**changes):
        path = write_series(np.abs(voxels), tilted, modality="PT", tags=pet_tags(**changes))[0]
        return suv_factor([read_header(path)])[0]

    assert factor(DecayCorrection="ADMIN") == pytest.approx(70_000 / 350e6)
    assert factor(Units="GML") == 1
    late = pet_tags()["RadiopharmaceuticalInformationSequence"]
    late[0].RadiopharmaceuticalStartTime = "233000"
    after_an_hour = pytest.approx(70_000 / (350e6 * 2 ** (-3600 / 6586.2)))
    over_night = {"SeriesTime": "003000", "AcquisitionTime": "003001"}
    assert factor(RadiopharmaceuticalInformationSequence=late, **over_night) == after_an_hour
    late[0].RadiopharmaceuticalStartDateTime = "20240131090000.000"
    assert factor(RadiopharmaceuticalInformationSequence=late) == after_an_hour
    late[0].RadionuclideTotalDose = 0
    assert factor(RadiopharmaceuticalInformationSequence=late) is None


def test_a_series_processed_later_takes_the_scan_time_of_its_maker(voxels, tilted, write_series):
    path = write_series(np.abs(voxels), tilted, modality="PT", tags=pet_tags(SeriesTime="150000"))[0]
    header = read_header(path)
    assert suv_factor([header])[0] is None
    header.add_new(0x0009100D, "DT", "20240131100000.00")
    header.save_as(path)
    factor, _ = suv_factor([read_header(path)])
    assert factor == pytest.approx(70_000 / (350e6 * 2 ** (-3600 / 6586.2)))


# ---- the real one ----


def test_a_real_compressed_chest_ct_reads_as_simpleitk_reads_it(shared_data):
    folder = shared_data / "scans" / "dicom_chest_ct"
    scan = read_scan(folder)
    theirs, places, corners = read_by_gdcm(folder)
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels[0], theirs)
    assert np.allclose(scan.geometry.to_world(corners), places, atol=1e-6)
    assert scan.modality == "ct"
    assert scan.geometry.orientation == "LPS"
    assert warnings_of(scan) == []
