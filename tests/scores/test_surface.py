"""Surface distances against closed forms, brute force and MONAI, on voxels that are no cubes."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tests.core.conftest import ball_on, tilted_affine
from tests.scores.conftest import block
from textseg.errors import GeometryError
from textseg.geometry import AxisOrder, Geometry
from textseg.scores import surface
from textseg.scores.surface import (
    CORNERS,
    area_table,
    neighbour_codes,
    surface_area_mm2,
    surface_distances,
)

SPACING = (0.7, 1.1, 2.5)
STEPS = np.diag(SPACING)


def rim_and_layer(n: tuple[int, int, int]) -> tuple[float, float]:
    """The area of a block's upper rim, and of one layer of its four sides, in closed form."""
    x, y, z = SPACING
    edges = (n[0] - 1) * x * math.hypot(y, z) + (n[1] - 1) * y * math.hypot(x, z)
    corner = math.sqrt((x * y) ** 2 + (y * z) ** 2 + (x * z) ** 2) / 8
    layer = 2 * ((n[0] - 1) * x + (n[1] - 1) * y) * z + 4 * z * math.hypot(x, y) / 2
    return edges + 4 * corner, layer


def random_masks(seed: int, shape: tuple[int, int, int] = (14, 11, 9)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.random(shape) > 0.85, random.random(shape) > 0.7


# ---- areas ----


def test_simple_cells_have_the_area_that_geometry_gives():
    x, y, z = SPACING
    code = {corner: 1 << bit for bit, corner in enumerate(CORNERS)}
    table = area_table(STEPS)
    assert table[0] == table[255] == 0
    assert table[code[1, 0, 1]] == pytest.approx(math.sqrt((x * y) ** 2 + (y * z) ** 2 + (x * z) ** 2) / 8)
    assert table[code[0, 1, 0] | code[0, 1, 1]] == pytest.approx(z * math.hypot(x, y) / 2)
    assert table[sum(code[1, j, k] for j in (0, 1) for k in (0, 1))] == pytest.approx(y * z)
    # Two corners across a face stay apart.
    assert table[code[0, 0, 0] | code[1, 1, 0]] == pytest.approx(2 * table[code[0, 0, 0]])


def test_inside_and_outside_have_one_surface():
    table = area_table(STEPS)
    assert table == pytest.approx(table[::-1])
    assert (table[1:-1] > 0).all()


def test_a_turned_cell_has_the_area_of_the_turned_spacing():
    for axes in permutations(range(3)):
        turned = area_table(np.diag([SPACING[axis] for axis in axes]))
        for code in range(256):
            moved = sum(
                1 << CORNERS.index(tuple(corner[axis] for axis in axes))
                for bit, corner in enumerate(CORNERS)
                if code >> bit & 1
            )
            assert turned[moved] == pytest.approx(area_table(STEPS)[code])


def test_codes_know_which_corner_is_which():
    mask = block((2, 3, 4), (1, 2, 1), (2, 3, 2))
    codes = neighbour_codes(mask)
    assert codes.shape == (3, 4, 5)
    for bit, (i, j, k) in enumerate(CORNERS):
        # The voxel is corner (i, j, k) of the cell before it by 1 - i, 1 - j, 1 - k.
        assert codes[1 + 1 - i, 2 + 1 - j, 1 + 1 - k] == 1 << bit
    assert np.count_nonzero(codes) == 8


def test_a_block_has_flat_faces_and_cut_edges():
    n = (5, 4, 3)
    rim, layer = rim_and_layer(n)
    faces = 2 * (n[0] - 1) * SPACING[0] * (n[1] - 1) * SPACING[1]
    mask = block((9, 8, 7), (2, 1, 3), (7, 5, 6))
    assert surface_area_mm2(mask, SPACING) == pytest.approx(faces + 2 * rim + layer * (n[2] - 1))
    # A mask that the border of the scan cuts off has a surface there.
    assert surface_area_mm2(mask[2:7, 1:5, 3:6], SPACING) == pytest.approx(surface_area_mm2(mask, SPACING))
    assert surface_area_mm2(np.zeros((3, 4, 5), bool), SPACING) == 0


def test_a_ball_has_nearly_its_area(grid):
    # Voxels make a ball rough, and rough is more: about a tenth, however fine they are.
    fine = grid.with_spacing((0.5, 0.6, 0.8))
    centre = tuple(fine.to_world(np.array(fine.shape) / 2 - 0.3))
    area = surface_area_mm2(ball_on(fine, centre, 8.0), fine)
    assert 1.0 < area / (4 * math.pi * 8**2) < 1.12


# ---- distances ----


def test_a_shifted_block_is_as_far_away_as_it_was_shifted():
    n, shift = (6, 5, 4), 2
    a = block((12, 11, 13), (2, 3, 1), (8, 8, 5))
    b = np.roll(a, shift, axis=2)
    distances = surface_distances(a, b, SPACING)
    assert distances.hausdorff(100) == pytest.approx(shift * SPACING[2])
    assert distances.surface_dice(shift * SPACING[2]) == 1
    rim, layer = rim_and_layer(n)
    same = 2 * (layer * (n[2] - shift) + rim)
    assert distances.surface_dice(0) == pytest.approx(same / (2 * surface_area_mm2(a, SPACING)))
    along_x = surface_distances(a, np.roll(a, 3, axis=0), SPACING)
    assert along_x.hausdorff(100) == pytest.approx(3 * SPACING[0])


def test_a_ball_in_a_ball_is_as_far_away_as_their_radii_differ(grid):
    fine = grid.with_spacing((0.5, 0.6, 0.8))
    centre = tuple(fine.to_world(np.array(fine.shape) / 2 - 0.3))
    small, large = ball_on(fine, centre, 6.0), ball_on(fine, centre, 9.0)
    distances = surface_distances(small, large, fine)
    # Half a voxel: the nearest of a rough surface's cells is the one that sticks out.
    assert distances.average() == pytest.approx(3.0, abs=0.4)
    assert distances.hausdorff() == pytest.approx(3.0, abs=0.5)
    assert distances.surface_dice(2.0) < 0.01
    assert distances.surface_dice(3.9) > 0.99


@pytest.mark.parametrize("sheared", [False, True])
@pytest.mark.parametrize("near", [1, 30, 250])
def test_distances_are_those_of_every_pair(monkeypatch, sheared, near):
    monkeypatch.setattr(surface, "NEAR_CELLS", near)
    affine = tilted_affine()
    if sheared:
        affine[:3, 2] += 0.9 * affine[:3, 1]
    a, b = block((25, 14, 9), (1, 2, 3), (5, 4, 5)), random_masks(4, (25, 14, 9))[0]
    grid = Geometry(a.shape, affine)
    cells = [np.argwhere(~np.isin(neighbour_codes(mask), (0, 255))) @ affine[:3, :3].T for mask in (a, b)]
    pairs = cdist(*cells)
    distances = surface_distances(a, b, grid)
    assert np.sort(distances.predicted_mm) == pytest.approx(np.sort(pairs.min(axis=1)))
    assert np.sort(distances.reference_mm) == pytest.approx(np.sort(pairs.min(axis=0)))


def test_scores_do_not_depend_on_the_order_of_the_axes():
    a, b = random_masks(5)
    grid = Geometry(a.shape, tilted_affine())
    expected = surface_distances(a, b, grid)
    order = AxisOrder((2, 0, 1), (True, False, True))
    turned = surface_distances(order.apply(a), order.apply(b), grid.reordered(order))
    assert turned.surface_dice(1.0) == pytest.approx(expected.surface_dice(1.0))
    assert turned.hausdorff() == pytest.approx(expected.hausdorff())
    assert turned.average() == pytest.approx(expected.average())


def test_a_tolerance_reaches_a_distance_that_is_equal_up_to_rounding():
    a = block((40, 4, 3), (2, 1, 1), (5, 3, 2))
    distances = surface_distances(a, np.roll(a, 10, axis=0), (0.2, 0.3, 0.7))
    assert distances.hausdorff(100) == pytest.approx(2.0)
    assert distances.surface_dice(2.0) == 1


def test_the_95_percent_are_of_the_area():
    # One voxel far away has little area beside a block: it is beyond the 95 %, and not beyond the 100 %.
    a = block((60, 20, 20), (1, 1, 1), (16, 17, 18))
    b = a | block((60, 20, 20), (50, 3, 3), (51, 4, 4))
    distances = surface_distances(b, a, (1, 1.5, 2))
    assert distances.hausdorff(95) == 0
    assert distances.hausdorff(100) > 30
    assert surface_distances(a, b, (1, 1.5, 2)).hausdorff(100) == distances.hausdorff(100)


def test_empty_masks_are_infinitely_far_or_nothing_at_all():
    nothing, some = np.zeros((4, 5, 6), bool), block((4, 5, 6), (1, 1, 1), (2, 3, 4))
    for pair in ((nothing, some), (some, nothing)):
        distances = surface_distances(*pair, SPACING)
        assert distances.surface_dice(1e6) == 0
        assert distances.hausdorff() == distances.average() == math.inf
    both = surface_distances(nothing, nothing, SPACING)
    assert math.isnan(both.surface_dice(1))
    assert math.isnan(both.hausdorff())
    assert math.isnan(both.average())


def test_masks_of_two_grids_are_refused():
    with pytest.raises(GeometryError, match="one grid"):
        surface_distances(np.zeros((4, 5, 6), bool), np.zeros((4, 5, 7), bool), SPACING)
    for spacing in ((1, 1), (1, 0, 2), (1, -1, 2), (1, math.nan, 2)):
        with pytest.raises(GeometryError, match="three positive numbers"):
            surface_distances(np.ones((4, 5, 6), bool), np.ones((4, 5, 6), bool), spacing)


# ---- MONAI ----


def monai():
    pytest.importorskip("monai")
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_surface_dice, utils

    return torch, compute_surface_dice, utils


def test_areas_are_monais():
    _, _, utils = monai()
    theirs = utils.create_table_neighbour_code_to_surface_area(SPACING)[0].numpy()
    mirrored = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
    assert area_table(STEPS)[mirrored] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(6))
def test_distances_and_surface_dice_are_monais(seed):
    torch, compute_surface_dice, utils = monai()
    a, b = (np.pad(mask, 2) for mask in random_masks(seed))
    ours = surface_distances(a, b, SPACING)
    masks = torch.from_numpy(a), torch.from_numpy(b)
    for tolerance in (0.5, 1.0, 2.0):
        theirs = compute_surface_dice(
            masks[0][None, None], masks[1][None, None], [tolerance], True, spacing=SPACING, use_subvoxels=True
        )
        assert ours.surface_dice(tolerance) == pytest.approx(theirs.item(), abs=1e-5)
    edges, distances, areas = utils.get_edge_surface_distance(
        *masks, spacing=SPACING, use_subvoxels=True, symmetric=True
    )
    weights = [area[edge].numpy() for area, edge in zip(areas, edges, strict=True)]
    total = sum(float((d.numpy() * w).sum()) for d, w in zip(distances, weights, strict=True))
    assert ours.average() == pytest.approx(total / sum(w.sum() for w in weights), rel=1e-5)
    percentiles = []
    for way, weight in zip(distances, weights, strict=True):
        order = np.argsort(way.numpy())
        shares = np.cumsum(weight[order].astype(np.float64))
        percentiles.append(way.numpy()[order][np.searchsorted(shares, 0.95 * shares[-1])])
    assert ours.hausdorff() == pytest.approx(max(percentiles), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_monais_distances_between_voxels_are_near(grid):
    torch, _, _ = monai()
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    centre = tuple(grid.to_world((14, 12, 8.5)))
    a, b = ball_on(grid, centre, 7.0), ball_on(grid, tuple(np.add(centre, (1.5, -2, 1))), 8.0)
    ours = surface_distances(a, b, grid)
    pair = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
    farthest = compute_hausdorff_distance(*pair, True, percentile=95, spacing=grid.spacing_mm).item()
    average = compute_average_surface_distance(*pair, True, symmetric=True, spacing=grid.spacing_mm).item()
    # Those run between voxels of the rims, ours between surfaces: at most a voxel's half diagonal apart.
    assert ours.hausdorff() == pytest.approx(farthest, abs=1.5)
    assert ours.average() == pytest.approx(average, abs=0.4)
