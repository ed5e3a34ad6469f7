from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from textseg.embeddings.cache import CachedTextEncoder, cache_folder

WIDTH = 6
TEXTS = [f"rib {number}" for number in range(40)]


class CountingEncoder:
    """Vectors that only name and text decide; remembers what it was asked."""

    width = WIDTH

    def __init__(self, name: str = "counting-1") -> None:
        self.name = name
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        digests = [hashlib.sha256(f"{self.name} {text}".encode()).digest() for text in texts]
        return torch.tensor([list(digest[:WIDTH]) for digest in digests], dtype=torch.float32) / 7


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_hit_does_not_call_the_encoder(tmp_path: Path) -> None:
    first, second = CountingEncoder(), CountingEncoder()
    vectors = CachedTextEncoder(first, tmp_path).embed(TEXTS)
    again = CachedTextEncoder(second, tmp_path).embed(TEXTS)
    assert first.asked == TEXTS
    assert second.asked == []
    assert torch.equal(again, vectors)
    assert again.dtype == torch.float32


def test_only_new_texts_are_asked_for_once_and_order_is_kept(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    cached = CachedTextEncoder(encoder, tmp_path)
    cached.embed(["liver", "spleen"])
    encoder.asked.clear()
    vectors = cached.embed(["aorta", "spleen", "aorta", "liver"])
    assert encoder.asked == ["aorta"]
    assert torch.equal(vectors, CountingEncoder().embed(["aorta", "spleen", "aorta", "liver"]))


def test_another_encoder_has_its_own_vectors(tmp_path: Path) -> None:
    CachedTextEncoder(CountingEncoder("counting-1"), tmp_path).embed(["liver"])
    vectors = CachedTextEncoder(CountingEncoder("counting-2"), tmp_path).embed(["liver"])
    assert torch.equal(vectors, CountingEncoder("counting-2").embed(["liver"]))


def test_no_texts_give_no_vectors(tmp_path: Path) -> None:
    assert CachedTextEncoder(CountingEncoder(), tmp_path).embed([]).shape == (0, WIDTH)


def truncated(content: bytes) -> bytes:
    return content[:-3]


def emptied(_: bytes) -> bytes:
    return b""


def changed_by_one_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def of_another_width(content: bytes) -> bytes:
    values = content[32:-4]
    return hashlib.sha256(values).digest() + values


@pytest.mark.parametrize("damage", [truncated, emptied, changed_by_one_bit, of_another_width])
def test_a_damaged_entry_is_computed_again_and_mended(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    expected = CachedTextEncoder(CountingEncoder(), tmp_path).embed(["liver"])
    (entry,) = entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    encoder = CountingEncoder()
    for _ in range(2):
        assert torch.equal(CachedTextEncoder(encoder, tmp_path).embed(["liver"]), expected)
    assert encoder.asked == ["liver"]


def test_a_folder_that_is_a_file_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "vectors"
    blocked.write_text("in the way")
    vectors = CachedTextEncoder(CountingEncoder(), blocked).embed(TEXTS)
    assert torch.equal(vectors, CountingEncoder().embed(TEXTS))
    assert len(caplog.records) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o555)
    vectors = CachedTextEncoder(CountingEncoder(), tmp_path).embed(TEXTS)
    assert torch.equal(vectors, CountingEncoder().embed(TEXTS))
    assert len(caplog.records) == 1


def test_a_full_disk_costs_one_warning_and_leaves_no_pieces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("textseg.embeddings.files.os.replace", full)
    vectors = CachedTextEncoder(CountingEncoder(), tmp_path).embed(TEXTS)
    assert torch.equal(vectors, CountingEncoder().embed(TEXTS))
    assert [record.getMessage() for record in caplog.records] == [
        f"Text vectors can't be kept in {tmp_path}: No space left on device."
    ]
    assert entries(tmp_path) == []


# A process of its own: embeds the same texts again and again while entries are deleted beneath it.
WRITER = """
import sys
from pathlib import Path
import torch
from textseg.embeddings.cache import CachedTextEncoder

class Lengths:
    name = "lengths-1"
    width = 2000
    def embed(self, texts):
        return torch.tensor([[float(len(text))] * self.width for text in texts])

folder, texts = Path(sys.argv[1]), ["x" * length for length in range(40)]
for _ in range(10):
    assert torch.equal(CachedTextEncoder(Lengths(), folder).embed(texts), Lengths().embed(texts))
    for path in list(folder.glob("*/[0-9a-f]*"))[::3]:
        path.unlink(missing_ok=True)
"""


def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "vectors"


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms keep caches elsewhere")
def test_the_folder_is_the_platforms_own_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "textseg" / "vectors"
