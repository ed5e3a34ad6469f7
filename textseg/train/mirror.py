"""Left and right in a mirrored patch: what was the left kidney is now the right one, in label and words.

A target whose words have a side that can't be swapped has no name in a mirrored patch: chambers of the heart
and lobes of the liver are called left and right wherever they lie, and a lung's middle lobe is on the right
alone. There it is asked for as neither present nor absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from textseg.errors import PromptError
from textseg.prompts import Lexicon, clean, understand
from textseg.prompts.cleaning import side_of
from textseg.train.cases import CaseFacts, Target, Words

OTHER_SIDE = {"left": "right", "right": "left"}


class Mirror:
    """What targets are called in a mirrored patch.

    Args:
        targets: all that any case names.
        words: what a dataset calls some of them; with a side in them these words are swapped too.
    """

    def __init__(self, targets: Iterable[Target], lexicon: Lexicon, words: Words | None = None) -> None:
        self._lexicon = lexicon
        self._words = {target: tuple(texts) for target, texts in (words or {}).items()}
        self._own = {clean(texts[0]): target for target, texts in self._words.items() if target.own and texts}
        self.words: dict[Target, tuple[str, ...]] = {}
        """The words of targets that only mirrored patches show, such as a lump on the other side."""
        self.names: Mapping[Target, Target | None] = {target: self._name(target) for target in targets}

    def facts(self, facts: CaseFacts) -> CaseFacts:
        """What is known of a case once it is mirrored."""
        named = [(self.names[target], values) for target, values in facts.targets]
        return replace(facts, targets=[(target, values) for target, values in named if target is not None])

    def _name(self, target: Target) -> Target | None:
        if target.own:
            return self._own_name(target)
        concept = self._lexicon.concepts[target.structure] if target.structure else None
        if concept is None or concept.side is None:
            said = any(_has_side(text) for text in self._words.get(target, ()))
            return None if said else target
        other = self._lexicon.mirrored(concept)
        return None if other == concept else replace(target, structure=other.id)

    def _own_name(self, target: Target) -> Target | None:
        texts = self._words.get(target, (target.own or "",))
        if not any(_has_side(text) for text in texts):
            return target
        swapped = [self._swapped(text) for text in texts]
        if None in swapped:
            return None
        other = tuple(text for text in swapped if text is not None)
        if clean(other[0]) in self._own:
            return self._own[clean(other[0])]
        # A sentence's own name ends with the sentence.
        name = re.sub(re.escape(texts[0]) + "$", lambda end: other[0], target.own or "")
        image = Target(None, None, f"mirror image of {name}")
        self.words[image] = other
        return image

    def _swapped(self, text: str) -> str | None:
        """The text about the other side; None where there is no such thing."""
        swapped = " ".join(OTHER_SIDE.get(side_of(word) or "", word) for word in clean(text).split())
        try:
            before, after = understand(text, self._lexicon), understand(swapped, self._lexicon)
        except PromptError:
            return None
        place = before.structure
        if place is None or place.side is None:
            return swapped
        other = self._lexicon.mirrored(place)
        return swapped if other != place and other == after.structure else None


def _has_side(text: str) -> bool:
    return any(side_of(word) for word in clean(text).split())
