"""One's own dataset as training cases: labels by their words, sentences by what they mean."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from textseg.dataset import read_dataset
from textseg.errors import DatasetError
from textseg.train.cases import Target, read_case, read_index, read_words
from textseg.train.gather import make_cases
from textseg.train.labelled import dataset_jobs, split_cases

SHAPE = (40, 30, 24)
KIDNEY, ODD = Target("left_kidney"), Target(None, None, "odd thing")
LEFT, RIGHT = (slice(4, 12), slice(6, 16), slice(4, 14)), (slice(26, 30), slice(6, 12), slice(4, 10))


def write_dataset(folder, *, channels=None, labels=None, prompts=None, cases=("a", "b")):
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Stored right to left: the array's first axis runs to the patient's left, as in most files.
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[LEFT], drawn[RIGHT] = 1, 2
    image = np.where(drawn > 0, 120, 40).astype(np.int16)
    image[:2] = -1000
    # Further channels show the second thing only, as uptake.
    uptake = np.where(drawn == 2, 9, 1).astype(np.float32)
    uptake[:2] = 0
    channels = channels or {"0": "CT"}
    for case in cases:
        nib.save(nib.Nifti1Image(drawn, affine), folder / "labelsTr" / f"{case}.nii.gz")
        for channel in map(int, channels):
            voxels = uptake if channel else image
            nib.save(nib.Nifti1Image(voxels, affine), folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
    document = {
        "channel_names": channels,
        "labels": labels or {"background": 0, "left kidney": 1, "odd thing": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    if prompts:
        (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return folder


@pytest.fixture
def made(tmp_path, plan, lexicon):
    """Makes the cases of a dataset; gives (facts by name, words, arrays' folder)."""

    def make(folder, held_back=(), plan=plan):
        jobs, words = dataset_jobs(read_dataset(folder, lexicon), plan, lexicon, held_back)
        arrays = tmp_path / "arrays"
        facts = make_cases(jobs, arrays, plan, words=words)
        return {entry.name: entry for entry in facts}, words, arrays

    return make


def test_labels_become_what_the_lexicon_knows_or_things_of_their_own(tmp_path, made):
    facts, words, arrays = made(write_dataset(tmp_path / "set"), held_back={"b"})
    assert dict(facts["a"].targets) == {KIDNEY: (1,), ODD: (2,)}
    assert (facts["a"].split, facts["b"].split) == ("train", "validation")
    assert (facts["a"].modality, facts["a"].group) == ("ct", "torso")
    assert words[ODD] == ("odd thing",)
    assert read_words(arrays) == words
    case = read_case(facts["a"], arrays)
    left, odd = (np.argwhere(np.asarray(case.labels) == value).mean(axis=0) for value in (1, 2))
    # In canonical axes x runs to the right: the patient's left is at low x.
    assert left[0] > odd[0]


def test_words_of_prompts_json_are_kept_for_their_target(tmp_path, made):
    prompts = {"labels": {"odd thing": ["wibble wobble", "odd wibble"]}}
    _, words, _ = made(write_dataset(tmp_path / "set", prompts=prompts))
    assert words[ODD] == ("wibble wobble", "odd wibble")


def test_a_region_has_all_its_values(tmp_path, made):
    labels = {"background": 0, "both": [1, 2], "odd thing": 2}
    facts, _, _ = made(write_dataset(tmp_path / "set", labels=labels))
    # Overlapping targets, as nnU-Net trains regions; the order of classes is only for its export.
    assert dict(facts["a"].targets) == {Target(None, None, "both"): (1, 2), ODD: (2,)}


def test_a_sentence_means_one_component_and_leaves_the_label_whole(tmp_path, made):
    folder = write_dataset(tmp_path / "set", labels={"background": 0, "odd thing": [1, 2]})
    text = "the smaller lump on the right"
    prompts = {"cases": {"a": [{"text": text, "label": "odd thing", "component": 2}]}}
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    facts, words, arrays = made(folder)
    said = Target(None, None, f"a: {text}")
    assert words[said] == (text,)
    assert said not in dict(facts["b"].targets)
    labels = np.asarray(read_case(facts["a"], arrays).labels)
    targets = dict(facts["a"].targets)
    whole, one = np.isin(labels, targets[ODD]), np.isin(labels, targets[said])
    plain = np.asarray(read_case(facts["b"], arrays).labels)
    np.testing.assert_array_equal(whole, plain > 0)
    np.testing.assert_array_equal(one, plain == 2)


def test_a_sentence_about_a_whole_label_means_all_of_it(tmp_path, made):
    text = "a kidney as it should be"
    prompts = {"cases": {"a": [{"text": text, "label": "left kidney"}]}}
    facts, _, _ = made(write_dataset(tmp_path / "set", prompts=prompts))
    targets = dict(facts["a"].targets)
    assert targets[Target(None, None, f"a: {text}")] == targets[KIDNEY]


def for_channels(plan, *channels):
    """The plan for channels, each a name or a name and its modality."""
    names = tuple(channel if isinstance(channel, str) else channel[0] for channel in channels)
    modalities = tuple(channel[1] for channel in channels if not isinstance(channel, str)) or None
    return plan.model_copy(update={"channels": names, "channel_modalities": modalities})


PET_CT = (("CT", "ct"), ("PET", "pet"))


def test_channels_are_normalised_by_the_rules_of_their_own_modalities(tmp_path, plan, made):
    folder = write_dataset(tmp_path / "set", channels={"0": "CT", "1": "PET"})
    facts, _, arrays = made(folder, plan=for_channels(plan, *PET_CT))
    case = read_case(facts["a"], arrays)
    labels, ct, pet = (np.asarray(volume, np.float32) for volume in (case.labels, *case.images))
    assert labels.shape == ct.shape == pet.shape
    pet_rule, ct_rule = plan.intensity["pet"], plan.intensity["ct"]
    kidney, odd = labels == 1, labels == 2
    assert ct[kidney].max() == pytest.approx(120 / ct_rule.sd, abs=0.02)
    assert np.median(pet[kidney]) == pytest.approx((1 - pet_rule.mean) / pet_rule.sd, abs=0.02)
    # The odd thing is smaller than the working voxels resolve: as much in one channel as in the other.
    part = (ct[odd].max() * ct_rule.sd - 40) / (120 - 40)
    assert 0.7 < part < 1
    assert pet[odd].max() == pytest.approx((1 + 8 * part - pet_rule.mean) / pet_rule.sd, abs=0.1)


def test_channels_of_one_modality_need_no_more_than_their_number(tmp_path, plan, made):
    folder = write_dataset(tmp_path / "set", channels={"0": "T1w", "1": "T2w"})
    facts, _, arrays = made(folder, plan=for_channels(plan, "T1w", "T2w"))
    assert facts["a"].modality == "mr"
    assert len(read_case(facts["a"], arrays).images) == 2


@pytest.mark.parametrize(
    ("channels", "planned", "said"),
    [
        ({"0": "CT", "1": "PET"}, ["image"], r"for 1 channel\(s\) \(image\), but set has 2 \(CT, PET\)"),
        ({"0": "CT"}, PET_CT, r"for 2 channel\(s\) \(CT, PET\), but set has 1 \(CT\)"),
        ({"0": "PET", "1": "CT"}, PET_CT, "for channels of ct, pet, in this order, but the channel 'PET'"),
        ({"0": "CT", "1": "PET"}, ["a", "b"], "has no channel_modalities"),
    ],
)
def test_channels_that_are_not_the_plans_are_refused(tmp_path, plan, lexicon, channels, planned, said):
    dataset = read_dataset(write_dataset(tmp_path / "set", channels=channels), lexicon)
    with pytest.raises(DatasetError, match=said):
        dataset_jobs(dataset, for_channels(plan, *planned), lexicon)


def test_a_plan_knows_the_modality_of_a_channel_whose_name_does_not_tell(tmp_path, plan, made):
    folder = write_dataset(tmp_path / "set", channels={"0": "stuff", "1": "PET"})
    facts, _, _ = made(folder, plan=for_channels(plan, *PET_CT))
    assert facts["a"].modality == "ct"


def test_what_nobody_labelled_is_kept_apart(tmp_path, made):
    labels = {"background": 0, "left kidney": 1, "ignore": 2}
    facts, words, arrays = made(write_dataset(tmp_path / "set", labels=labels))
    assert facts["a"].ignore == 2
    assert dict(facts["a"].targets) == {KIDNEY: (1,)}
    assert list(words) == [KIDNEY]
    assert (np.asarray(read_case(facts["a"], arrays).labels) == 2).any()
    assert read_index(arrays)[0].ignore == 2


def test_two_labels_that_mean_the_same_are_one_target(tmp_path, made):
    labels = {"background": 0, "left kidney": 1, "kidney_left": 2}
    facts, _, _ = made(write_dataset(tmp_path / "set", labels=labels))
    assert dict(facts["a"].targets) == {KIDNEY: (1, 2)}


def test_an_unknown_modality_is_refused(tmp_path, plan, lexicon):
    odd = read_dataset(write_dataset(tmp_path / "odd", channels={"0": "stuff"}), lexicon)
    with pytest.raises(DatasetError, match="CT, MR or PET"):
        dataset_jobs(odd, plan, lexicon)


def test_every_nth_case_is_held_back(tmp_path, lexicon):
    names = tuple(f"case{i:02d}" for i in range(11))
    dataset = read_dataset(write_dataset(tmp_path / "set", cases=names), lexicon)
    assert split_cases(dataset, 5) == {"case04", "case09"}
    assert split_cases(dataset, 12) == set()


def test_labels_that_the_lexicon_takes_for_one_stay_two(tmp_path, made):
    labels = {"background": 0, "enhancing tumor": 1, "non-enhancing tumor": 2}
    facts, words, _ = made(write_dataset(tmp_path / "set", labels=labels))
    named = dict(facts["a"].targets)
    other = Target(None, None, "non-enhancing tumor")
    assert named[Target("brain", "enhancing_tumor")] == (1,)
    assert named[other] == (2,)
    assert words[other] == ("non-enhancing tumor",)
