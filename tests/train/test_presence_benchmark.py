"""The benchmark of presence asks for what is there, what is not, and what belongs to other body parts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from textseg.device import Compute
from textseg.network.build import Decoded, Features
from textseg.train.cases import Case, CaseFacts, Target, write_case

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "presence.py"
COMPUTE = Compute(torch.device("cpu"), torch.float32)
LIVER, SPLEEN, KIDNEY = Target("liver"), Target("spleen"), Target("left_kidney")
PUTAMEN, C2, BRAIN = Target("left_putamen"), Target("vertebra_c2"), Target("brain")
BRIGHTNESS = {LIVER: 2.0, SPLEEN: 4.0, KIDNEY: 6.0, PUTAMEN: 8.0, C2: 9.0, BRAIN: 7.0}
VECTORS = {target: torch.tensor([[value], [-99.0]]) for target, value in BRIGHTNESS.items()}


class Stub:
    """Finds what is as bright as the prompt says; takes anything for a putamen, without a mask."""

    total_stride = (1, 1, 1)

    def __init__(self):
        self.shapes = []

    def encode(self, image):
        self.shapes.append(tuple(image.shape[2:]))
        return Features(image[:, :1], ())

    def decode(self, features, text, spatial=None):
        hit = (features.coarsest - text[:, 0].reshape(1, -1, 1, 1, 1)).abs() < 0.5
        sure = hit.flatten(2).any(dim=2) | (text[None, :, 0] == BRIGHTNESS[PUTAMEN])
        return Decoded((torch.where(hit, 10.0, -10.0),), torch.where(sure, 3.0, -3.0))


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("textseg_benchmark_of_presence", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


@pytest.fixture
def case():
    """A torso of 400 mm with a liver in its lower half and a spleen of a few voxels in the upper one."""
    labels = np.zeros((12, 10, 40), np.uint8)
    labels[2:8, 3:8, 4:12] = 1
    labels[9, 3:6, 30:32] = 2
    image = np.zeros(labels.shape, np.float16)
    image[labels == 1], image[labels == 2] = BRIGHTNESS[LIVER], BRIGHTNESS[SPLEEN]
    named = [(LIVER, (1,)), (SPLEEN, (2,)), (KIDNEY, (3,))]
    facts = CaseFacts("one", "torso", "torso", "validation", (10.0, 10.0, 10.0), "ct", named)
    return Case(facts, labels, (image,))


@pytest.fixture
def asked(benchmark, case, plan, lexicon, tmp_path):
    write_case(case, tmp_path)
    stub = Stub()
    ask = benchmark.Asker(stub, VECTORS, plan, COMPUTE)
    rows = list(benchmark.ask_case(ask, case.facts, tmp_path, [PUTAMEN], lexicon, 10))
    return rows, stub


def test_halves_are_asked_for_what_lies_in_the_other_one(asked):
    rows, _ = asked
    known = {(row.kind.partition(", ")[2], row.target): row.there for row in rows}
    assert known["whole", "liver+"]
    assert known["foot half", "liver+"]
    assert not known["head half", "liver+"]
    assert not known["whole", "left_kidney+"]
    # Six voxels are neither there nor absent; in the foot half there is none of them.
    assert ("whole", "spleen+") not in known
    assert ("head half", "spleen+") not in known
    assert not known["foot half", "spleen+"]


def test_answers_are_the_networks(asked):
    rows, _ = asked
    by_name = {(row.kind.partition(", ")[2], row.target): row for row in rows}
    assert by_name["whole", "liver+"].voxels == 6 * 5 * 8
    assert by_name["whole", "liver+"].presence > 0.9
    assert by_name["head half", "liver+"].presence < 0.1


def test_other_parts_of_the_body_are_looked_for_at_their_own_voxel_size(asked, plan):
    rows, stub = asked
    (row,) = [row for row in rows if row.target == "left_putamen+"]
    assert (row.there, row.voxels) == (False, 0)
    assert row.presence > 0.9
    # 10 mm voxels are asked at the brain's: many times as many windows.
    assert plan.spacing_for("brain")[0] < 10
    assert len(stub.shapes) > 4


def test_the_summary_weighs_presence_and_masks_together(benchmark, asked, plan):
    rows, _ = asked
    facts = benchmark.summary(rows, plan)
    assert facts["present"] + facts["absent"] == facts["prompts"] == len(rows)
    # The putamen is "present" without a mask: nothing is reported.
    assert facts["plan's threshold"]["false_positives"] == 0
    assert facts["balanced"]["smallest mask 4 voxels"]["false_positives"] == 0
    assert facts["balanced"]["smallest mask 4 voxels"]["missed"] == 0
    lines = [*benchmark.table(rows, plan, 0.5), *benchmark.worst(rows, 0.5)]
    assert lines[-2:] == ["found but absent: none", "missed but present: none"]


def test_distant_structures_are_those_of_groups_that_a_mixture_cannot_show(benchmark, case, lexicon):
    head = CaseFacts("two", "brain", "brain", "train", (2.0, 2.0, 2.0), None, [(PUTAMEN, (1,)), (C2, (2,))])
    far = benchmark.distant_targets([case.facts, head], lexicon, VECTORS)
    # The neck's spine may be in a head, and above a torso.
    assert far["torso"] == [PUTAMEN]
    assert far["brain"] == [KIDNEY, LIVER, SPLEEN]


def test_a_whole_body_is_asked_for_nothing_distant(benchmark, case, plan, lexicon, tmp_path):
    labels = case.labels.copy()
    labels[2:8, 3:8, 34:39] = 4
    facts = CaseFacts(
        "all", "torso", "torso", "validation", (10.0,) * 3, "ct", [(LIVER, (1,)), (BRAIN, (4,))]
    )
    write_case(Case(facts, labels, case.images), tmp_path)
    ask = benchmark.Asker(Stub(), VECTORS, plan, COMPUTE)
    rows = list(benchmark.ask_case(ask, facts, tmp_path, [PUTAMEN], lexicon, 10))
    assert {row.target for row in rows} == {"liver+", "brain+"}
