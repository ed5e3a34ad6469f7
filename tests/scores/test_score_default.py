"""The program that scores the default for its card: what it asks of which cases, and makes of answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from textseg.prompts import understand
from textseg.result import Found, Segmentation, describe_mask
from textseg.scan import read_label_map, read_scan

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "score_default.py"
SHAPE, AFFINE = (12, 14, 10), np.diag([1.5, 2.0, 3.0, 1.0])
LEFT_CORTEX, LEFT_PARCEL, THALAMUS = 3, 11_105, 10


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    specification = importlib.util.spec_from_file_location("textseg_score_default", PROGRAM)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    # Scored in this process.
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    return module


def write(path: Path, values: dict[int, tuple[slice, ...]] | None = None) -> None:
    """A label map with these boxes, or noise without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(1).integers(0, 99, SHAPE).astype(np.int32)
    if values is not None:
        voxels[:] = 0
        for value, box in values.items():
            voxels[box] = value
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


LOW, HIGH = np.s_[1:5, 2:9, 3:8], np.s_[7:11, 3:8, 2:6]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """As the sets of the recipe lie: five crops, sarcomas of five patients, CTs labelled in part, heads."""
    folder = tmp_path / "data"

    def dataset(name: str, cases: list[str], labels: dict[str, int], **boxes: Any) -> Path:
        for case in cases:
            write(folder / name / "imagesTr" / f"{case}_0000.nii.gz")
            write(folder / name / "labelsTr" / f"{case}.nii.gz", boxes or {1: LOW, 2: HIGH})
        (folder / name / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))
        return folder / name

    crops = [f"hippocampus_{n:03d}" for n in range(1, 6)]
    dataset("Dataset001_Hippocampus", crops, {"anterior hippocampus": 1, "posterior hippocampus": 2})
    sarcomas = [f"STS_{n:03d}_{kind}" for n in range(1, 6) for kind in ("CT", "PET")]
    dataset("Dataset002_Sarcoma", sarcomas, {"soft tissue sarcoma": 1})
    dataset("Dataset003_TorsoCT", ["torso"], {"liver": 1})
    partly = dataset(
        "Dataset004_PartlyLabelledCT", ["chest", "abdomen_portal", "other"], {"liver": 1, "heart": 2}
    )
    complete = {"chest": {"complete": ["liver"]}, "abdomen_portal": {"complete": ["liver", "heart"]}}
    (partly / "annotated.json").write_text(json.dumps(complete))
    (folder / "labelmaps" / "brain").mkdir(parents=True)
    names = {"left cerebral cortex": LEFT_CORTEX, "right cerebral cortex": 42, "left thalamus": THALAMUS}
    (folder / "labelmaps" / "brain" / "names.json").write_text(json.dumps({"labels": names}))
    write(folder / "validation" / "brain_t1_image.nii.gz")
    write(folder / "validation" / "brain_t1_labels.nii.gz", {LEFT_PARCEL: LOW, THALAMUS: HIGH})
    for name in ("flair", "t2"):
        write(folder / "validation" / "ms" / f"{name}.nii.gz")
    write(folder / "validation" / "ms" / "lesions.nii.gz", {1: LOW})
    return folder


class Perfect:
    """A model that answers what the labels say, but takes hearts for livers; keeps what it was asked."""

    compute = "here"

    def __init__(self, name: str, **how: Any) -> None:
        self.model = SimpleNamespace(
            name=name, kind="textseg", plan_name="plan", licence=None, sha256={"network": "1"}
        )
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    def __call__(self, scan: Path, prompts: list[str], *, modality: str) -> Segmentation:
        case = scan.name.removesuffix("_0000.nii.gz")
        self.asked.append((case, modality, tuple(prompts)))
        labels = read_label_map(scan.parents[1] / "labelsTr" / f"{case}.nii.gz").labels
        document = json.loads((scan.parents[1] / "dataset.json").read_text(encoding="utf-8"))["labels"]
        values = {"heart": document.get("liver", [])} | {"liver": document.get("liver", [])}
        values = {name: values.get(name, document.get(name, [])) for name in prompts}
        masks = np.stack([np.isin(labels, values[name]) for name in prompts])
        volume = read_scan(scan)
        found = tuple(
            Found(understand(text), 0.9 if mask.any() else 0.2, describe_mask(mask, volume.geometry))
            for text, mask in zip(prompts, masks, strict=True)
        )
        model: Any = self.model
        return Segmentation(masks, found, volume, "mr", "user", model, "cpu", 0.1)


def run(program: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> Perfect:
    made: list[Perfect] = []

    def make(name: str, **how: Any) -> Perfect:
        made.append(Perfect(name, **how))
        return made[-1]

    monkeypatch.setattr(program, "Segmenter", make)
    monkeypatch.setattr(sys, "argv", ["score_default.py", *map(str, words), "--skip-probe"])
    program.main()
    return made[0]


def test_what_was_held_back_is_asked_for_by_its_labels_names(
    program: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = run(program, monkeypatch, tmp_path / "work", "--data", data)
    in_heads = ("liver", "spleen", "left kidney", "urinary bladder")
    elsewhere = ("left hippocampus", "right caudate nucleus", "cerebellum", "left thalamus")
    head = ("left cerebral cortex", "right cerebral cortex", "left thalamus")
    assert model.asked == [
        ("hippocampus_005", "mr", ("anterior hippocampus", "posterior hippocampus", *in_heads)),
        ("STS_005_CT", "ct", ("soft tissue sarcoma", *elsewhere)),
        ("STS_005_PET", "pet", ("soft tissue sarcoma", *elsewhere)),
        ("abdomen_portal", "ct", ("liver", "heart", *elsewhere)),
        ("chest", "ct", ("liver", *elsewhere)),
        ("brain_t1", "mr", (*head, *in_heads)),
        ("ms_flair", "mr", ("multiple sclerosis lesion", *in_heads)),
        ("ms_t2", "mr", ("multiple sclerosis lesion", *in_heads)),
    ]
    sets = json.loads((tmp_path / "work" / "scores.json").read_text(encoding="utf-8"))["sets"]
    crops = sets["Hippocampus, T1 crops"]
    assert crops["structures"]["anterior hippocampus"]["dice"][0] == 1
    assert crops["presence"]["denied"] == [4, 4]
    assert crops["presence"]["auroc"] == 1
    # A parcel of the cortex is cortex; the right one is not in this head and is denied.
    cortex = sets["Head T1, FreeSurfer's labels"]["structures"]
    assert (cortex["left cerebral cortex"]["found"], cortex["left cerebral cortex"]["dice"][0]) == ([1, 1], 1)
    torsos = sets["Chest and abdomen CT"]["structures"]
    assert (torsos["liver"]["found"], torsos["heart"]["dice"][0]) == ([2, 2], 0)
    assert sets["Soft tissue sarcoma, CT"]["structures"]["soft tissue sarcoma"]["lesion_f1"][0] == 1
    section = capsys.readouterr().out
    assert section == (tmp_path / "work" / "scores.md").read_text(encoding="utf-8")
    assert "### Chest and abdomen CT: 2 cases" in section
    assert "| heart | 1/1 | 0.00 |" in section
    # The card's introduction is filled in with braces.
    assert "{" not in section


def test_a_second_run_asks_for_what_is_missing(
    program: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (tmp_path / "work", "--data", data, "--only", "hippocampus", "--only", "chest", "--cases", 1)
    assert [case for case, *_ in run(program, monkeypatch, *words).asked] == [
        "hippocampus_005",
        "abdomen_portal",
    ]
    (record,) = (tmp_path / "work" / "chest_and_abdomen_ct" / "masks").glob("*_record.json")
    record.unlink()
    assert [case for case, *_ in run(program, monkeypatch, *words).asked] == ["abdomen_portal"]


def test_a_card_ends_with_the_latest_section(
    program: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card.md"
    card.write_text("# A card\n\nWords.\n", encoding="utf-8")
    words = ("--data", data, "--only", "hippocampus", "--cases", 1, "--card", card)
    for _ in range(2):
        run(program, monkeypatch, tmp_path / "work", *words)
    section = (tmp_path / "work" / "scores.md").read_text(encoding="utf-8")
    assert card.read_text(encoding="utf-8") == f"# A card\n\nWords.\n\n{section}"
