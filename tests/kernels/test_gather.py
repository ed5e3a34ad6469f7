"""Gathering: the definition against textseg's own resampling, and every way against the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import textseg_kernels
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from textseg_kernels import twins

from textseg.geometry import Geometry
from textseg.resample import resample

SCAN = (7, 11, 18)
WINDOWING = {"lowest": -200.0, "highest": 300.0, "mean": 40.0, "sd": 85.0, "padding": -1.5}
AS_IT_IS = {"lowest": -1e4, "highest": 1e4, "mean": 0.0, "sd": 1.0, "padding": -9.0}
IDENTITY = np.eye(4)[:3]


def _scan(rng: np.random.Generator, dtype: type, shape: tuple[int, ...] = SCAN) -> NDArray[Any]:
    return rng.integers(-400, 500, shape).astype(dtype)


def _both(kernels: Any, scan: NDArray[Any], maps: Any, out: NDArray[Any], **numbers: float) -> NDArray[Any]:
    ours, theirs = out.copy(), out.copy()
    kernels.gather(scan, np.asarray(maps), ours, 1, **numbers)
    twins.gather(scan, maps, theirs, 1, **numbers)
    np.testing.assert_array_equal(ours, theirs)
    return ours


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("patch", [(6, 5, 9), (1, 4, 40), (5, 1, 1), (3, 17, 33)])
def test_gather_is_its_twin(kernels, rng, oblique, dtype, patch):
    maps = np.stack([oblique(patch, SCAN), oblique(patch, SCAN, 1.9), IDENTITY])
    out = np.full((3, *patch, 2), 77, np.float16)
    filled = _both(kernels, _scan(rng, dtype), maps, out, **WINDOWING)
    assert (filled[..., 0] == 77).all()
    assert len(np.unique(filled[..., 1])) > 3


@pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1, 6), (5, 6, 1), (1, 1, 1)])
def test_gather_from_a_scan_of_one_slice(kernels, rng, oblique, shape):
    out = np.zeros((1, 6, 7, 5, 2), np.float16)
    filled = _both(kernels, _scan(rng, np.int16, shape), oblique((6, 7, 5), shape)[None], out, **WINDOWING)
    assert (filled[..., 1] != np.float16(-1.5)).any()


def test_gather_pads_from_half_a_voxel_beyond_the_border(kernels):
    scan = np.arange(1, 5, dtype=np.int16).reshape(1, 1, 4)
    maps = np.stack([IDENTITY, IDENTITY])
    maps[0, 2, 3] = -2.5  # positions -2.5, -1.5, -0.5, 0.5, ... along z
    maps[1, 2, 3] = -2.5000152587890625  # two steps of a position before
    out = np.zeros((2, 1, 1, 8, 2), np.float16)
    filled = _both(kernels, scan, maps, out, **AS_IT_IS)
    assert filled[0, 0, 0, :, 1].tolist() == [-9, -9, 1, 1.5, 2.5, 3.5, 4, -9]
    assert filled[1, 0, 0, 2, 1] == -9
    assert filled[1, 0, 0, 6, 1] == 4


def test_gather_makes_nan_padding_and_keeps_it_from_whole_positions(kernels, rng):
    scan = np.abs(_scan(rng, np.float32))
    scan[3, 4, 5] = np.nan
    maps = np.stack([IDENTITY, IDENTITY])
    maps[1, 2, 3] = 0.5
    filled = _both(kernels, scan, maps, np.zeros((2, *SCAN, 2), np.float16), **AS_IT_IS)
    assert np.argwhere(filled[0, ..., 1] == -9).tolist() == [[3, 4, 5]]
    assert np.argwhere(filled[1, :, :, :-1, 1] == -9).tolist() == [[3, 4, 4], [3, 4, 5]]


def test_gather_with_a_map_of_nan_is_all_padding(kernels, rng):
    filled = _both(
        kernels,
        _scan(rng, np.int16),
        IDENTITY[None] * np.nan,
        np.zeros((1, 2, 3, 4, 2), np.float16),
        **AS_IT_IS,
    )
    assert (filled[..., 1] == -9).all()


def test_gather_of_no_patches_does_nothing(kernels, rng):
    _both(
        kernels, _scan(rng, np.int16), np.zeros((0, 3, 4)), np.zeros((0, 2, 3, 4, 2), np.float16), **WINDOWING
    )


@given(
    scan=st.tuples(*[st.integers(1, 6)] * 3),
    patch=st.tuples(*[st.integers(1, 6)] * 3),
    entries=st.lists(st.floats(-8, 8), min_size=12, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gather_is_its_twin_for_any_map(kernels, scan, patch, entries, seed):
    voxels = _scan(np.random.default_rng(seed), np.int16, scan)
    maps = np.array(entries).reshape(1, 3, 4)
    _both(kernels, voxels, maps, np.zeros((1, *patch, 2), np.float16), **WINDOWING)


@pytest.mark.parametrize("turned", [False, True])
def test_the_twin_agrees_with_resampling(rng, turned, oblique):
    grid = (15, 20, 31)
    source = Geometry(SCAN, np.diag([3.0, 2.0, 1.5, 1.0]))
    scaled = np.diag([0.5, -0.5, 0.6, 1.0])
    scaled[:3, 3] = -0.2, 10.2, 0.1
    to_source = np.vstack([oblique(grid, SCAN, 0.6), [0, 0, 0, 1]]) if turned else scaled
    scan = rng.uniform(-1, 1, SCAN).astype(np.float32)
    expected = resample(torch.from_numpy(scan), source, Geometry(grid, source.affine @ to_source), fill=-9.0)
    out = np.zeros((1, *grid, 1), np.float16)
    twins.gather(scan, to_source[None, :3], out, 0, **AS_IT_IS)
    np.testing.assert_allclose(out[0, ..., 0], expected.numpy(), atol=6e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maps": np.zeros((2, 3, 4))}, "one for each of 1 patches"),
        (
            {"scan": torch.zeros(2, 3, 4, dtype=torch.float64)},
            "type int16 or float32, got 3 axes and float64",
        ),
        ({"scan": torch.zeros(2, 3, 0)}, "at least one voxel"),
        ({"scan": torch.zeros(4, 3, 2).permute(2, 1, 0)}, "contiguous"),
        ({"out": torch.zeros(1, 2, 3, 4, 2)}, "type float16"),
        ({"channel": 2}, "one of 2, counted from 0, got 2"),
        ({"sd": 0.0}, "above zero"),
        ({"sd": float("nan")}, "above zero"),
        ({"mean": float("nan")}, "Mean and padding are finite, got nan and -1.5"),
        ({"padding": float("inf")}, "Mean and padding are finite"),
        ({"lowest": 2.0, "highest": 1.0}, "at most the highest"),
        ({"out": torch.zeros(1, 2, 3, 4, 2, dtype=torch.float16, device="meta")}, "on one device"),
    ],
)
def test_gather_says_what_does_not_fit(changed: dict[str, Any], message: str):
    good: dict[str, Any] = {
        "scan": torch.zeros(2, 3, 4),
        "maps": np.zeros((1, 3, 4)),
        "out": torch.zeros(1, 2, 3, 4, 2, dtype=torch.float16),
        "channel": 0,
        **WINDOWING,
    }
    gather: Callable[..., None] = textseg_kernels.gather
    with pytest.raises(ValueError, match=message):
        gather(**{**good, **changed})
