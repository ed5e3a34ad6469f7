"""Words in pictures: foreign letters, and text that is cut to its room."""

from __future__ import annotations

import pytest

from textseg import lettering
from textseg.lettering import drawable, font_for, shortened


def test_foreign_letters_are_drawn_or_made_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_system_font", lambda: None)
    assert drawable("Großhirn, Hälfte") == "Gro?hirn, Halfte"
    monkeypatch.setattr(lettering, "_system_font", lambda: "DejaVuSans.ttf")
    assert drawable("Großhirn") == "Großhirn"


def test_a_text_is_cut_to_its_room_and_no_further() -> None:
    font = font_for(20)
    text = "the descending branch of the left coronary artery"
    width = font.getlength("the descending branch ...")
    assert shortened(text, font, font.getlength(text)) == text
    assert shortened(text, font, width) == "the descending branch ..."
    assert font.getlength(shortened(text, font, 100)) <= 100
