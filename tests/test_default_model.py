"""The main job with the weights that ship: one scan in many files gives one answer, and it is a good one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

import textseg
from textseg.geometry import AxisOrder, Geometry
from textseg.models import WEIGHTS_FILES, plans_folder
from textseg.scores.overlap import dice

EXAMPLE = Path(__file__).parents[1] / "examples" / "torso_phantom.nii.gz"
PROMPTS = ["left lung", "right lung"]
ORIENTATIONS = {
    "RAS": AxisOrder((0, 1, 2), (True, True, False)),
    "SLA": AxisOrder((2, 0, 1), (False, False, True)),
    "PIR": AxisOrder((1, 2, 0), (False, True, True)),
}


@pytest.fixture(scope="module")
def segmenter() -> textseg.Segmenter:
    missing = [name for name in WEIGHTS_FILES if not (plans_folder() / "default" / name).is_file()]
    assert not missing, f"the package ships no {missing}"
    return textseg.Segmenter()


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The upper part of the example scan: the same anatomy in a third of the time."""
    path = tmp_path_factory.mktemp("chest") / "chest.nii.gz"
    nib.save(nib.load(EXAMPLE).slicer[:, :, 86:], path)
    return path


@pytest.fixture(scope="module")
def example(chest: Path) -> textseg.Volume:
    return textseg.read_scan(chest)


@pytest.fixture(scope="module")
def masks(segmenter: textseg.Segmenter, example: textseg.Volume) -> NDArray[np.bool_]:
    return segmenter(example, PROMPTS).masks


def test_the_lungs_are_found_each_on_its_own_side(masks: NDArray[np.bool_], example: textseg.Volume) -> None:
    air_in_the_body = (example.voxels[0] < -600) & (example.voxels[0] > -1000)
    centre = example.geometry.corners_mm()[:, 0].mean()
    for mask, side in zip(masks, (-1, 1), strict=True):
        x_mm = example.geometry.to_world(np.argwhere(mask))[:, 0]
        assert side * (x_mm.mean() - centre) > 20
        assert (air_in_the_body & mask).sum() > 0.7 * mask.sum()
        assert mask.sum() * example.geometry.voxel_volume_mm3 / 1000 > 500


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_scan_in_another_orientation_gives_the_same_masks_in_the_world(
    orientation: str,
    segmenter: textseg.Segmenter,
    example: textseg.Volume,
    masks: NDArray[np.bool_],
    tmp_path: Path,
) -> None:
    order = ORIENTATIONS[orientation]
    turned = example.geometry.reordered(order)
    path = tmp_path / "turned.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(order.apply(example.voxels[0])), turned.affine), path)
    result = segmenter(path, PROMPTS)
    assert result.geometry.orientation == orientation
    assert np.array_equal(result.masks, order.apply(masks))


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_the_same_scan_in_another_format_gives_the_same_masks(
    ending: str, chest: Path, segmenter: textseg.Segmenter, masks: NDArray[np.bool_], tmp_path: Path
) -> None:
    path = tmp_path / f"scan.{ending}"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(chest)), str(path))
    assert np.array_equal(segmenter(path, PROMPTS).masks, masks)


def test_the_same_scan_as_a_dicom_series_gives_the_same_masks(
    chest: Path,
    segmenter: textseg.Segmenter,
    example: textseg.Volume,
    masks: NDArray[np.bool_],
    tmp_path: Path,
) -> None:
    write_series(SimpleITK.ReadImage(str(chest)), tmp_path)
    result = segmenter(tmp_path, PROMPTS)
    assert result.volume.modality == "ct"
    for mask, expected in zip(result.masks, masks, strict=True):
        assert dice(in_world(mask, result.geometry, example.geometry), expected) > 0.999


def test_a_mask_comes_back_with_the_shape_and_the_affine_of_the_scan_to_the_last_bit(
    chest: Path, segmenter: textseg.Segmenter, tmp_path: Path
) -> None:
    scan = nib.load(chest)
    tilted = scan.affine @ np.array(
        [[0.98, 0.1, 0, 3.3], [-0.1, 0.98, 0.05, 0.1], [0, 0, 1, -7], [0, 0, 0, 1]]
    )
    image = nib.Nifti1Image(np.asarray(scan.dataobj)[:90], None, header=scan.header)
    image.set_sform(tilted, code=4)
    image.set_qform(scan.affine, code=2)
    nib.save(image, tmp_path / "scan.nii.gz")
    written = segmenter(tmp_path / "scan.nii.gz", "right lung").save(tmp_path / "out")
    stored, mask = nib.load(tmp_path / "scan.nii.gz"), nib.load(written[0])
    assert mask.shape == stored.shape
    assert np.array_equal(mask.affine, stored.affine)
    assert np.array_equal(mask.header["pixdim"], stored.header["pixdim"])
    assert (mask.header["sform_code"], mask.header["qform_code"]) == (4, 2)


def test_five_ways_to_say_left_lung_give_one_mask(
    segmenter: textseg.Segmenter, example: textseg.Volume, masks: NDArray[np.bool_]
) -> None:
    ways = ["lung, left", "Lt lung", "pulmo sinister", "the patient's left lung"]
    # As many at once as in PROMPTS: in bfloat16 a product of more rows is rounded a little differently.
    for asked in (ways[:2], ways[2:]):
        for mask in segmenter(example, asked).masks:
            assert np.array_equal(mask, masks[0])


def write_series(image: SimpleITK.Image, folder: Path) -> None:
    """A CT series of one file a slice, names in no order, as a scanner would send it."""
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(image.GetDepth()):
        piece = image[:, :, number]
        position = image.TransformIndexToPhysicalPoint((0, 0, number))
        direction = np.array(image.GetDirection()).reshape(3, 3)
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.7.{number + 1}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.5",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.6",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{mm:.9g}" for mm in position),
            "0020|0037": "\\".join(f"{cosine:.9g}" for cosine in direction[:, :2].T.ravel()),
            "0018|0050": f"{image.GetSpacing()[2]:g}",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(number * 37) % image.GetDepth():03d}.dcm"))
        writer.Execute(piece)


def in_world(mask: NDArray[np.bool_], source: Geometry, target: Geometry) -> NDArray[np.bool_]:
    """The mask read at the target's voxel centres."""
    centres = target.to_world(np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), axis=-1))
    x, y, z = np.round(source.to_voxels(centres)).astype(int).reshape(-1, 3).T
    inside = (x >= 0) & (y >= 0) & (z >= 0) & (x < mask.shape[0]) & (y < mask.shape[1]) & (z < mask.shape[2])
    values = np.zeros(x.shape, bool)
    values[inside] = mask[x[inside], y[inside], z[inside]]
    return values.reshape(target.shape)
