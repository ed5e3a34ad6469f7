import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from textseg.prompts import LexiconError, clean, default_lexicon, understand, variants
from textseg.prompts.lexicon import GROUPS, Lexicon

LEXICON = default_lexicon()


def test_there_are_enough_concepts_of_both_kinds() -> None:
    assert len(LEXICON.concepts) >= 450
    assert len(LEXICON.structures()) > 300
    assert len(LEXICON.findings()) > 60
    assert all(LEXICON.concepts_in(group) for group in GROUPS)


def test_the_canonical_words_are_those_that_networks_were_trained_on() -> None:
    # Their text vectors are part of every model: other words may be added, these must not change.
    words = "\n".join(f"{concept.id}={concept.name}" for concept in LEXICON.concepts.values())
    lines = "\n".join(sorted(words.split("\n")))
    assert hashlib.sha256(lines.encode()).hexdigest().startswith("5d7c3b1f302d2d09")


def test_a_sided_record_gives_two_sides_and_the_pair() -> None:
    left, right, pair = (LEXICON.concepts[name] for name in ("left_kidney", "right_kidney", "kidneys"))
    assert (left.side, right.side, pair.side) == ("left", "right", None)
    assert left.base == right.base == pair.base == "kidney"
    assert pair.parts == ("left_kidney", "right_kidney")
    assert "kidneys" in left.parents
    assert (left.latin, right.latin, pair.latin) == ("ren sinister", "ren dexter", "ren")
    assert left.snomed == "64033007"


def test_families_are_written_out() -> None:
    assert all(f"{side}_rib_{n}" in LEXICON.concepts for side in ("left", "right") for n in range(1, 13))
    assert all(
        f"vertebra_{level}" in LEXICON.concepts for level in ("c1", "c7", "t1", "t12", "l1", "l5", "s1")
    )
    assert LEXICON.concepts["left_ribs"].parts == tuple(f"left_rib_{n}" for n in range(1, 13))


def test_a_whole_has_the_parts_that_its_side_has() -> None:
    concepts = LEXICON.concepts
    assert concepts["left_lung"].parts == ("left_upper_lobe_of_lung", "left_lower_lobe_of_lung")
    assert "right_middle_lobe_of_lung" in concepts["right_lung"].parts
    assert "left_ribs" in concepts["left_rib_3"].parents


def test_parts_and_parents_stay_on_their_side() -> None:
    for concept in LEXICON.structures():
        for link in concept.parts + concept.parents:
            linked = LEXICON.concepts[link]
            if concept.side and linked.side and LEXICON.mirrored(linked) != linked:
                assert linked.side == concept.side, (concept.id, link)


def test_every_code_is_known_to_pydicom_under_a_fitting_name() -> None:
    concepts_dict = pytest.importorskip("pydicom.sr._concepts_dict")
    known = {code for codes in concepts_dict.concepts["SCT"].values() for code in codes}
    coded = [concept for concept in LEXICON.concepts.values() if concept.snomed]
    assert len({concept.snomed for concept in coded}) > 300
    assert [concept.id for concept in coded if concept.snomed not in known] == []
    from pydicom.sr.codedict import codes

    assert LEXICON.concepts["left_kidney"].snomed == codes.SCT.Kidney.value
    assert LEXICON.concepts["liver"].snomed == codes.SCT.Liver.value
    assert LEXICON.concepts["tumor"].snomed == codes.SCT.Neoplasm.value


def test_no_code_is_shared_by_two_structures() -> None:
    bases: dict[str, set[str]] = {}
    for concept in LEXICON.concepts.values():
        if concept.snomed:
            bases.setdefault(concept.snomed, set()).add(concept.base)
    assert {code: names for code, names in bases.items() if len(names) > 1} == {}


def test_find_needs_all_words_in_any_order() -> None:
    left = LEXICON.concepts["left_kidney"]
    assert LEXICON.find("kidney left") is left
    assert LEXICON.find("kidney") is LEXICON.concepts["kidneys"]
    assert LEXICON.find("left kidney tumor") is None
    assert LEXICON.find("left liver") is None
    assert LEXICON.find("left middle lobe of lung") is None


def test_mirrored_swaps_sides_where_there_is_a_mirror_image() -> None:
    concepts = LEXICON.concepts
    assert LEXICON.mirrored(concepts["left_kidney"]) is concepts["right_kidney"]
    assert LEXICON.mirrored(concepts["right_kidney"]) is concepts["left_kidney"]
    for name in ("liver", "kidneys", "right_middle_lobe_of_lung", "left_heart_ventricle"):
        assert LEXICON.mirrored(concepts[name]) is concepts[name]


def test_mirrored_twice_is_the_same() -> None:
    assert all(LEXICON.mirrored(LEXICON.mirrored(each)) is each for each in LEXICON.concepts.values())


def test_every_variant_of_every_concept_is_understood_as_it() -> None:
    wrong = []
    for concept in LEXICON.concepts.values():
        for variant in variants(concept):
            prompt = understand(variant)
            understood = prompt.finding if concept.kind == "finding" else prompt.structure
            if understood is not concept:
                wrong.append((variant, concept.id, understood and understood.id))
    assert wrong == []


def test_variants_hold_the_word_orders_of_a_sided_structure() -> None:
    written = variants(LEXICON.concepts["left_kidney"])
    expected = {"left kidney", "kidney, left", "kidney left", "lt kidney", "l kidney", "kidney (left)"}
    assert expected | {"ren sinister", "LK", "linke Niere", "rein gauche", "riñón izquierdo"} <= set(written)
    assert "upper lobe of the left lung" in variants(LEXICON.concepts["left_upper_lobe_of_lung"])
    assert "oesophagus" in variants(LEXICON.concepts["esophagus"])


def _written(path: Path, *records: dict[str, Any], shorthand: dict[str, str] | None = None) -> Path:
    content = {"shorthand": shorthand or {}, "structures": {"torso": list(records)}, "findings": {}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_name_that_two_concepts_claim_is_refused(tmp_path: Path) -> None:
    file = _written(
        tmp_path / "l.json", {"name": "kidney", "sided": True}, {"name": "organ", "synonyms": ["kidneys"]}
    )
    with pytest.raises(LexiconError, match=r"'kidneys' is claimed by 'kidney' and 'organ'"):
        Lexicon.load(file)


def test_a_record_written_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LexiconError, match="twice"):
        Lexicon.load(_written(tmp_path / "l.json", {"name": "liver"}, {"name": "liver"}))


def test_an_abbreviation_with_two_meanings_is_refused(tmp_path: Path) -> None:
    kidney = {"name": "kidney", "sided": True, "sided_abbreviations": {"left": "LK"}}
    knee = {"name": "knee", "sided": True, "sided_abbreviations": {"left": "LK"}}
    with pytest.raises(LexiconError, match="'LK'"):
        Lexicon.load(_written(tmp_path / "l.json", kidney, knee))


@pytest.mark.parametrize("field", ["parents", "parts"])
def test_an_unknown_parent_or_part_is_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(LexiconError, match="thorax"):
        Lexicon.load(_written(tmp_path / "l.json", {"name": "liver", field: ["thorax"]}))


def test_an_unknown_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"structures": {"trunk": [{"name": "liver"}]}, "findings": {}}')
    with pytest.raises(LexiconError, match="trunk"):
        Lexicon.load(tmp_path / "l.json")


def test_the_lexicon_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        LEXICON.concepts["spare_kidney"] = LEXICON.concepts["left_kidney"]  # type: ignore[index]


def test_it_is_read_once() -> None:
    assert default_lexicon() is default_lexicon()


def _label_names(folder: Path) -> set[str]:
    names: set[str] = set()

    def collect(content: Any) -> None:
        if isinstance(content, dict):
            names.update(content.get("labels", {}))
            for value in content.values():
                collect(value)

    for file in [*folder.glob("*/dataset.json"), *folder.glob("labelmaps/*/names.json")]:
        collect(json.loads(file.read_text(encoding="utf-8")))
    return names - {"background"}


def test_every_label_of_the_training_sets_resolves() -> None:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    names = _label_names(folder)
    if not names:
        pytest.skip("the training sets are not beside this checkout")
    assert len(names) > 400
    prompts = {name: understand(name) for name in names}
    assert [name for name, prompt in prompts.items() if not prompt.known] == []
    assert [name for name, prompt in prompts.items() if prompt.unused and not name.startswith("body (")] == []
    left = {name for name in names if "left" in name.split()}
    assert all(prompts[name].side == ("left" if name in left else prompts[name].side) for name in names)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("vertebra L1", "vertebrae L1"),
        ("vertebra L1", "L1"),
        ("oesophagus", "esophagus"),
        ("left upper lobe of lung", "lung upper lobe left"),
        ("left lower lobe of lung", "lung lower lobe left"),
        ("left kidney", "kidney left"),
        ("brain-stem", "brainstem"),
        ("csf", "cerebrospinal fluid"),
        ("left ventral dc", "left ventral diencephalon"),
        ("left parotid", "left parotid gland"),
        ("left submandibular", "left submandibular gland"),
        ("rib left 7", "left rib 7"),
        ("autochthon left", "left autochthonous back muscle"),
        ("autochthon left", "left deep back muscle"),
        ("celiac trunk", "coeliac trunk"),
        ("iliac vena left", "left iliac vein"),
        ("hip left", "left hip bone"),
        ("left iliopsoas muscle", "iliopsoas left"),
        ("portal vein and splenic vein", "portal and splenic vein"),
        ("3rd ventricle", "third ventricle"),
        ("left lens", "left lens of eye"),
        ("costal cartilages", "costal cartilage"),
    ],
)
def test_names_of_different_sets_meet(one: str, other: str) -> None:
    found = LEXICON.find(clean(one))
    assert found is not None
    assert found is LEXICON.find(clean(other))


@pytest.mark.parametrize(
    ("union", "parts"),
    [
        ("colon and small intestine", {"colon", "small_bowel"}),
        ("stomach and duodenum", {"stomach", "duodenum"}),
        ("ascending colon and caecum", {"ascending_colon", "cecum"}),
        ("portal vein and superior mesenteric vein", {"portal_vein", "superior_mesenteric_vein"}),
        ("hip bones", {"left_hip_bone", "right_hip_bone"}),
        ("rib 6 (both sides)", {"left_rib_6", "right_rib_6"}),
    ],
)
def test_unions_are_concepts_with_parts(union: str, parts: set[str]) -> None:
    found = LEXICON.find(clean(union))
    assert found is not None
    assert set(found.parts) == parts
