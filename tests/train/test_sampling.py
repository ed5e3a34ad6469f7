"""Samples: what a patch is asked, and whether the masks tell the truth about the image.

The cases are blocks of their own brightness, so that an image says by itself which structure a voxel shows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from textseg.errors import DatasetError
from textseg.train.cases import FEWEST_VOXELS, Case, CaseFacts, Target, find_places
from textseg.train.lesions import LESION_WORDS
from textseg.train.sampling import PatchSampler
from textseg.train.stripped import grown

SHAPE = (22, 26, 24)
PATCH = (24, 28, 24)
LEFT, RIGHT = Target("left_thalamus"), Target("right_thalamus")
# Far enough apart that no voxel lies between two of them: left at low x, front at high y, top at high z.
BLOCKS = {
    LEFT: (slice(2, 8), slice(3, 10), slice(3, 9)),
    RIGHT: (slice(14, 20), slice(3, 10), slice(3, 9)),
    Target("left_putamen"): (slice(2, 8), slice(16, 23), slice(3, 9)),
    Target("brainstem"): (slice(2, 8), slice(3, 10), slice(14, 21)),
}


def brightness(number):
    """Values four times apart: no change of contrast makes one look like another."""
    return np.float16(0.5 * 4.0**number)


def block_case(blocks, mixture="brain", *, name="blocks", modality="mr", offset=0.0, unseen=()):
    """A case that shows these targets; `unseen` are further ones that its labels name but do not show."""
    labels = np.zeros(SHAPE, np.uint8)
    image = np.zeros(SHAPE, np.float16)
    targets = []
    for number, (target, box) in enumerate(blocks.items(), start=1):
        labels[box] = number
        image[box] = brightness(number)
        targets.append((target, (number,)))
    targets += [(target, (number,)) for number, target in enumerate(unseen, start=len(targets) + 1)]
    facts = CaseFacts(name, "brain", mixture, "train", (1.0, 1.0, 1.0), modality, targets)
    return Case(facts, labels, (image + np.float16(offset),))


@pytest.fixture
def make_sampler(with_training, lexicon):
    """A sampler over these cases that draws only from `mixture`."""

    def make(cases, mixture="brain", plan_changes=None, **training):
        numbers = {
            "patch_voxels": PATCH,
            "prompts_per_sample": 4,
            "mixture": {mixture: 1.0},
            "stranger_fraction": 0.0,
            "mirror_fraction": 0.0,
            "mirror_groups": (),
            "slab_fraction": 0.0,
            "stripped_fraction": 0.0,
            "couch_fraction": 0.0,
        } | training
        places = [find_places(case) for case in cases]
        plan = with_training(**numbers).model_copy(update=plan_changes or {})
        return PatchSampler(places, plan, lexicon)

    return make


def draws(sampler, count=25):
    return [sampler.draw(np.random.default_rng(seed)) for seed in range(count)]


def asked(sample):
    """The targets of a sample with whether each was there."""
    return [(target, bool(mask.any())) for target, mask in zip(sample.targets, sample.masks, strict=True)]


def absent_in(samples):
    return {target for sample in samples for target, present in asked(sample) if not present}


# What a sample is.


def test_the_same_generator_gives_the_same_sample(make_sampler):
    sampler = make_sampler([block_case(BLOCKS)])
    first, again, other = (sampler.draw(np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert first.targets == again.targets
    assert first.image.equal(again.image)
    assert first.masks.equal(again.masks)
    assert not first.image.equal(other.image)


def test_a_sample_has_the_plans_patch_and_number_of_prompts(make_sampler):
    for prompts, fraction in product((2, 3, 7), (0.0, 0.3, 0.8)):
        sampler = make_sampler(
            [block_case(BLOCKS)],
            prompts_per_sample=prompts,
            absent_fraction=fraction,
            patch_voxels=(16, 24, 8),
        )
        for sample in draws(sampler, 5):
            assert sample.image.shape == (1, 16, 24, 8)
            assert len(sample.targets) == prompts
            assert sample.masks.shape == (prompts, 16, 24, 8)


def test_phantoms_are_drawn_as_ct_and_as_mr(make_sampler, phantom_cases):
    samples = draws(make_sampler(phantom_cases, "phantom", patch_voxels=(16, 16, 16)), 20)
    assert all(np.isfinite(sample.image.numpy()).all() for sample in samples)
    # The plan clips a CT, whose air is then far below the mean; MR has no such floor.
    assert len({float(sample.image.min()) < -2.5 for sample in samples}) == 2


# Masks and image agree.


def test_where_a_mask_is_the_image_shows_that_structure(make_sampler):
    value = {target: float(brightness(number)) for number, target in enumerate(BLOCKS, start=1)}
    seen = set()
    for sample in draws(make_sampler([block_case(BLOCKS)])):
        image = sample.image[0].numpy()
        for target, mask in zip(sample.targets, sample.masks.numpy() > 0, strict=True):
            inside = binary_erosion(mask, iterations=2)
            if inside.any():
                seen.add(target)
                assert 0.4 * value[target] < image[inside].min()
                assert image[inside].max() < 1.8 * value[target]
    assert seen == set(BLOCKS)


def test_where_the_image_shows_a_structure_its_mask_is(make_sampler):
    *_, (brightest, value) = [(target, brightness(number)) for number, target in enumerate(BLOCKS, start=1)]
    found = 0
    for sample in draws(make_sampler([block_case(BLOCKS)])):
        if (brightest, True) in asked(sample):
            mask = sample.masks[sample.targets.index(brightest)].numpy() > 0
            shown = sample.image[0].numpy() > value / 2
            assert 2 * (mask & shown).sum() / (mask.sum() + shown.sum()) > 0.9
            found += 1
    assert found > 5


@pytest.mark.parametrize(
    ("low", "high", "axis"),
    [(LEFT, RIGHT, 0), (LEFT, Target("left_putamen"), 1), (LEFT, Target("brainstem"), 2)],
)
def test_sides_stay_where_they_are(make_sampler, low, high, axis):
    both = 0
    for sample in draws(make_sampler([block_case(BLOCKS)], prompts_per_sample=6)):
        there = {target for target, present in asked(sample) if present}
        if {low, high} <= there:
            masks = [sample.masks[sample.targets.index(target)] for target in (low, high)]
            first, second = (float(mask.nonzero()[:, axis].float().mean()) for mask in masks)
            assert first < second - 5
            both += 1
    assert both > 5


def test_the_marked_left_organ_lies_on_the_left_of_the_patch(make_sampler, monkeypatch):
    only_left = {target: box for target, box in BLOCKS.items() if target == LEFT}
    sampler = make_sampler([block_case(only_left)])
    middle = (np.array(SHAPE) - 1) / 2
    monkeypatch.setattr(sampler, "_centre", lambda place, *rest: (LEFT, middle))
    samples = draws(sampler, 15)
    masks = [sample.masks[sample.targets.index(LEFT)] > 0 for sample in samples]
    bright = [sample.image[0] > float(brightness(1)) / 2 for sample in samples]
    for shown in (masks, bright):
        # One patch may be pushed aside by some voxels, not all of them.
        assert np.mean([float(s.nonzero()[:, 0].float().mean()) for s in shown]) < PATCH[0] / 2 - 4


def test_a_patch_beyond_the_case_is_filled_with_its_darkest_value(make_sampler, monkeypatch):
    sampler = make_sampler([block_case(BLOCKS, offset=-30.0)])
    monkeypatch.setattr(sampler, "_centre", lambda place, *rest: (LEFT, np.array([-300.0, 5.0, 5.0])))
    sample = sampler.draw(np.random.default_rng(0))
    assert not sample.masks.any()
    assert -60 < float(sample.image.max()) < -15


# What is asked.


def test_present_and_wanted_targets_are_asked(make_sampler, monkeypatch):
    sampler = make_sampler([block_case(BLOCKS)], prompts_per_sample=2)
    box = BLOCKS[Target("brainstem")]
    centre = np.array([(side.start + side.stop) / 2 for side in box])
    monkeypatch.setattr(sampler, "_centre", lambda place, *rest: (Target("brainstem"), centre))
    for sample in draws(sampler):
        assert (Target("brainstem"), True) in asked(sample)


def shares_wanted(sampler):
    """How often each target of the only case is the middle of a patch."""
    ((place,),) = sampler.by_mixture.values()
    random = np.random.default_rng(0)
    wanted = [sampler._centre(place, random)[0] for _ in range(1000)]
    return np.array([wanted.count(target) / len(wanted) for target in place.centres])


def test_larger_targets_are_wanted_more_often_but_small_ones_are_not_forgotten(make_sampler):
    small = BLOCKS | {RIGHT: (slice(15, 18), slice(5, 8), slice(4, 6))}
    voxels = np.array([np.prod([side.stop - side.start for side in box]) for box in small.values()])
    shares = shares_wanted(make_sampler([block_case(small)]))
    assert shares == pytest.approx(np.sqrt(voxels) / np.sqrt(voxels).sum(), abs=0.05)


def test_the_core_is_wanted_more_often(make_sampler):
    same = dict(
        zip(
            (
                Target(None, "soft_tissue_sarcoma"),
                Target("liver"),
                Target("liver", "tumor"),
                Target("spleen"),
            ),
            [
                BLOCKS[LEFT],
                BLOCKS[RIGHT],
                *[(slice(2, 8), slice(16, 23), z) for z in (slice(3, 9), slice(14, 20))],
            ],
            strict=True,
        )
    )
    core = ("soft_tissue_sarcoma", "liver", "tumor")
    # A finding in a place is another thing than the place.
    shares = shares_wanted(make_sampler([block_case(same)], core=core, core_weight=4.0))
    assert shares == pytest.approx([0.4, 0.4, 0.1, 0.1], abs=0.04)


def test_the_other_side_is_the_first_absent_thing_asked(make_sampler, monkeypatch):
    others = [
        Target(name) for name in ("left_pallidum", "right_pallidum", "third_ventricle", "fourth_ventricle")
    ]
    only_left = {LEFT: BLOCKS[LEFT]}
    sampler = make_sampler([block_case(only_left, unseen=[RIGHT, *others])], prompts_per_sample=2)
    for sample in draws(sampler):
        if (LEFT, True) in asked(sample):
            assert asked(sample) == [(LEFT, True), (RIGHT, False)]


def test_what_hardly_shows_is_neither_present_nor_absent(make_sampler, monkeypatch):
    speck = (slice(4, 6), slice(4, 6), slice(4, 6))
    assert FEWEST_VOXELS > 8
    case = block_case({LEFT: speck, **{target: BLOCKS[target] for target in BLOCKS if target != LEFT}})
    sampler = make_sampler([case])
    monkeypatch.setattr(sampler, "_centre", lambda place, *rest: (RIGHT, np.array([5.0, 5.0, 5.0])))
    for seed in range(25):
        sample = sampler.draw(np.random.default_rng(seed))
        # Enlarged by the patch's bend it may reach the limit; it is never denied.
        assert (LEFT, False) not in asked(sample)


def test_no_target_is_asked_twice_while_there_are_others(make_sampler):
    for sample in draws(make_sampler([block_case(BLOCKS)], prompts_per_sample=4, absent_fraction=0.0)):
        there = [target for target, present in asked(sample) if present]
        assert len(set(there)) == len(there) or len(set(sample.targets)) < 4


def test_too_few_targets_are_asked_again_with_the_same_masks(make_sampler):
    sampler = make_sampler([block_case({LEFT: BLOCKS[LEFT]})], prompts_per_sample=5)
    for sample in draws(sampler, 5):
        assert set(sample.targets) == {LEFT}
        assert all(mask.equal(sample.masks[0]) for mask in sample.masks)


# Unknown is not absent.

KIDNEY, LIVER, SPLEEN = Target("left_kidney"), Target("liver"), Target("spleen")


def torso_case(first, second, **more):
    """Two organs that are large enough for a lesion."""
    low, high = (slice(1, 10), slice(2, 13), slice(2, 12)), (slice(12, 21), slice(12, 24), slice(11, 22))
    return block_case({first: low, second: high}, "torso", modality="ct", **more)


def test_only_what_a_case_names_or_what_is_far_away_is_denied(make_sampler):
    # Told apart by their images: the second case is bright everywhere.
    kidney = torso_case(KIDNEY, LIVER, name="kidney")
    spleen = torso_case(SPLEEN, LIVER, name="spleen", offset=100.0)
    brain = block_case(BLOCKS)
    sarcoma = block_case({Target(None, "soft_tissue_sarcoma"): BLOCKS[LEFT]}, "sarcoma", name="sarcoma")
    sampler = make_sampler([kidney, spleen, brain, sarcoma], "torso", prompts_per_sample=6)
    samples = draws(sampler, 60)
    denied = {
        case: absent_in(s for s in samples if (float(s.image.min()) > 40) == bright)
        for case, bright in (("kidney", False), ("spleen", True))
    }
    for case, organ in (("kidney", "left_kidney"), ("spleen", "spleen")):
        lesions = {Target(o, word) for o in (organ, "liver") for word in LESION_WORDS}
        mirrored = {Target("right_kidney", word) for word in LESION_WORDS} if case == "kidney" else set()
        named = {Target(organ), LIVER}
        assert denied[case] <= named | lesions | mirrored | set(BLOCKS)
        assert denied[case] & set(BLOCKS)
        assert denied[case] & lesions


def test_what_a_whole_body_shows_of_the_head_is_not_denied_to_a_head(make_sampler):
    whole_body = torso_case(LIVER, Target("brain"))
    sampler = make_sampler([block_case(BLOCKS), whole_body], "brain", prompts_per_sample=6)
    assert Target("brain") not in absent_in(draws(sampler, 60))


def test_a_lesion_is_asked_where_one_was_drawn_and_denied_in_organs_without(make_sampler):
    sampler = make_sampler([torso_case(KIDNEY, LIVER)], "torso", prompts_per_sample=6)
    with_lesion, without = [], []
    for sample in draws(sampler, 60):
        findings = [(target, present) for target, present in asked(sample) if target.finding]
        (with_lesion if any(present for _, present in findings) else without).append((sample, findings))
    assert len(with_lesion) > 8
    for sample, findings in with_lesion:
        ((target, _),) = {finding for finding in findings if finding[1]}
        assert target.structure in ("left_kidney", "liver")
        assert sample.masks[sample.targets.index(target)].sum() >= 20
        # The only lesion that is denied beside it is the one on the other side.
        assert {t.structure for t, present in findings if not present} <= {"right_kidney"}
    assert any(findings for _, findings in without)


def test_everything_that_is_asked_was_announced(make_sampler, phantom_cases):
    sarcoma = block_case({Target(None, "soft_tissue_sarcoma"): BLOCKS[LEFT]}, "sarcoma")
    cases = [*phantom_cases, block_case(BLOCKS), sarcoma]
    sampler = make_sampler(cases, "phantom", patch_voxels=(16, 16, 16))
    announced = set(sampler.targets())
    assert len(announced) == len(sampler.targets())
    assert {target for sample in draws(sampler) for target in sample.targets} <= announced
    assert {Target("right_kidney", "cyst"), Target(None, "soft_tissue_sarcoma")} <= announced


# Who shares a patch's voxels.

PAIR, STEM = Target("thalami"), Target("brainstem")


def test_those_who_share_a_patch_exclude_each_other_and_lie_where_their_masks_do(make_sampler):
    case = block_case(BLOCKS, unseen=[Target("third_ventricle")])
    case.facts.targets.append((PAIR, (1, 2)))
    together, apart = 0, 0
    for sample in draws(
        make_sampler([case], prompts_per_sample=6, core=(PAIR.structure,), core_weight=3), 60
    ):
        names = list(sample.sharing)
        assert len(set(names)) == len(names)
        assert not (PAIR in names and {LEFT, RIGHT} & set(names))
        together, apart = together + (PAIR in names), apart + (LEFT in names)
        for target, mask in zip(sample.targets, sample.masks > 0, strict=True):
            if target in names:
                assert torch.equal(sample.shares == names.index(target) + 1, mask)
    assert together > 10
    assert apart > 10


def test_no_more_share_a_patch_than_the_plan_says(make_sampler):
    for sample in draws(make_sampler([block_case(BLOCKS)], sharing_prompts=2)):
        assert len(sample.sharing) == 2
        assert int(sample.shares.max()) <= 2


# The wrong voxel size.


def test_strangers_are_asked_at_their_own_voxel_size_and_denied(make_sampler):
    torso = torso_case(KIDNEY, LIVER)
    sampler = make_sampler([torso, block_case(BLOCKS)], "torso", stranger_fraction=0.999)
    width = {}
    for name, fraction in (("strange", 0.999), ("own", 0.0)):
        sampler = make_sampler([torso, block_case(BLOCKS)], "torso", stranger_fraction=fraction)
        samples = draws(sampler, 40)
        bright = [s.image[0] > float(brightness(2)) / 2 for s in samples]
        width[name] = np.mean([float(b.sum()) for b in bright])
        if name == "strange":
            assert all(not sample.masks.any() and not sample.sharing for sample in samples)
            assert {target for sample in samples for target in sample.targets} <= set(BLOCKS)
    # The torso's case has voxels of a millimetre, a brain's are larger: the same organ fills fewer of them.
    assert sampler.plan.spacing_for("brain")[0] > 1.5
    assert width["strange"] < 0.5 * width["own"]


# Several channels, and voxels that nobody labelled.


@pytest.fixture
def pet_ct(plan):
    """Changes of a plan that make it one for PET/CT."""
    return {"channels": ("ct", "pet"), "channel_modalities": ("ct", "pet")}


def two_channel_case(**more):
    """The blocks, and a second channel with the same in other numbers."""
    case = block_case(BLOCKS, modality="ct", **more)
    (image,) = case.images
    return replace(case, images=(image, 0.5 * image + np.float16(3)))


def test_every_channel_shows_the_same_place(make_sampler, pet_ct):
    sampler = make_sampler([two_channel_case()], plan_changes=pet_ct)
    for sample in draws(sampler, 10):
        assert sample.image.shape == (2, *PATCH)
        first, second = sample.image.numpy()
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.98
        # Gain and noise are each channel's own.
        assert not np.allclose(0.5 * first + 3, second, atol=1e-3)


def test_each_channel_has_its_own_air(make_sampler, pet_ct, monkeypatch):
    case = two_channel_case()
    case = replace(case, images=(case.images[0] - np.float16(30), case.images[1] + np.float16(600)))
    sampler = make_sampler([case], plan_changes=pet_ct)
    monkeypatch.setattr(sampler, "_centre", lambda place, *rest: (LEFT, np.array([-300.0, 5.0, 5.0])))
    first, second = sampler.draw(np.random.default_rng(0)).image
    assert -60 < float(first.max()) < -15
    assert float(second.min()) > 40


def test_a_label_map_is_drawn_in_every_channel_with_a_contrast_of_its_own(
    make_sampler, phantom_cases, pet_ct, with_training
):
    for changes in (pet_ct, {"channels": ("t1", "t2")}):
        sampler = make_sampler(phantom_cases, "phantom", patch_voxels=(16, 16, 16), plan_changes=changes)
        for sample in draws(sampler, 8):
            first, second = sample.image.numpy()
            assert np.isfinite(sample.image.numpy()).all()
            assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.995
            if changes is pet_ct:
                # SUV 0 is at -0.5 by the plan's rule; a CT's air is far below.
                assert second.min() > -1.5


def test_a_lesion_lies_at_the_same_place_in_every_channel(make_sampler, pet_ct):
    case = torso_case(KIDNEY, LIVER)
    case = replace(case, images=(np.ones(SHAPE, np.float16), np.zeros(SHAPE, np.float16)))
    seen = 0
    for sample in draws(make_sampler([case], "torso", plan_changes=pet_ct), 30):
        lesions = [i for i, t in enumerate(sample.targets) if t.finding and sample.masks[i].any()]
        for index in lesions:
            inside = sample.masks[index] > 0
            seen += 1
            for channel in sample.image:
                change = (channel[inside].mean() - channel[~inside].median()).abs()
                assert float(change) > 0.03
    assert seen > 3


def test_cases_of_another_number_of_channels_are_refused(make_sampler, pet_ct):
    with pytest.raises(DatasetError, match=r"2 channel\(s\) \(ct, pet\), but blocks has 1"):
        make_sampler([block_case(BLOCKS)], plan_changes=pet_ct)


def test_what_nobody_labelled_is_marked_and_never_asked(make_sampler):
    case = block_case(BLOCKS)
    unknown = np.zeros(SHAPE, bool)
    unknown[:, 12:15] = True
    labels = np.where(unknown, 9, case.labels).astype(np.uint8)
    case = replace(case, labels=labels, facts=replace(case.facts, ignore=9))
    some = 0
    for sample in draws(make_sampler([case])):
        assert sample.valid.shape == PATCH
        assert sample.valid.dtype == torch.bool
        assert not sample.masks[:, ~sample.valid].any()
        assert not sample.shares[~sample.valid].any()
        some += int((~sample.valid).any())
    assert some > 10
    for sample in draws(make_sampler([block_case(BLOCKS)]), 3):
        assert sample.valid.all()


def test_of_what_cant_be_there_even_unlabelled_voxels_tell(make_sampler):
    torso = torso_case(KIDNEY, LIVER)
    torso = replace(torso, facts=replace(torso.facts, ignore=1))
    sampler = make_sampler([torso, block_case(BLOCKS)], "torso", stranger_fraction=0.999)
    assert all(sample.valid.all() for sample in draws(sampler, 5))


# Mirrored patches.


def mirrored_sampler(make_sampler, case, words=None, **training):
    sampler = make_sampler([case], case.facts.mixture, mirror_fraction=1.0, **training)
    return PatchSampler(
        [place for places in sampler.by_mixture.values() for place in places],
        sampler.plan,
        sampler.lexicon,
        words,
    )


def test_a_mirrored_patch_is_named_by_where_things_lie_now(make_sampler, monkeypatch):
    value = {target: float(brightness(number)) for number, target in enumerate(BLOCKS, start=1)}
    # The block that the case calls left is as bright as ever, and now the right one.
    value[LEFT], value[RIGHT] = value[RIGHT], value[LEFT]
    value[Target("right_putamen")] = value.pop(Target("left_putamen"))
    both, seen = 0, set()
    for sample in draws(mirrored_sampler(make_sampler, block_case(BLOCKS), prompts_per_sample=6), 40):
        image = sample.image[0].numpy()
        masks = dict(zip(sample.targets, sample.masks.numpy() > 0, strict=True))
        for target, mask in masks.items():
            inside = binary_erosion(mask, iterations=2)
            if inside.any():
                seen.add(target)
                assert 0.4 * value[target] < image[inside].min()
                assert image[inside].max() < 1.8 * value[target]
        if {LEFT, RIGHT} <= {target for target, mask in masks.items() if mask.any()}:
            left, right = (np.argwhere(masks[target])[:, 0].mean() for target in (LEFT, RIGHT))
            assert left < right - 5
            both += 1
    assert both > 5
    assert seen == set(value)


def test_only_the_groups_that_are_named_are_mirrored(make_sampler):
    case = block_case(BLOCKS)
    drawn = {
        groups: draws(mirrored_sampler(make_sampler, case, mirror_groups=groups), 8)
        for groups in ((), ("brain", "limbs"), ("limbs",))
    }
    never = draws(make_sampler([case]), 8)
    images = {groups: [sample.image for sample in samples] for groups, samples in drawn.items()}
    assert case.facts.group == "brain"
    assert all(torch.equal(a, b) for a, b in zip(images[()], images["brain", "limbs"], strict=True))
    assert all(torch.equal(a, b.image) for a, b in zip(images[("limbs",)], never, strict=True))
    assert not any(torch.equal(a, b.image) for a, b in zip(images[()], never, strict=True))


def test_what_shares_a_mirrored_patch_has_its_new_name_too(make_sampler):
    checked = 0
    for sample in draws(mirrored_sampler(make_sampler, block_case(BLOCKS), prompts_per_sample=6)):
        assert Target("left_putamen") not in sample.sharing
        for target, mask in zip(sample.targets, sample.masks > 0, strict=True):
            if target in sample.sharing:
                assert torch.equal(sample.shares == sample.sharing.index(target) + 1, mask)
                checked += 1
    assert checked > 20


def test_own_words_with_a_side_are_asked_for_on_the_other_in_a_mirrored_patch(make_sampler):
    said, stays = Target(None, None, "a: lump of the left thalamus"), Target("left_heart_ventricle")
    shown = {said: BLOCKS[LEFT], stays: BLOCKS[RIGHT], Target("brainstem"): BLOCKS[Target("brainstem")]}
    case = block_case(shown, "own")
    sampler = mirrored_sampler(make_sampler, case, {said: ("lump of the left thalamus",)})
    (image,) = (target for target in sampler.targets() if target.own and target != said)
    assert sampler.words[image] == ("lump of right thalamus",)
    asked_for = {target for sample in draws(sampler) for target in sample.targets}
    assert image in asked_for
    assert not {said, stays} & asked_for
    assert asked_for <= set(sampler.targets())


def test_a_plan_without_augmentation_draws_not_one_number_for_it(make_sampler, monkeypatch):
    sampler = make_sampler([block_case(BLOCKS)])
    assert sampler.mirror is None
    states = [np.random.default_rng(4) for _ in range(2)]
    first = sampler.draw(states[0])
    monkeypatch.setattr("textseg.train.sampling.augmented", lambda image, *rest: image)
    second = sampler.draw(states[1])
    assert first.image.equal(second.image)
    assert first.targets == second.targets
    assert states[0].random() == states[1].random()


LOWER_HALF = (slice(0, PATCH[0]), slice(0, PATCH[1]), slice(0, PATCH[2] // 2))


def test_a_slab_shows_what_was_scanned_and_denies_what_lies_beyond(make_sampler, monkeypatch):
    monkeypatch.setattr("textseg.train.sampling.scanned_part", lambda *rest: LOWER_HALF)
    sampler = make_sampler([block_case(BLOCKS)], slab_fraction=1.0)
    middle = np.array(SHAPE) / 2
    monkeypatch.setattr(sampler, "_centre", lambda place, *rest: (LEFT, middle))
    denied = 0
    for sample in draws(sampler):
        beyond = sample.image[0, ..., PATCH[2] // 2 :]
        assert float(beyond.max()) < float(sample.image.max()) / 4
        assert not sample.masks[..., PATCH[2] // 2 :].any()
        assert not sample.shares[..., PATCH[2] // 2 :].any()
        assert (LEFT, True) in asked(sample)
        denied += (Target("brainstem"), False) in asked(sample)
    assert denied


def test_no_slab_hides_what_the_patch_was_drawn_for(make_sampler, monkeypatch):
    monkeypatch.setattr("textseg.train.sampling.scanned_part", lambda *rest: LOWER_HALF)
    for fraction in (0.0, 1.0):
        sampler = make_sampler([block_case(BLOCKS)], slab_fraction=fraction)
        top = Target("brainstem")
        monkeypatch.setattr(sampler, "_centre", lambda place, *rest, top=top: (top, np.array(SHAPE) / 2))
        assert all((top, True) in asked(sample) for sample in draws(sampler))


def test_a_lesion_is_cut_off_with_its_organ(make_sampler):
    whole = draws(make_sampler([torso_case(KIDNEY, LIVER)], "torso", prompts_per_sample=6), 60)
    slabs = make_sampler([torso_case(KIDNEY, LIVER)], "torso", prompts_per_sample=6, slab_fraction=1.0)
    cut = draws(slabs, 60)

    def lesions(samples):
        return [
            (target, mask)
            for sample in samples
            for target, mask in zip(sample.targets, sample.masks, strict=True)
            if target.finding and mask.any()
        ]

    assert lesions(cut)
    assert all(mask.sum() >= FEWEST_VOXELS for _, mask in lesions(cut))
    mean_of = [np.mean([float(mask.sum()) for _, mask in lesions(samples)]) for samples in (whole, cut)]
    assert mean_of[1] < mean_of[0]


def head_map():
    """A label map of two thalami in a head that no target names."""
    labels = np.full(SHAPE, 9, np.uint8)
    for number, target in enumerate((LEFT, RIGHT), start=1):
        labels[BLOCKS[target]] = number
    targets = [(LEFT, (1,)), (RIGHT, (2,))]
    facts = CaseFacts("head", "brain", "brain", "train", (1.0, 1.0, 1.0), None, targets)
    return Case(facts, labels, ())


def test_stripped_heads_have_nothing_around_the_brain(make_sampler, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "textseg.train.sampling.synthesise",
        lambda labels, *rest: seen.append(labels.clone()) or torch.zeros(labels.shape),
    )
    for fraction, values in ((0.0, {0, 1, 2, 9}), (1.0, {0, 1, 2})):
        seen.clear()
        samples = draws(make_sampler([head_map()], stripped_fraction=fraction, absent_fraction=0.0), 12)
        assert all(sample.masks.any() for sample in samples)
        # Strippers close gaps and may leave a rim: nothing is left that is further from the brain.
        far = {int(v) for labels in seen for v in labels[~grown(labels.remainder(9) > 0, 3)].unique()}
        assert far | {1, 2} == values


def test_drawn_torsos_lie_on_couches_in_ct(make_sampler, monkeypatch, phantom_cases):
    monkeypatch.setattr(
        "textseg.train.sampling.with_couch", lambda image, *rest: torch.full_like(image, 700.0)
    )
    for mixture, fraction, expected in (("phantom", 1.0, True), ("phantom", 0.0, False)):
        sampler = make_sampler(phantom_cases[:1], mixture, couch_fraction=fraction)
        flat = [float(sample.image.std()) < 0.3 for sample in draws(sampler, 12)]
        assert any(flat) == expected
        assert not all(flat)  # in MR there is none


def test_only_heads_of_label_maps_are_stripped(make_sampler):
    scans = [make_sampler([block_case(BLOCKS)], stripped_fraction=fraction) for fraction in (0.0, 1.0)]
    for before, after in zip(*map(draws, scans), strict=True):
        assert before.image.equal(after.image)
        assert before.masks.equal(after.masks)


def test_channels_are_changed_as_the_plan_says(make_sampler):
    plain = draws(make_sampler([block_case(BLOCKS)]), 5)
    noisy = draws(make_sampler([block_case(BLOCKS)], noise_fraction=1.0, blur_fraction=1.0), 5)
    for before, after in zip(plain, noisy, strict=True):
        assert after.image.shape == before.image.shape
        assert not after.image.allclose(before.image, atol=0.1)


def test_neighbours_are_denied_before_what_is_far_away(make_sampler):
    far = [Target(f"{side}_{name}") for side in ("left", "right") for name in ("femur", "lung")]
    near = [Target("left_kidney", "tumor"), Target("right_kidney", "tumor")]
    case = block_case({KIDNEY: BLOCKS[LEFT]}, "sarcoma", unseen=[*far, *near])
    for fraction, denied in ((1.0, set(near)), (0.0, {*near, *far})):
        sampler = make_sampler([case], "sarcoma", prompts_per_sample=2, neighbour_fraction=fraction)
        samples = [sample for sample in draws(sampler, 60) if (KIDNEY, True) in asked(sample)]
        assert absent_in(samples) == denied


# Which cases are drawn.


def test_mixtures_are_drawn_by_their_weights(make_sampler):
    cases = [torso_case(KIDNEY, LIVER), block_case(BLOCKS), block_case(BLOCKS, "unweighed")]
    sampler = make_sampler(cases, mixture="torso")
    assert dict(zip(sampler.names, sampler.weights, strict=True)) == {"torso": 1, "brain": 0, "unweighed": 0}
    for sample in draws(sampler):
        assert not {target for target, present in asked(sample) if present} & set(BLOCKS)


def test_places_lie_in_their_targets():
    case = block_case(BLOCKS, unseen=[Target("third_ventricle")])
    place = find_places(case, most=50)
    assert set(place.centres) == set(BLOCKS)
    for number, target in enumerate(BLOCKS, start=1):
        assert place.centres[target].shape == (50, 3)
        assert (case.labels[tuple(place.centres[target].T)] == number).all()


def test_cases_of_no_mixture_of_the_plan_are_refused(make_sampler):
    for cases in ([], [block_case(BLOCKS, "unweighed")], [block_case({}, unseen=[LEFT])]):
        with pytest.raises(DatasetError, match="mixture"):
            make_sampler(cases)


def test_a_case_that_shows_nothing_is_never_drawn(make_sampler):
    healthy = block_case({}, name="healthy", unseen=[LEFT])
    sampler = make_sampler([healthy, block_case(BLOCKS)])
    for sample in draws(sampler):
        assert sample.masks.any()
