"""Which device, which number type, and a clear word where it is not there."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from textseg.device import (
    Compute,
    Gpu,
    NotEnoughMemoryError,
    choose_compute,
    deterministic,
    fastest_type,
    find_gpu,
    is_out_of_memory,
    processor_maker,
)
from textseg.errors import DeviceError

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """A function that sets what the processor can compute in hardware."""

    def set_support(*, avx512, amx, maker="AuthenticAMD"):
        monkeypatch.setattr("textseg.device.processor_maker", lambda: maker)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    return set_support


@pytest.fixture
def cuda(monkeypatch):
    """A function that lets torch see a GPU, or none."""

    def set_available(available, *, bfloat16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    return set_available


@pytest.mark.parametrize(
    ("avx512", "amx", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (True, True, torch.bfloat16),
    ],
)
def test_bfloat16_only_where_the_processor_has_it(avx512, amx, dtype, processor):
    processor(avx512=avx512, amx=amx)
    assert fastest_type(CPU) == dtype


@pytest.mark.parametrize(
    ("amx", "maker", "dtype"),
    [
        (False, "GenuineIntel", torch.float32),
        (True, "GenuineIntel", torch.bfloat16),
        (False, "", torch.float32),
        (False, "AuthenticAMD", torch.bfloat16),
    ],
)
def test_vectors_of_bfloat16_are_for_processors_that_are_faster_in_it(amx, maker, dtype, processor):
    processor(avx512=True, amx=amx, maker=maker)
    assert fastest_type(CPU) == dtype


def test_the_processors_maker_is_read_where_the_system_tells_it(monkeypatch):
    def maker(cpuinfo, name="Intel64 Family 6 Model 143 Stepping 8, GenuineIntel"):
        processor_maker.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: cpuinfo())
        monkeypatch.setattr(platform, "processor", lambda: name)
        return processor_maker()

    def missing():
        raise FileNotFoundError

    assert maker(lambda: "processor\t: 0\nvendor_id\t: AuthenticAMD\n") == "AuthenticAMD"
    assert maker(missing) == "GenuineIntel"
    assert maker(lambda: "processor\t: 0\n", "arm") == "arm"
    assert maker(missing, "") == ""
    processor_maker.cache_clear()


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_without_bfloat16_computes_in_float32(bfloat16, dtype, cuda):
    cuda(True, bfloat16=bfloat16)
    assert choose_compute("cuda") == Compute(torch.device("cuda"), dtype)


def test_auto_takes_the_gpu_where_there_is_one(cuda):
    cuda(True)
    assert choose_compute().device.type == "cuda"
    assert choose_compute("cpu").device == CPU
    cuda(False)
    assert choose_compute().device == CPU


def test_the_gpu_is_described_where_there_is_one(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 8))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    cuda(True)
    assert find_gpu() == Gpu("a GPU", free_bytes=5, total_bytes=8)
    cuda(False)
    assert find_gpu() is None


def test_a_gpu_that_is_not_there_is_an_error_with_a_way_out(cuda):
    cuda(False)
    with pytest.raises(DeviceError, match="Try --device cpu"):
        choose_compute("cuda")


def test_an_unknown_device_is_refused():
    with pytest.raises(DeviceError, match="auto, cpu or cuda, got 'tpu'"):
        choose_compute("tpu")


def test_threads_are_set_or_left_alone():
    before = torch.get_num_threads()
    try:
        choose_compute("cpu", threads=before + 1)
        assert torch.get_num_threads() == before + 1
        choose_compute("cpu")
        assert torch.get_num_threads() == before + 1
        with pytest.raises(DeviceError, match="at least 1"):
            choose_compute("cpu", threads=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_run_in_the_chosen_type(dtype):
    compute = Compute(CPU, dtype)
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert str(compute) == f"cpu in {str(dtype)[6:]}"


def test_deterministic_algorithms_are_asked_for_and_given_back():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        with deterministic(False):
            assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (NotEnoughMemoryError("The memory must hold one window."), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_missing_memory_is_told_from_other_errors(error, is_one):
    assert is_out_of_memory(error) == is_one
