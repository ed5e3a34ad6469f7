"""What answers a step of a session: one small interface for our own network, SAM and nnInteractive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from textseg.geometry import Box
from textseg.interactive.kept import Field, PackedMask
from textseg.interactive.marks import Mark
from textseg.prompts import Prompt
from textseg.volume import Modality, Volume

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a step came to.

    mask: on the scan's own grid; presence: 0 to 1, how sure the words are that it is there, None without
    words; field: the logits that the next step starts from, of engines that keep such; changed: the box of
    the scan's grid outside of which the mask is as before, None where nothing changed.
    """

    mask: PackedMask
    presence: float | None = None
    field: Field | None = None
    changed: Box | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """What an engine is asked: everything said and marked so far, what is new, and the outcome before it.

    newest is None where the text is new: then `before` belongs to other words, and marks are all that counts.
    """

    prompt: Prompt | None
    marks: tuple[Mark, ...]
    newest: Mark | None
    before: Outcome | None


class Engine(Protocol):
    """Answers the steps of a session on one scan after another."""

    @property
    def name(self) -> str: ...

    def set_scan(self, volume: Volume, modality: Modality) -> None:
        """Every later turn is about this scan."""
        ...

    def look(self, turn: Turn, progress: Progress) -> Outcome:
        """The mask that this turn comes to.

        Raises:
            PromptError: the engine can't answer what is asked, in a sentence that says what it can.
        """
        ...
