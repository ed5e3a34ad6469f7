"""What a prompt that is being typed may become: what was said before, then the names of the lexicon."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 12


class History:
    """What was said in this window, and a place in it that goes up and down as in a shell."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._place = 0
        self._unsaid = ""

    def add(self, text: str) -> None:
        """The newest; said before, it moves to the end."""
        self._said = [*(one for one in self._said if one != text), text]
        self._place = len(self._said)

    @property
    def newest_first(self) -> list[str]:
        return self._said[::-1]

    def older(self, typed: str) -> str:
        """What was said before the current place; what was typed is kept for the way back."""
        if self._place == len(self._said):
            self._unsaid = typed
        self._place = max(0, self._place - 1)
        return self._said[self._place] if self._said else typed

    def newer(self, typed: str) -> str:
        """What was said after the current place, at the end what was typed."""
        if self._place >= len(self._said):
            return typed
        self._place += 1
        return self._said[self._place] if self._place < len(self._said) else self._unsaid


def completions(typed: str, history: Iterable[str], names: Iterable[str], most: int = MOST) -> list[str]:
    """What begins as typed, then what has a word that does: first of the history, then of the lexicon.

    Args:
        typed: so far; every word of it must be found, in any order ("kid left").
        history: newest first.
        names: of the lexicon, shorter ones come first.
    """
    words = typed.lower().split()
    if not words:
        return []
    told = [one for one in history if one.lower() != typed.lower()]
    found = [*_ranked(words, told), *_ranked(words, sorted(names, key=lambda name: (len(name), name)))]
    return list(dict.fromkeys(found))[:most]


def _ranked(words: list[str], candidates: Iterable[str]) -> list[str]:
    """Those that begin with the words as they stand, before those that have them somewhere."""
    matching = [one for one in candidates if _has(words, one.lower().split())]
    return sorted(matching, key=lambda one: not one.lower().startswith(" ".join(words)))


def _has(words: list[str], tokens: list[str]) -> bool:
    return all(any(token.startswith(word) for token in tokens) for word in words)
