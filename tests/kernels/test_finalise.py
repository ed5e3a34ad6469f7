"""Finalising: the definition against plain NumPy and SciPy, and every way against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import textseg_kernels
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from textseg_kernels import twins

from textseg.masks import combine

SLAB = (8, 11, 13)
IDENTITY = np.eye(4)[:3]
GRIDS = [(9, 12, 21), (1, 5, 16), (6, 1, 7), (4, 3, 1), (2, 3, 8)]


def _slab(rng, prompts=3, shape=SLAB):
    """Sums of logits in which each prompt has a few large parts."""
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, (prompts, *shape)), (0, 1.5, 1.5, 1.5))
    return (20 * smooth).astype(np.float32)


def _weights(rng, kind, shape=SLAB):
    if kind == "tables":
        return tuple(rng.uniform(0.2, 3, n).astype(np.float32) for n in shape)
    return rng.uniform(0.2, 3, shape).astype(np.float32)


def _assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name, strict=True)


@pytest.mark.parametrize("name", ["finalise", "finalise_labels"])
@pytest.mark.parametrize("kind", ["tables", "voxels"])
@pytest.mark.parametrize("grid", GRIDS)
def test_finalise_is_its_twin(kernels, rng, oblique, name, kind, grid):
    slab, weights = _slab(rng), _weights(rng, kind)
    for map in (oblique(grid, SLAB), oblique(grid, SLAB, 1.7)):
        ours = getattr(kernels, name)(slab, weights, map, grid, 0.1)
        _assert_same(ours, getattr(twins, name)(slab, weights, map, grid, 0.1))
    assert ours.counts.any()


@pytest.mark.parametrize("name", ["finalise", "finalise_labels"])
def test_finalise_across_many_blocks(kernels, rng, oblique, name, monkeypatch):
    monkeypatch.setattr("textseg_kernels.on_gpu.BLOCKS_OF_A_PASS", 3)
    monkeypatch.setattr("textseg_kernels.in_torch.VOXELS_AT_ONCE", 1000)
    slab, weights, grid = _slab(rng, 2), _weights(rng, "tables"), (23, 31, 70)
    map = oblique(grid, SLAB, 0.25)
    ours = getattr(kernels, name)(slab, weights, map, grid, 0.0)
    _assert_same(ours, getattr(twins, name)(slab, weights, map, grid, 0.0))


@pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 1, 1)])
def test_finalise_a_slab_of_one_slice(kernels, rng, oblique, shape):
    slab, weights = np.abs(_slab(rng, 2, shape)) + 1, _weights(rng, "voxels", shape)
    map = oblique((5, 6, 7), shape)
    ours = kernels.finalise(slab, weights, map, (5, 6, 7), 0.0)
    _assert_same(ours, twins.finalise(slab, weights, map, (5, 6, 7), 0.0))
    assert ours.counts.all()


@pytest.mark.parametrize("name", ["finalise", "finalise_labels"])
@pytest.mark.parametrize(
    ("prompts", "grid"), [(0, (3, 4, 5)), (2, (3, 0, 5)), (2, (3, 4, 0)), (2, (0, 4, 5))]
)
def test_finalise_nothing(kernels, rng, name, prompts, grid):
    slab, weights = _slab(rng, prompts), _weights(rng, "tables")
    ours = getattr(kernels, name)(slab, weights, IDENTITY, grid, 0.0)
    _assert_same(ours, getattr(twins, name)(slab, weights, IDENTITY, grid, 0.0))


@pytest.mark.parametrize("name", ["finalise", "finalise_labels"])
def test_an_empty_mask_has_an_empty_box(kernels, rng, name):
    result = getattr(kernels, name)(_slab(rng), _weights(rng, "tables"), IDENTITY, (3, 4, 5), 1e6)
    assert not result.counts.any()
    assert not result.boxes.any()
    assert not result.sums.any()


@pytest.mark.parametrize("name", ["finalise", "finalise_labels"])
def test_what_is_not_a_number_or_was_not_weighed_is_background(kernels, name):
    slab = np.full((2, 2, 3, 9), 5, np.float32)
    slab[:, 0, 0, 0] = np.nan
    slab[:, 1, 2, :] = 0
    weights = np.ones((2, 3, 9), np.float32)
    weights[1, 2, :] = 0
    result = getattr(kernels, name)(slab, weights, IDENTITY, (2, 3, 9), 0.0)
    _assert_same(result, getattr(twins, name)(slab, weights, IDENTITY, (2, 3, 9), 0.0))
    assert result.counts.tolist() == ([44, 44] if name == "finalise" else [44, 0])


def test_labels_with_more_prompts_than_fit_in_shared_memory(kernels, rng):
    slab = rng.normal(0, 1, (131, 3, 4, 40)).astype(np.float32)
    weights = _weights(rng, "tables", (3, 4, 40))
    ours = kernels.finalise_labels(slab, weights, IDENTITY, (3, 4, 40), 0.0)
    _assert_same(ours, twins.finalise_labels(slab, weights, IDENTITY, (3, 4, 40), 0.0))
    assert ours.labels.max() > 128


@given(
    slab=st.tuples(*[st.integers(1, 5)] * 3),
    grid=st.tuples(*[st.integers(1, 9)] * 3),
    entries=st.lists(st.floats(-4, 4), min_size=12, max_size=12),
    threshold=st.floats(-2, 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_finalise_is_its_twin_for_any_map(kernels, slab, grid, entries, threshold, seed):
    rng = np.random.default_rng(seed)
    sums, weights, map = _slab(rng, 2, slab), _weights(rng, "tables", slab), np.array(entries).reshape(3, 4)
    for name in ("finalise", "finalise_labels"):
        ours = getattr(kernels, name)(sums, weights, map, grid, threshold)
        _assert_same(ours, getattr(twins, name)(sums, weights, map, grid, threshold))


def test_on_the_slab_s_own_grid_the_twin_is_a_threshold_of_the_mean(rng):
    slab, weights = _slab(rng), _weights(rng, "tables")
    x, y, z = weights
    masks = slab / (x[:, None, None] * y[:, None] * z) > 0.1
    result = twins.finalise(slab, weights, IDENTITY, SLAB, 0.1)
    unpacked = np.unpackbits(result.bits, axis=-1, count=SLAB[2], bitorder="little").astype(bool)
    np.testing.assert_array_equal(unpacked, masks)
    assert result.counts.tolist() == [int(mask.sum()) for mask in masks]
    for mask, count, total, box in zip(masks, result.counts, result.sums, result.boxes, strict=True):
        np.testing.assert_allclose(total / count, ndimage.center_of_mass(mask))
        assert [slice(*ends) for ends in box.T.tolist()] == list(ndimage.find_objects(mask.astype(int))[0])
    labels = twins.finalise_labels(slab, weights, IDENTITY, SLAB, 0.1).labels
    np.testing.assert_array_equal(labels, combine(masks, list(slab / twins.weights_of(weights))))


def test_the_twin_interpolates_as_scipy(rng, oblique):
    slab, grid = _slab(rng, 1), (9, 12, 21)
    map = oblique(grid, SLAB)
    where = np.rint((np.indices(grid).T @ map[:, :3].T + map[:, 3]) * 2**17) / 2**17
    values = ndimage.map_coordinates(slab[0], where.T, order=1, mode="nearest")
    inside = np.all([(p >= -0.5) & (p <= n - 0.5) for p, n in zip(where.T, SLAB, strict=True)], axis=0)
    result = twins.finalise(slab, np.ones(SLAB, np.float32), map, grid, 0.0)
    mask = np.unpackbits(result.bits, axis=-1, count=21, bitorder="little").astype(bool)[0]
    clear = np.abs(values) > 1e-4
    np.testing.assert_array_equal(mask[clear], (inside & (values > 0))[clear])
    assert clear.mean() > 0.99
    assert 0 < inside.mean() < 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"slab": torch.zeros(2, 3, 4, 5).half()}, "4 axes and type float32"),
        ({"slab": torch.zeros(2, 3, 0, 5)}, "at least one voxel"),
        ({"weights": torch.ones(3, 4, 6)}, "the slab's shape \\(3, 4, 5\\)"),
        ({"weights": (torch.ones(3), torch.ones(4), torch.ones(6))}, "as many as voxels"),
        ({"map": np.eye(4)}, "is \\(3, 4\\), got \\(4, 4\\)"),
        ({"shape": (3, -4, 5)}, "none below zero"),
    ],
)
def test_finalise_says_what_does_not_fit(changed, message):
    good = {
        "slab": torch.zeros(2, 3, 4, 5),
        "weights": torch.ones(3, 4, 5),
        "map": IDENTITY,
        "shape": (3, 4, 5),
        "threshold": 0.0,
    }
    for finalise in (textseg_kernels.finalise, textseg_kernels.finalise_labels):
        with pytest.raises(ValueError, match=message):
            finalise(**{**good, **changed})


def test_a_label_map_has_room_for_so_many_prompts_only():
    with pytest.raises(ValueError, match="at most 32767 labels, got 32768"):
        textseg_kernels.finalise_labels(
            torch.zeros(32768, 1, 1, 1), torch.ones(1, 1, 1), IDENTITY, (1, 1, 1), 0.0
        )
