"""A hub whose repositories are folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.voxtell.tiny_folder import Tiny, write_folder
from textseg.registry.fetch import HubFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """Gives the files of `root/<repository>`; `fails_at` is the path at which the line goes dead, once."""

    root: Path
    fails_at: str | None = None
    wrong_hash: str | None = None
    fetched: list[str] = field(default_factory=list)

    def files(self, repository: str, revision: str | None) -> tuple[str, list[HubFile]]:
        folder = self.root / repository
        return revision or COMMIT, [
            HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, self._sha256(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def download(
        self, repository: str, commit: str, path: str, folder: Path, progress: Callable[[int], None]
    ) -> None:
        place = folder / path
        if place.is_file():
            return
        content = (self.root / repository / path).read_bytes()
        place.parent.mkdir(parents=True, exist_ok=True)
        if path == self.fails_at:
            self.fails_at = None
            raise ConnectionResetError("the line went dead")
        place.write_bytes(content)
        self.fetched.append(path)
        progress(len(content))

    def _sha256(self, path: Path) -> str:
        return "0" * 64 if path.name == self.wrong_hash else hashlib.sha256(path.read_bytes()).hexdigest()


def write_voxtell_repository(root: Path) -> Path:
    """As the release lies on the hub: two models, and banks beside them."""
    repository = root / "mrokuss" / "VoxTell"
    write_folder(repository / "voxtell_v1.1", Tiny())
    bank = repository / "embeddings" / "voxtell_v1.1"
    bank.parent.mkdir()
    (repository / "voxtell_v1.1" / "embeddings").rename(bank)
    (repository / "README.md").write_text("not asked for")
    return root
