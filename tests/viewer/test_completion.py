"""What the prompt line offers."""

from __future__ import annotations

from textseg.prompts import default_lexicon
from textseg.viewer.completion import MOST, History, completions

NAMES = ("left kidney", "kidneys", "right kidney", "left kidney tumor", "liver", "spleen")


def test_what_was_said_comes_before_the_lexicon():
    assert completions("le", ["left lung"], NAMES)[:2] == ["left lung", "left kidney"]


def test_beginnings_come_before_words_in_the_middle():
    assert completions("kid", [], NAMES) == ["kidneys", "left kidney", "right kidney", "left kidney tumor"]


def test_words_may_come_in_any_order():
    assert completions("kidney left", [], NAMES) == ["left kidney", "left kidney tumor"]


def test_nothing_typed_offers_nothing():
    assert completions("  ", ["liver"], NAMES) == []


def test_the_lexicon_offers_a_handful():
    found = completions("left k", [], default_lexicon().names())
    assert "left kidney" in found
    assert len(found) <= MOST


def test_history_goes_up_and_down_and_back_to_what_was_typed():
    history = History()
    assert history.older("typed") == "typed"
    for text in ("liver", "spleen", "liver"):
        history.add(text)
    assert history.newest_first == ["liver", "spleen"]
    assert [history.older("typed"), history.older("x"), history.older("x")] == ["liver", "spleen", "spleen"]
    assert [history.newer("x"), history.newer("x"), history.newer("x")] == ["liver", "typed", "x"]
