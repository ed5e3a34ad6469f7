"""What is kept of steps: masks to the last bit, logits to a sixteenth, features within a budget."""

from __future__ import annotations

import numpy as np
import torch

from textseg.geometry import Box
from textseg.interactive.feature_cache import FeatureCache
from textseg.interactive.kept import FAR_BELOW, Field, PackedMask, quantised
from textseg.network.build import Features


def features(value):
    """400 bytes in half precision, of which the coarsest is kept once."""
    coarsest = torch.full((1, 4, 2, 5, 1), float(value))
    return Features(coarsest, (torch.full((1, 2, 4, 5, 4), float(value)), coarsest))


def test_a_packed_mask_comes_back_to_the_last_bit():
    mask = np.random.default_rng(0).random((19, 7, 11)) > 0.6
    mask[:3], mask[:, :, 9:] = False, False
    packed = PackedMask.pack(mask)
    np.testing.assert_array_equal(packed.unpack(), mask)
    assert packed.count() == mask.sum()
    empty = PackedMask.pack(np.zeros((3, 4, 5), bool))
    assert empty.count() == 0
    assert empty.unpack().shape == (3, 4, 5)


def test_a_field_is_the_one_before_with_a_box_replaced():
    first = np.arange(60, dtype=np.int8).reshape(3, 4, 5)
    base = Field.keep((1.0, 1.0, 1.0), (5, 6, 7), Box((1, 1, 1), (4, 5, 6)), first, None)
    second = np.full((2, 2, 2), 99, np.int8)
    field = Field.keep((1.0, 1.0, 1.0), (5, 6, 7), Box((3, 4, 5), (5, 6, 7)), second, base)
    whole = np.full((5, 6, 7), FAR_BELOW, np.int8)
    whole[1:4, 1:5, 1:6] = first
    whole[3:, 4:, 5:] = 99
    np.testing.assert_array_equal(field.whole(), whole)
    assert base.whole()[4, 5, 6] == FAR_BELOW


def test_quantised_logits_keep_their_side_of_the_threshold():
    margins = np.array([-90, -0.5, -1e-6, 0, 1e-6, 0.5, 90], np.float32)
    assert quantised(margins).tolist() == [-127, -8, 0, 0, 1, 8, 127]


def test_features_stay_within_the_budget_and_the_longest_unused_go():
    one = sum(t.nbytes for t in (features(0).coarsest, features(0).trunk[0])) // 2
    cache = FeatureCache(2 * one, torch.float16)
    made = []

    def ask(value):
        def encode():
            made.append(value)
            return features(value)

        return float(cache.get(value, encode).coarsest[0, 0, 0, 0, 0])

    assert [ask(value) for value in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]
    assert len(cache) == 2
    assert cache.used_bytes == 2 * one
    kept = cache.get(1, lambda: features(1))
    assert kept.coarsest.dtype == torch.float16
    assert kept.trunk[-1] is kept.coarsest
    cache.clear()
    assert cache.used_bytes == len(cache) == 0


def test_features_larger_than_the_budget_are_used_but_not_kept():
    cache = FeatureCache(10, torch.float16)
    assert cache.get("a", lambda: features(5)).coarsest.max() == 5
    assert cache.used_bytes == len(cache) == 0
