"""NRRD and MetaImage: places as SimpleITK has them, headers back word by word, shear kept."""

from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from textseg.errors import ScanError
from textseg.geometry import Geometry
from textseg.scan import read_label_map, read_scan, write_label_map, write_mask

ENDINGS = ["nrrd", "nhdr", "mha", "mhd"]
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def as_image(voxels, affine):
    """A SimpleITK image of voxels (x, y, z) on a RAS affine."""
    lps = TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def assert_same_places(image, geometry):
    """Compare corners through SimpleITK's own transform, not through any matrix of ours."""
    assert image.GetSize() == geometry.shape
    for corner in np.ndindex(2, 2, 2):
        index = [(n - 1) * c for n, c in zip(geometry.shape, corner, strict=True)]
        theirs = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        assert np.allclose(theirs, geometry.to_world(index), atol=1e-9)


@pytest.mark.parametrize("grid", ["tilted", "sheared"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_scan_is_read_and_a_mask_written_where_simpleitk_has_them(ending, grid, voxels, tmp_path, request):
    affine = request.getfixturevalue(grid)
    path, mask_path = tmp_path / f"scan.{ending}", tmp_path / f"mask.{ending}"
    image = as_image(voxels, affine)
    sitk.WriteImage(image, str(path))

    scan = read_scan(path)
    assert np.array_equal(scan.voxels[0], voxels)
    assert scan.voxels.dtype == np.int16
    assert np.allclose(scan.geometry.affine, affine, atol=1e-12)
    assert_same_places(sitk.ReadImage(str(path)), scan.geometry)

    write_mask(mask_path, voxels == 1200, scan)
    mask = sitk.ReadImage(str(mask_path))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(mask).T, voxels == 1200)
    source = sitk.ReadImage(str(path))
    for of in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(mask, of)() == getattr(source, of)()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_mask_without_a_source_lies_where_its_geometry_says(ending, voxels, sheared, tmp_path):
    geometry = Geometry(voxels.shape, sheared)
    write_mask(tmp_path / f"mask.{ending}", voxels > 0, geometry)
    assert_same_places(sitk.ReadImage(str(tmp_path / f"mask.{ending}")), geometry)


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_of_labels_go_there_and_back(ending, voxels, tilted, tmp_path):
    names = {3: "left kidney", 300: "tumour, 2 cm: right (segment 8)"}
    labels = np.where(voxels == 1200, 300, np.where(voxels > 0, 3, 0))
    path = tmp_path / f"labels.{ending}"
    write_label_map(path, labels, names, Geometry(voxels.shape, tilted))
    back = read_label_map(path)
    assert np.array_equal(back.labels, labels)
    assert back.labels.dtype == np.uint16
    assert back.names == names
    assert sitk.ReadImage(str(path)).GetMetaData("Segment0_Name") == "left kidney"


def nrrd(path, voxels, **fields):
    lines = {
        "type": "short",
        "dimension": str(voxels.ndim),
        "sizes": " ".join(map(str, voxels.shape)),
        "endian": "little",
        "encoding": "raw",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    header = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in lines.items()) + "\n"
    path.write_bytes(header.encode() + voxels.tobytes(order="F"))
    return path


def test_a_nrrd_in_ras_goes_back_word_by_word(voxels, tmp_path):
    place = {
        "space": "right-anterior-superior",
        "space_directions": "(0.80,0,0) (0,-1.10,.25) (0,0,2.5e0)",
        "space_origin": "(-3.10,4,1e1)",
        "space_units": '"mm" "mm" "mm"',
    }
    scan = read_scan(nrrd(tmp_path / "scan.nrrd", voxels, **place))
    expected = np.array([[0.8, 0, 0, -3.1], [0, -1.1, 0, 4], [0, 0.25, 2.5, 10], [0, 0, 0, 1]])
    assert np.allclose(scan.geometry.affine, expected, atol=1e-12)
    write_mask(tmp_path / "mask.nrrd", voxels > 0, scan)
    header = (tmp_path / "mask.nrrd").read_bytes().partition(b"\n\n")[0].decode()
    for name, value in place.items():
        assert f"{name.replace('_', ' ')}: {value}\n" in header + "\n"
    assert np.array_equal(read_label_map(tmp_path / "mask.nrrd").geometry.affine, scan.geometry.affine)


def test_a_nrrd_in_micrometres_becomes_mm(voxels, tmp_path):
    scan = read_scan(
        nrrd(
            tmp_path / "scan.nrrd",
            voxels,
            space="LPS",
            space_directions="(800,0,0) (0,1100,0) (0,0,2500)",
            space_origin="(1000,2000,3000)",
            space_units='"um" "um" "um"',
        )
    )
    assert np.allclose(scan.geometry.spacing_mm, (0.8, 1.1, 2.5))
    assert np.allclose(scan.geometry.affine[:3, 3], (-1, -2, 3))
    for ending in ("nrrd", "mha"):
        write_mask(tmp_path / f"mask.{ending}", voxels > 0, scan)
        assert read_label_map(tmp_path / f"mask.{ending}").geometry.is_close(scan.geometry, 1e-9)


def test_a_nrrd_without_space_is_read_with_a_warning(voxels, tmp_path):
    scan = read_scan(nrrd(tmp_path / "scan.nrrd", voxels, spacings="1 2 3"))
    assert scan.geometry.spacing_mm == (1, 2, 3)
    assert "no anatomical space" in scan.file.details["warnings"][0]


@pytest.mark.parametrize("axis", [0, 3])
def test_a_nrrd_with_a_list_axis_asks_for_a_volume(axis, voxels, tilted, tmp_path):
    several = np.stack([voxels, voxels + 1], axis=axis)
    lps = (TO_RAS @ tilted)[:3, :3].T
    directions, kinds = ["({},{},{})".format(*column) for column in lps], ["domain"] * 3
    directions.insert(axis, "none")
    kinds.insert(axis, "list")
    path = nrrd(
        tmp_path / "scan.nrrd",
        several,
        space="LPS",
        space_directions=" ".join(directions),
        kinds=" ".join(kinds),
        space_origin="({},{},{})".format(*(TO_RAS @ tilted)[:3, 3]),
    )
    with pytest.raises(ScanError, match=r"2 volumes; choose one with --volume N \(0 to 1\)"):
        read_scan(path)
    scan = read_scan(path, volume=1)
    assert np.array_equal(scan.voxels[0], voxels + 1)
    assert np.allclose(scan.geometry.affine, tilted)
    write_mask(tmp_path / "mask.nrrd", voxels > 0, scan)
    assert_same_places(sitk.ReadImage(str(tmp_path / "mask.nrrd")), scan.geometry)


@pytest.mark.parametrize("count", [1, 3])
def test_a_4d_metaimage_asks_for_a_volume(count, voxels, sheared, tmp_path):
    image = sitk.JoinSeries([as_image(voxels + k, sheared) for k in range(count)])
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    if count > 1:
        with pytest.raises(ScanError, match="3 volumes"):
            read_scan(tmp_path / "scan.mha")
    scan = read_scan(tmp_path / "scan.mha", volume=count - 1)
    assert np.array_equal(scan.voxels[0], voxels + count - 1)
    assert np.allclose(scan.geometry.affine, sheared)
    write_mask(tmp_path / "mask.mha", voxels > 0, scan)
    assert_same_places(sitk.ReadImage(str(tmp_path / "mask.mha")), scan.geometry)


def test_the_text_of_a_metaimage_header_goes_back_word_by_word(voxels, tmp_path):
    place = "TransformMatrix = 0 1.0 0 -1 0 0 0 0 1\nOffset = 1.50 -2 .25\nCenterOfRotation = 0 0 0\n"
    place += "ElementSpacing = 0.80 1.1 2.50\n"
    header = f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{place}DimSize = 7 9 5\n"
    header += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(header.encode() + voxels.tobytes(order="F"))
    scan = read_scan(tmp_path / "scan.mha")
    assert np.array_equal(scan.voxels[0], voxels)
    write_mask(tmp_path / "mask.mha", voxels > 0, scan)
    assert place.encode() in (tmp_path / "mask.mha").read_bytes()


# ---- bad files ----


def refused(path, words):
    with pytest.raises(ScanError, match=words) as caught:
        read_scan(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", ["0", "nan"])
def test_a_spacing_that_is_none_is_refused(bad, voxels, tilted, tmp_path):
    refused(nrrd(tmp_path / "scan.nrrd", voxels, spacings=f"1 {bad} 3"), "pacing")
    path = nrrd(tmp_path / "b.nrrd", voxels, space="LPS", space_directions=f"(1,0,0) (0,{bad},0) (0,0,1)")
    refused(path, "complete|pacing")
    sitk.WriteImage(as_image(voxels, tilted), str(tmp_path / "scan.mha"))
    raw = (tmp_path / "scan.mha").read_bytes()
    raw = re.sub(rb"ElementSpacing = \S+", b"ElementSpacing = " + bad.encode(), raw)
    (tmp_path / "scan.mha").write_bytes(raw)
    refused(tmp_path / "scan.mha", "Spacing must be three positive numbers")


def test_axes_that_coincide_are_refused(voxels, tmp_path):
    place = {"space": "LPS", "space_directions": "(1,0,0) (1,0,0) (0,0,1)"}
    refused(nrrd(tmp_path / "scan.nrrd", voxels, **place), "three different directions")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_refused(ending, compressed, voxels, tilted, tmp_path):
    sitk.WriteImage(as_image(voxels, tilted), str(tmp_path / f"scan.{ending}"), compressed)
    largest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-60])
    refused(tmp_path / f"scan.{ending}", "complete")


def test_colours_complex_numbers_and_2d_images_are_refused(voxels, tilted, tmp_path):
    colours = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for ending in ("mha", "nrrd"):
        sitk.WriteImage(colours, str(tmp_path / f"colours.{ending}"))
        refused(tmp_path / f"colours.{ending}", "RGB")
    sitk.WriteImage(sitk.GetImageFromArray(voxels[..., 0]), str(tmp_path / "flat.mha"))
    refused(tmp_path / "flat.mha", "3D")
    complex_image = sitk.GetImageFromArray(voxels.astype(np.complex64))
    sitk.WriteImage(complex_image, str(tmp_path / "complex.nrrd"))
    refused(tmp_path / "complex.nrrd", "complex|2 volumes")
