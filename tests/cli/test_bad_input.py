"""Every kind of bad input: one sentence on stderr, exit code 2, and nothing written, not even half."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # its own documentation calls it so
import torch
from numpy.typing import NDArray

from tests.cli.conftest import AFFINE, Run, Stub

FolderOf = Callable[[], list[str]]
Voxels = NDArray[np.int16]
Make = Callable[[Path, Voxels], None]


def _save(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = AFFINE) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


def _empty(path: Path, voxels: Voxels) -> None:
    path.write_bytes(b"")


def _truncated(path: Path, voxels: Voxels) -> None:
    _save(path, voxels)
    path.write_bytes(path.read_bytes()[:3000])


def _text(path: Path, voxels: Voxels) -> None:
    path.write_text("<html>404: the scan has moved</html>\n" * 20, encoding="utf-8")


def _flat(path: Path, voxels: Voxels) -> None:
    _save(path, voxels[:, :, 5])


def _spacing(number: float) -> Make:
    def make(path: Path, voxels: Voxels) -> None:
        image = nib.Nifti1Image(voxels, None)
        image.header["pixdim"][3] = number
        nib.save(image, path)

    return make


def _singular(path: Path, voxels: Voxels) -> None:
    affine = AFFINE.copy()
    affine[:3, 2] = affine[:3, 1]
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(affine, code=1)
    nib.save(image, path)


def _voxel(number: float) -> Make:
    def make(path: Path, voxels: Voxels) -> None:
        damaged = voxels.astype(np.float32)
        damaged[3, 5, 7] = number
        _save(path, damaged)

    return make


def _constant(number: int) -> Make:
    return lambda path, voxels: _save(path, np.full_like(voxels, number))


def _coloured(path: Path, voxels: Voxels) -> None:
    colours = np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = voxels > 0
    _save(path, colours)


def _no_dicom(path: Path, voxels: Voxels) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("no images here", encoding="utf-8")


BAD_SCANS: dict[str, tuple[Make, str]] = {
    "missing file": (lambda path, voxels: None, "there is no file or folder"),
    "empty file": (_empty, "is empty"),
    "truncated gzip": (_truncated, "stops early or is damaged"),
    "text renamed": (_text, "Was it renamed"),
    "2D image": (_flat, "must be 3D"),
    "zero spacing": (_spacing(0), "Spacing must be three positive numbers"),
    "NaN spacing": (_spacing(np.nan), "Spacing must be three positive numbers"),
    "singular affine": (_singular, ""),
    "NaN voxels": (_voxel(np.nan), "are NaN"),
    "infinite voxels": (_voxel(np.inf), "are infinite"),
    "constant image": (_constant(40), "every voxel of bad.nii.gz is 40"),
    "all-zero image": (_constant(0), "every voxel of bad.nii.gz is 0"),
    "RGB": (_coloured, "colours"),
    "folder without DICOM": (_no_dicom, "must hold DICOM files"),
}


@pytest.fixture
def refused(
    predict: Run, stub: Stub, folder_of: FolderOf, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs predict, checks everything that all refusals share, and gives the sentence."""

    def run(*arguments: object, **instead: object) -> str:
        result = predict(*arguments, **instead)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert "Traceback" not in line
        assert line.endswith((".", "?", ")", "'"))
        assert stub.calls == 0, "refused only after the work"
        assert folder_of() == []
        # Libraries in C write past Python's stderr.
        assert capfd.readouterr() == ("", "")
        return str(line)

    return run


@pytest.mark.parametrize("kind", BAD_SCANS)
def test_bad_scan(refused: Callable[..., str], tmp_path: Path, scan_voxels: Voxels, kind: str) -> None:
    make, words = BAD_SCANS[kind]
    make(tmp_path / "bad.nii.gz", scan_voxels)
    assert words in refused("liver", scan=tmp_path / "bad.nii.gz")


def test_bad_scan_cut_off_in_another_format(
    refused: Callable[..., str], tmp_path: Path, scan_voxels: Voxels
) -> None:
    path = tmp_path / "bad.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(scan_voxels), path, useCompression=True)
    path.write_bytes(path.read_bytes()[:-4000])
    assert "can't be read" in refused("liver", scan=path)


def test_bad_scan_empty_name(refused: Callable[..., str]) -> None:
    assert "empty name" in refused("liver", scan="")


def test_mixed_series(refused: Callable[..., str], write_series: Callable[..., Path]) -> None:
    write_series("study", number=3)
    sentence = refused("liver", scan=write_series("study", number=4))
    assert "holds 2 series; choose one with --series UID" in sentence


def test_a_mistake_is_told_before_torch_is_loaded(tiny_model: Path) -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from textseg_cli.main import app; "
        f"result = CliRunner().invoke(app, ['predict', 'none.nii', 'liver', '--model', '{tiny_model}']); "
        "print(result.exit_code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "2 False\n"


@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
def test_unwritable_output(refused: Callable[..., str], tmp_path: Path, place: str) -> None:
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("Needs a file system that nobody may write to.")
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    assert "can't be written to" in refused("liver", out=tmp_path / place)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "must not be empty"),
        ("   ", "must not be empty"),
        ("a" * 10_000, "10,000 characters"),
        ("左肾", "Chinese script"),
        ("левая почка", "Cyrillic script"),
    ],
    ids=["empty", "spaces", "10,000 characters", "Chinese", "Cyrillic"],
)
def test_bad_prompt(refused: Callable[..., str], prompt: str, words: str) -> None:
    assert words in refused("liver", prompt)


def test_no_prompt(refused: Callable[..., str]) -> None:
    assert "At least one prompt" in refused()


def test_prompts_file_that_is_missing(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "prompts file" in refused("--prompts-file", tmp_path / "none.txt")


def test_prompts_file_that_is_no_text(refused: Callable[..., str], scan: Path) -> None:
    assert "UTF-8" in refused("--prompts-file", scan)


def test_unknown_model(refused: Callable[..., str]) -> None:
    assert "'defualt', which is neither" in refused("liver", model="defualt")


@pytest.mark.parametrize(
    "name", ["network.safetensors", "text_tower.safetensors", "vocabulary.json", "plan.json"]
)
def test_damaged_model(refused: Callable[..., str], tiny_model: Path, tmp_path: Path, name: str) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    whole = (model / name).read_bytes()
    (model / name).write_bytes(whole[: len(whole) // 2])
    assert name in refused("liver", model=model)


def test_weights_of_another_plan(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    plan = (model / "plan.json").read_text(encoding="utf-8")
    (model / "plan.json").write_text(plan.replace('"width": 8', '"width": 16'), encoding="utf-8")
    assert "must fit its plan" in refused("liver", model=model)


def test_device_that_is_not_there(refused: Callable[..., str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("There is a CUDA device.")
    assert "the device cuda needs" in refused("liver", "--device", "cuda").lower()


# The last mask is of noise, which no compression gets below the limit. Beyond the limit the kernel refuses to
# write, as on a full disk, and unlike a full disk it needs no rights to arrange.
FULL_DISK = """
import resource, sys
import torch
import textseg.inference
from textseg.sliding import Answer
from textseg_cli.main import main

def answer(network, image, text, *rest):
    logits = torch.full((len(text), *image.shape[1:]), -10.0)
    logits[:, 2:5, 3:9, 4:7] = 10.0
    logits[-1] = torch.randn(image.shape[1:]) * 10
    return Answer(logits, torch.ones(len(text)))

textseg.inference.segment_windows = answer
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
main()
"""


def test_full_disk(scan: Path, tiny_model: Path, out: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="Needs a system with limits on file sizes.")
    out.mkdir()
    (out / "scan_liver.nii.gz").write_text("an older mask, to be replaced", encoding="utf-8")
    command = [sys.executable, "-c", FULL_DISK, "predict", scan, "liver", "spleen", "stomach"]
    options = ["--model", tiny_model, "-o", out, "--overwrite"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {out / 'scan_stomach.nii.gz'} can't be written")
    # What was there is whole, and of what came before the failure nothing stays.
    assert folder_of() == ["scan_liver.nii.gz"]
    assert (out / "scan_liver.nii.gz").read_text(encoding="utf-8") == "an older mask, to be replaced"
