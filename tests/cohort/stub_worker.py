"""A worker process without torch: reads and writes as the real one does, but a threshold is its network.

What a scan is called makes it misbehave: "slow" leaves a file slow.began beside the cohort's folder and never
ends, "crash" kills the process, "heavy" finds no memory for several prompts at once, "hopeless" finds none at
all, "full" finds the disk full while there is a file full.flag beside the cohort's folder.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.cohort.folders import MEASURES_FILE, RESULT_FILE, shown_files, whole_folder, write_json
from textseg.cohort.task import Task
from textseg.cohort.worker import Say, Worker, main
from textseg.scan import write_mask
from textseg.volume import Volume

Answer = tuple[Volume, Sequence[NDArray[np.bool_]]]
# Long enough that a random moment hits every stage.
NAP_S = float(os.environ.get("STUB_NAP_S", "0.02"))


def segment(channels: list[Volume], task: Task, say: Say) -> Answer:
    """Masks (prompts, x, y, z) above a threshold of its own for each prompt."""
    say("segmenting")
    _misbehave(task)
    time.sleep(NAP_S)
    volume = channels[0]
    return volume, [volume.voxels[0] > 10 * len(prompt) for prompt in task.prompts]


def write(answer: Answer, task: Task) -> None:
    volume, masks = answer
    with whole_folder(task) as folder:
        for number, mask in enumerate(masks):
            write_mask(folder / f"mask_{number}.nii.gz", mask, volume)
            time.sleep(NAP_S / 4)
        if "full" in task.id and (Path(task.out).parent / "full.flag").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(folder / MEASURES_FILE, [{"voxels": int(mask.sum())} for mask in masks])
        files = sorted(path.name for path in folder.iterdir())
        cohort: dict[str, Any] = {"key": task.key, "files": files, "prompts_at_once": task.prompts_at_once}
        write_json(folder / RESULT_FILE, {"scan": {"files": shown_files(task)}, "cohort": cohort})


def _misbehave(task: Task) -> None:
    if "slow" in task.id:
        (Path(task.out).parent / "slow.began").touch()
        time.sleep(600)
    if "crash" in task.id:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hopeless" in task.id or ("heavy" in task.id and task.prompts_at_once is None):
        raise MemoryError


if __name__ == "__main__":
    main(Worker(segment, write))
