import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textseg.errors import PromptError
from textseg.prompts import Concept, default_lexicon, suggest, understand, variants
from textseg.prompts.understanding import edit_distance

LEXICON = default_lexicon()
SIDED = [concept for concept in LEXICON.concepts.values() if concept.side]


@pytest.mark.parametrize(
    "text",
    [
        "left kidney",
        "kidney, left",
        "Lt kidney",
        "ren sinister",
        "the patient's left kidney",
        "LEFT KIDNEY",
        "left kidneys",
        "left kidny",
        "leftkidney",
        "kidney (L)",
        "LK",
        "linke Niere",
        "please segment the left kidney on this CT",
    ],
)
def test_ways_to_write_the_left_kidney(text: str) -> None:
    prompt = understand(text)
    assert prompt.structure is LEXICON.concepts["left_kidney"]
    assert prompt.finding is None
    assert (prompt.canonical, prompt.side, prompt.group) == ("left kidney", "left", "torso")
    assert (prompt.text, prompt.known, prompt.snomed) == (text, True, "64033007")


@pytest.mark.parametrize("text", ["right kidney", "kidney right", "rt kidney", "ren dexter", "RK"])
def test_the_right_kidney_is_never_the_left(text: str) -> None:
    assert understand(text).structure is LEXICON.concepts["right_kidney"]


@pytest.mark.parametrize(
    "text", ["kidney", "kidneys", "both kidneys", "left and right kidneys", "L/R kidney"]
)
def test_a_kidney_without_a_side_is_the_pair(text: str) -> None:
    prompt = understand(text)
    assert prompt.structure is LEXICON.concepts["kidneys"]
    assert prompt.side is None


@pytest.mark.parametrize(
    ("text", "structure", "finding", "canonical"),
    [
        ("left kidney tumor", "left_kidney", "tumor", "left kidney tumor"),
        ("tumour of the left kidney", "left_kidney", "tumor", "left kidney tumor"),
        ("renal tumor on the left", "left_kidney", "tumor", "left kidney tumor"),
        ("a 3 cm mass in the lower pole of the left kidney", "left_kidney", "mass", "left kidney mass"),
        ("left renal cyst", "left_kidney", "cyst", "left kidney cyst"),
        ("kidney tumor", "kidneys", "tumor", "kidney tumor"),
        ("ovarian tumor", "ovaries", "tumor", "ovary tumor"),
        ("hepatic metastases", "liver", "metastasis", "liver metastasis"),
        ("gallstones", "gallbladder", "stone", "gallbladder stone"),
        ("RLL nodule", "right_lower_lobe_of_lung", "nodule", "right lower lobe of lung nodule"),
        ("fracture of the 7th rib on the left", "left_rib_7", "fracture", "left rib 7 fracture"),
        ("kidney stone in the left ureter", "left_ureter", "stone", "left ureter stone"),
        ("left pneumothorax", "left_pleural_cavity", "pneumothorax", "left pneumothorax"),
        ("right hydronephrosis", "right_kidney", "hydronephrosis", "right hydronephrosis"),
        (
            "herniated disc L4/5",
            "intervertebral_disc_l4_l5",
            "herniation",
            "intervertebral disc L4-L5 herniation",
        ),
        ("AAA", "abdominal_aorta", "aneurysm", "abdominal aorta aneurysm"),
        ("T1 hypointense liver lesion", "liver", "lesion", "liver lesion"),
        ("liver metastasis near the right kidney", "liver", "metastasis", "liver metastasis"),
    ],
)
def test_a_finding_has_its_place(text: str, structure: str, finding: str, canonical: str) -> None:
    prompt = understand(text)
    assert prompt.structure is LEXICON.concepts[structure]
    assert prompt.finding is LEXICON.concepts[finding]
    assert prompt.canonical == canonical
    again = understand(canonical)
    assert (again.structure, again.finding) == (prompt.structure, prompt.finding)


def test_a_finding_alone_has_its_own_group() -> None:
    prompt = understand("tumor on the left")
    assert (prompt.structure, prompt.side, prompt.canonical) == (None, "left", "left tumor")
    assert understand("soft tissue sarcoma").group == "sarcoma"
    assert understand("soft tissue sarcoma of the left thigh").group == "sarcoma"


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("left renal artery", "left_renal_artery"),
        ("head of the pancreas", "head_of_pancreas"),
        ("left lateral ventricle", "left_lateral_ventricle"),
        ("hippocampal head", "anterior_hippocampi"),
        ("right lung middle lobe", "right_middle_lobe_of_lung"),
        ("middle lobe", "right_middle_lobe_of_lung"),
        ("abdominal aorta", "abdominal_aorta"),
        ("collarbone", "clavicles"),
        ("tailbone", "coccyx"),
        ("right shin bone", "right_tibia"),
        ("windpipe", "trachea"),
        ("gut", "bowel"),
        ("segment IV of the liver", "hepatic_segment_4"),
        ("L5/S1 disc", "intervertebral_disc_l5_s1"),
        ("L 5 vertebra", "vertebra_l5"),
        ("head of the fibula", "fibulae"),
        ("body of the uterus", "uterus"),
        ("hippocampal body", "hippocampi"),
        ("disc L4/5", "intervertebral_disc_l4_l5"),
        ("Leber", "liver"),
        ("foie", "liver"),
        ("hígado", "liver"),
    ],
)
def test_the_longest_name_wins(text: str, structure: str) -> None:
    assert understand(text).structure is LEXICON.concepts[structure]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("livr", "liver"), ("spleeen", "spleen"), ("panceras", "pancreas"), ("gallblader", "gallbladder"),
     ("left kidny tumr", "left kidney tumor"), ("hipocampuss", "hippocampi"), ("oesophagous", "esophagus")],
)  # fmt: skip
def test_small_spelling_errors_are_forgiven(text: str, canonical: str) -> None:
    assert understand(text).canonical == canonical


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("occipital lobs", "occipital_lobes"),
        ("left great saphenous vin", "left_great_saphenous_vein"),
        ("nasal boe (left)", "left_nasal_bone"),
        ("verebral artery right", "right_vertebral_artery"),
        ("mamillary body on the left", "left_mammillary_body"),
        ("vean portae hepatis", "portal_vein"),
        ("external iliaac veins", "external_iliac_veins"),
        ("kidney tibe", "ureters"),
        ("sixht rib on the left", "left_rib_6"),
        # What makes no name with its neighbours is no slip.
        ("liver bed", "liver"),
        ("hip pain", "hip_bones"),
    ],
)
def test_a_slip_is_mended_into_the_word_that_makes_a_name(text: str, structure: str) -> None:
    assert understand(text).structure is LEXICON.concepts[structure]


@pytest.mark.parametrize("text", ["ileum", "ilium", "ureter", "urethra", "uterus", "peroneal", "radius"])
def test_a_word_that_is_right_is_not_corrected(text: str) -> None:
    prompt = understand(text)
    assert prompt.structure is None or text in prompt.structure.forms


@pytest.mark.parametrize(
    "text",
    [
        "something bright",
        "purple unicorn",
        "data structure",
        "increment of the value",
        "no clue",
    ],
)
def test_unknown_text_keeps_its_words(text: str) -> None:
    prompt = understand(text)
    assert (prompt.structure, prompt.finding, prompt.known, prompt.group) == (None, None, False, None)
    assert prompt.canonical == prompt.words
    assert prompt.words


@pytest.mark.parametrize("text", ["left right kidney", "left kidney and right lung", "LK on the right"])
def test_contradictory_sides_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match="one side"):
        understand(text)


@pytest.mark.parametrize(
    "text", ["rigth kidney", "lef kidney", "kidney, leftt", "rihgt renal cyst", "lef liver"]
)
def test_a_misspelt_side_is_asked_for_again(text: str) -> None:
    with pytest.raises(PromptError, match="did you mean"):
        understand(text)


def test_a_letter_before_a_name_may_be_a_side_and_is_not_dropped() -> None:
    assert understand("lkidney").structure is None
    assert understand("rkidney").structure is None


def test_a_side_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PromptError, match="right middle lobe of lung"):
        understand("left middle lobe")


def test_a_side_after_near_is_kept_if_nothing_else_is_named() -> None:
    assert understand("mass near the left kidney").canonical == "left kidney mass"
    assert understand("liver near the left kidney").canonical == "liver"


def test_two_structures_are_two_prompts() -> None:
    with pytest.raises(PromptError, match="'liver' and 'spleen'"):
        understand("liver and spleen")
    assert understand("stomach and duodenum").structure is LEXICON.concepts["stomach_and_duodenum"]


def test_a_side_is_kept_where_the_structure_has_none() -> None:
    prompt = understand("left liver")
    assert (prompt.structure, prompt.side) == (LEXICON.concepts["liver"], "left")
    assert prompt.canonical == "left liver"


def test_words_without_a_place_are_told() -> None:
    assert understand("mass in the lower pole of the left kidney").unused == ("lower", "pole")
    assert understand("left kidney").unused == ()


def test_negation_is_not_understood() -> None:
    assert understand("no liver lesion").finding is LEXICON.concepts["lesion"]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SIDED), st.data())
def test_every_variant_keeps_its_side(concept: Concept, data: st.DataObject) -> None:
    variant = data.draw(st.sampled_from(variants(concept)))
    dressed = data.draw(st.sampled_from(["{}", "the {}", "segment {} please", "3 cm cyst in the {}"]))
    prompt = understand(dressed.format(variant))
    assert prompt.side == concept.side
    assert prompt.structure is concept


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIDED), st.data())
def test_no_variant_means_the_mirror_image(concept: Concept, data: st.DataObject) -> None:
    other = LEXICON.mirrored(concept)
    if other is concept:
        return
    variant = data.draw(st.sampled_from(variants(concept)))
    assert understand(variant).structure is not other
    assert variant not in variants(other)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SIDED), st.data())
def test_one_slip_never_changes_the_side(concept: Concept, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(variants(concept)))
    at = data.draw(st.integers(0, len(name) - 1))
    before, letter, after = name[:at], name[at], name[at + 1 :]
    slips = [before + after, before + letter * 2 + after, before + after[:1] + letter + after[1:]]
    slipped = data.draw(st.sampled_from(slips))
    try:
        prompt = understand(slipped)
    except PromptError:
        return
    assert prompt.side in (concept.side, None)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        prompt = understand(text)
    except PromptError:
        return
    assert prompt.canonical


def test_suggestions_are_near_names() -> None:
    assert suggest("lft kidney")[0] == "left kidney"
    assert suggest("splene", n=1) == ["spleen"]
    assert suggest("qqqqqqqq") == []


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("livr", "liver", 1),
        ("liver", "liver", 0),
        ("lievr", "liver", 1),
        ("rigth", "right", 1),
        ("abc", "xyz", 2),
    ],
)
def test_edit_distance_counts_up_to_enough(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other, 1) == distance


def test_importing_is_light() -> None:
    code = "import sys, textseg.prompts; print('torch' in sys.modules, 'numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]
