"""Prompts in German, French and Spanish, and that English ones do not suffer from them."""

from __future__ import annotations

import pytest

from textseg.errors import PromptError
from textseg.prompts import Concept, default_lexicon, understand
from textseg.prompts.cleaning import token
from textseg.prompts.languages import LANGUAGES, bent, transcribed

LEXICON = default_lexicon()
# What a radiologist asks for most; every one of them has a name in each language.
MAIN_STRUCTURES = """
    liver spleen left_kidney right_adrenal_gland urinary_bladder gallbladder pancreas esophagus stomach
    duodenum small_bowel colon rectum cecum appendix prostate uterus left_ovary right_testis left_lung
    right_upper_lobe_of_lung left_lower_lobe_of_lung right_middle_lobe_of_lung trachea left_bronchus
    diaphragm heart heart_muscle left_heart_atrium right_heart_ventricle pericardium aorta aortic_arch
    abdominal_aorta inferior_vena_cava superior_vena_cava portal_vein right_pulmonary_artery
    left_renal_vein right_common_iliac_artery left_common_carotid_artery vertebral_column cervical_spine
    thoracic_spine lumbar_spine vertebra_c2 vertebra_t12 vertebra_l4 sacrum coccyx left_ribs right_rib_7
    sternum left_clavicle right_scapula left_hip_bone right_femur left_tibia right_fibula left_patella
    right_humerus left_radius right_ulna skull mandible left_maxilla left_parotid_gland
    right_submandibular_gland thyroid_gland larynx pharynx tongue left_eye right_optic_nerve left_orbit
    left_maxillary_sinus brain left_cerebral_white_matter right_cerebral_cortex left_hippocampus
    right_amygdala left_thalamus right_caudate_nucleus left_putamen right_lateral_ventricle
    third_ventricle brainstem cerebellum left_cerebellar_cortex spinal_cord spinal_canal pituitary_gland
    skin subcutaneous_fat lymph_node
""".split()  # noqa: SIM905


def understood(text: str) -> tuple[str | None, str | None]:
    prompt = understand(text)
    return prompt.structure and prompt.structure.id, prompt.finding and prompt.finding.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_main_structures_have_names_in_every_language(language: str) -> None:
    assert len(MAIN_STRUCTURES) >= 90
    nameless = [name for name in MAIN_STRUCTURES if not dict(LEXICON.concepts[name].translated)[language]]
    # English and Latin names that a language shares need not be written twice.
    assert set(nameless) <= {"left_putamen", "left_thalamus", "lymph_node"}


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("linke Niere", "left_kidney"),
        ("Niere links", "left_kidney"),
        ("die rechte Niere", "right_kidney"),
        ("li. Niere", "left_kidney"),
        ("re. Niere", "right_kidney"),
        ("beide Nieren", "kidneys"),
        ("bitte die linke Niere segmentieren", "left_kidney"),
        ("Speiseröhre", "esophagus"),
        ("Speiserohre", "esophagus"),
        ("Speiseroehre", "esophagus"),
        ("untere Hohlvene", "inferior_vena_cava"),
        ("V. cava inferior", "inferior_vena_cava"),
        ("M. psoas rechts", "right_psoas"),
        ("siebte Rippe rechts", "right_rib_7"),
        ("7. Rippe links", "left_rib_7"),
        ("LWK 3", "vertebra_l3"),
        ("rechter Oberlappen", "right_upper_lobe_of_lung"),
        ("rein gauche", "left_kidney"),
        ("rein à gauche", "left_kidney"),
        ("le rein droit", "right_kidney"),
        ("rein G", "left_kidney"),
        ("les deux reins", "kidneys"),
        ("segmenter la vessie s'il vous plaît", "urinary_bladder"),
        ("l'aorte", "aorta"),
        ("l’artère rénale gauche", "left_renal_artery"),
        ("la tête du pancréas", "head_of_pancreas"),
        ("œsophage", "esophagus"),
        ("oesophage", "esophagus"),
        ("7e côte gauche", "left_rib_7"),
        ("foie du côté gauche", "liver"),
        ("la rate", "spleen"),
        ("rate", "spleen"),
        ("main droite", "right_hand"),
        ("segment hépatique 7", "hepatic_segment_7"),
        ("arterias ilíacas comunes", "common_iliac_arteries"),
        ("ambas mamas", "breasts"),
        ("riñón izquierdo", "left_kidney"),
        ("rinon izquierdo", "left_kidney"),
        ("el riñón derecho", "right_kidney"),
        ("ambos riñones", "kidneys"),
        ("la aorta", "aorta"),
        ("la tibia izquierda", "left_tibia"),
        ("el radio izquierdo", "left_radius"),
        ("la séptima costilla izquierda", "left_rib_7"),
        ("7ª costilla derecha", "right_rib_7"),
        ("aurícula izquierda", "left_heart_atrium"),
        ("segmenta el hígado por favor", "liver"),
    ],
)
def test_structures(text: str, structure: str) -> None:
    assert understood(text) == (structure, None)


@pytest.mark.parametrize(
    ("text", "structure", "finding"),
    [
        ("Tumor der linken Niere", "left_kidney", "tumor"),
        ("3 cm große Raumforderung am unteren Pol der linken Niere", "left_kidney", "mass"),
        ("Nierenzyste rechts", "right_kidney", "cyst"),
        ("multiple Lebermetastasen", "liver", "metastasis"),
        ("Pleuraerguss links", "left_pleural_cavity", "effusion"),
        ("Thrombus in der unteren Hohlvene", "inferior_vena_cava", "thrombus"),
        ("Z. n. Nephrektomie links, Zyste in der rechten Niere", "right_kidney", "cyst"),
        ("tumeur du rein gauche", "left_kidney", "tumor"),
        ("kyste rénal droit", "right_kidney", "cyst"),
        ("métastases hépatiques", "liver", "metastasis"),
        ("nodule de 12 mm du lobe supérieur droit", "right_upper_lobe_of_lung", "nodule"),
        ("épanchement pleural droit", "right_pleural_cavity", "effusion"),
        ("quiste renal derecho", "right_kidney", "cyst"),
        ("nódulo pulmonar izquierdo", "left_lung", "nodule"),
        ("metástasis hepáticas", "liver", "metastasis"),
        ("fractura de la séptima costilla izquierda", "left_rib_7", "fracture"),
    ],
)
def test_findings_in_structures(text: str, structure: str, finding: str) -> None:
    assert understood(text) == (structure, finding)


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("heart rate", "heart"),
        ("growth rate", None),
        ("main bronchus", "bronchi"),
        ("main pulmonary artery", "pulmonary_arteries"),
        ("radio frequency", None),
        ("LA", "left_heart_atrium"),
        ("LA appendage", "left_atrial_appendage"),
        ("re: left kidney", "left_kidney"),
        ("D dimer", None),
        ("pie chart", None),
        ("left sacro-iliac joint", "left_sacroiliac_joint"),
    ],
)
def test_english_words_that_another_language_has_too_stay_english(text: str, structure: str | None) -> None:
    assert understood(text)[0] == structure


def test_la_is_an_article_before_a_structure_and_an_atrium_otherwise() -> None:
    assert understood("la aorta abdominal") == ("abdominal_aorta", None)
    assert understood("LA thrombus") == ("left_heart_atrium", "thrombus")


@pytest.mark.parametrize("text", ["Leber und Milz", "foie et rate", "hígado y bazo"])
def test_two_structures_are_two_prompts_in_every_language(text: str) -> None:
    with pytest.raises(PromptError, match="'liver' and 'spleen'"):
        understand(text)


@pytest.mark.parametrize(
    "text", ["linke und rechte Niere", "rein gauche et droit", "riñón izquierdo y derecho"]
)
def test_both_sides_are_the_pair(text: str) -> None:
    assert understood(text) == ("kidneys", None)


def test_both_sides_without_and_contradict_each_other() -> None:
    with pytest.raises(PromptError, match="one side"):
        understand("linke rechte Niere")


def test_no_translation_of_a_side_names_the_other() -> None:
    for concept in LEXICON.structures():
        if concept.side:
            assert not set(concept.translations) & set(_other(concept).translations), concept.id


def _other(concept: Concept) -> Concept:
    other = LEXICON.with_side(concept.base, "right" if concept.side == "left" else "left")
    return other or LEXICON.concepts["liver"]


def test_the_forms_of_an_adjective() -> None:
    assert bent("rénal", "fr") == ("rénal", "rénale", "rénaux", "rénales")
    assert bent("cérébelleux", "fr") == ("cérébelleux", "cérébelleuse", "cérébelleuses")
    assert bent("thyroïdien", "fr") == ("thyroïdien", "thyroïdienne", "thyroïdiens", "thyroïdiennes")
    assert bent("óseo", "es") == ("óseo", "ósea", "óseos", "óseas")
    assert "pulmonalen" in bent("pulmonal", "de")


def test_a_german_name_without_umlauts() -> None:
    assert transcribed("Großhirn, Körper, Drüse, Ösophagus") == "Grosshirn, Koerper, Druese, Oesophagus"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("untere", "unteren"),
        ("innere", "inneres"),
        ("supérieure", "supérieurs"),
        ("7e", "siebte"),
        ("séptima", "7"),
    ],
)
def test_bent_words_and_numbers_compare_equal(one: str, other: str) -> None:
    assert token(one) == token(other)
