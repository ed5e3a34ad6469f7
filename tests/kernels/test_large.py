"""Indices beyond 2^31: sparse files stand for large arrays, and only their last pages are touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from textseg_kernels import on_gpu, twins

BEYOND = 2**31
# Rows of 20000 voxels; the last of them begin beyond 2^31.
LARGE = (3, 40000, 20000)
IDENTITY = np.eye(4)[:3]
AS_IT_IS = {"lowest": 0.0, "highest": 1e4, "mean": 0.0, "sd": 1.0, "padding": -1.0}
BLOCK = on_gpu.BLOCK


@pytest.fixture
def sparse(tmp_path: Path):
    """sparse(shape, dtype): zeros in a file that takes no room until it is written to."""

    def array(shape, dtype):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.raw"
        try:
            mapped = np.memmap(path, dtype, "w+", shape=shape)
        except OSError as error:
            pytest.skip(f"Needs a file system with sparse files: {error}.")
        if path.stat().st_blocks * 512 > 2**20:
            path.unlink()
            pytest.skip("Needs a file system with sparse files.")
        return mapped

    return array


def _last_map(shape, grid):
    """Brings the last voxel of a grid to the last voxel of a volume."""
    map = IDENTITY.copy()
    map[:, 3] = np.array(shape) - np.array(grid)
    return map


def test_gather_far_into_a_scan(kernels, sparse, rng):
    scan, patch = sparse(LARGE, np.int16), (2, 3, 4)
    scan[-2:, -3:, -4:] = rng.integers(1, 1000, patch)
    assert scan.size > BEYOND
    out = np.zeros((1, *patch, 1), np.float16)
    kernels.gather(scan, _last_map(LARGE, patch)[None], out, 0, **AS_IT_IS)
    np.testing.assert_array_equal(out[0, ..., 0], scan[-2:, -3:, -4:])


def test_gather_far_into_the_patches(cpu_launch, sparse, rng):
    scan = rng.integers(1, 1000, (1, 1, 8)).astype(np.int16)
    out = sparse((1, 1, 2**20 + 1, 2**10, 2), np.float16)
    maps = np.zeros((1, 3, 4))
    maps[0, 2, 3] = 5
    _run_the_last_block(cpu_launch, 2**20 + 1)
    on_gpu.gather(cpu_launch, torch.from_numpy(scan), maps, torch.from_numpy(out), 1, **AS_IT_IS)
    assert (out[0, 0, -1, :, 1] == scan[0, 0, 5]).all()
    assert not out[0, 0, -1, :, 0].any()


def test_blend_far_into_a_slab(kernels, sparse, rng):
    slab, window = sparse((2, *LARGE), np.float32), (2, 3, 4)
    logits = rng.normal(0, 1, (2, 2, *window)).astype(np.float32)
    tables = tuple(rng.uniform(0.1, 1, n).astype(np.float32) for n in window)
    starts = [(1, 39996, 19995), (2, 39998, 19997)]
    if kernels.device != "cpu":
        pytest.skip("Its slab lies in a file.")
    # Not by kernels.blend, which would write all of the slab back.
    blend = kernels.functions["blend"]
    weights = tuple(torch.from_numpy(table) for table in tables)
    blend(torch.from_numpy(logits), np.array(starts), weights, torch.from_numpy(slab))
    near = np.zeros((2, 3, 5, 6), np.float32)
    twins.blend(logits, [(1, 1, 1), (2, 3, 3)], tables, near)
    np.testing.assert_array_equal(slab[:, :, -5:, -6:], near)
    assert near[:, 2, 4, 5].all()


def test_blend_from_far_into_the_logits(cpu_launch, sparse, rng):
    logits = sparse((2, 1, *LARGE), np.float16)
    logits[1, 0, -2:, -3:, -4:] = rng.normal(0, 1, (2, 3, 4))
    slab = torch.zeros(1, 2, 3, 4)
    tables = tuple(torch.ones(n) for n in LARGE)
    starts = np.array([[5, 5, 5], [-1, -39997, -19996]])
    on_gpu.blend(cpu_launch, torch.from_numpy(logits), starts, tables, slab)
    np.testing.assert_array_equal(slab[0], logits[1, 0, -2:, -3:, -4:].astype(np.float32))


@pytest.mark.parametrize("name", ["finalise", "finalise_labels"])
def test_finalise_far_into_a_slab(cpu_launch, sparse, rng, name):
    slab, grid = sparse((2, *LARGE), np.float32), (2, 3, 4)
    slab[:, -2:, -3:, -4:] = rng.normal(0, 1, (2, *grid))
    tables = tuple(rng.uniform(0.5, 1, n).astype(np.float32) for n in LARGE)
    near = tuple(table[-n:] for table, n in zip(tables, grid, strict=True))
    ours = getattr(on_gpu, name)(
        cpu_launch,
        torch.from_numpy(slab),
        tuple(torch.from_numpy(table) for table in tables),
        _last_map(LARGE, grid),
        grid,
        0.0,
    )
    theirs = getattr(twins, name)(slab[:, -2:, -3:, -4:], near, IDENTITY, grid, 0.0)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ours.counts.any()


def test_finalise_far_into_the_bits(cpu_launch, sparse):
    shape = (3, 2**20, 2**13)
    bits = sparse((1, 3, 2**20, 2**10), np.uint8)
    assert bits.size > BEYOND
    tallies = on_gpu._no_tallies(1, torch.device("cpu"))
    slab, weights = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1)
    arguments = on_gpu._finalise_arguments(slab, weights, np.zeros((3, 4)), shape, 0.0)
    stripes = bits.size // on_gpu.THREADS
    cpu_launch.first_block = 0, stripes - 1
    arguments = (*arguments, torch.from_numpy(bits), tallies)
    cpu_launch("finalise.cu", "finalise", (1, stripes), (on_gpu.THREADS, 1), arguments)
    assert (bits[0, -1, -1, -256:] == 255).all()
    assert not bits[0, -1, -1, :-256].any()
    counts, boxes, sums = on_gpu._read_tallies(tallies)
    assert counts.tolist() == [2048]
    assert boxes.tolist() == [[[2, 2**20 - 1, 2**13 - 2048], [3, 2**20, 2**13]]]
    assert sums[0, :2].tolist() == [2 * 2048, (2**20 - 1) * 2048]


def test_labels_far_into_the_grid(cpu_launch, sparse):
    labels = sparse((1, 2**20 + 8, 2**11), np.int16)
    tallies = on_gpu._no_tallies(1, torch.device("cpu"))
    slab, weights = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1)
    arguments = on_gpu._finalise_arguments(slab, weights, np.zeros((3, 4)), labels.shape, 0.0)
    _run_the_last_block(cpu_launch, 2**20 + 8)
    grid = on_gpu._grid_of_rows(2**20 + 8)
    cpu_launch("finalise.cu", "finalise_labels", grid, BLOCK, (*arguments, torch.from_numpy(labels), tallies))
    assert (labels[0, -8:] == 1).all()
    assert not labels[0, -9].any()
    counts, boxes, _ = on_gpu._read_tallies(tallies)
    assert counts.tolist() == [8 * 2048]
    assert boxes.tolist() == [[[0, 2**20, 0], [1, 2**20 + 8, 2**11]]]


def test_components_far_into_a_mask(cpu_launch, sparse):
    shape = (1, 2**20 + 8, 2**11)
    mask, kept = sparse(shape, np.uint8), sparse(shape, np.uint8)
    labels, sizes = sparse(shape, np.int64), sparse(shape, np.int64)
    assert mask.size > BEYOND
    mask[0, -3:, -4:] = 1
    mask[0, -5, -9:-7] = 1
    on_device = [torch.from_numpy(array) for array in (mask, labels, sizes, kept)]
    mask_tensor, labels_tensor, sizes_tensor, kept_tensor = on_device
    grid, unpacked = on_gpu._grid_of_rows(2**20 + 8), np.bool_(False)
    _run_the_last_block(cpu_launch, 2**20 + 8)
    start = (mask_tensor, unpacked, *shape, labels_tensor)
    cpu_launch("components.cu", "components_start", grid, BLOCK, start)
    # The row before the last block was not started and would otherwise be part of voxel 0.
    labels[0, -9] = -1
    cpu_launch("components.cu", "components_join", grid, BLOCK, (*shape, labels_tensor))
    blocks = mask.size // on_gpu.THREADS
    cpu_launch.first_block = blocks - 8 * 2**11 // on_gpu.THREADS, 0
    count = (mask.size, labels_tensor, sizes_tensor)
    cpu_launch("components.cu", "components_count", (blocks, 1), (on_gpu.THREADS, 1), count)
    _run_the_last_block(cpu_launch, 2**20 + 8)
    keep = (labels_tensor, sizes_tensor, on_gpu.NULL, 3, unpacked, *shape, kept_tensor)
    cpu_launch("components.cu", "components_keep", grid, BLOCK, keep)
    first = mask.size - 2 * 2**11 - 4
    assert np.unique(labels[0, -3:, -4:]).tolist() == [first]
    assert sizes.reshape(-1)[first] == 12
    assert sizes.reshape(-1)[labels[0, -5, -9]] == 2
    mask[0, -5] = 0
    np.testing.assert_array_equal(kept[0, -8:], mask[0, -8:])


def _run_the_last_block(cpu_launch, rows):
    cpu_launch.first_block = on_gpu._grid_of_rows(rows)[0] - 1, 0
