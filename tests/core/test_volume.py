"""A scan in memory: shapes that fit, canonical axes, names of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from textseg.errors import ScanError
from textseg.geometry import Geometry
from textseg.volume import ScanFile, Volume, guess_modality

SHAPE = (7, 9, 5)


def test_a_volume_of_three_axes_gets_a_channel_axis(tilted):
    voxels = np.zeros(SHAPE, np.int16)
    volume = Volume(voxels, Geometry(SHAPE, tilted))
    assert volume.voxels.shape == (1, *SHAPE)
    assert volume.channels == 1
    assert np.shares_memory(volume.voxels, voxels)
    assert Volume(np.zeros((3, *SHAPE)), Geometry(SHAPE, tilted)).channels == 3


@pytest.mark.parametrize("shape", [(7, 9), (9, 7, 5), (2, 9, 7, 5), (1, 1, *SHAPE), (7, 9, 5, 1)])
def test_voxels_that_do_not_fit_the_grid_are_refused(shape, tilted):
    with pytest.raises(ScanError, match="Voxels must be"):
        Volume(np.zeros(shape), Geometry(SHAPE, tilted))


def test_the_canonical_volume_has_the_same_value_at_the_same_place(sheared):
    turned = Geometry(SHAPE, sheared[:, [2, 0, 1, 3]] * (1, -1, 1, 1))
    voxels = np.random.default_rng(0).permutation(2 * 7 * 9 * 5).reshape(2, *SHAPE)
    volume = Volume(voxels, turned, modality="ct")
    canonical = volume.canonical()
    assert canonical.geometry.orientation == "RAS"
    assert canonical.modality == "ct"
    for value in (3, 400, 629):
        channel, *here = np.argwhere(volume.voxels == value)[0]
        same_channel, *there = np.argwhere(canonical.voxels == value)[0]
        assert channel == same_channel
        assert np.allclose(volume.geometry.to_world(here), canonical.geometry.to_world(there))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("scan.nii.gz", "scan"),
        ("SCAN.NII.GZ", "SCAN"),
        ("a.b.nii", "a.b"),
        ("T1.mgz", "T1"),
        ("x.nhdr", "x"),
        ("IM0001", "IM0001"),
        ("series 1.2.840", "series 1.2.840"),
        ("slice.dcm", "slice"),
    ],
)
def test_the_stem_of_a_scan_is_its_name_without_the_ending(name, stem):
    assert ScanFile((Path("/somewhere") / name, Path("other.nii")), "nii").stem == stem


@pytest.mark.parametrize(
    ("low", "modality"), [(-1024, "ct"), (-500, "ct"), (-499, "mr"), (-20, "mr"), (0, "mr"), (5, "mr")]
)
def test_values_of_air_in_hounsfield_units_make_a_ct(low, modality):
    assert guess_modality(np.array([[[900, low, 40]]], np.int16)) == modality
