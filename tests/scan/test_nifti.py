"""NIfTI and MGH: voxels as nibabel reads them, headers back to the last bit, bad files named."""

from __future__ import annotations

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from textseg.errors import ScanError
from textseg.geometry import AxisOrder, Geometry
from textseg.scan import read_label_map, read_scan, write_label_map, write_mask

ORDERS = [
    AxisOrder(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]
# What a mask's header may have of its own: type, bits, offset, scaling, display range, description, intent.
OWN_BYTES = {*range(68, 74), *range(108, 120), *range(124, 132), *range(148, 228), *range(56, 68)}


def header_bytes(path):
    content = path.read_bytes()
    return (gzip.decompress(content) if path.name.endswith(".gz") else content)[:348]


def saved(path, voxels, affine, **header):
    image = nib.Nifti1Image(voxels, affine)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def test_there_are_48_axis_orders():
    assert len({(order.axes, order.flipped) for order in ORDERS}) == 48


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.axes}{order.flipped}")
def test_every_axis_order_keeps_places_and_goes_back_to_the_last_bit(
    order, voxels, sheared, tmp_path, world_values
):
    geometry = Geometry(voxels.shape, sheared)
    turned, turned_geometry = order.apply(voxels), geometry.reordered(order)
    path = saved(tmp_path / "scan.nii.gz", turned, turned_geometry.affine)
    nib_affine = nib.load(path).affine

    scan = read_scan(path)
    assert np.array_equal(scan.voxels[0], turned)
    assert np.array_equal(scan.geometry.affine, nib_affine)
    expected = world_values(voxels, geometry)
    assert np.allclose(world_values(scan.voxels[0], scan.geometry), expected, atol=1e-4)

    write_mask(tmp_path / "mask.nii.gz", turned == 1200, scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), turned == 1200)
    assert np.array_equal(mask.affine, nib_affine)
    inside = expected[expected[:, 3] == 1200][:, :3]
    where = mask.affine[:3, :3] @ np.array(np.nonzero(mask.get_fdata())) + mask.affine[:3, 3:]
    assert np.allclose(sorted(where.T.tolist()), sorted(inside.tolist()), atol=1e-4)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 1), (4, 0), (0, 1), (0, 3), (3, 2)])
def test_mask_header_keeps_codes_forms_and_units_bit_by_bit(ending, sform, qform, voxels, tilted, tmp_path):
    image = nib.Nifti1Image(voxels, tilted)
    image.set_sform(tilted + np.eye(4, k=3) * 1e-3 if sform else None, sform)
    image.set_qform(tilted, qform)
    image.header["pixdim"][4:] = (1.7, 3, 0, 2)
    image.header["dim_info"] = 57
    path = tmp_path / f"scan{ending}"
    nib.save(image, path)
    write_mask(tmp_path / f"mask{ending}", voxels > 0, read_scan(path))
    before, after = header_bytes(path), header_bytes(tmp_path / f"mask{ending}")
    assert [i for i in range(348) if before[i] != after[i] and i not in OWN_BYTES] == []
    assert after[148:155] == b"textseg"
    assert np.frombuffer(after[112:120], "<f4").tolist() == [1, 0]
    assert nib.load(tmp_path / f"mask{ending}").get_data_dtype() == np.uint8


@pytest.mark.parametrize(("unit", "mm"), [("micron", 0.001), ("meter", 1000.0), ("unknown", 1.0)])
def test_units_become_mm_and_go_back_in_the_files_own_unit(unit, mm, voxels, tilted, tmp_path):
    own = tilted.copy()
    own[:3] /= mm
    image = nib.Nifti1Image(voxels, own)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert np.allclose(scan.geometry.spacing_mm, (0.8, 1.1, 2.5), rtol=1e-5)
    assert np.allclose(scan.geometry.affine, tilted, rtol=1e-6, atol=1e-4)
    write_mask(tmp_path / "mask.nii", voxels > 0, scan)
    mask = nib.load(tmp_path / "mask.nii")
    assert mask.header.get_xyzt_units()[0] == unit
    assert np.array_equal(mask.affine, nib.load(tmp_path / "scan.nii").affine)


def test_unscaled_int16_stays_int16_in_either_byte_order(voxels, tilted, tmp_path):
    for endianness in "<>":
        header = nib.Nifti1Header(endianness=endianness)
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(voxels, tilted, header), tmp_path / "scan.nii")
        scan = read_scan(tmp_path / "scan.nii")
        assert scan.voxels.dtype == np.dtype("=i2")
        assert np.array_equal(scan.voxels[0], voxels)


def test_scaling_is_applied_as_nibabel_does(voxels, tilted, tmp_path):
    image = nib.Nifti1Image(voxels, tilted)
    image.header.set_slope_inter(0.137, -55.25)
    nib.save(image, tmp_path / "scan.nii")
    # nibabel divides by the slope on saving; give the stored numbers back their meaning.
    expected = nib.load(tmp_path / "scan.nii").get_fdata()
    scan = read_scan(tmp_path / "scan.nii")
    assert scan.voxels.dtype == np.float32
    assert np.array_equal(scan.voxels[0], expected.astype(np.float32))
    assert not np.array_equal(np.asarray(nib.load(tmp_path / "scan.nii").dataobj.get_unscaled()), expected)


@pytest.mark.parametrize(
    ("kind", "slope", "intercept", "kept"),
    [
        (np.uint16, 1, -1024, np.int16),
        (np.uint8, 1, 0, np.uint8),
        (np.int32, 1, 0, np.int16),
        (np.int32, 100, 0, np.int16),
        (np.int32, 1000, 0, np.float32),
        (np.float64, 1, 0, np.float32),
        (np.int16, 2.5, 0, np.float32),
    ],
)
def test_values_are_kept_in_the_smallest_exact_type(kind, slope, intercept, kept, tilted, tmp_path):
    stored = np.arange(60).reshape(3, 4, 5).astype(kind) * kind(4)
    image = nib.Nifti1Image(stored, tilted, dtype=kind)
    image.to_filename(tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    scan = read_scan(tmp_path / "scan.nii")
    expected = stored.astype(np.float64) * slope + intercept
    assert scan.voxels.dtype == kept
    assert np.array_equal(scan.voxels[0], expected)


def test_the_format_is_told_by_content_not_only_by_ending(voxels, tilted, tmp_path):
    saved(tmp_path / "scan.nii", voxels, tilted)
    (tmp_path / "zipped.nii").write_bytes(gzip.compress((tmp_path / "scan.nii").read_bytes()))
    (tmp_path / "plain.nii.gz").write_bytes((tmp_path / "scan.nii").read_bytes())
    (tmp_path / "no_ending").write_bytes((tmp_path / "scan.nii").read_bytes())
    for name in ("zipped.nii", "plain.nii.gz", "no_ending"):
        assert np.array_equal(read_scan(tmp_path / name).voxels[0], voxels)


def test_nifti_2_is_read_and_written_back_as_nifti_2(voxels, sheared, tmp_path):
    nib.save(nib.Nifti2Image(voxels, sheared), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    assert np.array_equal(scan.geometry.affine, sheared)
    write_mask(tmp_path / "mask.nii.gz", voxels > 0, scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert isinstance(mask, nib.Nifti2Image)
    assert np.array_equal(mask.affine, sheared)


def test_a_4d_file_asks_for_a_volume_and_gives_a_3d_mask(voxels, tilted, tmp_path):
    several = np.stack([voxels, voxels + 1, voxels + 2], axis=-1)
    saved(tmp_path / "scan.nii.gz", several, tilted, cal_max=100)
    with pytest.raises(ScanError, match=r"holds 3 volumes; choose one with --volume N \(0 to 2\)"):
        read_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(ScanError, match="got 3"):
        read_scan(tmp_path / "scan.nii.gz", volume=3)
    scan = read_scan(tmp_path / "scan.nii.gz", volume=2)
    assert np.array_equal(scan.voxels[0], voxels + 2)
    assert scan.file is not None
    assert scan.file.details["volume"] == 2
    write_mask(tmp_path / "mask.nii.gz", voxels > 0, scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.header["dim"].tolist() == [3, 7, 9, 5, 1, 1, 1, 1]
    assert mask.header["cal_max"] == 0
    assert np.array_equal(mask.affine, scan.geometry.affine)


def test_4d_with_one_volume_is_3d(voxels, tilted, tmp_path):
    saved(tmp_path / "scan.nii.gz", voxels[..., None], tilted)
    assert np.array_equal(read_scan(tmp_path / "scan.nii.gz").voxels[0], voxels)


def test_a_file_without_orientation_is_read_with_a_warning(voxels, tilted, tmp_path):
    image = nib.Nifti1Image(voxels, tilted)
    image.set_sform(None, 0)
    image.set_qform(tilted, 0)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert np.array_equal(scan.geometry.affine, nib.load(tmp_path / "scan.nii").affine)
    assert "neither sform nor qform" in scan.file.details["warnings"][0]


def test_forms_that_disagree_are_told_and_sform_is_used(voxels, tilted, tmp_path):
    image = nib.Nifti1Image(voxels, tilted)
    image.set_sform(tilted + np.eye(4, k=3) * 30, 1)
    image.set_qform(tilted, 1)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert np.allclose(scan.geometry.affine[0, 3], tilted[0, 3] + 30)
    assert scan.file.details["warnings"] == [
        "sform and qform of the header differ by 30.0 mm at a corner; sform was used."
    ]
    assert read_scan(saved(tmp_path / "sound.nii", voxels, tilted)).file.details["warnings"] == []


def test_mgz_keeps_its_header(voxels, tilted, tmp_path):
    nib.save(nib.MGHImage(voxels, tilted), tmp_path / "scan.mgz")
    scan = read_scan(tmp_path / "scan.mgz")
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels[0], voxels)
    assert np.array_equal(scan.geometry.affine, nib.load(tmp_path / "scan.mgz").affine)
    write_mask(tmp_path / "mask.mgz", voxels > 0, scan)
    mask = nib.load(tmp_path / "mask.mgz")
    assert np.array_equal(mask.affine, scan.geometry.affine)
    assert np.array_equal(np.asarray(mask.dataobj), voxels > 0)
    write_label_map(tmp_path / "labels.mgz", (voxels > 0) * 4000, {4000: "wm"}, scan)
    assert read_label_map(tmp_path / "labels.mgz").labels.max() == 4000


def test_the_scans_own_extensions_do_not_reach_the_mask(voxels, tilted, tmp_path):
    image = nib.Nifti1Image(voxels, tilted)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"Jane Doe"))
    nib.save(image, tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii", voxels > 0, read_scan(tmp_path / "scan.nii"))
    assert b"Jane Doe" in (tmp_path / "scan.nii").read_bytes()
    assert b"Jane Doe" not in (tmp_path / "mask.nii").read_bytes()


# ---- bad files ----


def refused(path: Path, words: str) -> None:
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(ending, voxels, tilted, tmp_path):
    path = saved(tmp_path / f"scan{ending}", voxels, tilted)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "complete")


def test_a_flipped_bit_in_a_gzip_file_is_refused(tilted, tmp_path):
    # Large enough that reading the first volume does not come to the end of the stream by itself.
    several = np.random.default_rng(0).integers(0, 99, (70, 60, 50, 2)).astype(np.int16)
    path = saved(tmp_path / "scan.nii", several, tilted)
    # Stored without compression, so that only the checksum can tell.
    raw = bytearray(gzip.compress(path.read_bytes(), 0))
    raw[-100] ^= 1
    (tmp_path / "scan.nii.gz").write_bytes(raw)
    with pytest.raises(ScanError, match=r"scan\.nii\.gz must be a complete gzip"):
        read_scan(tmp_path / "scan.nii.gz", volume=0)


def test_text_in_place_of_a_scan_is_refused(tmp_path):
    (tmp_path / "scan.nii.gz").write_text("<html>404 not found</html>")
    refused(tmp_path / "scan.nii.gz", "begins with '<html>")


def test_a_2d_image_is_refused(voxels, tilted, tmp_path):
    refused(saved(tmp_path / "scan.nii", voxels[..., 0], tilted), "must be 3D")


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_spacing_that_is_none_is_refused(bad, voxels, tilted, tmp_path):
    path = saved(tmp_path / "scan.nii", voxels, tilted)
    raw = bytearray(path.read_bytes())
    raw[84:88] = np.float32(bad).tobytes()
    raw[252:256] = np.array([1, 0], "<i2").tobytes()
    path.write_bytes(raw)
    refused(path, "Spacing must be three positive numbers")


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_singular_affine_is_refused(bad, voxels, tilted, tmp_path):
    path = saved(tmp_path / "scan.nii", voxels, tilted)
    raw = bytearray(path.read_bytes())
    raw[280:328] = np.full(12, bad, "<f4").tobytes()
    path.write_bytes(raw)
    refused(path, "damaged|positive numbers")


def test_axes_that_coincide_are_refused(voxels, tmp_path):
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0]
    path = saved(tmp_path / "scan.nii", voxels, np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[280:328] = affine[:3].astype("<f4").tobytes()
    path.write_bytes(raw)
    refused(path, "singular")


def test_colours_and_complex_numbers_are_refused(voxels, tilted, tmp_path):
    colours = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, tilted), tmp_path / "colours.nii")
    refused(tmp_path / "colours.nii", "RGB")
    nib.save(nib.Nifti1Image(voxels.astype(np.complex64), tilted), tmp_path / "complex.nii")
    refused(tmp_path / "complex.nii", "complex")


def test_missing_empty_and_unknown_files_are_refused(tmp_path):
    refused(tmp_path / "nowhere.nii.gz", "no file or folder")
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", "empty")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" + bytes(500))
    refused(tmp_path / "picture.png", r"NIfTI.*NRRD.*or DICOM")


def test_a_file_that_may_not_be_read_is_refused(voxels, tilted, tmp_path, monkeypatch):
    path = saved(tmp_path / "scan.nii.gz", voxels, tilted)

    def no_access(*_args, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no_access)
    refused(path, "you may not read")


def with_bytes(path, start, values, kind="<f4"):
    raw = bytearray(path.read_bytes())
    new = np.asarray(values, kind).tobytes()
    raw[start : start + len(new)] = new
    path.write_bytes(raw)
    return path


def test_a_quaternion_that_is_none_is_refused_unless_there_is_a_sform(voxels, tilted, tmp_path):
    path = with_bytes(saved(tmp_path / "scan.nii", voxels, tilted), 256, [2, 2, 2])
    with_bytes(path, 252, [1, 1], "<i2")
    scan = read_scan(path)
    assert np.allclose(scan.geometry.affine, tilted, atol=1e-4)
    assert "sform was used" in scan.file.details["warnings"][0]
    write_mask(tmp_path / "mask.nii", voxels > 0, scan)
    assert header_bytes(tmp_path / "mask.nii")[252:328] == header_bytes(path)[252:328]
    refused(with_bytes(path, 254, [0], "<i2"), "complete image")


def test_a_size_or_type_beyond_all_measure_is_refused(voxels, tilted, tmp_path):
    refused(with_bytes(saved(tmp_path / "a.nii", voxels, tilted), 42, [32767] * 3, "<i2"), "complete image")
    refused(
        with_bytes(saved(tmp_path / "b.nii", voxels, tilted), 42, [-7], "<i2"), "voxels along every axis|fit"
    )
    refused(with_bytes(saved(tmp_path / "c.nii", voxels, tilted), 70, [77], "<i2"), "complete image")
    refused(
        with_bytes(saved(tmp_path / "d.nii", voxels[:0], tilted), 42, [0], "<i2"), "voxels along every axis"
    )


def test_a_size_that_the_file_can_not_hold_is_refused_before_memory_is_asked_for(
    voxels, tilted, tmp_path, monkeypatch
):
    monkeypatch.setattr("textseg.scan.nifti.array_from_file", None)
    for name in ("scan.nii", "zipped.nii.gz"):
        raw = with_bytes(saved(tmp_path / "scan.nii", voxels, tilted), 42, [9000] * 3, "<i2").read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        refused(tmp_path / name, "the header tells of 1458000000352 bytes")


def test_too_little_memory_is_no_damage_of_the_file(voxels, tilted, tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("textseg.scan.nifti.array_from_file", no_memory)
    with pytest.raises(MemoryError):
        read_scan(saved(tmp_path / "scan.nii", voxels, tilted))


@pytest.mark.parametrize("size", [0, 347, 1543569408])
def test_a_header_that_names_another_size_is_read_with_a_warning(size, voxels, tilted, tmp_path):
    path = with_bytes(saved(tmp_path / "scan.nii", voxels, tilted), 0, [size], "<i4")
    scan = read_scan(path)
    assert np.array_equal(scan.voxels[0], voxels)
    assert np.allclose(scan.geometry.affine, tilted, atol=1e-4)
    assert scan.file.details["warnings"] == [
        f"The header says that it has {size} bytes, which no NIfTI header has; is the file damaged?"
    ]


def test_names_in_the_header_do_not_reach_the_mask(voxels, tilted, tmp_path):
    image = nib.Nifti1Image(voxels, tilted)
    image.header["db_name"], image.header["aux_file"] = b"Quixote", b"Quixote.txt"
    nib.save(image, tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii", voxels > 0, read_scan(tmp_path / "scan.nii"))
    assert b"Quixote" not in (tmp_path / "mask.nii").read_bytes()


def test_an_mgz_without_orientation_is_read_with_a_warning(voxels, tilted, tmp_path):
    nib.save(nib.MGHImage(voxels, tilted), tmp_path / "scan.mgh")
    # The flag of a good orientation is a big-endian int16 after seven int32.
    scan = read_scan(with_bytes(tmp_path / "scan.mgh", 28, [0], ">i2"))
    assert "not certain" in scan.file.details["warnings"][0]


def test_a_damaged_legend_is_no_legend(voxels, tilted, tmp_path):
    for content in (b"<LabelTable><Label", b"nothing of the kind"):
        image = nib.Nifti1Image((voxels > 0).astype(np.uint8), tilted)
        image.header.extensions.append(nib.nifti1.Nifti1Extension(30, content))
        nib.save(image, tmp_path / "labels.nii")
        assert read_label_map(tmp_path / "labels.nii").names == {}
