"""napari's reader on every kind of file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # its own documentation calls it so

from tests.viewer.conftest import FakeLayer
from textseg.errors import ScanError
from textseg.scan import list_series, read_scan
from textseg.viewer.reading import PATTERNS, get_reader, read_layers
from textseg.viewer.sample import torso_phantom_layer
from textseg.viewer.scans import volume_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torso_phantom.nii.gz"


def only(layers):
    ((data, options, kind),) = layers
    assert kind == "image"
    return FakeLayer(data, options["affine"], options["metadata"], options["name"])


@pytest.fixture
def nifti(scan, tmp_path):
    nib.save(nib.Nifti1Image(scan.voxels[0], scan.geometry.affine), tmp_path / "one.nii.gz")
    return tmp_path / "one.nii.gz"


def test_a_file_becomes_a_layer_that_is_its_scan(nifti, scan):
    layer = only(get_reader(str(nifti))(str(nifti)))
    assert layer.name == "one"
    found = volume_of(layer)
    np.testing.assert_array_equal(found.voxels, scan.voxels)
    assert found.geometry.is_close(scan.geometry, 1e-3)
    assert found.file.paths == (nifti,)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".mgz"])
def test_files_of_every_kind_become_the_same_layer(scan, ending, tmp_path):
    path = tmp_path / f"one{ending}"
    write_scan(path, scan)
    layer = only(get_reader(str(path))(str(path)))
    assert layer.name == "one"
    found = volume_of(layer)
    np.testing.assert_array_equal(found.voxels, scan.voxels)
    assert found.geometry.is_close(scan.geometry, 1e-3)


def write_scan(path, volume):
    """By the libraries themselves."""
    if path.suffix == ".mgz":
        nib.save(nib.MGHImage(volume.voxels[0], volume.geometry.affine), path)
        return
    image = sitk.GetImageFromArray(volume.voxels[0].T)
    lps = np.diag([-1.0, -1, 1]) @ volume.geometry.affine[:3]
    image.SetSpacing(volume.geometry.spacing_mm)
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / np.array(volume.geometry.spacing_mm)).ravel().tolist())
    sitk.WriteImage(image, str(path))


def test_frames_of_a_4d_file_are_read_in_order(scan, tmp_path):
    voxels = np.stack([scan.voxels[0] + 10 * frame for frame in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(voxels, scan.geometry.affine), tmp_path / "four.nii.gz")
    layer = only(read_layers(tmp_path / "four.nii.gz"))
    assert layer.data.shape == (3, *scan.geometry.shape[::-1])
    np.testing.assert_array_equal(volume_of(layer, 2).voxels[0], voxels[..., 2])
    assert volume_of(layer, 2).file.details["volume"] == 2


def test_frames_of_a_4d_nrrd(scan, tmp_path):
    frames = [sitk.GetImageFromArray(scan.voxels[0].T + frame) for frame in range(2)]
    sitk.WriteImage(sitk.JoinSeries(frames), str(tmp_path / "four.nrrd"))
    assert only(read_layers(tmp_path / "four.nrrd")).data.shape[0] == 2


def test_each_series_of_a_dicom_folder_becomes_a_layer(write_series):
    folder = write_series("study", number=3)
    assert only(read_layers(folder)).data.shape == (22, 32, 26)
    write_series("study", number=4)
    layers = read_layers(folder)
    assert [options["name"] for _, options, _ in layers] == ["series 3", "series 4"]
    uid = list_series(folder)[1].uid
    assert len(read_layers(folder, series=uid)) == 1
    with pytest.raises(ScanError):
        read_layers(folder, series="99")


def test_what_can_not_be_read_is_told(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"<html>")
    with pytest.raises(ScanError, match=r"bad\.nii\.gz"):
        read_layers(tmp_path / "bad.nii.gz")
    with pytest.raises(ScanError):
        read_layers(tmp_path)


def test_only_scans_are_ours(tmp_path):
    assert get_reader(str(tmp_path / "photo.tif")) is None
    assert get_reader([str(tmp_path / "a.nii"), str(tmp_path / "b.png")]) is None
    assert get_reader(str(tmp_path)) is not None


def test_the_manifest_names_what_there_is():
    yaml = pytest.importorskip("yaml")
    from importlib import import_module
    from importlib.resources import files

    manifest = yaml.safe_load(files("textseg.viewer").joinpath("napari.yaml").read_text(encoding="utf-8"))
    contributions = manifest["contributions"]
    assert tuple(contributions["readers"][0]["filename_patterns"]) == PATTERNS
    for command in contributions["commands"]:
        module, name = command["python_name"].split(":")
        if module == "textseg.viewer.panel":
            pytest.importorskip("qtpy.QtWidgets", exc_type=ImportError)
            pytest.importorskip("napari")
        assert callable(getattr(import_module(module), name))


def test_the_sample_is_the_bundled_phantom():
    bundled, sample = read_scan(EXAMPLE), volume_of(only(torso_phantom_layer()))
    assert sample.geometry == bundled.geometry
    # Another version of torch may round a voxel the other way.
    difference = np.abs(sample.voxels.astype(int) - bundled.voxels)
    assert (difference <= 1).mean() > 0.999
