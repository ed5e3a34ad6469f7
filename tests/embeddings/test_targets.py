from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.embeddings.encoder import embed_many
from textseg.embeddings.targets import KeptVectors, Place, Targets, places
from textseg.prompts import Lexicon, default_lexicon

WIDTH = 256


@pytest.fixture(scope="module")
def targets() -> Targets:
    lexicon = default_lexicon()
    return Targets(list(places(lexicon)), lexicon.findings(), WIDTH)


def row(words: str) -> int:
    return [place.words(None) for place in places(default_lexicon())].index(words)


def column(name: str) -> int:
    return [finding.name for finding in default_lexicon().findings()].index(name)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other)


def test_sides_are_apart_with_and_without_a_finding(targets: Targets) -> None:
    left, right = row("left kidney"), row("right kidney")
    tumor = targets.with_findings([column("tumor")])
    assert cosine(targets.alone()[left], targets.alone()[right]) < 0.5
    assert cosine(tumor[left, 0], tumor[right, 0]) < 0.55


def test_a_lesion_is_apart_from_its_organ_and_from_that_of_another_organ(targets: Targets) -> None:
    kidney, liver = row("left kidney"), row("liver")
    tumor, cyst = targets.with_findings([column("tumor"), column("cyst")]).unbind(dim=1)
    assert cosine(targets.alone()[kidney], tumor[kidney]) < 0.6
    assert cosine(tumor[kidney], tumor[liver]) < 0.6
    assert cosine(tumor[kidney], cyst[kidney]) < 0.65


def test_different_structures_are_well_apart(targets: Targets) -> None:
    alone = targets.alone()
    cosines = alone @ alone.T
    bases = [place.structure.base if place.structure else "" for place in places(default_lexicon())]
    different = torch.tensor([[one != other for other in bases] for one in bases])
    assert cosines[different].max() < 0.65


def test_a_said_side_moves_what_has_no_sides(targets: Targets) -> None:
    alone = targets.alone()
    left, right = row("left liver"), row("right liver")
    assert cosine(alone[left], alone[right]) < 0.5
    assert 0.8 < cosine(alone[left], alone[row("liver")]) < 0.9


def test_targets_do_not_depend_on_what_else_there_is(targets: Targets) -> None:
    lexicon = default_lexicon()
    kidney = lexicon.find("left kidney")
    tumor = lexicon.find("tumor")
    assert kidney is not None
    assert tumor is not None
    few = Targets([Place(kidney, "left")], [tumor], WIDTH)
    torch.testing.assert_close(few.alone()[0], targets.alone()[row("left kidney")])
    torch.testing.assert_close(
        few.with_findings([0])[0, 0], targets.with_findings([column("tumor")])[row("left kidney"), 0]
    )


def test_targets_are_the_same_on_every_machine(targets: Targets) -> None:
    # Image networks are trained on vectors that lie at these targets.
    alone = targets.alone()[row("left kidney"), :4]
    with_tumor = targets.with_findings([column("tumor")])[row("left kidney"), 0, :4]
    expected_alone = torch.tensor([-0.058510, 0.072156, -0.030867, 0.022704])
    expected_with_tumor = torch.tensor([0.011443, -0.026074, 0.011752, 0.014799])
    torch.testing.assert_close(alone, expected_alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(with_tumor, expected_with_tumor, atol=1e-5, rtol=0)


class LeaningEncoder:
    """Organ, side and finding as axes, but findings lean on their organs, and so on their other side."""

    name = "leaning-1"
    width = 6

    def embed(self, texts: Sequence[str]) -> Tensor:
        axes = ("kidney", "liver", "left", "tumor", "cyst")
        vectors = torch.tensor([[float(axis in text) for axis in axes] + [0.5] for text in texts])
        vectors[:, 2] -= torch.tensor([float("right" in text) for text in texts])
        return vectors


@pytest.fixture
def kept(small_lexicon: Lexicon) -> KeptVectors:
    return KeptVectors(list(places(small_lexicon)), small_lexicon.findings(), LeaningEncoder())


def test_kept_vectors_are_those_of_the_encoder(kept: KeptVectors, small_lexicon: Lexicon) -> None:
    words = [place.words(None) for place in places(small_lexicon)]
    assert torch.equal(kept.alone(), embed_many(LeaningEncoder(), words))


def test_a_finding_is_told_from_itself_on_the_other_side(kept: KeptVectors, small_lexicon: Lexicon) -> None:
    names = [place.words(None) for place in places(small_lexicon)]
    findings = [finding.name for finding in small_lexicon.findings()]
    meant = [
        (names.index("left kidney"), findings.index("tumor")),
        (names.index("liver"), findings.index("cyst")),
    ]
    words, vectors = kept.findings_around([*meant, *meant])
    assert words == ["left kidney tumor", "right kidney tumor", "liver cyst"]
    torch.testing.assert_close(vectors, embed_many(LeaningEncoder(), words))


def test_everything_is_drawn_to_be_held(kept: KeptVectors, small_lexicon: Lexicon) -> None:
    words, vectors = kept.draw(400, np.random.default_rng(0))
    torch.testing.assert_close(vectors, embed_many(LeaningEncoder(), words))
    assert set(small_lexicon.names()) <= set(words)
    assert {"left liver", "left kidney tumor", "right liver cyst", "left cyst"} <= set(words)
    assert 0.3 < sum(any(name in text for name in ("tumor", "cyst")) for text in words) / 400 < 0.8
