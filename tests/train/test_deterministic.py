"""Deterministic mode: what it sets, and that it leaves everything as it was."""

from __future__ import annotations

import pytest
import torch

from textseg.train.deterministic import deterministic


@pytest.fixture(autouse=True)
def _restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_algorithms_and_threads_are_fixed_and_set_back_even_after_an_error():
    def fail():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError

    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), deterministic():
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2


def test_switched_off_it_changes_nothing():
    torch.set_num_threads(2)
    with deterministic(on=False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 2


def test_a_strict_mode_that_was_on_is_strict_again():
    torch.use_deterministic_algorithms(True)
    with deterministic():
        pass
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
