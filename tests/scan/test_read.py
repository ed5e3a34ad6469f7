"""One scan from any format: the same places and values, channels joined, empty images refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from textseg.errors import ScanError
from textseg.geometry import Geometry
from textseg.scan import check_voxels, read_label_map, read_scan, write_label_map, write_mask
from textseg.volume import Volume

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@st.composite
def affines(draw):
    """Any rotation, spacings and origin; sometimes sheared like a tilted gantry, sometimes mirrored."""
    angles = draw(st.tuples(*[st.integers(-180, 180)] * 3))
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 0.9375, 1.25, 3.0])] * 3))
    origin = draw(st.tuples(*[st.integers(-4000, 4000)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 2] += draw(st.sampled_from([0, 0.2, -0.4])) * affine[:3, 1]
    affine[:3, 2] *= draw(st.sampled_from([1, -1]))
    affine[:3, 3] = np.array(origin) / 8
    return affine


@given(affine=affines())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_phantom_is_the_same_scan_in_every_format(affine, voxels, write_series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    nib.save(nib.Nifti1Image(voxels, affine), folder / "scan.nii.gz")
    lps = TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for ending in ("nrrd", "mha"):
        sitk.WriteImage(image, str(folder / f"scan.{ending}"))
    series = write_series(voxels, affine, name=folder.name)[0].parent
    indices = np.moveaxis(np.indices(voxels.shape), 0, -1)
    places = Geometry(voxels.shape, affine).to_world(indices)
    for path in (folder / "scan.nii.gz", folder / "scan.nrrd", folder / "scan.mha", series):
        scan = read_scan(path)
        found = scan.geometry.to_voxels(places)
        assert np.allclose(found, np.round(found), atol=1e-3)
        x, y, z = np.moveaxis(np.round(found).astype(int), -1, 0)
        assert np.array_equal(scan.voxels[0][x, y, z], voxels)
        assert scan.voxels.dtype == np.int16


# ---- channels ----


def test_several_files_are_channels_of_one_scan(voxels, tilted, tmp_path):
    nib.save(nib.Nifti1Image(voxels, tilted), tmp_path / "t1.nii.gz")
    nib.save(nib.Nifti1Image((voxels / 8).astype(np.float32), tilted), tmp_path / "t2.nii")
    scan = read_scan([tmp_path / "t1.nii.gz", str(tmp_path / "t2.nii")])
    assert scan.voxels.shape == (2, 7, 9, 5)
    assert np.array_equal(scan.voxels, np.stack([voxels, voxels / 8]))
    assert [path.name for path in scan.file.paths] == ["t1.nii.gz", "t2.nii"]
    assert scan.file.format == "nii.gz"
    same = read_scan([tmp_path / "t1.nii.gz"] * 2)
    assert same.voxels.dtype == np.int16
    write_mask(tmp_path / "mask.nii.gz", voxels > 0, scan)
    assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").affine, scan.geometry.affine)


def test_channels_on_different_grids_are_refused(voxels, tilted, tmp_path):
    nib.save(nib.Nifti1Image(voxels, tilted), tmp_path / "t1.nii.gz")
    nib.save(nib.Nifti1Image(voxels, tilted + np.eye(4, k=3) * 0.5), tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image(voxels[1:], tilted), tmp_path / "smaller.nii.gz")
    for other in ("moved.nii.gz", "smaller.nii.gz"):
        with pytest.raises(ScanError, match=f"one grid.*{other}"):
            read_scan([tmp_path / "t1.nii.gz", tmp_path / other])


def test_no_files_are_no_scan():
    with pytest.raises(ScanError, match="at least one file"):
        read_scan([])


# ---- empty images ----


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_voxels_that_are_no_numbers_are_counted_and_located(bad, word, voxels, tilted, tmp_path):
    damaged = voxels.astype(np.float32)
    damaged[2, 3, 4] = damaged[5, 6, 1] = bad
    nib.save(nib.Nifti1Image(damaged, tilted), tmp_path / "scan.nii.gz")
    with pytest.raises(
        ScanError, match=rf"2 of 315 voxels of scan.nii.gz are {word}, the first at \(2, 3, 4\)"
    ):
        read_scan(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("value", [0, -1024])
def test_a_constant_image_is_refused(value, tilted, tmp_path):
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), value, np.int16), tilted), tmp_path / "scan.nii.gz")
    with pytest.raises(ScanError, match=f"every voxel of scan.nii.gz is {value}"):
        read_scan(tmp_path / "scan.nii.gz")


def test_a_bad_channel_is_named(voxels, tilted):
    scan = Volume(np.stack([voxels, voxels * 0]), Geometry(voxels.shape, tilted))
    with pytest.raises(ScanError, match="every voxel of channel 1"):
        check_voxels(scan)


# ---- label maps ----


def test_label_maps_may_be_empty_or_floats_but_must_be_whole(voxels, tilted, tmp_path):
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float64), tilted), path)
    assert read_label_map(path).labels.dtype == np.uint8
    nib.save(nib.Nifti1Image((voxels > 0) * np.float32(12175), tilted), path)
    found = read_label_map(path)
    assert np.array_equal(found.labels, (voxels > 0) * 12175)
    assert found.labels.dtype == np.uint16
    for values in (voxels / 7, voxels, np.where(voxels > 0, np.nan, 0)):
        nib.save(nib.Nifti1Image(values, tilted), path)
        with pytest.raises(ScanError, match="Labels must be"):
            read_label_map(path)


# ---- real scans ----


@pytest.mark.parametrize("name", ["abdomen_mr_t2", "head_t1", "torso_ct_slab", "torso_mr_slab"])
def test_real_scans_read_as_nibabel_and_simpleitk_read_them(name, shared_data, tmp_path):
    path = shared_data / "scans" / f"{name}.nii.gz"
    scan, theirs, image = read_scan(path), nib.load(path), sitk.ReadImage(str(path))
    assert np.array_equal(scan.voxels[0], np.asarray(theirs.dataobj))
    assert np.array_equal(scan.geometry.affine, theirs.affine)
    assert np.array_equal(scan.voxels[0], sitk.GetArrayFromImage(image).T)
    last = [n - 1 for n in scan.geometry.shape]
    place = np.array(image.TransformIndexToPhysicalPoint(last)) * (-1, -1, 1)
    # ITK derives its place from the header's 32-bit numbers in another order.
    assert np.allclose(scan.geometry.to_world(last), place, atol=1e-3)
    threshold = np.median(scan.voxels)
    for ending in (".nii.gz", ".nrrd", ".mha", ".mgz"):
        write_label_map(tmp_path / f"m{ending}", scan.voxels[0] > threshold, {1: "bright"}, scan)
        back = read_label_map(tmp_path / f"m{ending}")
        assert np.array_equal(back.labels, scan.voxels[0] > threshold)
        assert back.geometry.is_close(scan.geometry, 1e-3)
    assert np.array_equal(nib.load(tmp_path / "m.nii.gz").affine, theirs.affine)
