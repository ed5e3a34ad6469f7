"""Volumes in blocks: any box reads as it would from an array, and only its own blocks are read."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textseg.errors import DatasetError
from textseg.train import blocks
from textseg.train.blocks import BLOCK_VOXELS, read_blocks, write_blocks

SHAPE = (BLOCK_VOXELS + 5, BLOCK_VOXELS, 2 * BLOCK_VOXELS + 1)


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(2).integers(-300, 300, SHAPE).astype(np.int16)


@pytest.fixture(scope="module")
def path(volume, tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "case.zip"
    small = volume[:3, :4, :5].astype(np.float16)
    write_blocks(
        path, {"labels": volume, "image": small}, {"centres": np.arange(6).reshape(2, 3)}, {"air": -1.5}
    )
    return path


def test_volumes_tables_and_facts_come_back(path, volume):
    volumes, tables, facts = read_blocks(path)
    np.testing.assert_array_equal(volumes["labels"], volume)
    np.testing.assert_array_equal(volumes["image"], volume[:3, :4, :5].astype(np.float16))
    assert (volumes["labels"].shape, volumes["labels"].dtype) == (volume.shape, volume.dtype)
    np.testing.assert_array_equal(tables["centres"], [[0, 1, 2], [3, 4, 5]])
    assert facts == {"air": -1.5}


bounds = st.integers(-10, max(SHAPE) + 10) | st.none()
spans = st.builds(slice, bounds, bounds)


@settings(max_examples=60, deadline=None)
@given(box=st.tuples(spans, spans, spans))
def test_any_box_reads_as_from_an_array(path, volume, box):
    read = read_blocks(path)[0]["labels"][box]
    assert read.dtype == volume.dtype
    np.testing.assert_array_equal(read, volume[box])


def test_only_the_blocks_of_a_box_are_read(path, monkeypatch):
    read = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name, *rest: read.append(name) or original(self, name, *rest)
    )
    labels = read_blocks(path)[0]["labels"]
    read.clear()
    labels[BLOCK_VOXELS : BLOCK_VOXELS + 2, 3:5, BLOCK_VOXELS - 1 : BLOCK_VOXELS + 1]
    assert sorted(read) == ["labels/1_0_0.npy", "labels/1_0_1.npy"]
    labels[BLOCK_VOXELS : BLOCK_VOXELS + 1, 0:1, 0:1]
    assert len(read) == 2  # kept from the first time


def test_no_more_blocks_are_kept_than_fit(path, volume):
    labels = read_blocks(path)[0]["labels"]
    labels.cache_bytes = 3 * BLOCK_VOXELS**3 * volume.itemsize
    np.testing.assert_array_equal(labels, volume)
    assert sum(block.nbytes for block in labels._blocks.values()) <= labels.cache_bytes


def test_broken_and_missing_files_are_refused_in_one_sentence(path, tmp_path):
    short = tmp_path / "short.zip"
    short.write_bytes(path.read_bytes()[:-100])
    text = tmp_path / "text.zip"
    text.write_text("no archive", encoding="utf-8")
    for broken in (short, text, tmp_path / "missing.zip"):
        with pytest.raises(DatasetError, match="Prepare it again"):
            read_blocks(broken)


def test_another_block_size_is_refused(path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_VOXELS", 32)
    with pytest.raises(DatasetError, match="blocks of 32"):
        read_blocks(path)
