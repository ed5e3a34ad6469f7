from __future__ import annotations

import json

import pytest

from textseg.prompts import Lexicon


@pytest.fixture(scope="session")
def small_lexicon(tmp_path_factory: pytest.TempPathFactory) -> Lexicon:
    """Two structures, one of them with sides, and two findings."""
    records = {
        "structures": {
            "torso": [
                {"name": "kidney", "sided": True, "synonyms": ["ren"], "adjectives": ["renal"]},
                {"name": "liver", "synonyms": ["hepar"], "adjectives": ["hepatic"]},
            ]
        },
        "findings": {"torso": [{"name": "tumor", "synonyms": ["neoplasm"]}, {"name": "cyst"}]},
    }
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.json"
    path.write_text(json.dumps(records))
    return Lexicon.load(path)
