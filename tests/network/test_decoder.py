"""From features to masks: a trunk that no prompt touches, and a thin part for each prompt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textseg.network.mask_decoder import RARE, DecoderTrunk, PromptDecoder, RefiningScale
from textseg.network.spatial_prompts import pyramid_of
from textseg.network.text_fusion import Query

SIZES = [(16, 24, 8), (8, 12, 8), (4, 6, 4)]


@pytest.fixture
def trunk(plan):
    generator = torch.Generator().manual_seed(6)
    widths = plan.network.widths
    return [torch.randn((2, w, *size), generator=generator) for w, size in zip(widths, SIZES, strict=True)]


@pytest.fixture
def queries(plan):
    generator = torch.Generator().manual_seed(7)
    seen = torch.randn((2, 3, plan.network.query_width), generator=generator)
    return Query(seen, torch.randn((2, 3, plan.network.text_width), generator=generator))


@pytest.fixture
def decoder(plan):
    torch.manual_seed(5)
    return PromptDecoder(plan.network).eval()


def clicked(plan, voxel=(9, 17, 5), channel=1, prompts=3):
    """Spatial prompts with one voxel of one channel of the second prompt of the first image."""
    maps = torch.zeros(2, prompts, plan.network.spatial_channels, *SIZES[0])
    maps[(0, 1, channel, *voxel)] = 1
    return maps


def test_the_trunk_keeps_sizes_and_widths(plan, trunk):
    out = DecoderTrunk(plan.network)(trunk)
    assert [x.shape for x in out] == [x.shape for x in trunk]
    assert out[-1] is trunk[-1]


def test_the_coarsest_features_reach_the_finest_trunk(plan, trunk):
    decoder = DecoderTrunk(plan.network).eval()
    changed = [*trunk[:-1], trunk[-1] + 1]
    assert not torch.allclose(decoder(trunk)[0], decoder(changed)[0])


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_folded_upsamplings_change_no_value(norm, plan, trunk, monkeypatch):
    torch.manual_seed(3)
    decoder = DecoderTrunk(plan.network.model_copy(update={"norm": norm})).eval()
    with torch.no_grad():
        before = decoder(trunk)
        decoder.fold()
        after = decoder(trunk)
        for ours, theirs in zip(after, before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        # It is really the folded ones that answer: without its upsamplings it says the same.
        assert all(folded is not None for folded in decoder._folded)
        monkeypatch.setattr(nn.ConvTranspose3d, "forward", lambda *_: pytest.fail("not folded"))
        decoder(trunk)
    with pytest.raises(pytest.fail.Exception):
        decoder(trunk)  # whoever learns needs the weights themselves


@torch.no_grad()
def test_blocks_of_the_trunk_begin_as_what_they_are_given(plan, trunk):
    torch.manual_seed(4)
    bare = DecoderTrunk(plan.network.model_copy(update={"trunk_blocks": ()})).eval()
    with_blocks = DecoderTrunk(plan.network.model_copy(update={"trunk_blocks": (1, 2)})).eval()
    with_blocks.load_state_dict(bare.state_dict(), strict=False)
    assert [len(blocks) for blocks in with_blocks.blocks] == [1, 2]
    before = bare(trunk)
    for ours, theirs in zip(with_blocks(trunk), before, strict=True):
        # All but the hundredth that a leaky rectifier leaves of what is negative.
        assert torch.allclose(ours.clamp_min(0), theirs.clamp_min(0), atol=0.05)
    for blocks in with_blocks.blocks:
        for block in blocks:
            nn.init.ones_(block.norm.weight)
    assert (with_blocks(trunk)[0] - before[0]).abs().max() > 0.1


@torch.no_grad()
def test_a_slice_of_the_trunk_is_its_own_where_no_kernel_mixes_slices(sliced_plan, trunk):
    merge = DecoderTrunk(sliced_plan.network).eval()
    changed = [trunk[0].clone(), *trunk[1:]]
    changed[0][..., 3] += 1
    assert slices_that_differ(merge(changed)[0], merge(trunk)[0]) == [3]


@torch.no_grad()
def test_a_slice_of_a_mask_is_its_own_where_no_kernel_mixes_slices(sliced_plan, trunk, queries):
    torch.manual_seed(5)
    decoder = PromptDecoder(sliced_plan.network).eval()
    learnt(decoder)
    changed = [trunk[0].clone(), *trunk[1:]]
    changed[0][..., 3] += 1
    after, before = decoder(changed, queries, None)[0], decoder(trunk, queries, None)[0]
    assert slices_that_differ(after, before) == [3]
    # Of a click only what the scale itself makes of it: coarser ones have seen it too.
    click = decoder.scales[0].spatial(clicked(sliced_plan).flatten(0, 1))
    assert slices_that_differ(click, torch.zeros_like(click)) == [5]


def slices_that_differ(one, other):
    return torch.nonzero((one - other).abs().amax(dim=(0, 1, 2, 3))).flatten().tolist()


def test_there_is_a_logit_map_at_every_scale(decoder, trunk, queries):
    logits = decoder(trunk, queries, None)
    assert [tuple(x.shape) for x in logits] == [(2, 3, *size) for size in SIZES]


def test_prompts_and_images_are_decoded_apart(decoder, trunk, queries):
    together = decoder(trunk, queries, None)
    for image in range(2):
        for prompt in range(3):
            one = [x[image : image + 1] for x in trunk]
            own = Query(*(part[image : image + 1, prompt : prompt + 1] for part in queries))
            alone = decoder(one, own, None)
            for ours, theirs in zip(together, alone, strict=True):
                assert torch.allclose(ours[image, prompt], theirs[0, 0], atol=1e-5)


@torch.no_grad()
def test_words_say_a_pyramid_of_their_own_maps(decoder, trunk, queries):
    # With nothing learnt that corrects it, a logit is the words' own kernels over the trunk, scale by scale.
    logits = decoder(trunk, queries, None)
    expected = None
    for scale, features, logit in reversed(list(zip(decoder.scales, trunk, logits, strict=True))):
        width = features.shape[1]
        kernel = scale.kernel.weights(queries)[..., : width + 1]
        own = torch.einsum("bpc,bcxyz->bpxyz", kernel[..., :width], features)
        own = own + kernel[..., width, None, None, None]
        expected = own if expected is None else own + upsampled(expected, own.shape[2:])
        assert torch.allclose(logit, expected, atol=1e-4)


@torch.no_grad()
def test_those_who_share_get_what_words_say_without_corrections(decoder, trunk, queries):
    for shared, decoded in zip(
        decoder.share(trunk, queries, 2), decoder(trunk, queries, None)[:2], strict=True
    ):
        assert torch.allclose(shared, decoded, atol=1e-4)
    learnt(decoder)
    shared, decoded = decoder.share(trunk, queries, 1)[0], decoder(trunk, queries, None)[0]
    assert (shared - decoded).abs().max() > 0.1


@torch.no_grad()
def test_words_and_what_they_saw_both_shape_a_kernel(decoder, trunk, queries):
    for scale in decoder.scales:
        nn.init.normal_(scale.kernel.by_sight.weight)
    before = decoder(trunk, queries, None)
    for part in ("seen", "words"):
        changed = queries._replace(**{part: getattr(queries, part).flip(1)})
        for ours, theirs in zip(decoder(trunk, changed, None), before, strict=True):
            assert (ours - theirs)[:, [0, 2]].abs().max() > 0.1
            assert torch.allclose(ours[:, 1], theirs[:, 1], atol=1e-4)


@torch.no_grad()
def test_before_anything_is_learnt_everything_is_improbable(plan, trunk):
    torch.manual_seed(5)
    decoder = PromptDecoder(plan.network)
    nothing = Query(torch.zeros(2, 1, plan.network.query_width), torch.zeros(2, 1, plan.network.text_width))
    for logits in decoder(trunk, nothing, None):
        assert torch.allclose(logits, torch.full_like(logits, RARE), atol=1e-5)


def upsampled(x, shape):
    return nn.functional.interpolate(x, size=shape, mode="trilinear", align_corners=False)


def test_a_coarser_scale_speaks_to_the_finer_ones_only(decoder, trunk, queries):
    before = decoder(trunk, queries, None)
    after = decoder([trunk[0], trunk[1] + 1, trunk[2]], queries, None)
    assert not torch.allclose(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
    assert torch.equal(after[2], before[2])


# ---- spatial prompts ----


def test_untrained_spatial_prompts_change_nothing(decoder, trunk, queries, plan):
    for ours, theirs in zip(decoder(trunk, queries, marks(plan)), decoder(trunk, queries, None), strict=True):
        assert torch.equal(ours, theirs)


def test_empty_maps_are_as_good_as_none(decoder, trunk, queries, plan):
    learnt(decoder)
    for ours, theirs in zip(
        decoder(trunk, queries, [torch.zeros_like(maps) for maps in marks(plan)]),
        decoder(trunk, queries, None),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("voxel", [(9, 17, 5), (0, 0, 0), (15, 23, 7)], ids=str)
@pytest.mark.parametrize("channel", [0, 6])
def test_a_click_changes_its_own_prompt_at_every_scale_and_no_other(
    voxel, channel, decoder, trunk, queries, plan
):
    learnt(decoder)
    before = decoder(trunk, queries, None)
    after = decoder(trunk, queries, marks(plan, voxel, channel))
    for ours, theirs in zip(after, before, strict=True):
        change = (ours - theirs).abs().amax(dim=(2, 3, 4))
        assert change[0, 1] > 1e-4
        change[0, 1] = 0
        assert change.max() == 0


def test_a_single_clicked_voxel_survives_to_the_coarsest_scale(plan):
    pyramid = pyramid_of(clicked(plan), plan.network.strides)
    places = [torch.nonzero(maps).tolist() for maps in pyramid]
    assert places == [[[0, 1, 1, 9, 17, 5]], [[0, 1, 1, 4, 8, 5]], [[0, 1, 1, 2, 4, 2]]]
    assert [float(maps.max()) for maps in pyramid] == [1, 1, 1]


def test_a_click_changes_most_where_it_is(decoder, trunk, queries, plan):
    learnt(decoder)
    before = decoder(trunk, queries, None)[0][0, 1]
    after = decoder(trunk, queries, marks(plan))[0][0, 1]
    change = (after - before).abs()
    near = change[7:12, 15:20, 3:8].mean()
    far = change[:4, :8].mean()
    assert near > 5 * far


def learnt(decoder):
    torch.manual_seed(1)
    for scale in decoder.scales:
        nn.init.normal_(scale.spatial.weight, std=0.5)
        nn.init.normal_(scale.correction.weight, std=0.5)


def marks(plan, *where):
    return pyramid_of(clicked(plan, *where), plan.network.strides)


# ---- a finest scale without convolutions of its own ----


@pytest.fixture
def refining(plan):
    torch.manual_seed(5)
    channels = (0, *plan.network.prompt_channels[1:])
    return PromptDecoder(plan.network.model_copy(update={"prompt_channels": channels})).eval()


def test_the_plan_says_whether_the_finest_scale_only_refines(refining, decoder):
    assert [isinstance(scale, RefiningScale) for scale in refining.scales] == [True, False, False]
    assert not any(isinstance(scale, RefiningScale) for scale in decoder.scales)


@torch.no_grad()
def test_refining_adds_a_querys_own_map_to_what_is_known(refining, trunk, queries):
    finest, coarser, _ = refining(trunk, queries, None)
    width = trunk[0].shape[1]
    kernel = refining.scales[0].kernel.weights(queries)
    own = torch.einsum("bpc,bcxyz->bpxyz", kernel[..., :width], trunk[0])
    own = own + kernel[..., width, None, None, None]
    assert torch.allclose(finest, own + upsampled(coarser, SIZES[0]), atol=1e-4)


def test_what_the_coarser_scale_hid_reaches_the_finest_one(refining, trunk, queries):
    refining(trunk, queries, None)[0].square().mean().backward()
    assert refining.scales[0].reduce.weight.grad.abs().max() > 0
    assert refining.scales[0].kernel.by_sight.weight.grad.abs().max() > 0
    assert refining.scales[1].correction.weight.grad.abs().max() > 0


@torch.no_grad()
def test_a_click_changes_its_own_prompt_where_scales_refine(refining, trunk, queries, plan):
    before = refining(trunk, queries, None)
    for ours, theirs in zip(refining(trunk, queries, marks(plan)), before, strict=True):
        assert torch.equal(ours, theirs)
    nn.init.ones_(refining.scales[0].spatial.weight)
    change = refining(trunk, queries, marks(plan))[0] - before[0]
    expected = torch.zeros_like(change)
    expected[0, 1, 9, 17, 5] = 1
    assert torch.allclose(change, expected, atol=1e-5)
