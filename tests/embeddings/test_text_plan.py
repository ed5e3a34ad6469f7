from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from textseg.embeddings.text_plan import TextPlan

NUMBERS = {
    "vocabulary_size": 300,
    "width": 24,
    "layers": 2,
    "heads": 3,
    "hidden": 40,
    "longest_tokens": 12,
    "vector_width": 16,
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_number_must_be_given(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        TextPlan.model_validate({key: value for key, value in NUMBERS.items() if key != name})


@pytest.mark.parametrize("change", [{"heads": 5}, {"layers": 0}, {"longest_tokens": 1}, {"depth": 2}])
def test_numbers_that_make_no_tower_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        TextPlan.model_validate(NUMBERS | change)


def test_the_plan_loads_no_torch() -> None:
    lines = "import sys, textseg.embeddings.text_plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", lines]).returncode == 0
