"""The states that a session goes through: each is frozen, so undo and redo give the very same one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from textseg.geometry import Geometry
from textseg.interactive.engine import Outcome
from textseg.interactive.kept import PackedMask
from textseg.interactive.marks import Mark
from textseg.prompts import Prompt
from textseg.result import MaskFacts, describe_mask

Event = Literal["begin", "say", "mark", "reset", "accept", "remove"]


@dataclass(frozen=True, eq=False)
class SessionObject:
    """Something that was accepted: its name, what it was made from, and its mask on the scan's grid."""

    name: str
    text: str | None
    marks: tuple[Mark, ...]
    presence: float | None
    packed: PackedMask
    geometry: Geometry

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(x, y, z) on the scan's own grid."""
        return self.packed.unpack()

    @property
    def volume_ml(self) -> float:
        return self.packed.count() * self.geometry.voxel_volume_mm3 / 1000

    @property
    def facts(self) -> MaskFacts:
        """Volume, centroid and box in the world."""
        return describe_mask(self.mask, self.geometry)


@dataclass(frozen=True, eq=False)
class Draft:
    """What is being worked on: words, marks in the order in which they came, and what they came to."""

    prompt: Prompt | None = None
    marks: tuple[Mark, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, eq=False)
class State:
    """A session after one event."""

    event: Event = "begin"
    draft: Draft = field(default_factory=Draft)
    objects: tuple[SessionObject, ...] = ()
