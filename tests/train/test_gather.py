"""From folders of scans to arrays: in canonical axes, normalised, rightly named, no patient on both sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from textseg.errors import DatasetError
from textseg.geometry import AxisOrder, Box, Geometry
from textseg.models import plans_folder
from textseg.prompts import understand
from textseg.resample import resample
from textseg.train.cases import Target, read_case, read_index
from textseg.train.gather import SOURCES_FILE, asked_for, gather, named_targets
from textseg.train.words import canonical_words

SHAPE = (56, 40, 30)
SPACING_MM = (1.5, 2.0, 2.5)
LPS = AxisOrder((0, 1, 2), (True, True, False))
SAGITTAL = AxisOrder((2, 0, 1), (False, True, True))
NAMES = {"left kidney": 1, "kidney right": 2, "liver": 3}
HU = {"air": -1000, "body": 40, "left kidney": 200, "kidney right": 150, "liver": 100}

TORSO = {"group": "torso", "mixture": "torso"}
SCANS = {"folder": "Dataset001_Torso", "layout": "nnunet", "modality": "ct", "validation": [], **TORSO}
MAPS = {"folder": "maps", "layout": "labelmaps", "validation": [], **TORSO}


@pytest.fixture(scope="module")
def grid():
    """Canonical axes, a little oblique, as a patient lies a little askew."""
    c, s = np.cos(0.1), np.sin(0.1)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * SPACING_MM
    affine[:3, 3] = (-40, 12, 300)
    return Geometry(SHAPE, affine)


@pytest.fixture(scope="module")
def anatomy():
    """Labels in canonical axes: kidneys behind, the left one longer, the liver in front, high and right."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[12:22, 8:16, 6:22] = NAMES["left kidney"]
    labels[30:40, 8:16, 6:14] = NAMES["kidney right"]
    labels[26:40, 18:34, 16:26] = NAMES["liver"]
    return labels


@pytest.fixture(scope="module")
def ct(anatomy):
    image = np.full(SHAPE, HU["air"], np.int16)
    image[8:44, 5:37, 3:28] = HU["body"]
    for name, value in NAMES.items():
        image[anatomy == value] = HU[name]
    return image


def save(voxels, grid, path, order=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(order.apply(voxels)), grid.reordered(order).affine)
    nib.save(image, path)


def write_json(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def write_scan(folder, name, image, labels, grid, order=LPS):
    save(image, grid, folder / "imagesTr" / f"{name}_0000.nii.gz", order)
    save(labels, grid, folder / "labelsTr" / f"{name}.nii.gz", order)


@pytest.fixture
def gathered(tmp_path, plan, lexicon):
    """Gathers sources from the test's folder; gives the cases by name."""

    def run(*sources, plan=plan):
        write_json(tmp_path / SOURCES_FILE, {"sources": sources})
        arrays = tmp_path / "arrays"
        facts = gather(tmp_path, arrays, plan, tmp_path / SOURCES_FILE, lexicon)
        assert read_index(arrays) == facts
        return {entry.name: in_memory(read_case(entry, arrays)) for entry in facts}

    return run


def in_memory(case):
    images = tuple(np.asarray(image) for image in case.images)
    return replace(case, labels=np.asarray(case.labels), images=images)


@pytest.fixture
def scans(tmp_path, anatomy, ct, grid):
    """The same scan twice, stored along other axes, in nnU-Net's layout."""
    folder = tmp_path / "Dataset001_Torso"
    write_json(folder / "dataset.json", {"labels": {"background": 0, **NAMES}})
    write_scan(folder, "axial", ct, anatomy, grid)
    write_scan(folder, "sagittal", ct, anatomy, grid, SAGITTAL)
    return folder


@pytest.fixture
def write_map(tmp_path, grid):
    """Writes a label map and its names: write_map("one", labels, {"liver": 3})."""

    def write(name, labels, names, *, per_map=False):
        save(labels, grid, tmp_path / "maps" / f"{name}.nii.gz", SAGITTAL)
        document = {"labels": {"background": 0, **names}}
        write_json(tmp_path / "maps/names.json", {f"{name}.nii.gz": document} if per_map else document)

    return write


def names_of(case):
    return {target.key.rstrip("+") for target, _ in case.facts.targets}


def values_of(case, structure):
    return dict(case.facts.targets)[Target(structure)]


# Scans with labels.


def test_labels_land_in_canonical_axes_however_a_file_is_stored(gathered, scans):
    cases = gathered(SCANS)
    axial, sagittal = cases["axial"], cases["sagittal"]
    np.testing.assert_array_equal(axial.labels, sagittal.labels)
    np.testing.assert_allclose(axial.images[0], sagittal.images[0], atol=0.02)
    centres = {name: np.argwhere(axial.labels == value).mean(axis=0) for name, value in NAMES.items()}
    assert centres["left kidney"][0] < centres["kidney right"][0] - 3
    assert centres["left kidney"][1] < centres["liver"][1] - 3
    assert centres["left kidney"][2] < centres["liver"][2] - 2


def test_organs_keep_their_size_at_the_working_spacing(gathered, scans, plan, anatomy):
    case = gathered(SCANS)["sagittal"]
    assert case.facts.spacing_mm == plan.spacing_for("torso")
    for value in NAMES.values():
        there = (anatomy == value).sum() * np.prod(SPACING_MM)
        here = (case.labels == value).sum() * np.prod(case.facts.spacing_mm)
        assert here == pytest.approx(there, rel=0.25)


def test_images_are_normalised_and_lie_under_their_labels(gathered, scans, plan):
    case = gathered(SCANS)["axial"]
    assert case.images[0].dtype == np.float16
    assert case.images[0].shape == case.labels.shape
    sd = plan.intensity["ct"].sd
    for name, value in NAMES.items():
        inside = binary_erosion(case.labels == value)
        assert np.median(case.images[0][inside]) == pytest.approx(HU[name] / sd, abs=0.02)
    assert case.images[0].min() == pytest.approx(HU["air"] / sd, abs=0.02)


def test_air_around_the_body_is_cut_away(gathered, scans, plan):
    case = gathered(SCANS)["axial"]
    body_mm = np.array([36, 32, 25]) * SPACING_MM
    most = body_mm / case.facts.spacing_mm + 2 * plan.margin_mm / np.array(case.facts.spacing_mm) + 2
    assert (np.array(case.labels.shape) <= most).all()
    assert (np.array(case.labels.shape) < np.array(SHAPE) * SPACING_MM / case.facts.spacing_mm).any()


def test_both_sides_together_can_be_asked_for(gathered, scans):
    case = gathered(SCANS)["axial"]
    assert names_of(case) == {"left_kidney", "right_kidney", "liver", "kidneys"}
    assert values_of(case, "kidneys") == (1, 2)


def test_what_is_drawn_only_in_part_is_not_asked_for(gathered, scans):
    write_json(scans / "annotated.json", {"axial": {"complete": ["left kidney", "liver"], "partial": []}})
    cases = gathered(SCANS)
    assert names_of(cases["axial"]) == {"left_kidney", "liver"}
    assert names_of(cases["sagittal"]) == {"left_kidney", "right_kidney", "liver", "kidneys"}


def test_the_modality_may_stand_in_a_name(gathered, tmp_path, grid, plan):
    folder = tmp_path / "Dataset001_Torso"
    write_json(folder / "dataset.json", {"labels": {"background": 0, "soft tissue sarcoma": 1}})
    mass, image = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.float32)
    mass[20:30, 10:20, 5:12] = 1
    image[mass > 0] = 5
    for number, end in ((1, "CT"), (1, "MR"), (2, "PET"), (3, "MR"), (4, "CT"), (4, "PET")):
        write_scan(folder, f"STS_00{number}_{end}", image, mass, grid)
    source = {name: value for name, value in SCANS.items() if name not in ("modality", "validation")} | {
        "modality_from_name": {"_CT": "ct", "_MR": "mr", "_PET": "pet"},
        "patient_pattern": r"STS_\d+",
        "every_nth_is_validation": 2,
    }
    cases = gathered(source)
    assert {name: case.facts.modality for name, case in cases.items()} == {
        name: name.rpartition("_")[2].lower() for name in cases
    }
    # Every second patient, whole: all scans of one lie on the same side.
    assert {name for name, case in cases.items() if case.facts.split == "validation"} == {
        "STS_002_PET",
        "STS_004_CT",
        "STS_004_PET",
    }
    assert dict(cases["STS_001_MR"].facts.targets) == {Target(None, "soft_tissue_sarcoma"): (1,)}


def test_listed_cases_are_held_back(gathered, scans):
    cases = gathered(SCANS | {"validation": ["sagittal"]})
    assert {name: case.facts.split for name, case in cases.items()} == {
        "axial": "train",
        "sagittal": "validation",
    }


def test_channels_regions_and_what_nobody_labelled_are_read(gathered, tmp_path, plan, ct, anatomy, grid):
    folder = tmp_path / "Dataset001_Torso"
    regions = {"kidneys": [1, 2], "left kidney": 1, "right kidney": 2, "ignore": 3}
    write_json(folder / "dataset.json", {"labels": {"background": 0, **regions}})
    write_scan(folder, "one", ct, anatomy, grid)
    # The second channel has coarser voxels and begins elsewhere; only the world tells what lies where.
    coarse = grid.with_spacing((3, 3, 3)).cropped(Box((2, 1, 0), (27, 25, 24)))
    uptake = resample(torch.from_numpy(anatomy == 2).float() * 9, grid, coarse).numpy()
    save(uptake, coarse, folder / "imagesTr/one_0001.nii.gz", SAGITTAL)
    changes = {"channels": ("ct", "pet"), "channel_modalities": ("ct", "pet")}
    case = gathered(SCANS, plan=plan.model_copy(update=changes))["one"]
    assert dict(case.facts.targets) == {
        Target("kidneys"): (1, 2),
        Target("left_kidney"): (1,),
        Target("right_kidney"): (2,),
    }
    assert case.facts.ignore == 3
    bright = case.images[1] > 1.5
    assert bright.shape == case.labels.shape
    middles = [np.argwhere(mask).mean(axis=0) for mask in (bright, case.labels == 2)]
    assert middles[0] == pytest.approx(middles[1], abs=0.7)
    assert np.median(case.images[0][case.labels == 2]) > 0


# Label maps without images.


def test_a_label_map_keeps_sides_and_tissues_but_has_no_image(gathered, write_map, anatomy):
    write_map("one", anatomy, NAMES | {"subcutaneous fat": 4, "body": 5})
    case = gathered(MAPS)["one"]
    assert case.images == ()
    assert case.facts.modality is None
    centres = [np.argwhere(case.labels == value).mean(axis=0) for value in (1, 2, 3)]
    assert centres[0][0] < centres[1][0] - 3
    assert centres[0][1] < centres[2][1] - 3
    # Fat and the body's outline help to draw an image; nobody asks for them.
    assert names_of(case) == {"left_kidney", "right_kidney", "liver", "kidneys"}
    assert case.facts.tissues.items() >= {1: "left kidney", 4: "subcutaneous fat"}.items()


def test_maps_may_have_names_of_their_own(gathered, write_map, anatomy):
    write_map("one", anatomy, NAMES, per_map=True)
    assert names_of(gathered(MAPS)["one"]) == {"left_kidney", "right_kidney", "liver", "kidneys"}


def test_organs_without_a_body_get_tissue_around_them(gathered, write_map, anatomy):
    names = {"left parotid": 1, "right parotid": 2, "brain": 3}
    write_map("organs", anatomy, names)
    case = gathered(MAPS | {"group": "head_neck"})["organs"]
    around = {name: case.labels == value for value, name in case.facts.tissues.items() if value > 200}
    brain = case.labels == names["brain"]
    assert around["soft tissue"].sum() > brain.sum()
    # The bone lies on the brain, not on the glands.
    bone = np.argwhere(around["skull bone"])
    low, high = np.argwhere(brain).min(axis=0), np.argwhere(brain).max(axis=0)
    assert len(bone) > 0
    assert (bone >= low - 4).all()
    assert (bone <= high + 4).all()
    assert not np.isin([value for _, values in case.facts.targets for value in values], [250, 251]).any()


def test_a_map_with_a_body_is_left_as_it_is(gathered, write_map, anatomy):
    body = np.where(anatomy > 0, anatomy, 5).astype(np.uint8)
    write_map("one", body, NAMES | {"body": 5})
    assert set(np.unique(gathered(MAPS)["one"].labels)) == {1, 2, 3, 5}


# One image with one label map, and phantoms.

PAIR = {
    "layout": "pair",
    "name": "t1",
    "image": "pair/image.nii.gz",
    "labels": "pair/labels.nii.gz",
    "names_from": "pair/names.json",
    "ranges": {},
    "group": "brain",
    "mixture": "brain",
    "modality": "mr",
    "split": "validation",
}


def test_parcels_of_a_pair_count_as_one_name(gathered, tmp_path, anatomy, grid):
    parcels = np.zeros(SHAPE, np.int32)
    for value, number in ((1, 11101), (2, 12130), (3, 17)):
        parcels[anatomy == value] = number
    parcels[12:22, 8:16, 6:10] = 11199
    save(parcels, grid, tmp_path / "pair/labels.nii.gz", SAGITTAL)
    save(np.where(anatomy > 0, 80, 20).astype(np.float32), grid, tmp_path / "pair/image.nii.gz")
    names = {"left cerebral cortex": 3, "right cerebral cortex": 42, "left hippocampus": 17}
    write_json(tmp_path / "pair/names.json", {"labels": {"background": 0, **names}})
    ranges = {"left cerebral cortex": [11100, 11199], "right cerebral cortex": [12100, 12199]}
    case = gathered(PAIR | {"ranges": ranges})["t1"]
    assert set(np.unique(case.labels)) == {0, 3, 17, 42}
    assert case.facts.split == "validation"
    assert case.facts.spacing_mm == (2.0, 2.0, 2.0)
    left, right = (np.argwhere(case.labels == value) for value in (3, 42))
    assert left[:, 0].mean() < right[:, 0].mean()
    assert np.median(case.images[0][case.labels == 3]) > np.median(case.images[0][case.labels == 0])
    both = values_of(case, "cerebral_cortex_of_both_hemispheres")
    assert both == (3, 42)


def test_what_a_pairs_labels_mean_otherwise_is_not_asked_for(gathered, tmp_path, anatomy, grid):
    save(anatomy.astype(np.int32), grid, tmp_path / "pair/labels.nii.gz", SAGITTAL)
    save(np.where(anatomy > 0, 80, 20).astype(np.float32), grid, tmp_path / "pair/image.nii.gz")
    names = {"left thalamus": 1, "right thalamus": 2, "cerebrospinal fluid": 3}
    write_json(tmp_path / "pair/names.json", {"labels": {"background": 0, **names}})
    asked = [
        {target.structure for target, _ in gathered(source)["t1"].facts.targets}
        for source in (PAIR, PAIR | {"left_out": ["cerebrospinal fluid"]})
    ]
    assert asked[0] - asked[1] == {"cerebrospinal_fluid"}
    assert {"left_thalamus", "right_thalamus"} <= asked[1]
    with pytest.raises(DatasetError, match=r"no 'fluid'\. Is it written otherwise"):
        gathered(PAIR | {"left_out": ["fluid"]})


def test_phantoms_are_drawn_and_split_as_the_source_says(gathered):
    source = {
        "layout": "phantom",
        "count": 2,
        "validation_count": 1,
        "seed": 5,
        **TORSO,
        "mixture": "phantom",
    }
    cases = gathered(source)
    assert [case.facts.split for case in cases.values()] == ["validation", "train"]
    first, second = cases.values()
    assert first.images == ()
    assert {"liver", "kidneys", "left_kidney"} <= names_of(first)
    assert not {"muscle", "subcutaneous_fat"} & names_of(first)
    assert first.labels.shape != second.labels.shape


# What does not fit together is refused.


def test_a_missing_folder_is_refused(gathered):
    with pytest.raises(DatasetError, match="Dataset001_Torso"):
        gathered(SCANS)


@pytest.mark.parametrize("source", [SCANS, MAPS], ids=["scans", "maps"])
def test_a_folder_without_cases_is_refused(gathered, tmp_path, source):
    write_json(tmp_path / source["folder"] / "dataset.json", {"labels": NAMES})
    write_json(tmp_path / source["folder"] / "names.json", {"labels": NAMES})
    with pytest.raises(DatasetError, match=r"\.nii\.gz"):
        gathered(source)


def test_two_cases_of_one_name_are_refused(gathered, scans, write_map, anatomy):
    write_map("axial", anatomy, NAMES)
    with pytest.raises(DatasetError, match="axial"):
        gathered(SCANS, MAPS)


def test_a_label_that_the_lexicon_does_not_know_is_refused(gathered, scans):
    write_json(scans / "dataset.json", {"labels": {"background": 0, **NAMES, "flux capacitor": 4}})
    with pytest.raises(DatasetError, match="flux capacitor"):
        gathered(SCANS)


# Names.


def targets_of(names, lexicon, known=None):
    return {target.key: values for target, values in named_targets(names, lexicon, known)}


def test_names_that_are_not_trusted_need_not_be_known(lexicon):
    names = {"liver": 1, "flux capacitor": 2}
    assert targets_of(names, lexicon, frozenset({"liver"})) == {"liver+": (1,)}


def test_a_union_needs_all_of_its_parts(lexicon):
    lobes = {"left upper lobe of lung": 1, "left lower lobe of lung": 2, "right upper lobe of lung": 3}
    assert "left_lung+" in targets_of(lobes, lexicon)
    assert "right_lung+" not in targets_of(lobes, lexicon)
    assert "lungs+" not in targets_of(lobes, lexicon)
    more = lobes | {"right middle lobe of lung": 5, "right lower lobe of lung": 7}
    found = targets_of(more, lexicon)
    assert found["right_lung+"] == (3, 5, 7)
    assert found["lungs+"] == (1, 2, 3, 5, 7)


def test_a_union_with_a_label_of_its_own_keeps_it(lexicon):
    found = targets_of({"left kidney": 1, "right kidney": 2, "kidneys": 9}, lexicon)
    assert found["kidneys+"] == (9,)


def test_synonyms_of_one_thing_are_one_target(lexicon):
    assert targets_of({"oesophagus": 4, "esophagus": 2}, lexicon) == {"esophagus+": (2, 4)}


def test_findings_and_findings_in_a_place_are_targets_of_their_own(lexicon):
    found = targets_of({"liver": 1, "liver tumor": 2, "soft tissue sarcoma": 3}, lexicon)
    assert found == {"liver+": (1,), "liver+tumor": (2,), "+soft_tissue_sarcoma": (3,)}


# The real sources.


@pytest.fixture(scope="module")
def sources():
    return json.loads((plans_folder() / "default" / SOURCES_FILE).read_text(encoding="utf-8"))["sources"]


def documents_of(source, data: Path):
    """The label names of a source, a map at a time where they differ."""
    if source["layout"] == "phantom":
        return
    if source["layout"] == "pair":
        path = data / source["names_from"]
    else:
        path = data / source["folder"] / ("dataset.json" if source["layout"] == "nnunet" else "names.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    for part in [document] if "labels" in document else document.values():
        yield {name: value for name, value in part["labels"].items() if name != "background"}


def test_every_name_of_the_real_sources_is_in_the_lexicon(sources, shared_data, lexicon):
    for source in sources:
        for names in documents_of(source, shared_data):
            asked = {name: value for name, value in names.items() if asked_for(name)}
            targets = named_targets(asked, lexicon)
            assert len(targets) >= len(set(asked.values())) or source["mixture"] == "torso"
            for target, _ in targets:
                prompt = understand(canonical_words(target, lexicon), lexicon)
                meant = [concept.id if concept else None for concept in (prompt.structure, prompt.finding)]
                assert meant == [target.structure, target.finding]


def test_no_name_of_the_real_sources_is_understood_by_halves(sources, shared_data, lexicon):
    for source in sources:
        for names in documents_of(source, shared_data):
            for name in filter(asked_for, names):
                assert not understand(name, lexicon).unused, name


def test_cases_that_the_real_sources_hold_back_are_there(sources, shared_data):
    for source in sources:
        folder = shared_data / source.get("folder", ".")
        for name in source.get("validation", []):
            assert list(folder.glob(f"**/{name}.nii.gz")), name


def test_what_real_annotations_call_complete_is_named(sources, shared_data):
    for source in sources:
        annotated = shared_data / source.get("folder", ".") / "annotated.json"
        if annotated.is_file():
            (names,) = documents_of(source, shared_data)
            for case in json.loads(annotated.read_text(encoding="utf-8")).values():
                assert set(case["complete"]) <= set(names)


# Stopped, and gone on with.


def modified(arrays):
    return {path.name: path.stat().st_mtime_ns for path in arrays.glob("*.zip")}


def test_what_is_there_is_not_made_again_unless_its_scan_changed(
    tmp_path, gathered, scans, ct, grid, anatomy
):
    arrays = tmp_path / "arrays"
    gathered(SCANS)
    before = modified(arrays)
    gathered(SCANS)
    assert modified(arrays) == before
    write_scan(scans, "axial", ct + np.int16(1), anatomy, grid)
    gathered(SCANS)
    after = modified(arrays)
    assert after["sagittal.zip"] == before["sagittal.zip"]
    assert after["axial.zip"] != before["axial.zip"]


def test_two_processes_make_what_one_makes(tmp_path, plan, lexicon, gathered, scans):
    alone = gathered(SCANS)
    together, calls = tmp_path / "together", []
    gather(
        tmp_path,
        together,
        plan,
        tmp_path / SOURCES_FILE,
        lexicon,
        workers=2,
        progress=lambda done, of: calls.append((done, of)),
    )
    assert calls == [(0, 2), (1, 2), (2, 2)]
    for facts in read_index(together):
        case = read_case(facts, together)
        np.testing.assert_array_equal(case.labels, alone[facts.name].labels)
        np.testing.assert_array_equal(case.images[0], alone[facts.name].images[0])
