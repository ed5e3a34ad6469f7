"""`textseg predict` from the outside: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.cli.conftest import AFFINE, BOX, Run, Stub
from tests.dataset.two_channel_model import write_pet_ct_model
from textseg.models import shipped_models
from textseg.scan import read_label_map, read_scan

FolderOf = Callable[[], list[str]]


def dice_with_box(mask: NDArray[Any]) -> float:
    box = np.zeros(mask.shape, bool)
    box[BOX] = True
    return float(2 * (box & (mask > 0)).sum() / (box.sum() + (mask > 0).sum()))


def test_a_mask_lies_on_the_scans_own_grid(predict: Run, stub: Stub, out: Path, folder_of: FolderOf) -> None:
    result = predict("liver")
    assert result.exit_code == 0, result.output
    assert folder_of() == ["scan_liver.nii.gz", "scan_liver_record.json"]
    mask = nib.load(out / "scan_liver.nii.gz")
    assert np.array_equal(mask.affine, AFFINE)
    assert dice_with_box(np.asarray(mask.dataobj)) > 0.85


def test_the_record_tells_what_was_done(predict: Run, stub: Stub, out: Path, scan: Path) -> None:
    predict("the left renal tumour", "--clean-up", "--modality", "ct")
    record = json.loads((out / "scan_the_left_renal_tumour_record.json").read_text(encoding="utf-8"))
    (prompt,) = record["prompts"]
    assert prompt["prompt"] == "the left renal tumour"
    assert prompt["understood_as"] == "left kidney tumor"
    assert (prompt["structure"], prompt["side"], prompt["presence"]) == ("left_kidney", "left", 0.9)
    assert prompt["file"] == "scan_the_left_renal_tumour.nii.gz"
    # The box is 8 × 10 × 8 voxels of 15 cubic millimetres; the working grid rounds its border.
    assert prompt["volume_ml"] == pytest.approx(9.6, rel=0.25)
    centre = AFFINE[:3] @ (9.5, 18.5, 11.5, 1)
    assert prompt["centroid_mm"] == pytest.approx(centre, abs=1.5)
    low, high = prompt["box_mm"]
    assert all(a < c < b for a, c, b in zip(low, centre, high, strict=True))
    assert record["scan"]["files"] == [str(scan)]
    assert (record["scan"]["modality"], record["clean_up"]) == ("ct", True)
    assert record["model"]["plan"] == "tiny"
    assert set(record["model"]["sha256"]) >= {"plan.json", "network.safetensors"}
    assert all(record[key] for key in ("textseg", "time", "device"))


def test_what_is_not_found_is_said_and_not_written(predict: Run, stub: Stub, folder_of: FolderOf) -> None:
    stub.presences = [0.03]
    result = predict("left kidney")
    assert result.exit_code == 3
    assert "not found: 'left kidney' (presence 0.03)" in result.stdout
    assert folder_of() == ["scan_left_kidney_record.json"]


def test_an_empty_mask_is_written_when_asked_for(predict: Run, stub: Stub, out: Path) -> None:
    stub.presences = [0.03]
    assert predict("left kidney", "--write-empty").exit_code == 3
    assert not read_label_map(out / "scan_left_kidney.nii.gz").labels.any()


def test_one_of_two_found_is_a_success(predict: Run, stub: Stub, folder_of: FolderOf) -> None:
    stub.presences = [0.1, 0.8]
    result = predict("liver", "spleen")
    assert result.exit_code == 0
    assert "not found: 'liver'" in result.stdout
    assert folder_of() == ["scan_liver_spleen_record.json", "scan_spleen.nii.gz"]


def test_prompts_of_one_name_get_different_files(predict: Run, stub: Stub, folder_of: FolderOf) -> None:
    predict("left kidney", "Left Kidney!")
    assert {"scan_left_kidney.nii.gz", "scan_left_kidney_2.nii.gz"} <= set(folder_of())


def test_files_that_are_there_are_refused_before_the_work(predict: Run, stub: Stub, out: Path) -> None:
    out.mkdir()
    (out / "scan_spleen.nii.gz").write_text("precious")
    result = predict("liver", "spleen")
    assert result.exit_code == 2
    assert "already holds scan_spleen.nii.gz" in result.stderr
    assert stub.calls == 0
    assert [path.read_text(encoding="utf-8") for path in out.iterdir()] == ["precious"]


def test_two_runs_on_one_scan_live_side_by_side(predict: Run, stub: Stub, folder_of: FolderOf) -> None:
    assert predict("liver").exit_code == predict("spleen").exit_code == 0
    assert len(folder_of()) == 4


def test_overwrite_leaves_what_an_empty_folder_would_hold(
    predict: Run, stub: Stub, out: Path, folder_of: FolderOf
) -> None:
    predict("liver", "spleen")
    (out / "scan_liver.nii.gz").write_text("older")
    stub.presences = [0.9, 0.1]
    assert predict("liver", "spleen", "--overwrite").exit_code == 0
    assert folder_of() == ["scan_liver.nii.gz", "scan_liver_spleen_record.json"]
    assert read_label_map(out / "scan_liver.nii.gz").labels.any()


def test_a_scan_is_never_written_over(predict: Run, stub: Stub, scan: Path) -> None:
    before = scan.read_bytes()
    result = predict("liver", "--overwrite", out=scan)
    assert result.exit_code == 2
    assert "the place of its scan" in result.stderr
    assert scan.read_bytes() == before


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_masks_are_written_in_the_format_asked_for(predict: Run, stub: Stub, out: Path, ending: str) -> None:
    assert predict("liver", "--format", ending).exit_code == 0
    mask = read_label_map(out / f"scan_liver.{ending}")
    assert np.allclose(mask.geometry.affine, AFFINE)
    assert dice_with_box(mask.labels) > 0.85


def test_out_may_name_the_file(predict: Run, stub: Stub, out: Path, folder_of: FolderOf) -> None:
    assert predict("liver", "--preview", out=out / "mine.nrrd").exit_code == 0
    assert folder_of() == ["mine.nrrd", "mine_preview.png", "mine_record.json"]


def test_one_file_name_for_two_masks_is_refused(predict: Run, stub: Stub, out: Path) -> None:
    result = predict("liver", "spleen", out=out / "mine.nrrd")
    assert (result.exit_code, stub.calls) == (2, 0)
    assert "for 2 prompts" in result.stderr


def test_a_file_name_that_contradicts_the_format_is_refused(predict: Run, out: Path) -> None:
    result = predict("liver", "--format", "mha", out=out / "mine.nrrd")
    assert result.exit_code == 2
    assert "must agree" in result.stderr


def test_masks_go_to_the_current_folder_by_default(
    textseg: Run, stub: Stub, scan: Path, tiny_model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir()
    monkeypatch.chdir(out)
    assert textseg("predict", scan, "liver", "--model", tiny_model).exit_code == 0
    assert (out / "scan_liver.nii.gz").is_file()


def test_combined_gives_one_label_map_with_a_legend(predict: Run, stub: Stub, out: Path) -> None:
    stub.presences = [0.1, 0.9]
    assert predict("liver", "spleen", "--combined").exit_code == 0
    label_map = read_label_map(out / "scan_labels.nii.gz")
    # The second prompt is label 2 also where the first is not found.
    assert np.unique(label_map.labels).tolist() == [0, 2]
    assert label_map.names[2] == "spleen"


def test_a_preview_is_a_picture(predict: Run, stub: Stub, out: Path) -> None:
    predict("liver", "--preview")
    with Image.open(out / "scan_liver_preview.png") as picture:
        assert picture.width > picture.height > 200


def test_a_preview_of_nothing_is_a_picture_too(predict: Run, stub: Stub, out: Path) -> None:
    stub.presences = [0.1, 0.2]
    assert predict("liver", "spleen", "--preview").exit_code == 3
    assert (out / "scan_liver_spleen_preview.png").is_file()


def test_json_puts_the_record_and_nothing_else_on_stdout(predict: Run, stub: Stub, out: Path) -> None:
    stub.presences = [0.9, 0.03]
    result = predict("spleeen", "liver", "--json")
    assert json.loads(result.stdout) == json.loads(
        (out / "scan_spleeen_liver_record.json").read_text(encoding="utf-8")
    )
    assert "'spleeen' is understood as 'spleen'" in result.stderr
    assert "not found: 'liver' (presence 0.03)" in result.stderr


def test_quiet_prints_nothing(predict: Run, stub: Stub) -> None:
    stub.presences = [0.1]
    result = predict("florb", "--quiet")
    assert (result.exit_code, result.output) == (3, "")


def test_progress_is_shown_on_a_terminal_only(
    predict: Run, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "writing" not in predict("liver").stderr
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "writing" in predict("liver", "--overwrite").stderr
    assert "writing" not in predict("liver", "--overwrite", "--quiet").stderr


def test_quiet_json_is_the_record_alone(predict: Run, stub: Stub) -> None:
    result = predict("florb", "--quiet", "--json")
    assert (json.loads(result.stdout)["prompts"][0]["prompt"], result.stderr) == ("florb", "")


def test_prompts_come_from_a_file_too(predict: Run, stub: Stub, out: Path, tmp_path: Path) -> None:
    # The mark at the beginning is what Windows editors put there.
    (tmp_path / "prompts.txt").write_text("\ufeff# organs\nspleen\n\n  left kidney  \n", encoding="utf-8")
    assert predict("liver", "--prompts-file", tmp_path / "prompts.txt", "--json").exit_code == 0
    names = {path.name for path in out.glob("*.nii.gz")}
    assert names == {"scan_liver.nii.gz", "scan_spleen.nii.gz", "scan_left_kidney.nii.gz"}


def test_an_unknown_prompt_is_used_but_noted(predict: Run, stub: Stub) -> None:
    result = predict("florb", "qqqq")
    assert result.exit_code == 0
    first, second = result.stderr.splitlines()
    assert first.startswith("Note: 'florb' is not in the lexicon; nearest: orbits")
    assert second == "Note: 'qqqq' is not in the lexicon; its words are used as they are."


def test_sides_are_checked_when_asked_for(predict: Run, stub: Stub, out: Path) -> None:
    # The stub marks the box whatever side is asked for.
    result = predict("left kidney", "liver", "--check-sides")
    assert result.exit_code == 0, result.output
    assert stub.calls == 2
    assert "left kidney: mirrored scan asked for 'right kidney', Dice 1.00" in result.stdout
    assert "liver: mirrored scan asked the same, Dice 1.00" in result.stdout
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("Warning:")]
    assert "not told apart for 'left kidney'" in warning
    (record,) = out.glob("*_record.json")
    kidney, liver = json.loads(record.read_text(encoding="utf-8"))["prompts"]
    assert (kidney["mirrored"]["dice"], liver["mirrored"]["warning"]) == (1.0, None)


def test_sides_are_not_checked_otherwise(predict: Run, stub: Stub) -> None:
    assert "mirrored" not in predict("left kidney").output
    assert stub.calls == 1


def test_words_that_are_not_understood_are_named(predict: Run, stub: Stub) -> None:
    assert "these words are not understood: thingy" in predict("left kidney thingy").stderr


def test_brackets_in_a_prompt_are_not_markup(predict: Run, stub: Stub) -> None:
    assert "liver [red]lesion[/red]" in predict("liver [red]lesion[/red]").stdout


def test_a_readers_warning_is_passed_on(
    predict: Run, stub: Stub, tmp_path: Path, scan_voxels: NDArray[np.int16]
) -> None:
    image = nib.Nifti1Image(scan_voxels, None)
    image.header.set_zooms((2, 2.5, 3))
    nib.save(image, tmp_path / "bare.nii")
    result = predict("liver", scan=tmp_path / "bare.nii")
    assert result.exit_code == 0
    assert "Warning: The header has neither sform nor qform" in result.stderr


def test_a_volume_of_a_4d_scan_is_chosen(
    predict: Run, stub: Stub, tmp_path: Path, scan_voxels: NDArray[np.int16]
) -> None:
    nib.save(nib.Nifti1Image(np.stack([scan_voxels[::-1], scan_voxels], -1), AFFINE), tmp_path / "4d.nii")
    refused = predict("liver", scan=tmp_path / "4d.nii")
    assert refused.exit_code == 2
    assert "--volume" in refused.stderr
    result = predict("liver", "--volume", 1, "--json", scan=tmp_path / "4d.nii")
    assert json.loads(result.stdout)["scan"]["details"]["volume"] == 1


def test_a_channel_too_many_is_refused(predict: Run, stub: Stub, scan: Path) -> None:
    result = predict("liver", "--channel", scan)
    assert result.exit_code == 2
    assert "takes 1 channel" in result.stderr


@pytest.fixture(scope="session")
def pet_ct_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pet_ct_model(tmp_path_factory.mktemp("models") / "pet_ct")


def test_a_channel_on_another_grid_is_brought_over_and_said(
    predict: Run, stub: Stub, pet_ct_model: Path, scan: Path, out: Path, tmp_path: Path
) -> None:
    shifted = AFFINE.copy()
    shifted[:3, 3] += (-4, 5, 0)
    nib.save(nib.Nifti1Image(np.random.default_rng(1).random((22, 28, 22)), shifted), tmp_path / "pet.nii")
    result = predict("liver", "--channel", tmp_path / "pet.nii", model=pet_ct_model)
    assert result.exit_code == 0, result.output
    assert "Note: pet.nii lies on another grid than scan.nii.gz" in result.stderr
    record = json.loads((out / "scan_liver_record.json").read_text(encoding="utf-8"))
    assert record["scan"]["files"] == [str(scan), str(tmp_path / "pet.nii")]
    assert [channel["regridded"] for channel in record["scan"]["channels"]] == [False, True]
    assert np.array_equal(nib.load(out / "scan_liver.nii.gz").affine, AFFINE)


def test_too_few_channels_are_refused_before_the_scan_is_read(
    predict: Run, pet_ct_model: Path, folder_of: FolderOf
) -> None:
    result = predict("liver", model=pet_ct_model, scan="nowhere.nii.gz")
    assert (result.exit_code, folder_of()) == (2, [])
    assert "takes 2 channel(s) (CT, PET), got 1. Give one file a channel" in result.stderr
    assert "--channel" in result.stderr


def test_a_further_channel_is_never_written_over(
    predict: Run, stub: Stub, pet_ct_model: Path, tmp_path: Path, scan_voxels: NDArray[np.int16]
) -> None:
    pet = tmp_path / "pet.nii.gz"
    nib.save(nib.Nifti1Image(scan_voxels, AFFINE), pet)
    before = pet.read_bytes()
    result = predict("liver", "--channel", pet, "--overwrite", model=pet_ct_model, out=pet)
    assert result.exit_code == 2
    assert "the place of its scan" in result.stderr
    assert pet.read_bytes() == before


def test_a_modality_that_is_given_is_used(predict: Run, stub: Stub) -> None:
    assert json.loads(predict("liver", "--modality", "mr", "--json").stdout)["scan"]["modality"] == "mr"


def test_a_folder_named_by_a_dot_still_names_the_masks(
    predict: Run,
    stub: Stub,
    out: Path,
    tmp_path: Path,
    write_series: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(write_series("chest", number=3))
    assert predict("liver", scan=".").exit_code == 0
    assert (out / "chest_liver.nii.gz").is_file()


def test_a_series_of_a_folder_is_chosen(
    predict: Run, stub: Stub, out: Path, write_series: Callable[..., Path]
) -> None:
    write_series("study", number=3)
    folder = write_series("study", number=4)
    result = predict("liver", "--series", "4", "--json", scan=folder)
    assert json.loads(result.stdout)["scan"]["details"]["series_number"] == 4
    assert read_label_map(out / "study_liver.nii.gz").geometry.is_close(
        read_scan(folder, series="4").geometry
    )


def test_the_whole_of_it_runs_with_a_real_network(predict: Run, out: Path) -> None:
    result = predict("liver", "left hippocampus", "--device", "cpu", "--threads", 1, "--write-empty")
    assert result.exit_code in (0, 3), result.output
    assert len(list(out.glob("*.nii.gz"))) == 2


def test_the_default_model_runs(textseg: Run, scan: Path, out: Path) -> None:
    if "default" not in [model.name for model in shipped_models()]:
        pytest.skip("The default model's weights are not in plans/default yet.")
    result = textseg("predict", scan, "liver", "-o", out, "--write-empty")
    assert result.exit_code in (0, 3), result.output
    assert (out / "scan_liver.nii.gz").is_file()


# ---- how it ends when it must ----


def test_what_should_not_fail_is_one_sentence(
    predict: Run, stub: Stub, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.error = ValueError("a bug\nwith details")
    result = predict("liver")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: Something failed that should not have (ValueError: a bug); "
        "run with TEXTSEG_DEBUG=1 for the traceback.\n"
    )
    assert folder_of() == []
    monkeypatch.setenv("TEXTSEG_DEBUG", "1")
    assert predict("liver").exception is stub.error


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")]
)
def test_too_little_memory_is_said_in_words(predict: Run, stub: Stub, error: Exception) -> None:
    stub.error = error
    result = predict("liver")
    assert result.exit_code == 1
    assert "memory is not enough" in result.stderr


def test_an_interrupt_leaves_nothing(predict: Run, stub: Stub, folder_of: FolderOf) -> None:
    stub.error = KeyboardInterrupt()
    result = predict("liver")
    assert (result.exit_code, result.stderr) == (130, "Error: Stopped.\n")
    assert folder_of() == []
