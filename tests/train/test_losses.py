"""The loss: what it rewards, what it leaves alone, and how scales and presence are weighed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textseg.network.build import Decoded
from textseg.train.losses import (
    _coarse_sums,
    _counts,
    _fine_sums,
    mask_loss,
    prompt_loss,
    share_labels,
    sharing_loss,
)

SURE = 20.0


@pytest.fixture
def masks():
    """(1, 2, 8, 6, 4): a block off the centre, and nothing."""
    masks = torch.zeros(1, 2, 8, 6, 4)
    masks[0, 0, 2:6, 2:6, 0:2] = 1
    return masks


def logits_of(masks):
    return (2 * masks - 1) * SURE


def halved(masks):
    return nn.functional.interpolate(masks, scale_factor=0.5, mode="area")


def test_a_perfect_answer_costs_next_to_nothing(masks):
    decoded = Decoded((logits_of(masks), logits_of(halved(masks))), torch.tensor([[SURE, -SURE]]))
    assert float(prompt_loss(decoded, masks, (1.0, 0.5), 0.2)) < 1e-3


def test_every_mistake_costs(masks):
    right, presence = logits_of(masks), torch.tensor([[SURE, -SURE]])
    best = prompt_loss(Decoded((right,), presence), masks, (1.0,), 0.2)
    missed, extra = right.clone(), right.clone()
    missed[0, 0, 2:4] = -SURE
    extra[0, 1, 6] = SURE
    for wrong in (Decoded((missed,), presence), Decoded((extra,), presence), Decoded((right,), -presence)):
        assert prompt_loss(wrong, masks, (1.0,), 0.2) > best + 0.1


def test_an_empty_map_for_an_absent_thing_does_not_pay_for_a_wrong_map_elsewhere(masks):
    present = torch.tensor([[1.0, 0.0]])
    missed = torch.full_like(masks, -SURE)
    alone = mask_loss(missed[:, :1], masks[:, :1], present[:, :1])
    both = mask_loss(missed, masks, present)
    # Cross-entropy is a mean over prompts; Dice, all of it lost, is a mean over the present one alone.
    assert float(both) == pytest.approx(float(alone) - SURE * float(masks[0, 0].mean()) / 2, rel=1e-3)
    assert float(both) > 0.95


def test_dice_gives_no_gradient_to_an_absent_thing(masks):
    logits = torch.randn(masks.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask_loss(logits, masks, torch.tensor([[1.0, 0.0]])).backward()
    from_both = logits.grad.clone()
    logits.grad = None
    nn.functional.binary_cross_entropy_with_logits(logits, masks).backward()
    torch.testing.assert_close(from_both[:, 1], logits.grad[:, 1])
    assert not torch.allclose(from_both[:, 0], logits.grad[:, 0], rtol=0.1)


def test_a_batch_of_absent_things_has_a_finite_loss(masks):
    nothing = torch.zeros_like(masks)
    decoded = Decoded((torch.zeros_like(masks),), torch.zeros(1, 2))
    loss = float(prompt_loss(decoded, nothing, (1.0,), 1.0))
    assert loss == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), rel=1e-4)


def test_small_and_large_things_count_the_same():
    masks = torch.zeros(1, 2, 12, 12, 12)
    masks[0, 0, :10, :10, :10] = 1
    masks[0, 1, 3:6, 3:6, 3:5] = 1
    present = torch.ones(1, 2)
    lost = []
    for prompt in (0, 1):
        logits = logits_of(masks)
        logits[0, prompt] = -SURE
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, masks)
        lost.append(float(mask_loss(logits, masks, present) - cross_entropy))
    assert lost == pytest.approx([0.5, 0.5], abs=0.05)


def test_presence_pulls_towards_what_is_there(masks):
    presence = torch.zeros(1, 2, requires_grad=True)
    prompt_loss(Decoded((logits_of(masks),), presence), masks, (1.0,), 0.2).backward()
    # Descent goes against the gradient: up for the present one, down for the absent one.
    assert presence.grad[0, 0] < 0 < presence.grad[0, 1]
    assert presence.grad[0].tolist() == pytest.approx([-0.05, 0.05])


def test_scales_count_by_their_weights(masks):
    perfect, presence = logits_of(masks), torch.tensor([[SURE, -SURE]])
    coarse = logits_of(halved(masks))
    wrong_fine = prompt_loss(Decoded((-perfect, coarse), presence), masks, (3.0, 1.0), 0.0)
    wrong_coarse = prompt_loss(Decoded((perfect, -coarse), presence), masks, (3.0, 1.0), 0.0)
    wrong_both = prompt_loss(Decoded((-perfect, -coarse), presence), masks, (3.0, 1.0), 0.0)
    assert float(wrong_fine) == pytest.approx(3 * float(wrong_coarse), rel=0.05)
    assert float(wrong_both) == pytest.approx(float(wrong_fine + wrong_coarse), rel=1e-4)
    # Only their ratio counts.
    larger = prompt_loss(Decoded((-perfect, -coarse), presence), masks, (30.0, 10.0), 0.0)
    assert float(larger) == pytest.approx(float(wrong_both), rel=1e-4)


def test_a_coarse_voxel_is_inside_as_far_as_its_fine_ones_are():
    masks = torch.zeros(1, 1, 8, 8, 8)
    masks[..., 2::4] = 1  # one layer of each second pair: half of a coarse voxel
    loss = {}
    for share in (0.02, 0.5, 0.98):
        inside = halved(masks) > 0
        coarse = torch.where(inside, torch.logit(torch.tensor(share)), -SURE)
        decoded = Decoded((logits_of(masks), coarse), torch.full((1, 1), SURE))
        loss[share] = float(prompt_loss(decoded, masks, (1.0, 1.0), 0.0))
    assert loss[0.5] < min(loss[0.02], loss[0.98])


def test_scales_without_a_weight_do_not_count(masks):
    presence = torch.tensor([[SURE, -SURE]])
    coarse = -logits_of(halved(masks))
    one = prompt_loss(Decoded((logits_of(masks),), presence), masks, (1.0,), 0.2)
    two = prompt_loss(Decoded((logits_of(masks), coarse), presence), masks, (1.0,), 0.2)
    assert torch.equal(one, two)


# Structures that share out a patch.


@pytest.fixture
def labels():
    """(1, 8, 6, 4): two structures of different size, off the centre, and nothing else."""
    labels = torch.zeros(1, 8, 6, 4, dtype=torch.int64)
    labels[0, 2:6, 2:6, 0:2] = 1
    labels[0, 0:2, 0:2, 2:4] = 2
    return labels


ASKED = torch.tensor([[True, True, False]])


def shared_logits(labels, sure=SURE):
    """Perfect logits for two structures at half the size; the third is padding and claims everything."""
    cells = share_labels(labels, 3, (4, 3, 2))[:, 1:]
    return torch.cat([(2 * cells - 1) * sure, torch.full_like(cells[:, :1], 50.0)], dim=1)


def claims(logits):
    """Logits with a presence score that is sure of the two structures and wrong about the padding."""
    return Decoded((logits,), torch.tensor([[SURE, SURE, SURE]]))


def test_who_is_not_in_the_patch_is_not_present(labels):
    asked = torch.tensor([[True, True, True]])
    logits = shared_logits(labels)
    logits[0, 2] = -SURE
    sure, unsure = claims(logits), Decoded((logits,), torch.tensor([[SURE, SURE, -SURE]]))
    right = float(sharing_loss(unsure, labels, asked, (1.0,), 0.3))
    assert float(sharing_loss(sure, labels, asked, (1.0,), 0.3)) == pytest.approx(right + 0.3 * SURE / 3)


def test_a_structure_of_few_voxels_weighs_less_in_the_mean_of_dice():
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    labels[0, :12] = 1
    labels[0, 15, 0, :8] = 2
    right = torch.stack([(labels == 1), (labels == 2)], dim=1).float() * 2 * SURE - SURE
    asked = torch.ones(1, 2, dtype=torch.bool)
    silent = torch.full((1, 2), -SURE)

    def cost(missing):
        logits = right.clone()
        logits[:, missing] = -SURE
        return float(sharing_loss(Decoded((logits,), silent), labels, asked, (1.0,), 0.0))

    perfect = float(sharing_loss(Decoded((right,), silent), labels, asked, (1.0,), 0.0))
    # Eight voxels: their Dice has a weight of 8 / 208 beside nearly 1, and cross-entropy hears them little.
    assert cost(1) - perfect < 0.1
    assert cost(0) - perfect > 0.9


@pytest.mark.parametrize("unknown", [False, True])
def test_the_full_scale_is_summed_up_as_any_other(labels, valid, unknown):
    """At the full scale cells hold one structure each; both ways of adding up agree there."""
    generator = torch.Generator().manual_seed(2)
    log_shares = torch.randn(1, 3, labels.numel(), generator=generator).log_softmax(dim=1)
    known = labels.masked_fill(~valid, 3) if unknown else labels
    fine = _fine_sums(log_shares, known.flatten(1), _counts(known, 4)[:, 1:3])
    coarse = _coarse_sums(log_shares, share_labels(known, 4, labels.shape[1:]).flatten(2))
    for one, other in zip(fine, coarse, strict=True):
        torch.testing.assert_close(one.float(), other)


def test_cells_know_what_fills_them():
    labels = torch.zeros(1, 4, 2, 2, dtype=torch.int64)
    labels[0, 0, 0, 0] = 2
    labels[0, 2:] = 1
    cells = share_labels(labels, 3, (2, 1, 1))
    assert cells[0, :, 0, 0, 0].tolist() == [0.875, 0.0, 0.125]
    assert cells[0, :, 1, 0, 0].tolist() == [0.0, 1.0, 0.0]


def test_a_perfect_sharing_costs_next_to_nothing_whatever_the_padding_says(labels):
    assert float(sharing_loss(claims(shared_logits(labels)), labels, ASKED, (1.0,), 0.2)) < 1e-3


def test_taking_another_structures_voxels_costs(labels):
    right = sharing_loss(claims(shared_logits(labels)), labels, ASKED, (1.0,), 0.2)
    swapped = shared_logits(labels)[:, [1, 0, 2]]
    assert float(sharing_loss(claims(swapped), labels, ASKED, (1.0,), 0.2)) > float(right) + 0.9


def test_claiming_what_belongs_to_nobody_costs(labels):
    greedy = shared_logits(labels)
    greedy[0, 0] = SURE
    assert float(sharing_loss(claims(greedy), labels, ASKED, (1.0,), 0.2)) > 0.5


def test_a_patch_in_which_nobody_is_asked_has_a_finite_loss(labels):
    logits = torch.zeros(1, 3, 4, 3, 2, requires_grad=True)
    loss = sharing_loss(claims(logits), labels * 0, torch.zeros(1, 3, dtype=torch.bool), (1.0,), 0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    assert not logits.grad.any()


# Voxels that nobody labelled.


@pytest.fixture
def valid():
    """(1, 8, 6, 4): a corner is not known; it cuts through the block and, at half the size, through cells."""
    valid = torch.ones(1, 8, 6, 4, dtype=torch.bool)
    valid[0, 4:, 3:, 1:] = False
    return valid


def gradients(masks, labels, valid):
    """Of both losses at two scales, by the logits and the presence scores."""
    generator = torch.Generator().manual_seed(5)
    fine, coarse, presence, shares = (
        torch.randn(shape, generator=generator, requires_grad=True)
        for shape in ((1, 2, 8, 6, 4), (1, 2, 4, 3, 2), (1, 2), (1, 2, 4, 3, 2))
    )
    asked = torch.ones(1, 2, dtype=torch.bool)
    loss = prompt_loss(Decoded((fine, coarse), presence), masks, (1.0, 0.5), 0.2, valid)
    loss = loss + sharing_loss(Decoded((shares,), presence), labels, asked, (1.0,), 0.2, valid)
    return torch.autograd.grad(loss, (fine, coarse, presence, shares))


def test_what_lies_under_unknown_voxels_changes_no_gradient(masks, labels, valid):
    expected = gradients(masks, labels, valid)
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        other_masks = torch.where(valid[:, None], masks, torch.rand(masks.shape, generator=random).round())
        drawn = torch.randint(0, 3, labels.shape, generator=random)
        other_labels = torch.where(valid, labels, drawn)
        assert not torch.equal(other_masks, masks)
        for one, other in zip(gradients(other_masks, other_labels, valid), expected, strict=True):
            assert torch.equal(one, other)
    fine, coarse, _, shares = expected
    assert not fine[~valid[:, None].expand_as(fine)].any()
    assert fine[valid[:, None].expand_as(fine)].all()
    # A coarse cell counts as far as it is known: the corner's inner cells not at all.
    for scale in (coarse, shares):
        assert not scale[:, :, 2:, 2:, 1:].any()
        assert scale[:, :, :2].all()


def test_a_known_patch_costs_the_same_with_and_without_its_map(masks, labels):
    everywhere = torch.ones(1, 8, 6, 4, dtype=torch.bool)
    for one, other in zip(gradients(masks, labels, everywhere), gradients(masks, labels, None), strict=True):
        torch.testing.assert_close(one, other)


def test_a_patch_of_which_nothing_is_known_costs_nothing(masks, labels):
    for gradient in gradients(masks, labels, torch.zeros(1, 8, 6, 4, dtype=torch.bool)):
        assert not gradient.any()


def test_presence_is_scored_where_a_thing_is_seen_or_the_whole_patch_is_known(masks, valid):
    def pull(masks, valid):
        presence = torch.zeros(1, 2, requires_grad=True)
        prompt_loss(Decoded((logits_of(masks),), presence), masks, (1.0,), 0.2, valid).backward()
        return presence.grad[0].tolist()

    everywhere = torch.ones_like(valid)
    assert pull(masks, everywhere) == pytest.approx([-0.05, 0.05])
    # The second is not seen, but it may lie in the corner that nobody labelled.
    assert pull(masks, valid) == pytest.approx([-0.1, 0.0])
    # The first is seen only where nobody labelled: that is not seeing it.
    assert pull(masks * ~valid[:, None], valid) == [0.0, 0.0]


def test_presence_of_those_who_share_is_scored_by_the_same_rule(labels, valid):
    def pull(labels, valid):
        presence = torch.zeros(1, 3, requires_grad=True)
        sharing_loss(
            Decoded((shared_logits(labels),), presence), labels, ASKED, (1.0,), 0.2, valid
        ).backward()
        return presence.grad[0].tolist()

    only_first = labels * (labels == 1)
    assert pull(only_first, torch.ones_like(valid)) == pytest.approx([-0.05, 0.05, 0.0])
    assert pull(only_first, valid) == pytest.approx([-0.1, 0.0, 0.0])
