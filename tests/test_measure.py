"""Measures of masks: the values that IBSI publishes, closed forms, any orientation, and tables with units."""

from __future__ import annotations

import csv
import importlib
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textseg.errors import GeometryError, OutputError
from textseg.geometry import AxisOrder, Geometry
from textseg.measure import intensity_unit, measure_mask, write_measures
from textseg.volume import ScanFile, Volume

# The digital phantom of the Image Biomarker Standardisation Initiative (Zwanenburg et al., CC BY 4.0): four
# slices of five columns, each of four rows, in voxels of 2 mm.
IBSI_SLICES = (
    "4411 4411 6666 4111 1111",
    "4111 1111 6391 4111 1111",
    "1111 4111 6611 1111 1111",
    "1111 4444 4444 1111 1111",
)


def ibsi_phantom():
    slices = [[[int(value) for value in column] for column in rows.split()] for rows in IBSI_SLICES]
    values = np.moveaxis(np.array(slices), 0, -1)
    mask = np.ones(values.shape, dtype=bool)
    mask[0, 1, 1] = mask[2, 2, 1] = False
    mask[3:, 2:, 3] = False
    return values, mask, Geometry(values.shape, np.diag([2.0, 2, 2, 1]))


def ellipsoid(shape, centre, radii):
    away = [((np.arange(n) - c) / r) ** 2 for n, c, r in zip(shape, centre, radii, strict=True)]
    return away[0][:, None, None] + away[1][:, None] + away[2] <= 1


def tilted(spacing=(1.0, 1.5, 2.5), shape=(24, 30, 20)):
    a, b = np.radians((9, -14))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing
    affine[:3, 3] = (-31.0, 17.5, 402.0)
    return Geometry(shape, affine)


# ---- the digital phantom of IBSI ----


@pytest.mark.parametrize(
    ("column", "published", "within"),
    [
        # Reference values of the manual, chapters 3.1 (morphology) and 3.3 (intensity statistics).
        ("mesh_volume_ml", 0.556, 0.0005),
        ("volume_ml", 0.592, 0.0005),
        ("surface_mm2", 388, 0.5),
        ("longest_3d_mm", 13.1, 0.05),
        ("mean_au", 2.15, 0.005),
        ("median_au", 1, 0),
        ("min_au", 1, 0),
        ("p10_au", 1, 0),
        ("p90_au", 4, 0),
        ("max_au", 6, 0),
    ],
)
def test_the_phantom_has_the_values_that_ibsi_publishes(column, published, within):
    values, mask, geometry = ibsi_phantom()
    assert measure_mask(mask, geometry, values)[column] == pytest.approx(published, abs=within)


def test_the_phantom_has_the_variance_that_ibsi_publishes():
    values, mask, geometry = ibsi_phantom()
    assert measure_mask(mask, geometry, values)["sd_au"] ** 2 == pytest.approx(3.05, abs=0.005)


# ---- closed forms ----


def test_a_box_measures_what_its_sides_say():
    geometry = Geometry((20, 16, 12), np.diag([0.5, 2.0, 3.0, 1]))
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[3:11, 4:7, 2:6] = True
    row = measure_mask(mask, geometry)
    assert row["voxels"] == 8 * 3 * 4
    assert row["volume_ml"] == pytest.approx(4 * 6 * 12 / 1000)
    # The surface cuts the edges of the box, so the corners of a slice are half a voxel short on one side.
    assert row["longest_axial_mm"] == pytest.approx(max(math.hypot(4, 4), math.hypot(3.5, 6)))
    assert row["longest_3d_mm"] == pytest.approx(
        max(math.hypot(4, 4, 9), math.hypot(3.5, 6, 9), math.hypot(3.5, 4, 12))
    )
    assert (row["box_low_x_mm"], row["box_low_y_mm"], row["box_low_z_mm"]) == (1.5, 8, 6)
    assert (row["box_high_x_mm"], row["box_high_y_mm"], row["box_high_z_mm"]) == (5, 12, 15)
    assert (row["centroid_x_mm"], row["centroid_y_mm"], row["centroid_z_mm"]) == (3.25, 10, 10.5)


def test_a_single_voxel_is_as_long_as_itself():
    geometry = Geometry((5, 6, 7), np.diag([1.0, 2.0, 4.0, 1]))
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[2, 3, 4] = True
    row = measure_mask(mask, geometry)
    assert (row["longest_axial_mm"], row["short_axis_mm"], row["longest_3d_mm"]) == (2, 1, 4)
    assert row["longest_axial_z_mm"] == 16
    assert row["components"] == 1


def test_diameters_of_an_ellipse_are_its_axes_and_lie_in_its_widest_slice():
    geometry = Geometry((70, 60, 9), np.diag([1.0, 1.0, 5.0, 1]))
    mask = ellipsoid(geometry.shape, (33.3, 28.7, 4), (30, 14, 3.5))
    row = measure_mask(mask, geometry)
    assert row["longest_axial_mm"] == pytest.approx(60, abs=1)
    assert row["short_axis_mm"] == pytest.approx(28, abs=1)
    assert row["longest_axial_z_mm"] == 20


def test_the_short_axis_is_a_chord_at_right_angles_not_the_width_of_the_shadow():
    # A right triangle with legs 40 and 20: the chord across its long side is the height on it at most.
    x, y = np.indices((41, 21))
    mask = (x / 40 + y / 20 <= 1)[..., None]
    row = measure_mask(mask, Geometry(mask.shape, np.eye(4)))
    assert row["longest_axial_mm"] == pytest.approx(math.hypot(40, 20), abs=1)
    assert row["short_axis_mm"] == pytest.approx(40 * 20 / math.hypot(40, 20), abs=1)


def test_parts_are_counted_across_corners_and_the_largest_is_told():
    geometry = Geometry((12, 12, 12), np.diag([2.0, 2.0, 2.0, 1]))
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[1:3, 1:3, 1:3] = mask[3:5, 3:5, 3:5] = True
    mask[8, 8, 8] = True
    row = measure_mask(mask, geometry)
    assert row["components"] == 2
    assert row["largest_component_ml"] == pytest.approx(16 * 8 / 1000)


# ---- any grid ----


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(3)), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_no_measure_depends_on_the_order_of_the_axes(axes, flipped):
    geometry = tilted()
    image = np.random.default_rng(1).normal(size=geometry.shape)
    mask = ellipsoid(geometry.shape, (14, 11, 0), (7, 9, 6))
    mask[3:5, 25:28, 14] = True
    order = AxisOrder(tuple(axes), flipped)
    turned = measure_mask(order.apply(mask), geometry.reordered(order), order.apply(image), "hu")
    for name, value in measure_mask(mask, geometry, image, "hu").items():
        assert turned[name] == (pytest.approx(value, abs=2e-3) if isinstance(value, float) else value), name


def test_a_sphere_is_a_sphere_on_an_oblique_grid_of_flat_voxels():
    geometry = tilted((1.0, 1.5, 2.5), (60, 40, 26))
    centre = geometry.to_world((31, 19, 12))
    world = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    mask = np.linalg.norm(world - centre, axis=-1) <= 20
    row = measure_mask(mask, geometry)
    assert row["volume_ml"] == pytest.approx(4 / 3 * np.pi * 8, rel=0.02)
    assert row["mesh_volume_ml"] == pytest.approx(4 / 3 * np.pi * 8, rel=0.02)
    # A surface in steps is longer than the ball's; this one by a tenth.
    assert row["surface_mm2"] == pytest.approx(4 * np.pi * 400, rel=0.15)
    # At both ends the surface may lie half a voxel further out.
    assert 40 <= row["longest_3d_mm"] <= 42.5
    assert np.allclose([row[f"centroid_{axis}_mm"] for axis in "xyz"], centre, atol=0.3)


def test_axial_slices_are_found_in_a_sagittal_scan():
    """A rod along the patient's length is short in axial slices, whichever axis of the array it lies on."""
    sagittal = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    geometry = Geometry((20, 30, 9), sagittal)
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[8:10, 3:27, 4] = True
    row = measure_mask(mask, geometry)
    assert row["longest_axial_mm"] == pytest.approx(math.hypot(1, 3))
    assert row["longest_3d_mm"] > 23


def test_reaching_the_border_names_the_patients_ends():
    geometry = tilted()
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[4:8, 5:9, 3:6] = True
    assert measure_mask(mask, geometry)["touches_border"] is False
    mask[4:8, 5:9, 3:] = mask[0, 6, 4] = True
    row = measure_mask(mask, geometry)
    assert row["touches_border"] is True
    assert row["border_sides"] == "LS"


@pytest.mark.parametrize(("unit", "air"), [("hu", -1000), ("au", 0)])
def test_left_of_the_bodys_middle_is_negative(unit, air):
    geometry = Geometry((60, 40, 10), np.array([[-2.0, 0, 0, 90], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))
    image = np.full(geometry.shape, air)
    # The body is not in the middle of the scan: its x runs from -18 to 50 mm.
    image[20:55, 5:35] = 60
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[40:44, 10:14, 2:5] = True
    row = measure_mask(mask, geometry, image, unit)
    assert row["centroid_x_mm"] == 90 - 2 * 41.5
    assert row["midline_offset_mm"] == pytest.approx(7 - 16, abs=1)


def test_an_empty_mask_has_the_columns_of_any_other():
    geometry = tilted()
    image = np.ones(geometry.shape)
    mask = np.zeros(geometry.shape, dtype=bool)
    empty = measure_mask(mask, geometry, image)
    mask[3, 4, 5] = True
    assert list(empty) == list(measure_mask(mask, geometry, image))
    assert (empty["present"], empty["voxels"], empty["volume_ml"], empty["components"]) == (False, 0, 0, 0)
    assert empty["longest_3d_mm"] is None
    assert empty["mean_au"] is None


def test_a_mask_of_another_grid_is_refused():
    geometry = tilted()
    with pytest.raises(GeometryError, match="must be bool on the grid"):
        measure_mask(np.zeros((24, 30, 21), dtype=bool), geometry)
    with pytest.raises(GeometryError, match=r"an image \(1, 2, 3\)"):
        measure_mask(np.zeros(geometry.shape, dtype=bool), geometry, np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("modality", "file_format", "warnings", "unit"),
    [
        ("ct", "nii.gz", [], "hu"),
        ("mr", "dicom", [], "au"),
        ("pet", "nii.gz", [], "au"),
        ("pet", "dicom", [], "suv"),
        ("pet", "dicom", ["PET values were left in Bq/ml, as the header does not say …"], "bqml"),
        ("pet", "dicom", ["PET values in units of CNTS were left as they are, not SUV."], "au"),
    ],
)
def test_intensities_have_the_unit_that_the_reader_left(modality, file_format, warnings, unit, tmp_path):
    file = ScanFile((tmp_path / "scan",), file_format, details={"warnings": warnings})
    volume = Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 2), np.eye(4)), file, modality)
    assert intensity_unit(volume, modality) == unit


# ---- tables ----

ROWS = [
    {
        "scan": "café, one",
        "prompt": "liver",
        "volume_ml": 1500.25,
        "voxels": 12,
        "present": True,
        "sd_hu": None,
    },
    {"scan": "two", "prompt": "=SUM(A1)", "volume_ml": 0, "voxels": 0, "present": False, "mean_au": 3},
]


def test_csv_and_json_hold_every_column_of_any_row(tmp_path):
    write_measures(tmp_path / "all.csv", ROWS)
    write_measures(tmp_path / "all.json", ROWS)
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert list(first) == ["scan", "prompt", "volume_ml", "voxels", "present", "sd_hu", "mean_au"]
    assert (first["scan"], first["sd_hu"], second["mean_au"]) == ("café, one", "", "3")
    rows = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert rows[0]["volume_ml"] == 1500.25
    assert rows[0]["mean_au"] is None


def test_parquet_has_one_type_a_column(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Needs pyarrow, of the extra cohort.")
    write_measures(tmp_path / "all.parquet", ROWS)
    table = parquet.read_table(tmp_path / "all.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "scan": "string", "prompt": "string", "volume_ml": "double", "voxels": "int64", "present": "bool",
        "sd_hu": "double", "mean_au": "int64",
    }  # fmt: skip
    assert table.column("volume_ml").to_pylist() == [1500.25, 0]
    assert table.column("mean_au").to_pylist() == [None, 3]


def test_columns_of_mixed_kinds_become_words_in_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Needs pyarrow, of the extra cohort.")
    write_measures(tmp_path / "all.parquet", [{"age": 61}, {"age": "unknown"}, {"age": None}])
    assert parquet.read_table(tmp_path / "all.parquet").column("age").to_pylist() == ["61", "unknown", None]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"textseg\[cohort\]"):
        write_measures(tmp_path / "all.parquet", ROWS)
    assert list(tmp_path.iterdir()) == []


def test_other_endings_and_missing_places_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"must end in one of \.csv, \.parquet, \.json, got all\.xlsx"):
        write_measures(tmp_path / "all.xlsx", ROWS)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        write_measures(tmp_path / "file" / "all.csv", ROWS)


def test_measuring_loads_no_torch():
    """Tables of a cohort are made on machines that only look at results."""
    import subprocess

    module = importlib.import_module("textseg.measure").__name__
    done = subprocess.run([sys.executable, "-c", f"import sys, {module}; sys.exit('torch' in sys.modules)"])
    assert done.returncode == 0
