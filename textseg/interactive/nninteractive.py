"""nnInteractive (Isensee et al. 2025) as the engine of a session, through its own package.

The package is Apache-2.0; its published weights are not part of textseg and are licensed CC BY-NC-SA 4.0, for
uses that are not commercial: whoever downloads them accepts that. Works with its versions 1.1 and 2.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from textseg.embeddings.extras import import_extra
from textseg.errors import ModelError, PromptError
from textseg.interactive.engine import Engine, Outcome, Progress, Turn
from textseg.interactive.kept import PackedMask
from textseg.interactive.marks import Mark, drawn, voxels_of
from textseg.network.spatial_prompts import Point, Region
from textseg.prompts import Prompt
from textseg.volume import Modality, Volume

WEIGHTS_LICENCE = "CC BY-NC-SA 4.0"


def load_nninteractive(folder: str | Path, device: str = "cuda") -> Any:
    """nnInteractive's own inference session with the weights of a trained model's folder.

    The package itself reads the checkpoint, and unpickles it: take folders from its authors only.

    Raises:
        ModelError: the package is missing, or the folder does not hold its weights.
    """
    package = import_extra(
        "nnInteractive.inference.inference_session", "nninteractive", "The engine nnInteractive"
    )
    if not Path(folder).is_dir():
        raise ModelError(
            f"nnInteractive needs the folder of its weights, but there is no {folder}. Download them from "
            f"its authors; they are licensed {WEIGHTS_LICENCE}, not for commercial use."
        )
    # Only what versions 1 and 2 both take; by default it would set the threads of the whole process.
    session = package.nnInteractiveInferenceSession(
        device=torch.device(device),
        use_torch_compile=False,
        verbose=False,
        torch_n_threads=torch.get_num_threads(),
        do_autozoom=True,
    )
    try:
        session.initialize_from_trained_model_folder(str(folder))
    except (OSError, KeyError, RuntimeError, ValueError, AssertionError, UnpicklingError) as error:
        raise ModelError(f"{folder} does not hold weights of nnInteractive: {error}.") from error
    return session


class NnInteractiveEngine:
    """Answers turns with nnInteractive.

    It refines its own mask from mark to mark. A turn that follows the last one costs one interaction; after
    an undo everything is told again from the start.

    Args:
        session: from `load_nninteractive`.
        text: what answers words, whose mask nnInteractive then refines; without it, words are refused.
    """

    name = "nnInteractive"

    def __init__(self, session: Any, text: Engine | None = None) -> None:
        self.session = session
        self.text = text
        self._told: tuple[Prompt | None, tuple[Mark, ...]] | None = None
        self._presence: float | None = None

    def set_scan(self, volume: Volume, modality: Modality) -> None:
        self._geometry = volume.geometry
        # Its own preprocessing wants the values as they are.
        self.session.set_image(np.ascontiguousarray(volume.voxels[:1], np.float32))
        self._target = torch.zeros(volume.geometry.shape, dtype=torch.uint8)
        self.session.set_target_buffer(self._target)
        self._told = None
        if self.text is not None:
            self.text.set_scan(volume, modality)

    def look(self, turn: Turn, progress: Progress) -> Outcome:
        for mark in turn.marks:
            self._check(mark)
        new = turn.marks
        if (
            self._told is not None
            and turn.newest is not None
            and self._told == (turn.prompt, turn.marks[:-1])
        ):
            new = turn.marks[-1:]
        else:
            self._begin(turn, progress)
        # Until all is told: after an error in between, the next turn begins anew.
        self._told = None
        for done, mark in enumerate(new, start=1):
            self._tell(mark)
            progress("asking nnInteractive", done, len(new))
        self._told = (turn.prompt, turn.marks)
        mask = PackedMask.pack(self._target.numpy() > 0)
        return Outcome(mask, self._presence, None, self._geometry.whole)

    def _begin(self, turn: Turn, progress: Progress) -> None:
        self.session.reset_interactions()
        self._target.zero_()
        self._presence = None
        if turn.prompt is None:
            return
        if self.text is None:
            raise PromptError("nnInteractive takes no words: give it a text engine, or draw a mark.")
        said = self.text.look(Turn(turn.prompt, (), None, None), progress)
        self._presence = said.presence
        mask = said.mask.unpack().astype(np.uint8)
        self._target.copy_(torch.from_numpy(mask))
        if mask.any():
            self.session.add_initial_seg_interaction(mask, run_prediction=False)

    def _check(self, mark: Mark) -> None:
        box = drawn(mark, self._geometry, self._geometry)
        if isinstance(box, Region) and min(b - a for a, b in zip(box.start, box.stop, strict=True)) > 1:
            raise PromptError(
                "nnInteractive takes boxes on one slice, got one in space. Draw it on one slice, or a lasso."
            )

    def _tell(self, mark: Mark) -> None:
        one = drawn(mark, self._geometry, self._geometry)
        shape = self._geometry.shape
        if isinstance(one, Point):
            place = tuple(int(value) for value in one.position)
            self.session.add_point_interaction(place, include_interaction=one.positive)
        elif isinstance(one, Region):
            ranges = zip(one.start, one.stop, shape, strict=True)
            box = [[max(0, a), min(b, n)] for a, b, n in ranges]
            self.session.add_bbox_interaction(box, include_interaction=one.positive)
        else:
            image = np.zeros(shape, np.uint8)
            image[tuple(voxels_of(one, shape).T)] = 1
            add = self.session.add_lasso_interaction
            if mark.kind == "scribble":
                add = self.session.add_scribble_interaction
            add(image, include_interaction=one.positive)
