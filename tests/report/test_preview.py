"""The preview: every copy of a scan looks the same, left is left, millimetres are millimetres."""

from __future__ import annotations

import json
import re
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from textseg.errors import GeometryError, OutputError
from textseg.geometry import AxisOrder, Geometry, bounding_box
from textseg.lettering import font_for
from textseg.packed import PackedMasks
from textseg.report import preview
from textseg.report.preview import preview_title, render_preview

SHAPE = (30, 22, 16)
SPACING_MM = (2.0, 3.0, 5.0)
TURNED = np.array([[0.96, -0.26, 0.05], [0.25, 0.95, 0.19], [-0.097, -0.17, 0.98]])
ORDERS = [
    AxisOrder(axes, flips)
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3))
]


def straight() -> Geometry:
    return Geometry(SHAPE, affine_of(np.diag(SPACING_MM)))


def oblique() -> Geometry:
    return Geometry(SHAPE, affine_of(TURNED / np.linalg.norm(TURNED, axis=0) * SPACING_MM))


def affine_of(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = (-17.3, 40.25, 9.9)
    return affine


def phantom() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A scan whose six sides all differ, and a mask at the patient's left, front and feet."""
    x, y, z = np.indices(SHAPE)
    image = 3.0 * x + 1.7 * y**1.3 + 2.1 * z + 9 * np.sin(x * y / 7.0)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3:9, 14:20, 2:6] = True
    mask[9, 14, 2] = True
    return image, mask


def drawn(
    folder: Path,
    image: NDArray[np.floating],
    mask: NDArray[np.bool_] | PackedMasks,
    geometry: Geometry,
    title: str = "phantom",
    names: list[str] | None = None,
) -> NDArray[np.uint8]:
    render_preview(image, mask, geometry, title, folder / "preview.png", names)
    return np.asarray(Image.open(folder / "preview.png").convert("RGB"))


def is_coloured(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (picture == np.array(colour, dtype=np.uint8)).all(axis=-1)


def pictures(page: NDArray[np.uint8]) -> list[tuple[slice, slice]]:
    """Rows and columns of the three pictures, found by the frames around them."""
    frame = is_coloured(page, preview.FRAME)
    sides = [x for x in range(page.shape[1]) if frame[:, x].sum() > 20]
    assert len(sides) == 6
    places = []
    for left, right in zip(sides[::2], sides[1::2], strict=True):
        rows = np.flatnonzero(frame[:, left])
        places.append((slice(rows[0] + 1, rows[-1]), slice(left + 1, right)))
    return places


@pytest.mark.parametrize("geometry", [straight(), oblique()], ids=["straight", "oblique"])
def test_every_permuted_and_flipped_copy_gives_the_same_picture(tmp_path: Path, geometry: Geometry) -> None:
    image, mask = phantom()
    expected = drawn(tmp_path, image, mask, geometry)
    for order in ORDERS:
        copy = drawn(tmp_path, order.apply(image), order.apply(mask), geometry.reordered(order))
        np.testing.assert_array_equal(copy, expected, err_msg=str(order))
    mirrored = drawn(tmp_path, image[::-1], mask[::-1], geometry)
    assert mirrored.shape != expected.shape or (mirrored != expected).any()


def test_packed_masks_give_the_same_picture_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = phantom()
    masks = np.stack([mask, np.roll(mask, 4, axis=0), np.zeros_like(mask)])
    names = ["one", "other", "none"]
    expected = drawn(tmp_path, image, masks, oblique(), names=names)
    packed = PackedMasks(3, SHAPE)
    for index, one in enumerate(masks):
        packed.replace(index, one)
    monkeypatch.setattr(PackedMasks, "__array__", None)
    np.testing.assert_array_equal(drawn(tmp_path, image, packed, oblique(), names=names), expected)


def test_left_front_and_feet_are_where_a_radiologist_expects_them(tmp_path: Path) -> None:
    image, mask = phantom()
    page = drawn(tmp_path, image, mask, straight())
    centres = []
    for rows, columns in pictures(page):
        found = is_coloured(page[rows, columns], preview.COLOURS[0])
        centres.append(np.argwhere(found).mean(axis=0) / found.shape)
    axial, coronal, sagittal = centres
    assert axial[1] > 0.6, "the patient's left is on the viewer's right"
    assert axial[0] < 0.4, "the front is up"
    assert coronal[1] > 0.6
    assert coronal[0] > 0.6, "the feet are down"
    assert sagittal[1] < 0.4, "the front is on the viewer's left"
    assert sagittal[0] > 0.6


def test_brightness_follows_the_same_convention(tmp_path: Path) -> None:
    x, y, z = np.indices(SHAPE)
    nothing = np.zeros(SHAPE, dtype=bool)
    for ramp, picture, axis, rises in (
        (x, 0, 1, False),
        (y, 0, 0, False),
        (z, 1, 0, False),
        (y, 2, 1, False),
    ):
        page = drawn(tmp_path, ramp.astype(float), nothing, straight())
        grey = page[pictures(page)[picture]][..., 0].astype(float).mean(axis=1 - axis)
        assert (grey[-1] > grey[0]) == rises


def test_edges_are_lettered() -> None:
    assert [plane.edges for plane in preview.PLANES] == [
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    ]


def test_sizes_follow_millimetres(tmp_path: Path) -> None:
    image, mask = phantom()
    page = drawn(tmp_path, image, mask, straight())
    sizes = [(columns.stop - columns.start, rows.stop - rows.start) for rows, columns in pictures(page)]
    x, y, z = (n * mm for n, mm in zip(SHAPE, SPACING_MM, strict=True))
    for (width, height), (across, down) in zip(sizes, ((x, y), (x, z), (y, z)), strict=True):
        assert width / height == pytest.approx(across / down, abs=0.01)
    assert sizes[0][1] == sizes[2][0], "all pictures have one scale"


def test_the_scale_bar_is_five_centimetres_long(tmp_path: Path) -> None:
    image, mask = phantom()
    page = drawn(tmp_path, image, mask, straight())
    _, columns = pictures(page)[0]
    pixels_per_mm = (columns.stop - columns.start) / (SHAPE[0] * SPACING_MM[0])
    foot = is_coloured(page[page.shape[0] - preview.LINE_PIXELS - preview.MARGIN_PIXELS // 2 :], preview.INK)
    bar = np.flatnonzero(foot[foot.sum(axis=1).argmax()])
    length = int(np.argmax(np.diff(bar, append=page.shape[1] * 2) > 1)) + 1
    assert length == pytest.approx(50 * pixels_per_mm, abs=3)


def test_the_scale_bar_shrinks_with_the_scan() -> None:
    assert [preview._scale_bar(mm)[1] for mm in (200.0, 50.0, 49.0, 3.0)] == ["5 cm", "5 cm", "1 cm", "1 mm"]


def test_each_mask_has_its_colour_and_is_see_through(tmp_path: Path) -> None:
    image, first = phantom()
    second = np.zeros(SHAPE, dtype=bool)
    second[15:20, 14:20, 2:6] = True
    page = drawn(tmp_path, image, np.stack([first, second]), straight(), names=["one", "other"])
    rows, columns = pictures(page)[0]
    axial = page[rows, columns]
    for colour in preview.COLOURS[:2]:
        assert is_coloured(axial, colour).sum() > 50
        assert is_coloured(page[rows.stop + 40 :], colour).sum() > 100, "and a square in the legend"
    bare = drawn(tmp_path, image, np.zeros(SHAPE, dtype=bool), straight())
    assert not is_coloured(bare[pictures(bare)[0]], preview.COLOURS[0]).any()
    middle_row, middle_column = np.argwhere(is_coloured(axial, preview.COLOURS[0])).mean(axis=0).astype(int)
    inside = axial[middle_row, middle_column].astype(int)
    assert inside[0] > inside[2] + 20, "tinted"
    assert (inside != preview.COLOURS[0]).any(), "but not painted over"


def test_colours_stay_distinct_beyond_the_chosen_ones() -> None:
    colours = [colour for colour, _ in zip(preview._colours(), range(30), strict=False)]
    assert len(set(colours)) == 30


def centre_of(mask: NDArray[np.bool_], geometry: Geometry) -> tuple[int, int, int]:
    box = bounding_box(mask)
    assert box
    return preview._centre_of(mask, box, geometry)


def test_planes_meet_the_mask_even_where_its_centre_of_mass_does_not() -> None:
    two = np.zeros(SHAPE, dtype=bool)
    two[2:5, 4:9, 3:8] = True
    two[24:28, 4:9, 3:8] = True
    assert two[centre_of(two, straight())]
    ring = np.zeros(SHAPE, dtype=bool)
    ring[6, 4:15, 3:12] = True
    ring[6, 6:13, 5:10] = False
    assert ring[centre_of(ring, straight())]
    ball = np.zeros(SHAPE, dtype=bool)
    ball[4:9, 10:15, 5:10] = True
    assert centre_of(ball, straight()) == (6, 12, 7)


def test_nearest_is_meant_in_millimetres() -> None:
    mask = np.zeros((31, 31, 31), dtype=bool)
    mask[15, 15, 12] = mask[15, 15, 18] = mask[19, 15, 15] = mask[11, 15, 15] = True
    thick = Geometry((31, 31, 31), affine_of(np.diag((1.0, 1.0, 5.0))))
    assert centre_of(mask, thick)[2] == 15


def test_no_voxel_is_lost_at_any_size() -> None:
    for n, pixels in product((7, 40, 333), (5, 39, 41, 90, 500)):
        for at in range(0, n, 3):
            mask = np.zeros((n, 9), dtype=bool)
            mask[at, 4] = True
            seen = np.flatnonzero(preview._stretched(mask, (60, pixels)).any(axis=1))
            assert seen.size, f"voxel {at} of {n} in {pixels} pixels"
            assert abs((seen.mean() + 0.5) / pixels - (at + 0.5) / n) <= 1 / min(n, pixels)


def test_flat_faces_stay_at_the_border_of_voxels() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:6, 3:9] = True
    large = preview._stretched(mask, (400, 400))
    assert np.flatnonzero(large[160]).tolist() == list(range(120, 360))
    assert np.flatnonzero(large[:, 240]).tolist() == list(range(80, 240))


def test_ct_is_windowed_for_soft_tissue_and_others_by_percentiles() -> None:
    ct = np.full((10, 10, 10), 40.0)
    ct[:5] = -1000
    assert preview._window(ct) == (-160, 240)
    mr = np.linspace(0, 1000, 1000).reshape(10, 10, 10)
    mr[0, 0, 0] = np.nan
    assert preview._window(mr) == pytest.approx((10, 990), rel=0.2)


def test_mr_with_values_a_little_below_zero_is_not_taken_for_ct() -> None:
    mr = np.linspace(-201, 4900, 1000).reshape(10, 10, 10)
    assert preview._window(mr) != preview.CT_WINDOW


def test_ticks_show_where_the_other_planes_cut(tmp_path: Path) -> None:
    image, mask = phantom()
    mask[9, 14, 2] = False
    page = drawn(tmp_path, image, mask, straight())
    bare = drawn(tmp_path, image, np.zeros(SHAPE, dtype=bool), straight())
    for (rows, columns), (bare_rows, bare_columns) in zip(pictures(page), pictures(bare), strict=True):
        centre = np.argwhere(is_coloured(page[rows, columns], preview.COLOURS[0])).mean(axis=0)
        over = np.flatnonzero(is_coloured(page[rows.start - 4, columns], preview.FAINT))
        beside = np.flatnonzero(is_coloured(page[rows, columns.start - 4], preview.FAINT))
        a_voxel = 5 * preview.PICTURE_PIXELS / 80
        assert (beside[0], over[0]) == pytest.approx(tuple(centre), abs=a_voxel)
        middle = np.flatnonzero(is_coloured(bare[bare_rows.start - 4, bare_columns], preview.FAINT))[0]
        assert middle == pytest.approx((bare_columns.stop - bare_columns.start) / 2, abs=a_voxel)


def test_values_that_are_not_finite_are_black(tmp_path: Path) -> None:
    image, mask = phantom()
    image[:, :, 10:] = np.nan
    page = drawn(tmp_path, image, mask, straight())
    rows, columns = pictures(page)[1]
    assert (page[rows.start : rows.start + 100, columns] == 0).all()
    assert page[rows.stop - 100 : rows.stop, columns].mean() > 20


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_scan_of_one_value_is_drawn(tmp_path: Path, value: float) -> None:
    page = drawn(tmp_path, np.full(SHAPE, value), np.zeros(SHAPE, dtype=bool), straight())
    assert (page[pictures(page)[0]] == 0).all()


def test_a_long_scan_is_shown_around_the_mask_and_never_cuts_it() -> None:
    long = Geometry((20, 20, 400), affine_of(np.diag((20.0, 20.0, 4.0))))
    view = preview._field_of_view(long, (10, 10, 300), None)
    assert view.start == (0, 0, 238)
    assert view.shape == (20, 20, 125)
    spine = preview.Box((9, 9, 40), (12, 12, 390))
    view = preview._field_of_view(long, (10, 10, 300), spine)
    assert view.start[2] <= 40
    assert view.stop[2] >= 390


def test_a_mask_far_up_in_a_long_scan_is_seen(tmp_path: Path) -> None:
    long = Geometry((20, 20, 400), affine_of(np.diag((20.0, 20.0, 4.0))))
    mask = np.zeros(long.shape, dtype=bool)
    mask[12:15, 4:8, 370:380] = True
    page = drawn(tmp_path, np.zeros(long.shape), mask, long)
    for place in pictures(page):
        assert is_coloured(page[place], preview.COLOURS[0]).sum() > 20


def test_a_tilted_scan_says_so() -> None:
    captions = [preview._caption(plane, oblique(), (0, 0, 0)) for plane in preview.PLANES]
    assert [re.sub(r" tilted \d+ deg", " tilted", caption) for caption in captions] == [
        "Axial S 10 mm, tilted",
        "Coronal A 40 mm, tilted",
        "Sagittal L 17 mm, tilted",
    ]
    assert preview._caption(preview.PLANES[0], straight(), (0, 0, 2)) == "Axial S 20 mm"


def test_the_title_says_what_was_found() -> None:
    assert preview_title("a.nii", "liver", 0.987, 1512.3) == "a.nii  |  liver  |  presence 0.99  |  1512 mL"
    assert preview_title("a.nii", "cyst", None, 0.042) == "a.nii  |  cyst  |  0.04 mL"


def test_a_long_title_is_wrapped_then_shortened(tmp_path: Path) -> None:
    font = font_for(20)
    lines = preview._wrapped("a lesion of the left kidney " * 40, font, 600)
    assert len(lines) == preview.LONGEST_TITLE
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= 600 for line in [*lines, *preview._wrapped("x" * 999, font, 600)])
    image, mask = phantom()
    short = drawn(tmp_path, image, mask, straight())
    long = drawn(tmp_path, image, mask, straight(), title="a lesion of the left kidney " * 40)
    assert long.shape[0] == short.shape[0] + 2 * preview.LINE_PIXELS


def test_a_foreign_title_is_drawn(tmp_path: Path) -> None:
    image, mask = phantom()
    plain = drawn(tmp_path, image, mask, straight(), title="Gro")
    assert (drawn(tmp_path, image, mask, straight(), title="Großhirn über α") != plain).any()


def test_a_long_legend_takes_more_rows(tmp_path: Path) -> None:
    image, mask = phantom()
    masks = np.stack([np.roll(mask, shift, axis=1) for shift in range(8)])
    short = drawn(tmp_path, image, masks, straight())
    long = drawn(tmp_path, image, masks, straight(), names=[f"a lesion of lobe {n}" * 3 for n in range(8)])
    assert long.shape[0] >= short.shape[0] + 2 * preview.LINE_PIXELS
    assert long.shape[1] == short.shape[1]


def test_the_legend_says_what_is_not_to_be_seen() -> None:
    assert preview._entry("cyst", False, False) == "cyst (nothing marked)"
    assert preview._entry("cyst", True, False) == "cyst (not in these planes)"
    assert preview._entry("cyst", True, True) == "cyst"


def test_one_plane_is_enough_to_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, first = phantom()
    in_axial_only, nowhere = np.zeros((2, *SHAPE), dtype=bool)
    in_axial_only[20:24, 3:6, 2:6] = True
    nowhere[20:24, 3:6, 10:12] = True
    seen = {}

    def entry(label: str, is_there: bool, visible: bool) -> str:
        seen[label] = visible
        return label

    monkeypatch.setattr(preview, "_entry", entry)
    monkeypatch.setattr(preview, "_centre_of", lambda *_: (5, 16, 4))
    masks = np.stack([first, in_axial_only, nowhere])
    drawn(tmp_path, image, masks, straight(), names=["first", "axial", "nowhere"])
    assert seen == {"first": True, "axial": True, "nowhere": False}


def test_shapes_and_names_must_fit(tmp_path: Path) -> None:
    image, mask = phantom()
    with pytest.raises(GeometryError, match="grid"):
        drawn(tmp_path, image, mask[:-1], straight())
    with pytest.raises(GeometryError, match="grid"):
        drawn(tmp_path, image[1:], mask, straight())
    with pytest.raises(ValueError, match="2 names for 1 masks"):
        drawn(tmp_path, image, mask, straight(), names=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_picture_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = phantom()
    before = drawn(tmp_path, image, mask, straight())

    def full_disk(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        drawn(tmp_path, image, mask, straight(), title="new")
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "preview.png")), before)


def test_a_real_left_kidney_is_on_the_right_of_the_axial_picture(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "Dataset003_TorsoCT"
    label = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]["kidney left"]
    scan = nibabel.load(folder / "imagesTr" / "torso_0000.nii.gz")
    labels = np.asarray(nibabel.load(folder / "labelsTr" / "torso.nii.gz").dataobj)
    geometry = Geometry(scan.shape, scan.affine)
    page = drawn(tmp_path, np.asarray(scan.dataobj, dtype=np.float32), labels == label, geometry)
    found = is_coloured(page[pictures(page)[0]], preview.COLOURS[0])
    assert np.argwhere(found)[:, 1].min() > found.shape[1] / 2
