"""Weights come whole, from a hub or a bundle, with their licence accepted, or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.registry.local_hub import COMMIT, LocalHub, write_voxtell_repository
from textseg.embeddings.local import find_local
from textseg.errors import ModelError, OutputError
from textseg.models import fetched_models, find_model
from textseg.registry import entries, fetch
from textseg.registry.entries import all_entries, find_entry, read_note, weights_folder
from textseg.registry.fetch import HuggingFace, convert_fetched, offline_because, remove, sha256_of, verify
from textseg.registry.pack import pack, unpack
from textseg.registry.table import TITLES, count_numbers, markdown, markdown_of_missing, row_of
from textseg.train.start import read_encoder_weights

NAME = "voxtell-v1.1"
FILES = [
    "embeddings/voxtell_v1.1/text_embeddings.npz",
    "voxtell_v1.1/fold_0/checkpoint_final.pth",
    "voxtell_v1.1/plans.json",
]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voxtell_repository(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(repositories: Path) -> LocalHub:
    return LocalHub(repositories)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    for name in fetch.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "weights"


def fetched(hub: LocalHub, **options: object) -> Path:
    return fetch.fetch(NAME, hub=hub, **{"accept_licence": True, **options})  # type: ignore[arg-type]


# ---- what there is ----


def test_entries_agree_with_themselves() -> None:
    names = [name for entry in all_entries() for name in (entry.name, entry.alias) if name]
    assert len(set(names)) == len(names) >= 3
    for entry in all_entries():
        assert entry.citation
        assert not entry.non_commercial or entry.licence
        # Nothing is pinned that nobody has seen.
        assert entry.revision is None or len(entry.revision) == 40
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in entry.files)
        if entry.kind == "encoder":
            # So a plan that names the repository finds what was fetched.
            assert entry.name == entry.repository.rpartition("/")[2].lower()


def test_every_entry_says_how_it_is_used_and_what_can_not_be_run_says_why() -> None:
    for entry in all_entries():
        assert (entry.missing is not None) == (entry.kind == "foreign")
        if entry.kind in ("model", "start"):
            assert (entry.alias or entry.name) in entry.use
    kinds = {entry.kind for entry in all_entries()}
    assert kinds == {"model", "encoder", "start", "foreign"}


def test_the_table_has_a_line_an_entry_and_tells_what_is_unknown() -> None:
    lines = markdown([row_of(entry) for entry in all_entries()]).splitlines()
    assert len(lines) == 2 + len(all_entries())
    columns = {len(line.replace("\\|", "").split("|")) for line in lines}
    assert columns == {len(TITLES) + 2}
    biomedclip = next(line for line in lines if line.startswith("| biomedclip"))
    assert "not told; see microsoft/" in biomedclip
    assert "not measured" in biomedclip
    assert "58 MB of weights in float32" in next(line for line in lines if line.startswith("| stu-net-s"))
    assert "| 1.46 B |" in next(line for line in lines if line.startswith("| stu-net-h"))
    told = markdown_of_missing(all_entries())
    assert told.startswith("**sat-nano and sat-pro** ")
    assert len(told.split("\n\n")) == 1


def test_cells_with_bars_stay_in_their_column() -> None:
    assert markdown([("a|b", *"cdefghi"[: len(TITLES) - 1])]).splitlines()[-1].startswith("| a\\|b | c |")


def test_numbers_are_counted_without_reading_them(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float16), "b": np.zeros(5, np.float32)}, tmp_path / "x.safetensors")
    assert count_numbers(tmp_path / "x.safetensors") == 17
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    assert count_numbers(tmp_path / "y.safetensors") == 0


def test_a_fetched_start_is_found_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="textseg weights fetch stu-net-s"):
        read_encoder_weights("stu-net-s")
    folder = tmp_path / "hub" / "ziyanhuang" / "STU-Net"
    folder.mkdir(parents=True)
    weight = torch.ones(8, 1, 3, 3, 3)
    content = {"state_dict": {"conv_blocks_context.0.0.conv1.weight": weight}}
    torch.save(content, folder / "small_ep4k.model")
    fetch.fetch("stu-net-s", hub=LocalHub(tmp_path / "hub"))
    found = read_encoder_weights("stu-net-s")
    assert found.kind == "STU-Net"
    assert [theirs.name for theirs in found.tensors.values()] == list(content["state_dict"])


def test_an_unknown_name_is_refused_with_what_is_near() -> None:
    with pytest.raises(ModelError, match=r"Did you mean voxtell-v1\.1"):
        find_entry("voxtel")


def test_the_registry_loads_no_torch() -> None:
    check = "import textseg.registry.fetch, textseg.registry.pack, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# ---- fetching ----


def test_what_is_fetched_is_a_model_by_its_name(hub: LocalHub, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = fetched(hub, progress=lambda *step: seen.append(step))
    assert folder == cache / NAME / "voxtell_v1.1"
    assert sorted(hub.fetched) == FILES
    model = find_model(NAME)
    assert (model.kind, model.path) == ("voxtell", folder)
    assert "text_embeddings.npz" in model.files
    assert [each.name for each in fetched_models()] == [NAME]
    # The newest goes by the project's own name.
    assert find_model("voxtell") == model
    assert find_entry("voxtell") == find_entry(NAME)
    note = read_note(find_entry(NAME))
    assert (note.revision, note.repository, note.licence) == (COMMIT, "mrokuss/VoxTell", "CC BY-NC-SA")
    assert {path: file.sha256 for path, file in note.files.items()} == {
        path: sha256_of(cache / NAME / path) for path in FILES
    }
    assert seen[-1][1] == seen[-1][2] == note.size_bytes
    assert verify(NAME) == []


def test_what_is_here_is_not_fetched_again_unasked(hub: LocalHub) -> None:
    fetched(hub)
    fetched(hub, accept_licence=False)
    assert len(hub.fetched) == 3
    fetched(hub, accept_licence=False, again=True)
    assert len(hub.fetched) == 6
    assert verify(NAME) == []


def test_a_fetch_goes_on_where_it_stopped(hub: LocalHub, cache: Path) -> None:
    hub.fails_at = "voxtell_v1.1/fold_0/checkpoint_final.pth"
    with pytest.raises(ModelError, match=r"line went dead.*run it again to go on"):
        fetched(hub)
    assert not find_entry(NAME).is_here
    assert hub.fetched == ["voxtell_v1.1/plans.json"]
    fetched(hub)
    assert sorted(hub.fetched) == FILES
    assert sorted(path.name for path in cache.iterdir()) == ["licences.json", NAME]


def test_a_file_that_is_not_the_hubs_is_taken_away(hub: LocalHub, cache: Path) -> None:
    hub.wrong_hash = "checkpoint_final.pth"
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth has .* not 000000000000…"):
        fetched(hub)
    assert not find_entry(NAME).is_here
    assert not list(cache.rglob("checkpoint_final.pth"))
    hub.wrong_hash = None
    fetched(hub)
    assert verify(NAME) == []


def test_a_file_that_is_not_the_registrys_is_refused(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_entry(NAME)
    pinned = entry.files[0].model_copy(update={"sha256": "1" * 64})
    entry = entry.model_copy(update={"files": (pinned, *entry.files[1:])})
    monkeypatch.setattr(fetch, "find_entry", lambda name: entry)
    with pytest.raises(ModelError, match=r"plans\.json has .* not 111111111111…"):
        fetched(hub)


def test_a_file_that_the_repository_lacks_is_named(hub: LocalHub, repositories: Path, tmp_path: Path) -> None:
    shutil.copytree(repositories, tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / "mrokuss" / "VoxTell" / "embeddings")
    with pytest.raises(ModelError, match=r"no such file\. Was it moved"):
        fetched(LocalHub(tmp_path / "hub"))


def test_a_cache_that_can_not_be_written_is_named(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="TEXTSEG_CACHE chooses another folder"):
        fetched(hub)


# ---- licence and network ----


def test_a_licence_is_accepted_once(hub: LocalHub, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"CC BY-NC-SA, which forbids commercial use.*--accept-licence"):
        fetched(hub, accept_licence=False)
    assert hub.fetched == []
    fetched(hub)
    remove(NAME)
    fetched(hub, accept_licence=False)
    assert json.loads((cache / "licences.json").read_text(encoding="utf-8"))["accepted"] == {
        NAME: "CC BY-NC-SA"
    }


@pytest.mark.parametrize("variable", ["TEXTSEG_OFFLINE", "HF_HUB_OFFLINE"])
def test_without_network_nothing_is_asked_for(
    variable: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "0")
    assert offline_because() is None
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelError, match=f"which {variable} forbids.*weights pack"):
        fetched(hub)
    assert hub.fetched == []
    monkeypatch.delenv(variable)
    fetched(hub)
    monkeypatch.setenv(variable, "1")
    assert fetched(hub).is_dir()


def test_without_the_hubs_library_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install huggingface_hub\. Or bring .*weights pack"):
        fetch.fetch(NAME, accept_licence=True)
    assert find_local("nobody/has-this-encoder") is None


def test_the_hubs_own_library_is_asked_for_one_commit(
    repositories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are replaced; how it is called is what is tested."""
    import huggingface_hub

    local = LocalHub(repositories)
    calls = []

    siblings = [
        SimpleNamespace(rfilename=file.path, size=file.bytes, lfs=SimpleNamespace(sha256=file.sha256))
        for file in local.files("mrokuss/VoxTell", None)[1]
    ]
    info = SimpleNamespace(sha=COMMIT, siblings=siblings)

    def download(
        repository: str, path: str, *, revision: str, local_dir: Path, tqdm_class: type | None = None
    ) -> None:
        calls.append((repository, path, revision))
        if tqdm_class is not None:
            with tqdm_class(total=10, unit="B", name="x", disable=False) as bar:
                bar.update(10)
        local.download(repository, revision, path, local_dir, lambda n: None)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    seen: list[int] = []
    fetch.fetch(
        NAME, accept_licence=True, hub=HuggingFace(), progress=lambda stage, done, of: seen.append(done)
    )
    assert sorted(path for _, path, _ in calls) == FILES
    assert {(repository, commit) for repository, _, commit in calls} == {("mrokuss/VoxTell", COMMIT)}
    assert seen == [10, 20, 30]


def test_what_the_hubs_library_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    def refuse(*_: object, **__: object) -> None:
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(
        ModelError, match=r"can't be fetched from mrokuss/VoxTell \(RevisionNotFoundError"
    ) as error:
        fetch.fetch(NAME, accept_licence=True)
    assert "\n" not in str(error.value)


# ---- what is here ----


def test_changes_are_noticed(hub: LocalHub, cache: Path) -> None:
    fetched(hub)
    plans, bank, checkpoint = (cache / NAME / path for path in (FILES[2], FILES[0], FILES[1]))
    plans.unlink()
    bank.write_bytes(bank.read_bytes() + b"x")
    content = bytearray(checkpoint.read_bytes())
    content[100] ^= 1
    checkpoint.write_bytes(content)
    wrong = "; ".join(verify(NAME))
    assert f"{FILES[2]} is missing" in wrong
    assert "bytes instead of" in wrong
    assert f"{FILES[1]} has changed" in wrong
    with pytest.raises(ModelError, match="Only whole weights are packed"):
        pack(cache / "bundle.zip")


def test_what_is_not_here_is_said_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=f"textseg weights fetch {NAME}"):
        find_model("voxtell")
    for ask in (verify, convert_fetched, find_model):
        with pytest.raises(ModelError, match=f"textseg weights fetch {NAME}"):
            ask(NAME)
    with pytest.raises(ModelError, match="nothing to remove"):
        remove(NAME)


def test_removing_takes_everything(hub: LocalHub, cache: Path) -> None:
    size = sum(path.stat().st_size for path in fetched(hub).parent.rglob("*") if path.is_file())
    assert remove(NAME) == size
    assert [path.name for path in cache.iterdir()] == ["licences.json"]


def test_converting_leaves_no_pickle(hub: LocalHub, cache: Path) -> None:
    folder = fetched(hub)
    before = read_note(find_entry(NAME)).size_bytes
    saved = convert_fetched(NAME)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "network.safetensors",
        "plans.json",
        "text_embeddings.npz",
    ]
    assert 0 < saved == before - read_note(find_entry(NAME)).size_bytes
    assert verify(NAME) == []
    assert find_model(NAME).kind == "voxtell"
    assert convert_fetched(NAME) == 0


# ---- onto another machine ----


@pytest.fixture
def bundle(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written on one machine; the test goes on at another one, without network."""
    fetched(hub)
    assert pack(tmp_path / "stick" / "weights.zip") == [NAME]
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("TEXTSEG_OFFLINE", "1")
    return tmp_path / "stick" / "weights.zip"


def test_a_bundle_goes_to_a_machine_without_network(bundle: Path) -> None:
    assert unpack(bundle, accept_licence=True) == [NAME]
    assert verify(NAME) == []
    assert find_model(NAME).kind == "voxtell"
    assert sorted(path.name for path in weights_folder().iterdir()) == ["licences.json", NAME]
    assert [path.name for path in bundle.parent.iterdir()] == ["weights.zip"]


def test_the_licence_is_accepted_on_the_other_machine_too(bundle: Path) -> None:
    with pytest.raises(ModelError, match=r"CC BY-NC-SA, which forbids commercial use.*--accept-licence"):
        unpack(bundle)
    assert not weights_folder().exists()
    unpack(bundle, accept_licence=True)
    remove(NAME)
    assert unpack(bundle) == [NAME]


def test_a_bundle_is_not_replaced_unasked(hub: LocalHub, tmp_path: Path) -> None:
    fetched(hub)
    bundle = tmp_path / "weights.zip"
    bundle.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        pack(bundle)
    assert bundle.read_text(encoding="utf-8") == "precious"
    pack(bundle, [NAME], overwrite=True)
    assert zipfile.is_zipfile(bundle)


def test_nothing_to_pack_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no fetched weights"):
        pack(tmp_path / "weights.zip")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_bundle_is_refused(kept: float, bundle: Path) -> None:
    content = bundle.read_bytes()
    bundle.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelError, match="Copy it again"):
        unpack(bundle, accept_licence=True)
    assert not find_entry(NAME).is_here


def test_a_damaged_or_hostile_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    def rewritten(change: object) -> Path:
        path = tmp_path / "changed.zip"
        with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(*change(name, old.read(name)))  # type: ignore[operator]
        return path

    def flipped(name: str, content: bytes) -> tuple[str, bytes]:
        return name, content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(".pth") else content

    def escaping(name: str, content: bytes) -> tuple[str, bytes]:
        out = "../" * 3 + "escaped"
        return (
            name.replace(FILES[2], out),
            content.replace(FILES[2].encode(), out.encode()) if name.endswith(".json") else content,
        )

    with pytest.raises(ModelError, match="is damaged"):
        unpack(rewritten(flipped), accept_licence=True)
    with pytest.raises(ModelError, match="lie in their own folder"):
        unpack(rewritten(escaping), accept_licence=True)
    assert not list(tmp_path.rglob("escaped"))
    with pytest.raises(ModelError, match=r"not voxtell-v1\.0"):
        unpack(bundle, ["voxtell-v1.0"])
    with pytest.raises(ModelError, match="is not there"):
        unpack(tmp_path / "nowhere.zip")
    assert not find_entry(NAME).is_here


def test_a_damaged_note_is_said(hub: LocalHub, cache: Path) -> None:
    fetched(hub)
    (cache / NAME / entries.NOTE_FILE).write_text("{")
    with pytest.raises(ModelError, match=r"Fetch .* again with --again"):
        verify(NAME)
