"""`textseg weights` from the outside, on a hub that is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.registry.local_hub import LocalHub, write_voxtell_repository
from textseg.registry.entries import all_entries

NAME = "voxtell-v1.1"


@pytest.fixture(autouse=True)
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    root = write_voxtell_repository(tmp_path / "hub")
    monkeypatch.setattr("textseg.registry.fetch.HuggingFace", lambda: LocalHub(root))


def test_from_fetching_to_removing(textseg: Run, predict: Run, tmp_path: Path) -> None:
    assert NAME in textseg("weights", "list").stdout
    refused = textseg("weights", "fetch", NAME)
    assert refused.exit_code == 2
    assert "under the licence CC BY-NC-SA" in refused.stderr
    assert "--accept-licence" in refused.stderr
    result = textseg("weights", "fetch", NAME, "--accept-licence")
    assert result.exit_code == 0, result.output
    folder = Path(result.stdout.strip())
    assert textseg("weights", "path", NAME).stdout.strip() == str(folder)
    assert textseg("weights", "verify", NAME).exit_code == 0
    assert "any words" in textseg("models").stdout
    assert predict("liver", "--write-empty", model="voxtell").exit_code in (0, 3)
    assert "MB less" in textseg("weights", "convert", NAME).stdout
    assert "converted already" in textseg("weights", "convert", NAME).stdout
    assert ", converted" in textseg("weights").stdout
    bundle = tmp_path / "bundle.zip"
    assert NAME in textseg("weights", "pack", bundle).stdout
    assert "is removed" in textseg("weights", "rm", NAME).stdout
    assert textseg("weights", "path", NAME).exit_code == 2
    taken = textseg("weights", "fetch", "--from", bundle)
    assert "under the licence CC BY-NC-SA" in taken.stderr
    assert taken.stdout.strip() == str(folder)
    assert textseg("weights", "verify", NAME).exit_code == 0


def test_damage_is_a_failure(textseg: Run) -> None:
    folder = Path(textseg("weights", "fetch", NAME, "--accept-licence").stdout.strip())
    (folder / "plans.json").unlink()
    result = textseg("weights", "verify", NAME)
    assert result.exit_code == 1
    assert "plans.json is missing." in result.stdout


def test_offline_is_one_sentence(textseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_OFFLINE", "1")
    result = textseg("weights", "fetch", NAME, "--accept-licence")
    assert result.exit_code == 2
    assert "TEXTSEG_OFFLINE forbids" in result.stderr


def test_a_name_is_needed(textseg: Run) -> None:
    result = textseg("weights", "fetch")
    assert (result.exit_code, "got none" in result.stderr) == (2, True)


def test_all_models_come_as_a_markdown_page_with_what_is_missing(textseg: Run) -> None:
    result = textseg("weights", "list", "--markdown")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| Model | What it is for | How it is used | Licence |")
    names = [line.split("|")[1].split()[0] for line in lines[2:]]
    assert names == ["default", *(entry.name for entry in all_entries())]
    assert "**sat-nano and sat-pro** SAT can be fetched" in result.stdout
    assert "CC BY-SA 4.0" in lines[2]


def test_the_page_of_models_is_current(textseg: Run) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "models.md"
    said = "Write it anew: textseg weights list --markdown > docs/models.md"
    assert page.read_text(encoding="utf-8") == textseg("weights", "list", "--markdown").stdout, said
